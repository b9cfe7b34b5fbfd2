"""Tests how the tensors of a network are joined in a file, and that docs/format.md says it."""

import json
import pathlib
import re

import numpy as np
import pytest

from exported import random_model
from mcn_jax.config import Config, flatten
from mcn_jax.deploy.header import _known_fields
from mcn_jax.deploy.header_text import IMAGES, NAMED
from mcn_jax.deploy.joined import join, split
from mcn_jax.errors import InputError
from mcn_jax.layers.one_bit import FAMILIES as ONE_BIT
from mcn_jax.layers.sign_conv import FAMILIES as SIGN_CONV

FORMAT = pathlib.Path(__file__).parents[2] / "docs" / "format.md"


def block(stage, number, *layers):
    return [f"stage_{stage}_block_{number}/{layer}" for layer in layers]


PAIRS = ("conv_1", "batch_norm_1", "conv_2", "batch_norm_2")
TURNED = ("batch_norm_1", "conv_1", "batch_norm_2", "conv_2")
# The layers of files in call order, which no later version may change.
ORDERS = {
    "simple_cnn": ({}, [*PAIRS, "dense_1", "dense_2"]),
    "convnet": (
        {"name": "convnet", "head": "dense_batch_norm"},
        [*PAIRS, "conv_3", "batch_norm_3", "conv_4", "batch_norm_4",
         "dense_1", "batch_norm_dense_1", "dense_2", "batch_norm_dense_2", "dense_3",
         "batch_norm_dense_3"],
    ),
    "one_bit_hidden": (
        {"conv": "bnn", "head": "one_bit_hidden"},
        [*PAIRS, "dense_1", "batch_norm_dense_1", "dense_2", "batch_norm_dense_2", "dense_3"],
    ),
    "nin": (
        {"name": "nin", "head": "conv"},
        [name for n in range(1, 9) for name in (f"conv_{n}", f"batch_norm_{n}")]
        + ["head", "batch_norm_head"],
    ),
    "maxout": (
        {"name": "maxout", "conv": "conv", "head": "maxout", "num_centers": 0},
        [*PAIRS, "conv_3", "batch_norm_3", "dense_1", "dense_2"],
    ),
    "wide_resnet": (
        {"name": "wide_resnet", "head": "linear", "depth": 14, "widths": (1, 1, 1, 1)},
        ["stem", *(name for stage in (1, 2, 3) for number in (1, 2)
                   for name in block(stage, number, *TURNED)), "batch_norm", "dense"],
    ),
    "lbcnn": (
        {"name": "lbcnn", "widths": (4,), "depth": 2},
        ["stem", "batch_norm_stem", *TURNED, "dense_1", "dense_2"],
    ),
    "resnet": (
        {"name": "resnet", "head": "linear", "channels": 3},
        ["stem", "batch_norm_stem", *block(1, 1, *PAIRS), *block(1, 2, *PAIRS),
         *block(2, 1, *PAIRS, "projection", "batch_norm_projection"), "dense"],
    ),
    "resnet, preactivation, bottleneck": (
        {"name": "resnet", "head": "linear", "preactivation": True, "block": "bottleneck"},
        ["stem", *block(1, 1, *TURNED, "batch_norm_3", "conv_3", "projection"),
         *block(1, 2, *TURNED, "batch_norm_3", "conv_3"),
         *block(2, 1, *TURNED, "batch_norm_3", "conv_3", "projection"), "batch_norm", "dense"],
    ),
    "densenet": (
        {"name": "densenet", "head": "linear", "channels": 3},
        ["stem", *block(1, 1, *TURNED), *block(1, 2, *TURNED), "batch_norm_transition_1",
         "transition_1", *block(2, 1, *TURNED), "batch_norm", "dense"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ORDERS)
def test_the_parts_of_layers_follow_each_other_in_call_order(name):
    fields, expected = ORDERS[name]
    model, _, _ = random_model(**fields)
    layers = [layer.name for layer in model.plan]
    assert layers == expected
    joined = join(model.tensors, model.plan)
    places = dict.fromkeys(joined, 0)
    for layer in expected:
        own = [n for n in model.tensors if n.rpartition("/")[0] in (layer, f"{layer}/conv")]
        assert own
        for tensor in own:
            leaf = tensor.removeprefix(f"{layer}/")
            [part] = {leaf, f"batch_norm/{leaf}", f"dense/{leaf}"} & set(joined)
            values = model.tensors[tensor].ravel()
            start = places[part]
            places[part] += values.size
            found = joined[part][start : start + values.size]
            np.testing.assert_array_equal(found, values, strict=True)
    assert places == {part: values.size for part, values in joined.items()}


def test_what_is_split_takes_no_memory():
    model, _, _ = random_model(num_centers=3)
    joined = join(model.tensors, model.plan)
    for name, tensor in split(joined, model.plan, *model.network).items():
        assert any(np.shares_memory(tensor, whole) for whole in joined.values()), name


def test_layers_of_one_kind_have_one_format():
    model, _, _ = random_model(dense="float16")
    kernel = model.tensors["dense_2/kernel"].astype(np.float32)
    tensors = {**model.tensors, "dense_2/kernel": kernel}
    with pytest.raises(InputError, match="its layers hold dense/kernel as float16 and float32"):
        join(tensors, model.plan)


def table_of(text):
    """Returns {field: default} of the tables with defaults; a field without one has None."""
    rows = re.findall(r"^\| (`[^|]*`) \| (?:`([^|]*)`)? ?\| ", text, re.M)
    return {
        name: json.loads(default) if default else None
        for names, default in rows
        for name in re.findall(r"`(\w+)`", names)
    }


def test_the_defaults_of_the_format_are_documented():
    text = FORMAT.read_text()
    start, middle, end = (
        text.index(f"### {title}") for title in ("The `network` field", "The `images` field", "Dec")
    )
    config = {name.partition(".")[2]: value for name, value in flatten(Config()).items()}
    known = {name: config[name] for name in _known_fields()} | {"quantized": True}
    expected = {name: None if name in NAMED else value for name, value in known.items()}
    assert table_of(text[start:middle]) == json.loads(json.dumps(expected))
    needed = dict.fromkeys(("height", "width", "channels", "mean", "std"))
    assert table_of(text[middle:end]) == needed | IMAGES


def test_the_number_of_scales_is_documented():
    line = next(line for line in FORMAT.read_text().splitlines() if line.startswith("| `scales`"))
    one_scale = set(re.findall(r"`(\w+)`", line.partition("scale of a one-bit layer, for ")[2]))
    found = set()
    for conv in (ONE_BIT | SIGN_CONV).keys() - {"irnet", "recu"}:
        model, _, _ = random_model(conv=conv, channels=3)
        if model.tensors["conv_1/scales"].shape == (1,):
            found.add(conv)
    assert found == one_scale


def test_a_deeper_network_has_no_more_tensors():
    lengths = {}
    for depth in (8, 20):
        model, _, _ = random_model(name="wide_resnet", depth=depth, head="linear")
        lengths[depth] = len(join(model.tensors, model.plan))
    assert lengths == {8: 7, 20: 7}
