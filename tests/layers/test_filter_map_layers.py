"""Tests the layer families with filter maps: initial values, files, counts and training."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcn_jax.config import BinarizeConfig, Config, ModelConfig, OptimizerConfig
from mcn_jax.data.batches import Batch
from mcn_jax.errors import InputError
from mcn_jax.layers.family import View
from mcn_jax.layers.filter_map import (
    FAMILIES,
    FilterMapConv,
    FilterMapKMeansConv,
    FilterMapSignConv,
)
from mcn_jax.layers.filter_map_file import geometry_of
from mcn_jax.models.plan import filter_bits, plan_of, plan_of_module, specs
from mcn_jax.ops.binarize import kmeans_centers, nearest_center
from mcn_jax.ops.convolution import convolve
from mcn_jax.ops.filter_map import Geometry, cut_filters, occurrences
from mcn_jax.training import checks, optim
from mcn_jax.training.steps import train_step
from small_runs import digits_config, random_split, step_arguments

KINDS = sorted(FAMILIES)
QUANTIZED = [kind for kind in KINDS if FAMILIES[kind].quantizes]


def network_config(kind="filter_map", widths=(16, 32), **fields):
    model = ModelConfig(conv=kind, planes=1, widths=widths, head="linear", **fields)
    return Config(model=model, binarize=BinarizeConfig(start_epoch=0))


class Network(nn.Module):
    """A network of one layer."""

    module: type[FilterMapConv] = FilterMapConv
    attributes: tuple = ()

    @nn.compact
    def __call__(self, x):
        return self.module(name="layer", **dict(self.attributes))(x)


def layer_of(kind, channels=8, size=(7, 8), **attributes):
    """Returns the network of a layer, its plan, p, s and an input; by default 16 filters."""
    attributes = {"out_maps": 8, "planes": 2, "strides": 2} | attributes
    network = Network(FAMILIES[kind].module, tuple(attributes.items()))
    x = jax.random.normal(jax.random.key(0), (2, *size, channels))
    variables = network.init(jax.random.key(1), x)
    (planned,) = plan_of_module(network, (*size, channels))
    return network, planned, variables["params"]["layer"], planned.state_in(variables), x


def used_map(kind, p, s):
    """Returns the map that a layer convolves with, written out."""
    latent = np.asarray(p["filter_map"])
    if kind == "filter_map_sign":
        return np.where(latent >= 0, 1, -1) * np.mean(np.abs(latent))
    if kind == "filter_map_kmeans":
        return np.asarray(nearest_center(p["filter_map"], s["centers"]))
    return latent


def variables_of(p, s):
    return {"params": {"layer": p}, **({"centers": {"layer": s}} if s else {})}


@pytest.mark.parametrize("kind", KINDS)
def test_it_convolves_with_filters_cut_out_of_its_map(kind):
    network, layer, p, s, x = layer_of(kind)
    assert p["filter_map"].shape == (8, 4, 8)
    geometry = Geometry((4, 2, 2), (3, 3), 8)
    assert geometry_of(layer) == geometry
    kernel = cut_filters(jnp.asarray(used_map(kind, p, s), jnp.float32), geometry)
    output = network.apply(variables_of(p, s), x)
    np.testing.assert_allclose(output, convolve(x, kernel, (2, 2), "SAME"), rtol=1e-5, atol=1e-6)
    if FAMILIES[kind].quantizes:
        latent, *_ = layer_of(kind, binarized=False)
        kernel = cut_filters(p["filter_map"], geometry)
        expected = convolve(x, kernel, (2, 2), "SAME")
        found = latent.apply(variables_of(p, s), x)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_the_gradient_passes_the_quantizer_unchanged(kind):
    """It is the mean of the gradients of the filters, whatever the latent map is."""
    network, layer, p, s, x = layer_of(kind)
    weights = jnp.cos(jnp.arange(2 * 4 * 4 * 16.0)).reshape(2, 4, 4, 16)

    def loss(p):
        return jnp.sum(weights * network.apply(variables_of(p, s), x))

    found = jax.grad(loss)(p)["filter_map"]
    geometry = geometry_of(layer)

    def of_filters(filter_map):
        return jnp.sum(weights * convolve(x, cut_filters(filter_map, geometry), (2, 2), "SAME"))

    total = jax.grad(of_filters)(jnp.asarray(used_map(kind, p, s), jnp.float32))
    np.testing.assert_allclose(found, total / occurrences(geometry), rtol=1e-4, atol=1e-4)


def test_initial_values_have_the_variance_of_the_filters():
    """He's variance by the fan-in of a filter, 2 / (9 * 64), and not by that of the map."""
    _, _, p, _, _ = layer_of("filter_map", channels=64, out_maps=128, planes=1)
    assert p["filter_map"].shape == (16, 8, 64)
    assert float(jnp.var(p["filter_map"])) == pytest.approx(2 / (9 * 64), rel=0.1)
    assert float(jnp.mean(p["filter_map"])) == pytest.approx(0, abs=0.003)


@pytest.mark.parametrize(
    ("channels", "outputs", "stride", "shape"),
    [
        (3, 64, 1, (16, 16, 3)), (64, 64, 1, (8, 8, 64)), (64, 128, 2, (16, 8, 64)),
        (128, 128, 1, (16, 8, 128)), (128, 256, 2, (16, 16, 128)), (256, 256, 1, (16, 16, 256)),
        (256, 512, 2, (16, 16, 256)), (512, 512, 1, (16, 16, 512)), (128, 32, 1, (8, 8, 128)),
    ],
)  # fmt: skip
def test_sizes_of_the_layers_of_the_paper(channels, outputs, stride, shape):
    network = Network(FilterMapConv, (("out_maps", outputs), ("strides", stride)))
    (layer,) = plan_of_module(network, (8, 8, channels))
    assert layer.params == {"filter_map": shape}
    pixels = (8 // stride) ** 2
    adds = layer.family.multiply_adds(layer)
    assert adds["direct"] == pixels * 9 * channels * outputs
    products = {1: 1, 2: 1 / 2, 4: 5 / 16, 8: 11 / 64}[geometry_of(layer).samples[2]]
    assert adds["factored"] == products * adds["direct"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantized", [False, True])
def test_a_file_holds_the_map_and_gives_the_filters(kind, quantized):
    _, layer, p, s, _ = layer_of(kind)
    family = layer.family
    stored = family.pack(p, s, quantized)
    held = family.spec(layer, network_config(kind), quantized, {})
    assert {n: (str(t.dtype), t.shape) for n, t in stored.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in held.items()
    }
    weights = 8 * 4 * 8
    has_bits = quantized and family.quantizes
    assert [(t.part, t.bits, t.weights) for t in held.values()] == (
        [("filters", weights, weights), ("centers", 64, 0)]
        if has_bits
        else [("filters", 32 * weights, weights)]
    )
    family.check_values(stored, layer)
    kernel = family.unpack({n: jnp.asarray(t) for n, t in stored.items()}, layer)["kernel"]
    used = used_map(kind, p, s) if has_bits else np.asarray(p["filter_map"])
    expected = cut_filters(jnp.asarray(used, jnp.float32), geometry_of(layer))
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)


def test_a_sign_is_that_of_the_smallest_number():
    """The nearest of the two centers would not tell, because its distances are rounded."""
    network, layer, p, s, x = layer_of("filter_map_sign", size=(3, 3), strides=1)
    latent = np.asarray(p["filter_map"]).copy()
    latent[0, 0, :4] = -1e-30, 1e-30, 0.0, -0.0
    p = {"filter_map": jnp.asarray(latent)}
    stored = layer.family.pack(p, s, True)
    bits = np.unpackbits(stored["bits"][0], bitorder="little")[:4]
    np.testing.assert_array_equal(bits, [0, 1, 1, 1])
    kernel = layer.family.unpack({n: jnp.asarray(t) for n, t in stored.items()}, layer)["kernel"]
    np.testing.assert_allclose(
        network.apply(variables_of(p, s), x), convolve(x, kernel, (1, 1), "SAME"),
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip


def test_wrong_centers_are_refused():
    _, layer, p, s, _ = layer_of("filter_map_kmeans", num_centers=3)
    stored = layer.family.pack(p, s, True)
    assert stored["bits"].shape == (2, 32)
    reversed_ = stored | {"centers": stored["centers"][::-1]}
    with pytest.raises(InputError, match="its tensor layer/centers is not in ascending order"):
        layer.family.check_values(reversed_, layer)
    too_high = stored | {"bits": np.full_like(stored["bits"], 255)}
    with pytest.raises(InputError, match="its tensor layer/bits has codes without a center"):
        layer.family.check_values(too_high, layer)


def test_centers_are_those_of_the_map_and_are_refreshed():
    _, layer, p, s, _ = layer_of("filter_map_kmeans", num_centers=3)
    np.testing.assert_array_equal(s["centers"], kmeans_centers(p["filter_map"], 3))
    moved = {"filter_map": 2 * p["filter_map"]}
    refreshed = layer.family.refresh(moved, s, BinarizeConfig())["centers"]
    np.testing.assert_allclose(refreshed, 2 * s["centers"], rtol=1e-5)
    _, layer, p, s, _ = layer_of("filter_map_kmeans", num_centers=2)
    a = np.abs(p["filter_map"]).mean()
    refreshed = layer.family.refresh(p, s, BinarizeConfig(centers="symmetric"))["centers"]
    np.testing.assert_allclose(refreshed, [-a, a], rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_counts_its_maps(kind):
    config = network_config(kind)
    plan = plan_of(config, 10, (32, 32, 3))
    # 16 filters of 3 channels are (4, 4, 1), and 32 of 16 channels (4, 4, 2).
    weights = 8 * 8 * 3 + 8 * 8 * 16
    quantized = FAMILIES[kind].quantizes
    bits = weights if quantized else 32 * weights
    assert filter_bits(plan, config, quantized) == (bits, 32 * weights)
    assert sum(t.bits for t in specs(plan, config, quantized).values() if t.part == "centers") == (
        2 * 64 if quantized else 0
    )


@pytest.mark.parametrize("gradient", ["mean", "sum"])
def test_the_config_chooses_the_gradient(gradient):
    config = digits_config(model=network_config(filter_map_gradient=gradient).model)
    config = dataclasses.replace(
        config,
        optimizer=OptimizerConfig(
            learning_rate=1.0, momentum=0.0, weight_decay=0.0, schedule="constant"
        ),
    )
    state, arguments = step_arguments(config, quantized=False)
    batch = Batch(np.arange(8, dtype=np.int32), np.arange(8, dtype=np.int32))
    after, _ = jax.jit(lambda state: train_step(state, random_split(), batch, **arguments))(state)
    moved = np.asarray(after.params["conv_2"]["filter_map"] - state.params["conv_2"]["filter_map"])
    other = digits_config(model=network_config(filter_map_gradient="sum").model)
    other = dataclasses.replace(other, optimizer=config.optimizer)
    _, arguments = step_arguments(other, quantized=False)
    after, _ = jax.jit(lambda state: train_step(state, random_split(), batch, **arguments))(state)
    total = np.asarray(after.params["conv_2"]["filter_map"] - state.params["conv_2"]["filter_map"])
    number = occurrences(Geometry((4, 4, 2), (3, 3), 16)) if gradient == "mean" else 1
    np.testing.assert_allclose(moved * number, total, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_maps_have_a_rate_and_a_decay_of_their_own(kind):
    _, layer, p, _, _ = layer_of(kind)
    config = OptimizerConfig(
        learning_rate=0.5, filter_map_rate_scale=3.0, schedule="constant", momentum=0.0,
        weight_decay=0.01, latent_weight_decay=0.02,
    )  # fmt: skip
    optimizer = optim.make_optimizer(config, 1, 1, (layer,))
    params = {"layer": p}
    gradients = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    decay = 0.02 if FAMILIES[kind].quantizes else 0.01
    expected = -1.5 * (1 + decay * p["filter_map"])
    np.testing.assert_allclose(updates["layer"]["filter_map"], expected, rtol=1e-5)
    assert OptimizerConfig().filter_map_rate == 0.1


def test_a_map_with_fewer_rows_than_columns_trains():
    sizes = {"channels": 48, "out_maps": 12, "planes": 1, "strides": 1, "samples": (2, 3, 2)}
    network, layer, p, _, x = layer_of("filter_map", **sizes)
    assert p["filter_map"].shape == (4, 6, 48)
    assert geometry_of(layer).samples == (2, 3, 2)
    target = jnp.sin(jnp.arange(2 * 7 * 8 * 12.0)).reshape(2, 7, 8, 12)

    @jax.jit
    def step(p):
        def loss(p):
            return jnp.mean((network.apply(variables_of(p, {}), x) - target) ** 2)

        value, slope = jax.value_and_grad(loss)(p)
        return jax.tree.map(lambda w, g: w - 0.5 * g, p, slope), value

    losses = []
    for _ in range(60):
        p, value = step(p)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
    assert losses[-1] < losses[30] < losses[0]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"kernel_size": 1}, "the layer layer: kernels of 1x1 pixels do not overlap .* ordinary"),
        ({"out_maps": 5}, "the layer layer: .* of 10 filters .* 4 or 6 maps of 2 filters"),
        ({"samples": (8, 2, 2)}, r"the layer layer: samples=\(8, 2, 2\) must be three numbers"),
    ],
)
def test_a_layer_without_a_map_is_refused_in_one_line(attributes, message):
    with pytest.raises(InputError, match=message) as raised:
        layer_of("filter_map", **attributes)
    assert "\n" not in str(raised.value)


def test_bad_options_are_refused_in_one_line():
    config = network_config(filter_map_gradient="median")
    message = "config.model.filter_map_gradient='median' must be one of mean, sum"
    with pytest.raises(InputError, match=message):
        checks.validate(config)
    config = dataclasses.replace(
        network_config(), optimizer=OptimizerConfig(filter_map_rate_scale=-1.0)
    )
    with pytest.raises(InputError, match=r"filter_map_rate_scale=-1.0 must not be negative"):
        checks.validate(config)
    config = network_config("filter_map_kmeans", widths=(8, 16))
    config = dataclasses.replace(config, binarize=BinarizeConfig(num_centers=33, start_epoch=0))
    # The first layer has 8 filters of one channel, (4, 2, 1).
    message = "num_centers=33 exceeds the 32 weights of conv_1, the smallest layer"
    with pytest.raises(InputError, match=message):
        checks.validate_for_data(config, (16, 16, 1), None)
    config = network_config(widths=(16, 10))
    with pytest.raises(InputError, match=r"the layer conv_2: .* take 9 or 12 filters"):
        checks.validate_for_data(config, (16, 16, 1), None)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_health_counts_flipped_elements(kind):
    _, layer, p, s, _ = layer_of(kind)
    negated = jnp.where(jnp.arange(8) < 4, -1, 1).reshape(1, 1, 8)
    before = {"filter_map": p["filter_map"] * negated}
    health = layer.family.health(before, p, s, layer)
    binary = used_map(kind, p, s)
    latent = np.asarray(p["filter_map"])
    flipped = np.mean(used_map(kind, before, s) != binary)
    assert 0.4 < flipped < 0.6
    assert health["flip_ratio"].value == pytest.approx(flipped)
    error = np.linalg.norm(latent - binary) / np.linalg.norm(latent)
    assert health["quantization_error"].value == pytest.approx(error, rel=1e-5)
    assert health["share_1"] == pytest.approx(np.mean(binary == binary.max()))
    assert health["share_0"] + health["share_1"] == pytest.approx(1)


@pytest.mark.parametrize("kind", KINDS)
def test_an_inspection_shows_the_map_and_its_filters(kind):
    _, layer, p, s, _ = layer_of(kind)
    family, quantized = FAMILIES[kind], FAMILIES[kind].quantizes
    stored = family.pack(p, s, True)
    trained = {name: np.asarray(leaf) for name, leaf in (p | s).items()}
    view, of_file = View(layer, stored, trained), View(layer, stored, None)
    found = family.arrays(view)
    binary = used_map(kind, p, s).astype(np.float32)
    expected = cut_filters(jnp.asarray(binary), geometry_of(layer))
    np.testing.assert_allclose(found["filters"], expected, rtol=1e-6)
    np.testing.assert_array_equal(found["filter_map"], p["filter_map"])
    np.testing.assert_allclose(family.arrays(of_file)["filters"], expected, rtol=1e-6)
    facts = family.facts(view)
    assert facts["samples"] == [4, 2, 2]
    assert (facts["in_channels"], facts["out_channels"]) == (8, 16)
    assert family.columns["samples"](facts) == ("4x2x2", 16)
    drawn = family.pictures(view)
    names = ["filters", "map", "binary map"] if quantized else ["filters", "map"]
    assert list(drawn.filters) == names
    assert drawn.filters["map"].shape == (8, 4, 8, 1)
    if quantized:
        np.testing.assert_allclose(found["binary_map"], binary, rtol=1e-6)
        np.testing.assert_allclose(facts["centers"], np.unique(binary), rtol=1e-6)
        assert sum(facts["shares"]) == pytest.approx(1)
        error = np.linalg.norm(binary - trained["filter_map"])
        relative = error / np.linalg.norm(trained["filter_map"])
        assert facts["quantization_error"] == pytest.approx(relative, rel=1e-5)
        assert family.compare(view, view) == {"flip_ratio": 0, "latent_drift": 0}
        moved = {"filter_map": -p["filter_map"]}
        after = View(layer, family.pack(moved, s, True), {"filter_map": moved["filter_map"]})
        change = family.compare(view, after)
        assert change["flip_ratio"] > 0.9
        assert change["latent_drift"] == pytest.approx(2)
        assert family.compare(of_file, after)["latent_drift"] is None


def test_every_family_has_a_module_of_its_own():
    modules = {kind: family.module for kind, family in FAMILIES.items()}
    assert modules == {
        "filter_map": FilterMapConv,
        "filter_map_sign": FilterMapSignConv,
        "filter_map_kmeans": FilterMapKMeansConv,
    }
    for kind, family in FAMILIES.items():
        _, layer, *_ = layer_of(kind)
        assert layer.family is family
