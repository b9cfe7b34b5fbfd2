"""Tests the networks that filter maps are published for: their counts, and the one-bit file."""

import os

import numpy as np
import pytest

from exported import random_images, random_model
from mcn_jax.config import Config, ModelConfig
from mcn_jax.deploy.model_file import write_model
from mcn_jax.deploy.onnx import write_onnx
from mcn_jax.deploy.predictor import logits_of, open_predictor
from mcn_jax.layers.table import LAYERS
from mcn_jax.models.plan import plan_of

WIDE = (64, 64, 128, 256, 512)
RESNET_18 = {"name": "resnet", "widths": WIDE}
RESNET_34 = RESNET_18 | {"blocks": (3, 4, 6, 3)}
RESNET_50 = RESNET_34 | {"block": "bottleneck"}
DENSENET_121 = {"name": "densenet", "widths": (64,), "blocks": (6, 12, 24, 16)}


def plan(**fields):
    model = ModelConfig(**{"conv": "filter_map", "planes": 1, "head": "linear"} | fields)
    return plan_of(Config(model=model), 10, (32, 32, 3))


def count(layers):
    return sum(int(np.prod(shape)) for layer in layers for shape in layer.params.values())


@pytest.mark.parametrize(
    ("fields", "with_maps", "ordinary"),
    [
        (RESNET_18, 949_386, 11_173_962),
        (RESNET_34, 1_816_970, 21_282_122),
        (RESNET_50, 13_066_890, 23_520_842),
        (DENSENET_121, 5_292_362, 6_956_298),
    ],
)
def test_the_parameters_of_the_paper(fields, with_maps, ordinary):
    assert count(plan(**fields)) == with_maps
    assert count(plan(**fields, conv="conv")) == ordinary
    # An ordinary stem has 1,728 weights, and a map of 16x16x3 has 768.
    assert count(plan(**fields, stem_conv="conv")) == with_maps - 768 + 1_728


STEM = (16, 16, 3)


@pytest.mark.parametrize(
    ("fields", "maps", "weights"),
    [
        (
            RESNET_18,
            {
                STEM: 1, (8, 8, 64): 4, (16, 8, 64): 1, (16, 8, 128): 3, (16, 16, 128): 1,
                (16, 16, 256): 3 + 1, (16, 16, 512): 3,
            },
            762_624,
        ),
        (
            RESNET_34,
            {
                STEM: 1, (8, 8, 64): 6, (16, 8, 64): 1, (16, 8, 128): 7, (16, 16, 128): 1,
                (16, 16, 256): 11 + 1, (16, 16, 512): 5,
            },
            1_622_784,
        ),
        (
            RESNET_50,
            {STEM: 1, (8, 8, 64): 3, (16, 8, 128): 4, (16, 16, 256): 6, (16, 16, 512): 3},
            865_024,
        ),
        (DENSENET_121, {STEM: 1, (8, 8, 128): 58}, 475_904),
    ],
)  # fmt: skip
def test_the_maps_of_every_layer(fields, maps, weights):
    found = [x.params["filter_map"] for x in plan(**fields) if x.family is LAYERS["filter_map"]]
    assert {shape: found.count(shape) for shape in found} == maps
    assert sum(int(np.prod(shape)) for shape in found) == weights


@pytest.mark.parametrize(
    ("fields", "share"),
    [(RESNET_18, 0.289), (RESNET_34, 0.292), (RESNET_50, 0.668), (DENSENET_121, 0.772)],
)
def test_the_circulant_form_saves_multiply_adds(fields, share):
    counts = [layer.family.multiply_adds(layer) for layer in plan(**fields)]
    direct = sum(count.get("direct", 0) for count in counts)
    factored = sum(count.get("factored", count.get("direct", 0)) for count in counts)
    assert round(factored / direct, 3) == share


@pytest.mark.slow
def test_a_resnet_18_of_one_bit_takes_176_kilobytes(tmp_path):
    model, _, _ = random_model(
        **RESNET_18, conv="filter_map_sign", pointwise="mcdonnell", planes=1, head="linear",
        blocks=(2, 2, 2, 2), channels=3, size=(32, 32), classes=10,
    )  # fmt: skip
    maps, pointwise, batch_norm, dense = 762_624 // 8, 172_032 // 8, 4_800 * 8, 5_130 * 4
    assert maps + pointwise + batch_norm + dense == 175_752
    centers, scales = 17 * 8, 3 * 4
    tensors = sum(tensor.nbytes for tensor in model.tensors.values())
    assert tensors == 175_752 + centers + scales
    path = tmp_path / "model.safetensors"
    write_model(model, path)
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert os.path.getsize(path) == header + tensors
    write_onnx(model, tmp_path / "model.onnx")
    images = random_images(4, model)
    logits = [
        logits_of(open_predictor(file), images, 4) for file in (path, tmp_path / "model.onnx")
    ]
    np.testing.assert_allclose(*logits, rtol=1e-4, atol=1e-4)
    assert np.std(logits[0], axis=0).min() > 1e-3
