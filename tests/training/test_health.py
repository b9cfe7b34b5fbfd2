import numpy as np
import pytest

from mcn_jax.layers import modulated_layers
from mcn_jax.training.health import filter_health, latent_filters_of


def layer(latent_filters, m_filters):
    return {
        "latent_filters": np.asarray(latent_filters, np.float32).reshape(1, 1, -1, 1),
        "m_filters": np.asarray(m_filters, np.float32).reshape(1, 1, -1),
    }


def test_measures_worked_by_hand():
    before = {
        "stem": layer([-1, 1, 3, -3], [1, 1]),
        "block": {"conv_1": layer([0.5, 0.4, -2, -1], [1])},
        "dense": {"kernel": np.ones((2, 2))},
    }
    after = {
        "stem": layer([1, 2, 2, -1], [0.5, 1.5]),
        "block": {"conv_1": layer([0.5, 3, -2, -1], [1])},
        "dense": {"kernel": np.zeros((2, 2))},
    }
    centers = {
        "stem": {"centers": np.array([-2.0, 2.0], np.float32)},
        "block": {"conv_1": {"centers": np.array([-2.0, -1.0, 1.0], np.float32)}},
    }
    by_layer, together = filter_health(latent_filters_of(before), after, centers)
    # stem: C = 1, 2, 2, -1 against C-hat = 2, 2, 2, -2 times 0.5 and 1.5, a quarter of the bits
    # flipped. Squared errors 0 + 1 + 1 + 0 and 4 + 1 + 1 + 4 over planes, mean 6; norm 10.
    # conv_1: C-hat = 1, 1, -2, -1 both times; squared errors 0.25 + 4, norm 14.25.
    expected = {
        "stem/flip_ratio": 0.25,
        "stem/quantization_error": np.sqrt(6 / 10),
        "stem/share_0": 0.25,
        "stem/share_1": 0.75,
        "stem/m_min": 0.5,
        "stem/m_max": 1.5,
        "block/conv_1/flip_ratio": 0.0,
        "block/conv_1/quantization_error": np.sqrt(4.25 / 14.25),
        "block/conv_1/share_0": 0.25,
        "block/conv_1/share_1": 0.25,
        "block/conv_1/share_2": 0.5,
        "block/conv_1/m_min": 1.0,
        "block/conv_1/m_max": 1.0,
    }
    assert list(by_layer) == list(expected)
    for name, value in expected.items():
        assert by_layer[name] == pytest.approx(value, rel=1e-6), name
    assert together == pytest.approx(
        {"flip_ratio": 1 / 8, "quantization_error": np.sqrt(10.25 / 24.25)}
    )


def test_layers_come_in_the_order_of_the_network():
    one = layer([1.0], [1.0])
    names = ["stage_1_block_10", "stage_2_block_1", "stage_1_block_2", "stem"]
    params = {name: {"conv_1": one} if name != "stem" else one for name in names}
    assert [path[0] for path in modulated_layers(params)] == [
        "stem", "stage_1_block_2", "stage_1_block_10", "stage_2_block_1",
    ]  # fmt: skip
