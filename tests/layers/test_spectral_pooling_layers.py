"""Tests the layers of spectral pooling and DiffStride: parameters, files, counts and pictures."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcn_jax.config import Config, ModelConfig
from mcn_jax.errors import InputError
from mcn_jax.layers.family import View
from mcn_jax.layers.spectral_pooling import DIFFSTRIDE, SPECTRAL, STRIDES, DiffStride, SpectralPool
from mcn_jax.layers.table import family_of_kind
from mcn_jax.models.plan import plan_of, plan_of_module
from mcn_jax.ops import diffstride
from mcn_jax.ops.spectral import spectral_pool


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def layer_of(module, size=32, channels=4):
    network = nn.Sequential([module, nn.Dense(1)])
    return plan_of_module(network, (size, size, channels))[0]


def view_of(layer, strides):
    return View(layer, {"strides": np.asarray(strides, np.float32)}, None)


def test_spectral_pooling_has_no_parameters_and_the_fixed_size():
    x = images(2, 10, 10, 3)
    pooled, variables = SpectralPool(stride=3, gain="unit").init_with_output(jax.random.key(0), x)
    assert not variables
    np.testing.assert_array_equal(pooled, spectral_pool(x, (2, 3), gain="unit"))


@pytest.mark.parametrize(("shares", "shape"), [(False, (2,)), (True, (1,))])
def test_strides_start_at_the_configured_one(shares, shape):
    module = DiffStride(stride=2, shares_stride=shares)
    pooled, variables = module.init_with_output(jax.random.key(0), images(2, 32, 32, 3))
    np.testing.assert_array_equal(variables["params"]["strides"], np.full(shape, 2))
    assert pooled.shape == (2, 24, 24, 3)


def test_a_shared_stride_starts_with_the_size_that_training_finds():
    # 1 is lifted to the larger of 32 / 28 and 12 / 8. So 2 * ceil(4 + 32 / 3) = 30 rows remain.
    module = DiffStride(stride=1, shares_stride=True)
    pooled, variables = module.init_with_output(jax.random.key(0), images(1, 32, 12, 2))
    assert pooled.shape == (1, 30, 12, 2)
    network = nn.Sequential([module, nn.Dense(1)])
    layer = plan_of_module(network, (32, 12, 2))[0]
    strides = np.asarray(variables["params"]["strides"])
    assert DIFFSTRIDE.pooled_size(strides, (32, 12), layer) == (30, 12)


@pytest.mark.parametrize("reading", diffstride.READINGS)
@pytest.mark.parametrize("gain", ["authors", "unit"])
def test_it_pools_as_the_operation_does(reading, gain):
    x, strides = images(2, 32, 20, 3), jnp.array([2.3, 1.0])
    module = DiffStride(stride=3, gain=gain, reading=reading, smoothness=3.0)
    effective = diffstride.effective_strides(strides, (32, 20), 3.0)
    assert float(effective[1]) == pytest.approx(20 / 17)  # lifted
    size = diffstride.pool_size(np.asarray(effective), (32, 20), 3.0, reading)
    expected = diffstride.diffstride_pool(
        x, effective, size=size, smoothness=3.0, reading=reading, gain=gain
    )
    found = module.clone(size=size).apply({"params": {"strides": strides}}, x)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("reading", diffstride.READINGS)
def test_the_deployed_layer_equals_the_trained_one(reading):
    x, strides = images(2, 18, 18, 3), jnp.array([1.4, 2.2])
    module = DiffStride(stride=2, reading=reading, smoothness=3.0, gain="unit")
    effective = diffstride.effective_strides(strides, (18, 18), 3.0)
    module = module.clone(size=diffstride.pool_size(np.asarray(effective), (18, 18), 3.0, reading))
    layer = layer_of(module, 18, 3)
    stored = DIFFSTRIDE.pack({"strides": strides}, {}, False)
    unpacked = DIFFSTRIDE.unpack({"strides": jnp.asarray(stored["strides"])}, layer)
    expected = module.apply({"params": {"strides": strides}}, x)
    found = module.clone(deployed=True).apply({"params": unpacked}, x)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        # Over x, then over y, with two pairs of matrices: 2 * 24 * 32 * (32 + 24) per channel.
        (DiffStride(stride=2), 4 * 86_016),
        (DiffStride(stride=2, reading="paper"), 4 * 24 * 32 * (32 + 23)),
        (SpectralPool(stride=2), 4 * 2 * 16 * 32 * (32 + 16)),
        (SpectralPool(stride=1), 0),
    ],
)
def test_multiply_adds(module, expected):
    layer = layer_of(module)
    assert layer.family.multiply_adds(layer) == {"direct": expected}


def test_a_file_holds_the_strides_in_float32():
    layer = layer_of(DiffStride(stride=2))
    [tensor] = DIFFSTRIDE.spec(layer, Config(), True, {}).values()
    assert (tensor.dtype, tensor.shape, tensor.bits, tensor.part) == (
        "float32",
        (2,),
        64,
        "strides",
    )
    assert SPECTRAL.spec(layer_of(SpectralPool(stride=2)), Config(), True, {}) == {}


@pytest.mark.parametrize("value", [0.99, -2.0, float("nan")])
def test_a_file_with_strides_below_one_is_refused(value):
    layer = dataclasses.replace(layer_of(DiffStride(stride=2)), name="pooling_2")
    stored = {"strides": np.array([2, value], np.float32)}
    with pytest.raises(InputError, match=r"pooling_2/strides has the values 2\.0, "):
        DIFFSTRIDE.check_values(stored, layer)
    DIFFSTRIDE.check_values({"strides": np.array([1, 9], np.float32)}, layer)


def test_what_an_inspection_shows():
    layer = layer_of(DiffStride(stride=2))
    facts = DIFFSTRIDE.facts(view_of(layer, [2.5, 1.25]))
    assert facts == {"strides": [2.5, 1.25], "in_size": [32, 32], "out_size": [24, 24]}
    cells = {name: cell(facts) for name, cell in DIFFSTRIDE.columns.items()}
    assert cells == {"pixels": ("32x32 to 24x24", 576), "strides": ("2.50 1.25", 3.125)}
    assert family_of_kind("spectral pooling") is SPECTRAL
    assert family_of_kind("DiffStride") is DIFFSTRIDE


def test_the_picture_is_the_mask_of_the_spectrum():
    layer = layer_of(DiffStride(stride=2, reading="paper"))
    pictures = DIFFSTRIDE.pictures(view_of(layer, [4.0, 2.0]))
    mask = pictures.filters["mask"][:, :, 0, 0]
    assert mask.shape == (32, 17)
    # Rows by frequency from -16: 1 up to a distance of 32 / (2 * 4) = 4, then 3/4, 1/2, 1/4, 0.
    rows = mask[:, 0]
    np.testing.assert_allclose(rows[16:26], [1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(rows[1:16], rows[:16:-1])
    # Columns: 1 up to 32 / (2 * 2) + 1 = 9.
    np.testing.assert_allclose(mask[16, 8:14], [1, 1, 0.75, 0.5, 0.25, 0], atol=1e-6)


def test_strides_do_not_decay_and_stay_at_least_one():
    assert (STRIDES.decay, STRIDES.limit) == (None, "stride_limit")
    np.testing.assert_array_equal(STRIDES.projection(jnp.array([0.3, 1.5])), [1, 1.5])


@pytest.mark.parametrize("pooling", ["spectral", "diffstride"])
def test_they_are_layers_of_a_plan_that_is_listed_once(pooling):
    model = ModelConfig(
        name="resnet", conv="conv", planes=1, widths=(2, 2, 3), blocks=(1, 1), pooling=pooling,
        head="linear",
    )  # fmt: skip
    plan = plan_of(Config(model=model), 10, (32, 32, 3))
    names = [layer.name for layer in plan if layer.family in (SPECTRAL, DIFFSTRIDE)]
    # Both branches of a block share a layer. A stride of 1 that is not learned needs none.
    assert names == ["pooling_1", "pooling_2"][pooling == "spectral" :]
