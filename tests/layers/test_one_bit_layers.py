"""Tests the families of one-bit convolutions: their filters, files, options and counts."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mcn_jax.config import BinarizeConfig, Config, ModelConfig, OptimizerConfig
from mcn_jax.errors import InputError
from mcn_jax.layers.family import PlannedLayer
from mcn_jax.layers.one_bit import FAMILIES
from mcn_jax.models.plan import filter_bits, plan_of, plan_of_module, specs
from mcn_jax.ops import one_bit
from mcn_jax.ops.convolution import convolve
from mcn_jax.training import checks, optim
from small_runs import planned

RULES = sorted(FAMILIES)


def network_config(rule, planes=2, widths=(4, 4, 8, 16), head="linear"):
    model = ModelConfig(
        name="wide_resnet", conv=rule, widths=widths, depth=20, planes=planes, head=head
    )
    return Config(model=model, binarize=BinarizeConfig(start_epoch=0))


def layer_of(rule, seed=0, **attributes):
    """Returns a layer of 6 filters: module, planned layer, p, s, and an input [2, 7, 8, 5]."""

    def make(**others):
        return FAMILIES[rule].module(out_maps=3, planes=2, **attributes, **others)

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return make(name="layer")(x)

    module = make()
    x = jax.random.normal(jax.random.key(seed), (2, 7, 8, 5))
    params = module.init(jax.random.key(seed + 1), x)["params"]
    (planned,) = plan_of_module(Network(), (7, 8, 5))
    s = {"progress": jnp.asarray(0.75)} if rule in one_bit.STANDARDIZED else {}
    return module, planned, params, s, x


@pytest.mark.parametrize("rule", RULES)
def test_it_convolves_with_the_filters_of_its_rule(rule):
    module, _, p, s, x = layer_of(rule, strides=2)
    collections = {"progress": s} if s else {}
    output = module.apply({"params": p, **collections}, x)
    kernel = one_bit.RULES[rule](p["latent_kernel"], **s)
    np.testing.assert_allclose(output, convolve(x, kernel, (2, 2), "SAME"), rtol=1e-6)
    latent = module.clone(binarized=False).apply({"params": p, **collections}, x)
    expected = convolve(x, p["latent_kernel"], (2, 2), "SAME")
    np.testing.assert_allclose(latent, expected, rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_a_file_holds_exactly_the_filters(rule):
    _, layer, p, s, _ = layer_of(rule)
    family = layer.family
    stored = family.pack(p, s, True)
    held = family.spec(layer, network_config(rule), True, {})
    assert {n: (str(t.dtype), t.shape) for n, t in stored.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in held.items()
    }
    kernel = family.unpack({n: jnp.asarray(t) for n, t in stored.items()}, layer)["kernel"]
    np.testing.assert_array_equal(kernel, one_bit.RULES[rule](p["latent_kernel"], **s))
    family.check_values(stored, layer)


@pytest.mark.parametrize(
    ("rule", "scale_bits"),
    [
        ("binaryconnect", 32), ("mcdonnell", 32), ("dorefa", 32), ("bwn", 32 * 6),
        ("bwn_exact", 32 * 6), ("irnet", 8 * 6), ("recu", 8 * 6),
    ],
)  # fmt: skip
def test_a_layer_stores_its_bits_and_scales(rule, scale_bits):
    _, layer, *_ = layer_of(rule)
    tensors = layer.family.spec(layer, network_config(rule), True, {}).values()
    assert [(t.part, t.bits) for t in tensors] == [
        ("filters", 9 * 5 * 6), ("scales", scale_bits),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "taps", "in_shape", "part", "form"),
    [
        ("dense_1", (1, 1), (1, 1, 5), "dense layers", "dense"),
        ("dense_1", (1, 1), (2, 1, 5), "filters", "direct"),
        ("dense_1", (3, 3), (1, 1, 5), "filters", "direct"),
        ("stage_4_block_1/conv_3", (1, 1), (1, 1, 5), "filters", "direct"),
    ],
)
@pytest.mark.parametrize("quantized", [True, False])
def test_a_dense_layer_is_a_1x1_convolution_of_a_single_pixel(
    name, taps, in_shape, part, form, quantized
):
    layer = PlannedLayer(
        name=name, family=FAMILIES["bwn"], params={"latent_kernel": (*taps, 5, 7)}, state={},
        in_shape=in_shape, out_shape=(*in_shape[:2], 7),
    )  # fmt: skip
    weights = taps[0] * taps[1] * 5 * 7
    first, *scales = layer.family.spec(layer, network_config("bwn"), quantized, {}).values()
    assert (first.part, first.weights) == (part, weights)
    assert first.bits == weights * (1 if quantized else 32)
    assert [(t.part, t.bits) for t in scales] == ([("scales", 32 * 7)] if quantized else [])
    assert layer.family.multiply_adds(layer) == {form: weights * in_shape[0]}


def test_a_step_of_a_dense_layer_of_binaryconnect_by_hand():
    """y = x @ (H sign(w)), the gradient of w is that of the signs, and w stays in [-H, H]."""
    scale = 0.5  # sqrt(1.5 / (2 + 4))
    module = FAMILIES["binaryconnect"].module(out_maps=4, kernel_size=1)
    latent = jnp.array([[0.3, -0.4, 0.0, 0.5], [-0.1, 0.2, -0.5, -0.2]])
    params = {"latent_kernel": latent[None, None]}
    x = jnp.array([[1.0, 2.0], [-3.0, 0.5]])

    def output(params):
        return module.apply({"params": params}, x.reshape(2, 1, 1, 2)).reshape(2, 4)

    signs = np.array([[1, -1, 1, 1], [-1, 1, -1, -1]])
    np.testing.assert_allclose(output(params), scale * np.asarray(x) @ signs, rtol=1e-6)
    weights = np.array([[1.0, 0.0, 2.0, -1.0], [0.0, 1.0, 0.0, 0.5]])
    gradient = jax.grad(lambda params: jnp.sum(output(params) * weights))(params)
    by_hand = np.array([[1, -3, 2, -2.5], [2, 0.5, 4, -1.75]])  # x.T @ weights
    np.testing.assert_allclose(gradient["latent_kernel"][0, 0], by_hand, rtol=1e-6)
    config = OptimizerConfig(learning_rate=0.1, momentum=0.0, weight_decay=0.0, schedule="constant")
    plan = (planned("dense", FAMILIES["binaryconnect"], **params),)
    optimizer = optim.make_optimizer(config, 10, 1, plan)
    tree = {"dense": params}
    updates, _ = optimizer.update({"dense": gradient}, optimizer.init(tree), tree)
    moved = optax.apply_updates(tree, updates)["dense"]["latent_kernel"][0, 0]
    expected = [[0.2, -0.1, -0.2, 0.5], [-0.3, 0.15, -0.5, -0.025]]  # 0.75 and -0.9 are clipped
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_a_negative_scale_is_refused():
    _, layer, p, s, _ = layer_of("bwn")
    stored = layer.family.pack(p, s, True)
    stored["scales"][2] *= -1
    with pytest.raises(InputError, match="its tensor layer/scales has negative values"):
        layer.family.check_values(stored, layer)


@pytest.mark.parametrize(
    ("widths", "planes", "bits"),
    [
        # 9 * (stem + stage 1 + stage 2 + stage 3), in channels.
        ((4, 4, 8, 16), 2, 9 * (3 * 8 + 6 * 8 * 8 + 8 * 16 + 5 * 16 * 16 + 16 * 32 + 5 * 32 * 32)),
        ((8, 8, 16, 32), 2, 267_696),
        ((16, 16, 32, 64), 2, 1_069_920),
        ((32, 32, 64, 128), 2, 4_277_952),
        ((80, 80, 160, 320), 2, 26_730_720),
        ((4, 4, 8, 16), 4, 267_696),
        ((8, 8, 16, 32), 4, 1_069_920),
        ((16, 16, 32, 64), 4, 4_277_952),
    ],
)
def test_a_network_of_20_layers_has_these_bits(widths, planes, bits):
    config = network_config("mcdonnell", planes, widths)
    plan = plan_of(config, 10, (32, 32, 3))
    assert filter_bits(plan, config, True) == (bits, 32 * bits)
    if widths == (4, 4, 8, 16) and planes == 2:
        assert bits == 67_032
        mcn = network_config("mcconv", 4, widths)
        assert filter_bits(plan_of(mcn, 10, (32, 32, 3)), mcn, True)[0] == 67_248


def test_multiply_adds_of_the_network_of_equal_bits():
    plan = plan_of(network_config("mcdonnell"), 10, (32, 32, 3))
    total = sum(layer.family.multiply_adds(layer).get("direct", 0) for layer in plan)
    # Stem and stage 1 at 32x32 pixels, stage 2 at 16x16, stage 3 at 8x8.
    assert total == 9 * (
        1024 * (3 * 8 + 6 * 8 * 8) + 256 * (8 * 16 + 5 * 16 * 16) + 64 * (16 * 32 + 5 * 32 * 32)
    )


def test_irnet_stores_eight_bits_per_filter():
    config = network_config("irnet")
    tensors = specs(plan_of(config, 10, (32, 32, 3)), config, True)
    exponents = [t.bits for name, t in tensors.items() if name.endswith("/exponents")]
    # Filters: the stem has 8, each of 6 layers of a stage 8, 16 or 32.
    assert sum(exponents) == 8 * (8 + 6 * 8 + 6 * 16 + 6 * 32)


@pytest.mark.parametrize("rule", RULES)
def test_latent_filters_stay_where_the_rule_clips_them(rule):
    _, layer, p, _, _ = layer_of(rule)
    config = OptimizerConfig(learning_rate=3.0, schedule="constant", momentum=0.0)
    optimizer = optim.make_optimizer(config, 1, 1, (layer,))
    params = {"layer": p}
    gradients = jax.tree.map(lambda w: jnp.cos(jnp.arange(w.size)).reshape(w.shape), params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    moved = (params["layer"]["latent_kernel"] + updates["layer"]["latent_kernel"]).ravel()
    largest = float(jnp.abs(moved).max())
    if rule == "binaryconnect":
        assert largest == pytest.approx((1.5 / (9 * (5 + 6))) ** 0.5, rel=1e-5)
    elif rule in ("bwn_exact", "bwn_paper", "bwn_released"):
        assert largest == pytest.approx(1, rel=1e-5)
    else:
        assert largest > 1.05


@pytest.mark.parametrize(("latent", "expected"), [(-1.0, 5e-4), (0.0, 0.0), (0.01, 0.01)])
def test_latent_filters_may_have_their_own_decay(latent, expected):
    _, layer, p, _, _ = layer_of("mcdonnell")
    config = OptimizerConfig(
        learning_rate=1.0, schedule="constant", momentum=0.0, latent_weight_decay=latent
    )
    optimizer = optim.make_optimizer(config, 1, 1, (layer,))
    params = {"layer": p}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    decayed = updates["layer"]["latent_kernel"]
    np.testing.assert_allclose(decayed, -expected * p["latent_kernel"], rtol=1e-5)


def test_bad_options_are_refused_in_one_line():
    config = network_config("irnet")
    binarize = dataclasses.replace(config.binarize, estimator="edge")
    message = r"config.binarize.estimator='edge' must be one of identity, ede, reste"
    with pytest.raises(InputError, match=message):
        checks.validate(dataclasses.replace(config, binarize=binarize))
    optimizer = OptimizerConfig(latent_weight_decay=-0.5)
    message = r"latent_weight_decay=-0.5 must not be negative, except that -1 takes"
    with pytest.raises(InputError, match=message):
        checks.validate(dataclasses.replace(config, optimizer=optimizer))


def test_a_layer_that_a_rule_leaves_nothing_of_is_refused():
    config = network_config("bwn_released")
    checks.validate_for_data(config, (32, 32, 3), None)
    with pytest.raises(InputError, match="leaves nothing of the single channel of stem; set"):
        checks.validate_for_data(config, (32, 32, 1), None)
    stem = dataclasses.replace(config.model, stem_conv="conv")
    checks.validate_for_data(dataclasses.replace(config, model=stem), (32, 32, 1), None)


def test_health_counts_flipped_signs():
    _, layer, p, s, _ = layer_of("irnet")
    before = {
        "latent_kernel": p["latent_kernel"]
        * jnp.where(jnp.arange(6) < 3, 1, -1).reshape(1, 1, 1, 6)
    }
    health = layer.family.health(before, p, s, layer)
    signs = np.asarray(one_bit.irnet(p["latent_kernel"])) >= 0
    assert health["flip_ratio"].value == pytest.approx(0.5, abs=0.01)
    assert health["share_1"] == pytest.approx(np.mean(signs))
    assert health["share_0"] + health["share_1"] == pytest.approx(1)
