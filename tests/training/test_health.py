import jax
import numpy as np
import pytest
from flax import traverse_util

from mcn_jax.config import Config, ModelConfig
from mcn_jax.layers.dense import DENSE
from mcn_jax.layers.mcconv import MCCONV
from mcn_jax.models.plan import plan_of
from mcn_jax.training.health import network_health
from mcn_jax.training.state import TrainState, new_progress
from small_runs import planned


def layer(latent_filters, m_filters):
    return {
        "latent_filters": np.asarray(latent_filters, np.float32).reshape(1, 1, -1, 1),
        "m_filters": np.asarray(m_filters, np.float32).reshape(1, 1, -1),
    }


STATE, PLAIN = {"centers": "centers"}, {"plane_signs": ""}


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
    plan = (
        planned("stem", MCCONV, STATE, PLAIN, **before["stem"]),
        planned("block/conv_1", MCCONV, STATE, PLAIN, **before["block"]["conv_1"]),
        planned("dense", DENSE, **before["dense"]),
    )
    state = TrainState(0, before, {}, {}, None, None)
    filters_before = new_progress(state, plan, 0.0).filters_before
    assert jax.tree.map(id, filters_before) == {  # only layers whose filters are compared
        "stem": {"latent_filters": id(before["stem"]["latent_filters"])},
        "block": {"conv_1": {"latent_filters": id(before["block"]["conv_1"]["latent_filters"])}},
    }
    by_layer, together = network_health(filters_before, after, {"centers": centers}, plan)
    # stem: C = 1, 2, 2, -1 against C-hat = 2, 2, 2, -2 times 0.5 and 1.5, a quarter of the bits
    # flipped. Squared errors 0 + 1 + 1 + 0 and 4 + 1 + 1 + 4 over planes, mean 6; norm 10.
    # With one tap and no pattern, the kernels of its two planes are proportional. M is 0.5 and 1.5,
    # with the variance 0.25 and the mean 1.
    # conv_1: C-hat = 1, 1, -2, -1 both times; squared errors 0.25 + 4, norm 14.25. Its maps have
    # one plane, which cannot differ from others.
    expected = {
        "stem/flip_ratio": 0.25,
        "stem/quantization_error": np.sqrt(6 / 10),
        "stem/share_0": 0.25,
        "stem/share_1": 0.75,
        "stem/m_min": 0.5,
        "stem/m_max": 1.5,
        "stem/plane_correlation": 1.0,
        "stem/effective_planes": 1.0,
        "stem/m_spread": 0.5,
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


def test_planes_are_measured_with_the_binary_filters_and_the_pattern():
    # One map of two planes at two taps. The nearest centers are 2, -1 and -1, 2.
    latent = np.array([[3, -1], [-0.5, 1]], np.float32).reshape(1, 2, 2, 1)
    m_filters = np.array([[1, 2], [1, 1]], np.float32).reshape(1, 2, 2)
    params = {"conv": {"latent_filters": latent, "m_filters": m_filters}}
    collections = {"centers": {"conv": {"centers": np.array([-1, 2], np.float32)}}}
    # Kernel 0 is 2, -1, -1, 2. Kernel 1 is 4, -2, -1, 2 and with signs 4, 2, -1, -2. Its second
    # plane changes sign: 8 + 2 + 1 + 4 = 15 becomes 8 - 2 + 1 - 4 = 3.
    for plane_signs, product in (("", 15), ("hadamard", 3)):
        settings = {"plane_signs": plane_signs}
        plan = (planned("conv", MCCONV, STATE, settings, **params["conv"]),)
        measures, together = network_health(params, params, collections, plan)
        cosine = product / np.sqrt(10 * 25)
        assert measures["conv/plane_correlation"] == pytest.approx(cosine, rel=1e-5)
        effective = 4 / (2 + 2 * cosine**2)
        assert measures["conv/effective_planes"] == pytest.approx(effective, rel=1e-5)
        # The variances of M over the planes are 0.25 and 0, and the mean of M is 1.25.
        assert measures["conv/m_spread"] == pytest.approx(np.sqrt(0.125) / 1.25)
        assert set(together) == {"flip_ratio", "quantization_error"}


def test_layers_come_in_the_order_of_the_network():
    """Alphabetical order would differ: "stem" would be last, and "10" before "2"."""
    model = ModelConfig(
        name="wide_resnet", depth=64, widths=(1, 1, 1, 1), planes=2, dense_features=4
    )
    plan = plan_of(Config(model=model), 10, (16, 16, 1))
    names = [layer.name for layer in plan if layer.family is MCCONV]
    blocks = [f"stage_{stage}_block_{block}" for stage in (1, 2, 3) for block in range(1, 11)]
    in_order = list(dict.fromkeys(name.split("/")[0] for name in names))
    assert in_order == ["stem", *blocks]
    params = traverse_util.unflatten_dict(
        {
            (*layer.path, *leaf.split("/")): np.ones(shape, np.float32)
            for layer in plan
            for leaf, shape in layer.params.items()
        }
    )
    centers = traverse_util.unflatten_dict(
        {(*name.split("/"), "centers"): np.array([0, 1], np.float32) for name in names}
    )
    by_layer, _ = network_health(params, params, {"centers": centers}, plan)
    assert list(dict.fromkeys(name.rpartition("/")[0] for name in by_layer)) == names
