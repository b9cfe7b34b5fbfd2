"""Tests the residual network of LBCNN: its counts, its order of layers, and its checks."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcn_jax.config import Config, DataConfig, ModelConfig
from mcn_jax.errors import InputError
from mcn_jax.models import make_model
from mcn_jax.models.plan import plan_of
from mcn_jax.ops import lbc
from mcn_jax.training import checks


def lbcnn(**fields):
    defaults = {
        "name": "lbcnn", "conv": "lbc", "stem_conv": "conv", "planes": 1, "widths": (16,),
        "depth": 75, "lbc_ratio": 32.0, "dense_features": 128,
    }  # fmt: skip
    return Config(model=ModelConfig(**defaults | fields))


def count(plan):
    return sum(int(np.prod(shape)) for layer in plan for shape in layer.params.values())


@pytest.mark.parametrize(
    ("channels", "fields", "floats", "anchors"),
    [
        (1, {}, 693_338 - 16, 5_529_600),
        (3, {"depth": 40, "dense_features": 512, "lbc_density": 0.9}, 630_634 - 16, 2_949_120),
        (
            3,
            {"depth": 50, "widths": (384,), "lbc_ratio": 704 / 384, "dense_features": 512},
            20_669_450 - 384,
            121_651_200,
        ),
    ],
)
def test_the_printed_networks_have_these_sizes(channels, fields, floats, anchors):
    """The printed counts include a bias of the first convolution, which ours does not have."""
    plan = plan_of(lbcnn(**fields), 10, (32, 32, channels))
    assert count(plan) == floats
    if not fields:  # stem, its batch norm; modules of V, bias and batch norm; two dense layers
        modules, dense = 75 * (512 * 16 + 16 + 32), 576 * 128 + 128 + 128 * 10 + 10
        assert floats == 9 * 16 + 32 + modules + dense
    held = [layer.state_shapes["anchors"] for layer in plan if "anchors" in layer.state]
    assert len(held) == fields.get("depth", 75)
    assert sum(map(np.prod, held)) == anchors


def test_a_module_adds_to_its_input_without_a_relu_before_the_anchors():
    config = lbcnn(depth=1, lbc_ratio=2.0, dense_features=8)
    network = make_model(config, 10, quantized=False)
    images = jax.random.normal(jax.random.key(0), (2, 11, 10, 1))
    variables = network.init(jax.random.key(1), images)
    outputs, seen = network.apply(variables, images, capture_intermediates=True)
    inside = {k: v["__call__"][-1] for k, v in seen["intermediates"].items() if isinstance(v, dict)}
    before, normed = inside["batch_norm_stem"], inside["batch_norm_1"]
    assert float(jnp.min(before)) == 0.0
    np.testing.assert_allclose(outputs.features, before + inside["conv_1"], rtol=1e-6)
    anchors = np.asarray(variables["anchors"]["conv_1"]["anchors"], np.float32)
    scaled = jnp.asarray(anchors) * lbc.response_scales(jnp.asarray(anchors))
    p = variables["params"]["conv_1"]
    expected = lbc.local_binary_convolution(normed, scaled, p["kernel"], p["bias"])
    np.testing.assert_allclose(inside["conv_1"], expected, rtol=1e-5, atol=1e-6)
    # Two windows of five rows, and two of five columns.
    assert variables["params"]["dense_1"]["kernel"].shape == (2 * 2 * 16, 8)


def test_dropout_applies_before_both_dense_layers():
    config = lbcnn(depth=1, lbc_ratio=1.0, dense_features=64, dropout_rate=0.5)
    network = make_model(config, 10, quantized=False)
    images = jax.random.normal(jax.random.key(0), (2, 10, 10, 1))
    variables = network.init(jax.random.key(1), images)
    keys = jax.random.split(jax.random.key(2), 2)

    def inputs_of(name, **options):
        found = {}

        def note(call, arguments, keywords, context):
            if context.module.name == name:
                found["x"] = arguments[0]
            return call(*arguments, **keywords)

        with nn.intercept_methods(note):
            network.apply(variables, images, mutable=["batch_stats"], **options)
        return np.asarray(found["x"])

    for name in ("dense_1", "dense_2"):
        dropped = np.mean(inputs_of(name, train=True, dropout_keys=keys) == 0)
        assert dropped > np.mean(inputs_of(name) == 0) + 0.15, name


def test_bad_values_are_refused_in_one_line():
    with pytest.raises(InputError, match=r"widths=\(16, 32\) must be the single width of an lbcnn"):
        checks.validate(lbcnn(widths=(16, 32)))
    with pytest.raises(InputError, match="depth=0 must be at least 1 module"):
        checks.validate(lbcnn(depth=0))
    config = dataclasses.replace(lbcnn(), data=DataConfig(image_size=32))
    checks.validate(config)
    with pytest.raises(InputError, match="images of 4x8 pixels are too small for an lbcnn"):
        checks.validate_for_data(config, (4, 8, 1), None)
