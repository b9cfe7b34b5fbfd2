"""Tests the heads, alone and in both networks."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from mcn_jax import models
from mcn_jax.config import Config, ModelConfig
from mcn_jax.data.batches import Batch
from mcn_jax.errors import InputError
from mcn_jax.layers.table import LAYERS
from mcn_jax.models import Classifier, make_model
from mcn_jax.models.heads import HEADS, example_dropout
from mcn_jax.training.steps import train_step
from small_runs import digits_config, random_split, step_arguments

CLASSES = 5
FREE = [name for name, head in HEADS.items() if not head.of_family]
OF_FAMILY = [name for name, head in HEADS.items() if head.of_family]
CLASS_MAPS = {
    "head/conv/kernel": (1, 1, 12, CLASSES),
    "batch_norm_head/scale": (CLASSES,),
    "batch_norm_head/bias": (CLASSES,),
}


def model_config(**fields):
    """Returns the config of a small network; `fields` are fields of `ModelConfig`."""
    if fields.get("name") == "wide_resnet":
        fields = {"widths": (1, 2, 2, 3), "depth": 8} | fields
    return ModelConfig(**({"widths": (2, 3), "dense_features": 7} | fields))


@pytest.mark.parametrize(
    ("name", "features", "vector"),
    # Features have 3 maps of 4 planes. The simple CNN pools them afterwards.
    [("simple_cnn", (8, 8, 12), 4 * 4 * 12), ("wide_resnet", (4, 4, 12), 12)],
)
@pytest.mark.parametrize(
    ("conv", "head"),
    [
        *((conv, head) for conv in ("mcconv", "conv") for head in FREE),
        *(("binaryconnect", head) for head in OF_FAMILY),
    ],
)
def test_shapes(head, conv, name, features, vector):
    config = Config(model=model_config(name=name, conv=conv, head=head))
    model = make_model(config, CLASSES, quantized=True)
    images = jnp.zeros((2, 16, 16, 3))
    outputs, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert outputs.logits.shape == (2, CLASSES)
    assert outputs.features.shape == (2, *features)
    shapes = {
        "/".join(path): leaf.shape
        for path, leaf in traverse_util.flatten_dict(variables["params"]).items()
        if path[0].startswith(("dense", "head", "batch_norm_head", "batch_norm_dense"))
    }
    assert shapes == {
        "dense": {
            "dense_1/kernel": (vector, 7), "dense_1/bias": (7,),
            "dense_2/kernel": (7, CLASSES), "dense_2/bias": (CLASSES,),
        },
        "linear": {"dense/kernel": (vector, CLASSES), "dense/bias": (CLASSES,)},
        "conv": CLASS_MAPS,
        "conv_relu": CLASS_MAPS,
        "dense_batch_norm": {
            "dense_1/kernel": (vector, 7),
            "batch_norm_dense_1/scale": (7,), "batch_norm_dense_1/bias": (7,),
            "dense_2/kernel": (7, 7),
            "batch_norm_dense_2/scale": (7,), "batch_norm_dense_2/bias": (7,),
            "dense_3/kernel": (7, CLASSES),
            "batch_norm_dense_3/scale": (CLASSES,), "batch_norm_dense_3/bias": (CLASSES,),
        },
        "one_bit_dense": {
            "dense_1/latent_kernel": (1, 1, vector, 7),
            "batch_norm_dense_1/scale": (7,), "batch_norm_dense_1/bias": (7,),
            "dense_2/latent_kernel": (1, 1, 7, 7),
            "batch_norm_dense_2/scale": (7,), "batch_norm_dense_2/bias": (7,),
            "dense_3/latent_kernel": (1, 1, 7, CLASSES),
            "batch_norm_dense_3/scale": (CLASSES,), "batch_norm_dense_3/bias": (CLASSES,),
        },
        "one_bit_hidden": {
            "dense_1/latent_kernel": (1, 1, vector, 7),
            "batch_norm_dense_1/scale": (7,), "batch_norm_dense_1/bias": (7,),
            "dense_2/latent_kernel": (1, 1, 7, 7),
            "batch_norm_dense_2/scale": (7,), "batch_norm_dense_2/bias": (7,),
            "dense_3/kernel": (7, CLASSES), "dense_3/bias": (CLASSES,),
        },
        "maxout": {
            "dense_1/kernel": (vector, 5 * 7), "dense_1/bias": (5 * 7,),
            "dense_2/kernel": (7, CLASSES), "dense_2/bias": (CLASSES,),
        },
    }[head]  # fmt: skip


class Bare(Classifier):
    """A head alone, which uses the image as feature maps."""

    def convolutions(self, x, batch_norm, dropout):
        return x, x

    def vector(self, maps):
        return maps.reshape(len(maps), -1)


def drawn(model, maps):
    """Returns random numpy variables of a network, with positive variances."""
    generator = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), maps)

    def draw(path, leaf):
        values = generator.normal(size=leaf.shape)
        return np.abs(values) + 0.5 if path[-1].key == "var" else values

    return jax.tree_util.tree_map_with_path(draw, shapes)


def expected_logits(head, variables, maps, statistics):
    """Computes a head in numpy.

    `statistics` returns mean and variance of a batch norm from its name and input.
    """
    flat = traverse_util.flatten_dict(variables["params"], sep="/")

    def dense(x, name):
        bias = flat.get(f"{name}/bias", 0)
        return np.array([flat[f"{name}/kernel"].T @ row + bias for row in x])

    def batch_norm(x, name):
        mean, variance = statistics(x, name)
        return (x - mean) / np.sqrt(variance + 1e-5) * flat[f"{name}/scale"] + flat[f"{name}/bias"]

    vector = np.array([example.ravel() for example in maps])
    if head == "linear":
        return dense(vector, "dense")
    if head == "dense":
        return dense(np.maximum(dense(vector, "dense_1"), 0), "dense_2")
    if head == "maxout":
        units = dense(vector, "dense_1").reshape(len(vector), 7, 5)
        return dense(np.array([[max(unit) for unit in row] for row in units]), "dense_2")
    if head == "dense_batch_norm":
        hidden = np.maximum(batch_norm(dense(vector, "dense_1"), "batch_norm_dense_1"), 0)
        hidden = np.maximum(batch_norm(dense(hidden, "dense_2"), "batch_norm_dense_2"), 0)
        return batch_norm(dense(hidden, "dense_3"), "batch_norm_dense_3")
    normed = batch_norm(maps @ flat["head/conv/kernel"][0, 0], "batch_norm_head")
    if head == "conv_relu":
        normed = np.maximum(normed, 0)
    return np.array([example.reshape(-1, CLASSES).mean(0) for example in normed])


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("head", FREE)
def test_values_are_those_of_numpy(head, train):
    maps = np.random.default_rng(1).normal(size=(3, 2, 4, 6))
    with jax.enable_x64(True):
        model = Bare(
            conv=None, widths=(), num_classes=CLASSES, input_planes=None, head=head,
            dense_features=7, dropout_rate=0.0, dtype=jnp.float64, param_dtype=jnp.float64,
        )  # fmt: skip
        variables = drawn(model, maps)
        outputs, updated = model.apply(variables, maps, train=train, mutable=["batch_stats"])
    stored = variables.get("batch_stats", {})

    def statistics(x, name):
        if not train:
            return stored[name]["mean"], stored[name]["var"]
        axes = tuple(range(x.ndim - 1))
        return x.mean(axes), x.var(axes)

    expected = expected_logits(head, variables, maps, statistics)
    np.testing.assert_allclose(outputs.logits, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(outputs.features, maps)
    if head in ("conv", "conv_relu") and train:
        kernel = variables["params"]["head"]["conv"]["kernel"][0, 0]
        moved = 0.9 * stored["batch_norm_head"]["mean"] + 0.1 * (maps @ kernel).mean((0, 1, 2))
        found = updated["batch_stats"]["batch_norm_head"]["mean"]
        np.testing.assert_allclose(found, moved, rtol=1e-6)


def taken(conv, x):
    """Returns what a dense layer of this kind multiplies by its signs."""
    return x if conv == "binaryconnect" else np.where(x >= 0, 1.0, -1.0)


def scales_of(conv, latent):
    """Returns the scale of each output of a dense layer, for weights [inputs, outputs]."""
    inputs, outputs = latent.shape
    if conv == "binaryconnect":
        return np.full(outputs, np.sqrt(1.5 / (inputs + outputs)))
    return np.full(outputs, inputs**-0.5) if conv == "bnn" else np.abs(latent).mean(0)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("conv", ["binaryconnect", "bnn", "xnor"])
@pytest.mark.parametrize("head", OF_FAMILY)
def test_one_bit_dense_layers_are_those_of_numpy(head, conv, train):
    """Dense layer, batch norm, then ReLU, or the signs that the next layer takes."""
    maps = np.random.default_rng(1).normal(size=(3, 2, 4, 6))
    maps[0, 0, 0, 0] = 0.0  # its sign is +1
    relu = LAYERS[conv].follows_relu
    with jax.enable_x64(True):
        make = functools.partial(LAYERS[conv].module, planes=4, param_dtype=jnp.float64)
        model = Bare(
            conv=make, relu=relu, widths=(), num_classes=CLASSES, input_planes=None, head=head,
            dense_features=7, dtype=jnp.float64, param_dtype=jnp.float64,
        )  # fmt: skip
        variables = drawn(model, maps)
        outputs, _ = model.apply(variables, maps, train=train, mutable=["batch_stats"])
    params, x = variables["params"], maps.reshape(3, -1)
    for layer in (1, 2, 3):
        name = f"dense_{layer}"
        if head == "one_bit_hidden" and layer == 3:
            x = np.maximum(x, 0) @ params[name]["kernel"] + params[name]["bias"]
            break
        latent = params[name]["latent_kernel"][0, 0]
        product = taken(conv, x) @ np.where(latent >= 0, 1, -1) * scales_of(conv, latent)
        x = product * np.abs(x).mean(1, keepdims=True) if conv == "xnor" else product
        norm = params[f"batch_norm_{name}"]
        statistics = variables["batch_stats"][f"batch_norm_{name}"]
        mean = x.mean(0) if train else statistics["mean"]
        variance = x.var(0) if train else statistics["var"]
        x = (x - mean) / np.sqrt(variance + 1e-5) * norm["scale"] + norm["bias"]
        x = np.maximum(x, 0) if relu and layer < 3 else x
    np.testing.assert_allclose(outputs.logits, x, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "features"), [("simple_cnn", (4, 4)), ("wide_resnet", (4, 4))])
def test_no_relu_precedes_dense_layers_that_take_signs(name, features):
    config = Config(model=model_config(name=name, conv="bnn", head="one_bit_dense"))
    network = make_model(config, CLASSES, quantized=True)
    images = jax.random.normal(jax.random.key(0), (4, 16, 16, 3))
    variables = network.init(jax.random.key(1), images)
    outputs, _ = network.apply(variables, images, train=True, mutable=["batch_stats"])
    assert outputs.features.shape == (4, *features, 12)
    assert 0.3 < np.mean(np.asarray(outputs.features) < 0) < 0.7
    ordinary = dataclasses.replace(config.model, head="linear")
    network = make_model(Config(model=ordinary), CLASSES, quantized=True)
    variables = network.init(jax.random.key(1), images)
    outputs, _ = network.apply(variables, images, train=True, mutable=["batch_stats"])
    assert np.min(outputs.features) == 0


@pytest.mark.parametrize("conv", ["mcconv", "conv", "lbc"])
@pytest.mark.parametrize("head", OF_FAMILY)
def test_layers_that_are_no_dense_ones_are_refused(head, conv):
    message = (
        rf"config\.model\.head='{head}' needs config\.model\.conv to be one of binaryconnect, .*bnn"
        rf".*, not '{conv}'; or set config\.model\.head=dense_batch_norm"
    )
    with pytest.raises(InputError, match=message):
        models.check(Config(model=model_config(conv=conv, head=head, planes=1)))
    models.check(Config(model=model_config(conv="bnn", head=head, planes=1)))


@pytest.mark.parametrize(
    ("head", "name"),
    [
        *((head, "simple_cnn") for head in HEADS),
        ("conv", "wide_resnet"),
        pytest.param("dense", "wide_resnet", marks=pytest.mark.slow),
        pytest.param("linear", "wide_resnet", marks=pytest.mark.slow),
    ],
)
def test_a_training_step_moves_every_parameter(head, name):
    conv = "binaryconnect" if head in OF_FAMILY else "mcconv"
    config = digits_config(model=model_config(name=name, conv=conv, head=head))
    state, arguments = step_arguments(config, quantized=True)
    step = jax.jit(functools.partial(train_step, **arguments))
    split, rows = random_split(), np.arange(32, dtype=np.int32)
    # The learning rate of the first step is zero, because the warmup starts there.
    after, first = step(state, split, Batch(rows, rows))
    after, second = step(after, split, Batch(rows + 32, rows))
    for metrics in (first, second):
        assert all(np.isfinite(value) for value in metrics.values())
        assert metrics["gradient_norm"] > 0
    before = traverse_util.flatten_dict(state.params, sep="/")
    for path, leaf in traverse_util.flatten_dict(after.params, sep="/").items():
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf - before[path]).max() > 0, path


@pytest.mark.parametrize("head", ["linear", "conv", "conv_relu", "dense_batch_norm"])
def test_heads_without_dropout_need_no_keys(head):
    model = make_model(Config(model=model_config(head=head)), CLASSES, quantized=True)
    images = jnp.ones((2, 16, 16, 1))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    train = jax.jit(functools.partial(model.apply, train=True, mutable=["batch_stats"]))
    outputs, _ = train(variables, images)
    assert np.isfinite(outputs.logits).all()


def test_dropout_depends_on_the_example_alone():
    x = jnp.ones((6, 1000))
    keys = jax.random.split(jax.random.key(0), 6)
    whole = example_dropout(x, keys, 0.25)
    np.testing.assert_array_equal(whole[4:], example_dropout(x[4:], keys[4:], 0.25))
    assert set(np.unique(whole)) == {0.0, np.float32(1 / 0.75)}
    np.testing.assert_allclose(np.mean(np.asarray(whole) == 0), 0.25, atol=0.02)
    assert not np.array_equal(whole[0], whole[1])
