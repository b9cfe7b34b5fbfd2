"""Tests densely connected networks: counts, layers, values against numpy, and errors."""

import dataclasses
import json

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
from mcn_jax.training.checks import validate, validate_for_data
from mcn_jax.training.run import train_and_evaluate
from numpy_layers import convolved, normed, pooled
from small_runs import digits_config

BLOCKS = (6, 12, 24, 16)


def densenet(**fields):
    defaults = {
        "name": "densenet", "conv": "conv", "planes": 1, "widths": (64,), "blocks": BLOCKS,
        "head": "linear",
    }  # fmt: skip
    return Config(data=DataConfig(name="cifar10"), model=ModelConfig(**defaults | fields))


def plan(**fields):
    return plan_of(densenet(**fields), 10, (32, 32, 3))


def count(layers):
    return sum(int(np.prod(shape)) for layer in layers for shape in layer.params.values())


def test_the_sizes_of_densenet_121():
    layers = plan()
    maps, pointwise, channels = 64, 0, 0
    for stage, blocks in enumerate(BLOCKS):
        for _ in range(blocks):
            pointwise += maps * 128
            channels += maps + 128
            maps += 32
        if stage < 3:
            pointwise += maps * (maps // 2)
            channels += maps
            maps //= 2
    assert maps == 1024
    spatial = 9 * 3 * 64 + 58 * 9 * 128 * 32
    assert (pointwise, 2 * (channels + maps)) == (4_722_688, 83_520)
    assert count(layers) == spatial + pointwise + 83_520 + 10_250 == 6_956_298
    convolutions = [layer for layer in layers if layer.family is CONV]
    assert count(convolutions) == spatial + pointwise
    total = sum(CONV.multiply_adds(layer)["direct"] for layer in convolutions)
    assert round(total / 1e6, 1) == 888.3


def test_layers_in_call_order():
    layers = plan(blocks=(2, 1), growth=4, widths=(6,))
    assert [(x.name, x.in_shape, x.out_shape) for x in layers if x.family is not BATCH_NORM] == [
        ("stem", (32, 32, 3), (32, 32, 6)),
        ("stage_1_block_1/conv_1", (32, 32, 6), (32, 32, 16)),
        ("stage_1_block_1/conv_2", (32, 32, 16), (32, 32, 4)),
        ("stage_1_block_2/conv_1", (32, 32, 10), (32, 32, 16)),
        ("stage_1_block_2/conv_2", (32, 32, 16), (32, 32, 4)),
        ("transition_1", (32, 32, 14), (32, 32, 7)),
        ("stage_2_block_1/conv_1", (16, 16, 7), (16, 16, 16)),
        ("stage_2_block_1/conv_2", (16, 16, 16), (16, 16, 4)),
        ("dense", (11,), (10,)),
    ]


def test_values_are_those_of_numpy():
    _, variables, config = random_model(
        num_centers=0, name="densenet", conv="conv", channels=3, planes=1, head="linear"
    )
    images = np.random.default_rng(2).normal(size=(2, 7, 8, 3)).astype(np.float32)
    found = make_model(config, CLASSES, quantized=False).apply(variables, images)
    params, statistics = variables["params"], variables["batch_stats"]

    def conv(x, kernel):
        return convolved(x, kernel["conv"]["kernel"], (len(kernel["conv"]["kernel"]) // 2,) * 2)

    def relu_of(x, params, statistics, name):
        inside = {"params": {"x": params[name]}, "batch_stats": {"x": statistics[name]}}
        return np.maximum(normed(x, inside, "x"), 0)

    x = conv(images, params["stem"])
    for stage, blocks in enumerate((2, 1), start=1):
        for block in range(1, blocks + 1):
            name = f"stage_{stage}_block_{block}"
            y = relu_of(x, params[name], statistics[name], "batch_norm_1")
            y = conv(y, params[name]["conv_1"])
            y = relu_of(y, params[name], statistics[name], "batch_norm_2")
            x = np.concatenate([conv(y, params[name]["conv_2"]), x], axis=-1)
        if stage == 1:
            x = conv(
                relu_of(x, params, statistics, "batch_norm_transition_1"), params["transition_1"]
            )
            x = pooled(x[:, :6], 2, 2, np.mean)
    x = relu_of(x, params, statistics, "batch_norm")
    assert x.shape == (2, 3, 4, 5)
    np.testing.assert_allclose(found.features, x, rtol=1e-4, atol=1e-4)
    logits = x.mean((1, 2)) @ params["dense"]["kernel"] + params["dense"]["bias"]
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-4)


def test_convolutions_of_one_pixel_are_of_a_kind_of_their_own():
    def kinds(**fields):
        found = plan(**{"blocks": (1, 1), "growth": 2, "widths": (3,)} | fields)
        return {layer.name: layer.family for layer in found}

    found = kinds(conv="mcconv", planes=4)
    assert found["stage_2_block_1/conv_2"] is found["stem"] is LAYERS["mcconv"]
    assert found["stage_1_block_1/conv_1"] is found["transition_1"] is CONV
    found = kinds(conv="conv", pointwise="bwn")
    assert found["stage_1_block_1/conv_1"] is found["transition_1"] is LAYERS["bwn"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": (16, 32)}, r"widths=\(16, 32\) must be the single width of a densenet's stem"),
        ({"blocks": ()}, r"blocks=\(\) must name at least one stage"),
        ({"blocks": (2, 0)}, r"blocks=\(2, 0\) must name .* with at least 1 block"),
        ({"growth": 0}, "growth=0 must be at least 1 map"),
    ],
)
def test_errors_name_the_value(fields, message):
    config = densenet()
    validate(config)
    with pytest.raises(InputError, match=rf"^config\.model\.{message}"):
        validate(dataclasses.replace(config, model=dataclasses.replace(config.model, **fields)))


def test_images_must_be_large_enough_for_every_stage():
    validate_for_data(densenet(), (8, 9, 3), None)
    with pytest.raises(InputError, match="too many stages for images of 7 pixels"):
        validate_for_data(densenet(), (7, 9, 3), None)


@pytest.mark.slow
@pytest.mark.parametrize(("conv", "planes"), [("mcconv", 4), ("bwn", 2)])
def test_it_learns_digits_and_its_files_agree(conv, planes, data_dir, tmp_path, one_device):
    model = ModelConfig(
        name="densenet", conv=conv, planes=planes, head="linear", widths=(8,), blocks=(2, 2),
        growth=4,
    )  # fmt: skip
    train_and_evaluate(digits_config(data_dir, model=model, num_epochs=16), tmp_path / "run")
    accuracy = json.loads((tmp_path / "run" / "result.json").read_text())["final_test_accuracy"]
    assert accuracy > 0.9
    result = export.export(tmp_path / "run", tmp_path / "out", FLOAT32, {})
    for file in ("model.safetensors", "model.onnx"):
        assert result[file]["accuracy"] == accuracy
        assert result[file]["difference"] <= 1e-4
