"""Tests residual networks: counts, layers, values against numpy, and errors."""

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
from mcn_jax.layers.batch_norm import BATCH_NORM, BatchNorm
from mcn_jax.layers.conv import CONV
from mcn_jax.layers.formats import FLOAT32
from mcn_jax.layers.sign_conv import SignConv
from mcn_jax.layers.table import LAYERS
from mcn_jax.models import make_model
from mcn_jax.models.plan import plan_of
from mcn_jax.training.checks import validate
from mcn_jax.training.run import train_and_evaluate
from numpy_layers import convolved, normed
from small_runs import digits_config

WIDE = (64, 64, 128, 256, 512)


def resnet(**fields):
    defaults = {"name": "resnet", "conv": "conv", "planes": 1, "widths": WIDE, "head": "linear"}
    return Config(data=DataConfig(name="cifar10"), model=ModelConfig(**defaults | fields))


def plan(classes=10, size=32, **fields):
    return plan_of(resnet(**fields), classes, (size, size, 3))


def count(layers):
    return sum(int(np.prod(shape)) for layer in layers for shape in layer.params.values())


def multiply_adds(layers):
    return sum(layer.family.multiply_adds(layer)["direct"] for layer in layers)


def basic(widths, blocks):
    """Weights of the 3x3 convolutions of basic blocks."""
    total = 9 * 3 * widths[0]
    for before, width, number in zip(widths, widths[1:], blocks, strict=False):
        total += 9 * (before * width + (2 * number - 1) * width * width)
    return total


def test_the_parameters_of_resnet_18():
    convolutions = 1_728 + 4 * 36_864 + 73_728 + 3 * 147_456 + 294_912 + 3 * 589_824
    convolutions += 1_179_648 + 3 * 2_359_296
    assert basic(WIDE, (2, 2, 2, 2)) == convolutions
    projections = 64 * 128 + 128 * 256 + 256 * 512
    assert projections == 172_032
    batch_norm = 2 * (64 + 4 * (64 + 128 + 256 + 512) + 128 + 256 + 512)
    assert batch_norm == 9_600
    layers = plan()
    assert count(layers) == convolutions + projections + batch_norm + 5_130 == 11_173_962
    assert count(layer for layer in layers if layer.family is BATCH_NORM) == batch_norm
    # Without batch norm in stem and projections, but with one after the last block.
    before = 2 * (4 * 64 + 64 + 3 * 128 + 128 + 3 * 256 + 256 + 3 * 512 + 512)
    assert before == 7_808
    found = count(plan(preactivation=True))
    assert found == convolutions + projections + before + 5_130 == 11_172_170


@pytest.mark.parametrize(
    ("fields", "classes", "parameters", "millions"),
    [
        ({}, 10, 11_173_962, 555.4),
        ({"blocks": (3, 4, 6, 3)}, 10, 21_282_122, 1159.4),
        ({"blocks": (3, 4, 6, 3), "block": "bottleneck"}, 10, 23_520_842, 1297.8),
        ({"blocks": (3, 4, 23, 3), "block": "bottleneck"}, 10, 42_512_970, 2510.0),
        ({"blocks": (3, 4, 23, 3), "block": "bottleneck"}, 100, 42_697_380, 2510.0),
        (
            {"blocks": (18,) * 3, "widths": (16, 16, 32, 64), "shortcut": "zeros"},
            10,
            1_727_962,
            252.9,
        ),
    ],
)
def test_the_sizes_of_known_networks(fields, classes, parameters, millions):
    layers = plan(classes, **fields)
    assert count(layers) == parameters
    convolutions = [layer for layer in layers if layer.family is CONV]
    assert round(multiply_adds(convolutions) / 1e6, 1) == millions
    assert {layer.params["conv/kernel"][0] for layer in convolutions} <= {1, 3}


def test_the_parameters_of_resnet_110():
    stages = (
        (1 + 35) * 9 * 16 * 16 + (9 * 16 * 32 + 35 * 9 * 32**2) + (9 * 32 * 64 + 35 * 9 * 64**2)
    )
    batch_norm = 2 * (16 + 36 * (16 + 32 + 64))
    assert 432 + stages + batch_norm + 650 == 1_727_962


def test_layers_in_call_order():
    layers = plan(blocks=(1, 1), block="bottleneck", widths=(64, 64, 128))
    assert [(x.name, x.in_shape, x.out_shape) for x in layers if x.family is CONV] == [
        ("stem", (32, 32, 3), (32, 32, 64)),
        ("stage_1_block_1/conv_1", (32, 32, 64), (32, 32, 64)),
        ("stage_1_block_1/conv_2", (32, 32, 64), (32, 32, 64)),
        ("stage_1_block_1/conv_3", (32, 32, 64), (32, 32, 256)),
        ("stage_1_block_1/projection", (32, 32, 64), (32, 32, 256)),
        ("stage_2_block_1/conv_1", (32, 32, 256), (32, 32, 128)),
        ("stage_2_block_1/conv_2", (32, 32, 128), (16, 16, 128)),
        ("stage_2_block_1/conv_3", (16, 16, 128), (16, 16, 512)),
        ("stage_2_block_1/projection", (32, 32, 256), (16, 16, 512)),
    ]


@pytest.mark.parametrize("preactivation", [False, True])
@pytest.mark.parametrize("shortcut", ["zeros", "projection"])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_values_are_those_of_numpy(block, shortcut, preactivation):
    _, variables, config = random_model(
        num_centers=0, name="resnet", conv="conv", channels=3, planes=1, block=block,
        shortcut=shortcut, preactivation=preactivation, head="linear",
    )  # fmt: skip
    images = np.random.default_rng(2).normal(size=(2, 6, 9, 3)).astype(np.float32)
    found = make_model(config, CLASSES, quantized=False).apply(variables, images)
    params = variables["params"]

    def at(tree, name):
        for part in name.split("/"):
            tree = tree[part]
        return tree

    def conv(x, name, strides=1):
        kernel = at(params, name)["conv"]["kernel"]
        return convolved(x, kernel, (len(kernel) // 2,) * 2, strides)

    def norm(x, name):
        inside = {"params": {"x": at(params, name)}}
        inside["batch_stats"] = {"x": at(variables["batch_stats"], name)}
        return normed(x, inside, "x")

    def relu(x):
        return np.maximum(x, 0)

    def block_of(x, name, strides, channels):
        strided = {"basic": 1, "bottleneck": 2}[block]
        y = x
        layers = {"basic": 2, "bottleneck": 3}[block]
        for number in range(1, layers + 1):
            if preactivation:
                y = relu(norm(y, f"{name}/batch_norm_{number}"))
            y = conv(y, f"{name}/conv_{number}", strides if number == strided else 1)
            if not preactivation:
                y = norm(y, f"{name}/batch_norm_{number}")
                y = y if number == layers else relu(y)
        if strides == 1 and x.shape[-1] == channels:
            carried = x
        elif shortcut == "zeros":
            carried = x[:, ::strides, ::strides]
            carried = np.pad(carried, [(0, 0)] * 3 + [(0, channels - x.shape[-1])])
        else:
            carried = conv(x, f"{name}/projection", strides)
            if not preactivation:
                carried = norm(carried, f"{name}/batch_norm_projection")
        return y + carried if preactivation else relu(y + carried)

    expansion = {"basic": 1, "bottleneck": 4}[block]
    x = conv(images, "stem")
    x = x if preactivation else relu(norm(x, "batch_norm_stem"))
    x = block_of(x, "stage_1_block_1", 1, 2 * expansion)
    x = block_of(x, "stage_1_block_2", 1, 2 * expansion)
    x = block_of(x, "stage_2_block_1", 2, 3 * expansion)
    x = relu(norm(x, "batch_norm")) if preactivation else x
    assert x.shape == (2, 3, 5, 3 * expansion)
    np.testing.assert_allclose(found.features, x, rtol=1e-4, atol=1e-4)
    dense = params["dense"]
    logits = x.mean((1, 2)) @ dense["kernel"] + dense["bias"]
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-4)


def test_convolutions_of_one_pixel_are_of_a_kind_of_their_own():
    fields = {"blocks": (2, 1), "widths": (4, 4, 8), "block": "bottleneck"}

    def kinds(**more):
        return {layer.name: layer.family for layer in plan(**fields | more)}

    found = kinds(conv="mcconv", planes=4)
    assert found["stage_1_block_1/conv_2"] is found["stem"] is LAYERS["mcconv"]
    assert found["stage_1_block_1/conv_1"] is found["stage_2_block_1/projection"] is CONV
    found = kinds(conv="irnet", pointwise="bwn", stem_conv="conv")
    assert found["stem"] is CONV
    assert found["stage_1_block_1/conv_2"] is LAYERS["irnet"]
    for name in ("stage_1_block_1/conv_1", "stage_1_block_2/conv_3", "stage_2_block_1/projection"):
        assert found[name] is LAYERS["bwn"], name


def test_only_convolutions_of_one_pixel_follow_a_relu_if_the_others_take_signs():
    config = resnet(
        conv="xnor", blocks=(1, 1), widths=(2, 2, 2), preactivation=True, block="bottleneck"
    )
    network = make_model(config, 10, quantized=True)
    relus, signs = {}, {}

    def note(call, arguments, keywords, context):
        module, path = context.module, "/".join(context.module.path)
        if isinstance(module, BatchNorm):
            relus[path] = module.relu
        if isinstance(module, SignConv):
            signs[path] = module.signs_input
        return call(*arguments, **keywords)

    with nn.intercept_methods(note):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 6, 6, 3)))
    assert relus == {
        f"stage_{stage}_block_1/batch_norm_{number}": number != 2
        for stage in (1, 2)
        for number in (1, 2, 3)
    } | {"batch_norm": True}
    assert signs == {
        "stem": False, "stage_1_block_1/conv_2": True, "stage_2_block_1/conv_2": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": (16, 16, 32)}, r"widths=\(16, 16, 32\) must be .*blocks=\(2, 2, 2, 2\)"),
        ({"widths": (16,), "blocks": ()}, r"widths=\(16,\) must be the widths of the stem and"),
        ({"blocks": (2, 0, 2, 2)}, r"blocks=\(2, 0, 2, 2\) must each be at least 1 block"),
        ({"block": "botleneck"}, "block='botleneck' must be .*; did you mean bottleneck"),
        ({"shortcut": "A"}, "shortcut='A' must be one of zeros, projection"),
        (
            {"shortcut": "zeros", "widths": (64, 32, 64, 128, 256)},
            r"widths=\(64, 32, .* must not decrease .*; use config\.model\.shortcut=projection",
        ),
        ({"conv": "xnor"}, "conv='xnor' takes the signs .* set config.model.preactivation=True"),
        (
            {"pointwise": "mcconv"},
            "pointwise='mcconv' cannot be used .* one of conv, binaryconnect",
        ),
        ({"pointwise": "con"}, "pointwise='con' must be one of .*; did you mean conv"),
    ],
)
def test_errors_name_the_value(fields, message):
    config = resnet()
    validate(config)
    with pytest.raises(InputError, match=rf"^config\.model\.{message}"):
        validate(dataclasses.replace(config, model=dataclasses.replace(config.model, **fields)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("conv", "pointwise", "planes"), [("mcconv", "conv", 4), ("bwn", "bwn", 2)]
)
def test_it_learns_digits_and_its_files_agree(
    conv, pointwise, planes, data_dir, tmp_path, one_device
):
    model = ModelConfig(
        name="resnet", conv=conv, pointwise=pointwise, planes=planes, head="linear",
        widths=(8, 8, 16), blocks=(1, 1),
    )  # fmt: skip
    train_and_evaluate(digits_config(data_dir, model=model, num_epochs=16), tmp_path / "run")
    accuracy = json.loads((tmp_path / "run" / "result.json").read_text())["final_test_accuracy"]
    assert accuracy > 0.9
    result = export.export(tmp_path / "run", tmp_path / "out", FLOAT32, {})
    for file in ("model.safetensors", "model.onnx"):
        assert result[file]["accuracy"] == accuracy
        assert result[file]["difference"] <= 1e-4
