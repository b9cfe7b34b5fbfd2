"""Tests Network in Network: shapes, counts, values, dropout and errors."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exported import CLASSES, random_model
from mcn_jax import export
from mcn_jax.config import Config, DataConfig, ModelConfig
from mcn_jax.errors import InputError
from mcn_jax.layers.batch_norm import BATCH_NORM
from mcn_jax.layers.conv import CONV
from mcn_jax.layers.formats import FLOAT32
from mcn_jax.layers.table import LAYERS
from mcn_jax.models import make_model
from mcn_jax.models.plan import plan_of
from mcn_jax.training.checks import validate
from mcn_jax.training.run import train_and_evaluate
from numpy_layers import convolved, normed, pooled
from small_runs import digits_config

WIDTHS = (192, 160, 96, 192, 192, 192, 192, 192)
PAPER = ModelConfig(name="nin", conv="conv", planes=1, widths=WIDTHS, head="conv_relu")


def plan(model=PAPER, classes=10):
    return plan_of(Config(model=model), classes, (32, 32, 3))


def count(layers):
    return sum(int(np.prod(shape)) for layer in layers for shape in layer.params.values())


@pytest.mark.parametrize(("classes", "printed"), [(10, 966_986), (100, 984_356)])
def test_the_parameters_are_those_of_the_paper_with_batch_norm_in_place_of_biases(classes, printed):
    first = 25 * 3 * 192 + 192 * 160 + 160 * 96
    second = 25 * 96 * 192 + 192 * 192 + 192 * 192
    third = 9 * 192 * 192 + 192 * 192 + 192 * classes
    channels = sum(WIDTHS) + classes
    assert first + second + third + channels == printed  # one bias per channel
    layers = plan(classes=classes)
    weights = count(layer for layer in layers if layer.family is CONV)
    assert weights == printed - channels
    # Ours has a scale and an offset per channel instead.
    assert count(layers) == printed + channels == {10: 968_404, 100: 985_864}[classes]


def test_the_multiply_adds_of_the_paper():
    assert sum(CONV.multiply_adds(layer)["direct"] for layer in plan() if layer.family is CONV) == (
        1024 * (25 * 3 * 192 + 192 * 160 + 160 * 96)
        + 256 * (25 * 96 * 192 + 2 * 192 * 192)
        + 64 * (9 * 192 * 192 + 192 * 192 + 192 * 10)
    ) == 222_486_528  # fmt: skip


def test_layers_in_call_order():
    assert [(x.name, x.in_shape, x.out_shape) for x in plan() if x.family is not BATCH_NORM] == [
        ("conv_1", (32, 32, 3), (32, 32, 192)),
        ("conv_2", (32, 32, 192), (32, 32, 160)),
        ("conv_3", (32, 32, 160), (32, 32, 96)),
        ("conv_4", (16, 16, 96), (16, 16, 192)),
        ("conv_5", (16, 16, 192), (16, 16, 192)),
        ("conv_6", (16, 16, 192), (16, 16, 192)),
        ("conv_7", (8, 8, 192), (8, 8, 192)),
        ("conv_8", (8, 8, 192), (8, 8, 192)),
        ("head", (8, 8, 192), (8, 8, 10)),
    ]


@pytest.mark.parametrize("conv", ["mcconv", "bwn"])
def test_convolutions_of_one_pixel_are_ordinary(conv):
    layers = plan(dataclasses.replace(PAPER, conv=conv, widths=(2,) * 8, planes=4))
    spatial = {layer.name for layer in layers if layer.family is LAYERS[conv]}
    ordinary = {layer.name for layer in layers if layer.family is CONV}
    assert spatial == {"conv_1", "conv_4", "conv_7"}
    assert ordinary == {"conv_2", "conv_3", "conv_5", "conv_6", "conv_8", "head"}


def test_values_are_those_of_numpy():
    _, variables, config = random_model(
        num_centers=0, name="nin", conv="conv", head="conv_relu", channels=3, planes=1
    )
    images = np.random.default_rng(2).normal(size=(2, 13, 13, 3)).astype(np.float32)
    module = make_model(config, CLASSES, quantized=False)
    found = module.apply(variables, images)

    def layer(x, name, norm):
        kernel = variables["params"][name]["conv"]["kernel"]
        x = convolved(x, kernel, (len(kernel) // 2, len(kernel) // 2))
        return np.maximum(normed(x, variables, norm), 0)

    x = images
    for number in range(1, 9):
        x = layer(x, f"conv_{number}", f"batch_norm_{number}")
        if number in (3, 6):
            x = pooled(x, 3, 2, {3: np.max, 6: np.mean}[number])
    np.testing.assert_allclose(found.features, x, rtol=1e-4, atol=1e-5)
    maps = layer(x, "head", "batch_norm_head")
    np.testing.assert_allclose(found.logits, maps.mean((1, 2)), rtol=1e-4, atol=1e-5)


def inputs_of(names, model, *arguments, **keywords):
    """Applies a network in training and returns the inputs of the named layers."""
    taken = {}

    def note(call, arguments, keywords, context):
        if context.module.name in names:
            taken[context.module.name] = np.asarray(arguments[0])
        return call(*arguments, **keywords)

    with nn.intercept_methods(note):
        model.apply(*arguments, train=True, mutable=["batch_stats"], **keywords)
    return taken


def test_dropout_follows_both_poolings_with_different_masks():
    config = Config(model=dataclasses.replace(PAPER, widths=(8,) * 8))
    model = make_model(config, 10, quantized=False)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    variables = model.init(jax.random.key(1), images)
    keys = jax.random.split(jax.random.key(2), 2)
    names = ("conv_4", "conv_7")
    dropped = inputs_of(names, model, variables, images, dropout_keys=keys)
    whole = inputs_of(names, model.clone(dropout_rate=0.0), variables, images)
    kept = dropped["conv_4"] != 0
    np.testing.assert_allclose(dropped["conv_4"][kept], 2 * whole["conv_4"][kept], rtol=1e-6)
    for name in names:
        nonzero = np.mean(dropped[name] != 0) / np.mean(whole[name] != 0)
        assert 0.4 < nonzero < 0.6, name
    # A second mask like the first would drop the same elements of images of the same size.
    again = inputs_of(names, model, variables, images[:, ::2, ::2], dropout_keys=keys)
    assert np.mean((again["conv_4"] != 0) != (dropped["conv_7"] != 0)) > 0.3


def test_training_needs_keys():
    model = make_model(
        Config(model=dataclasses.replace(PAPER, widths=(2,) * 8)), 10, quantized=False
    )
    images = jnp.ones((2, 16, 16, 3))
    variables = model.init(jax.random.key(0), images)
    with pytest.raises(ValueError, match="needs dropout_keys"):
        model.apply(variables, images, train=True, mutable=["batch_stats"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"widths": (192, 160, 96)},
            r"config\.model\.widths=\(192, 160, 96\) must be the 8 widths",
        ),
        ({"conv": "xnor"}, r"config\.model\.conv='xnor' takes the signs of its input"),
        ({"conv": "bnn"}, "one of simple_cnn, wide_resnet, convnet"),
    ],
)
def test_errors_name_the_value(fields, message):
    config = Config(data=DataConfig(name="cifar10"), model=dataclasses.replace(PAPER, **fields))
    with pytest.raises(InputError, match=message):
        validate(config)
    validate(dataclasses.replace(config, model=PAPER))


@pytest.mark.slow
@pytest.mark.parametrize("conv", ["conv", "mcconv", "bwn"])
def test_it_learns_digits_and_its_files_agree(conv, data_dir, tmp_path, one_device):
    planes = 4 if conv == "mcconv" else 1
    widths = tuple(width // planes for width in (16, 16, 8, 16, 16, 16, 32, 32))
    model = ModelConfig(
        name="nin", conv=conv, planes=planes, widths=widths, head="conv_relu", dropout_rate=0.2
    )
    train_and_evaluate(digits_config(data_dir, model=model, num_epochs=16), tmp_path / "run")
    accuracy = json.loads((tmp_path / "run" / "result.json").read_text())["final_test_accuracy"]
    assert accuracy > 0.9
    result = export.export(tmp_path / "run", tmp_path / "out", FLOAT32, {})
    for file in ("model.safetensors", "model.onnx"):
        assert result[file]["accuracy"] == accuracy
        assert result[file]["difference"] <= 1e-4
