"""Tests that model files are read as written, and that untrusted files do no harm."""

import dataclasses
import json
import pathlib
import struct
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from exported import CLASSES, header_of_version_1, random_images, random_model
from mcn_jax import models
from mcn_jax.config import BinarizeConfig, Config, ModelConfig
from mcn_jax.data.augment import normalise
from mcn_jax.data.images import padded_to
from mcn_jax.deploy.header import (
    MAX_DEPTH,
    MAX_LAYER_BYTES,
    MAX_TENSORS,
    InputImages,
    Network,
    layer_bytes,
    network_from_json,
)
from mcn_jax.deploy.joined import join
from mcn_jax.deploy.model_file import KEY, header, read_model, write_model
from mcn_jax.deploy.onnx import onnx_model, write_onnx
from mcn_jax.deploy.predictor import logits_of, of_model, of_onnx, open_predictor
from mcn_jax.errors import InputError
from mcn_jax.layers import binary_filters
from mcn_jax.layers.filter_map import FAMILIES as FILTER_MAP
from mcn_jax.layers.mcconv_file import codes_of
from mcn_jax.layers.planes import INPUT_PLANES
from mcn_jax.layers.pooling import POOLINGS
from mcn_jax.layers.table import LAYERS
from mcn_jax.models.heads import HEADS
from mcn_jax.models.maxout import LAYOUTS
from mcn_jax.models.plan import specs
from mcn_jax.models.resnet import BLOCKS, SHORTCUTS
from mcn_jax.models.wide_resnet import STEMS, blocks_per_stage
from mcn_jax.ops.plane_signs import PATTERNS

# All layers but MCconv and the ordinary convolution.
COMPARED = {
    name: {"conv": name} | ({} if family.quantizes else {"num_centers": 0})
    for name, family in LAYERS.items()
    if name not in ("mcconv", "conv")
}
NETWORKS = {
    "simple_cnn": {},
    "padded": {"image_size": 21},
    "not square": {"size": (12, 20)},
    "not square, padded": {"size": (12, 20), "image_size": 21},
    "four centers": {"num_centers": 4, "planes": 8},
    "three centers, first": {"num_centers": 3, "input_planes": "first"},
    "rgbx": {"input_planes": "rgbx", "channels": 3},
    "colour": {"channels": 3, "planes": 2},
    "hadamard": {"plane_signs": "hadamard", "channels": 3},
    "hadamard, wide": {"plane_signs": "hadamard", "widths": (16, 17)},
    "hadamard of two planes": {"plane_signs": "hadamard", "planes": 2, "num_centers": 3},
    "quaternion": {"plane_signs": "quaternion", "input_planes": "rgbx", "channels": 3},
    "circulant": {"plane_signs": "circulant", "planes": 8},
    "U-MCN, quaternion": {"plane_signs": "quaternion", "num_centers": 0},
    "wide_resnet, quaternion": {"name": "wide_resnet", "plane_signs": "quaternion"},
    "MCN stem, circulant": {
        "conv": "mcdonnell", "stem_conv": "mcconv", "channels": 3, "plane_signs": "circulant",
    },
    "wide_resnet": {"name": "wide_resnet"},
    "wide_resnet, four centers": {"name": "wide_resnet", "num_centers": 4, "planes": 8},
    "wide_resnet, rgbx": {"name": "wide_resnet", "input_planes": "rgbx", "channels": 3},
    "wide_resnet, not square": {"name": "wide_resnet", "size": (12, 20)},
    "imagenet": {"name": "wide_resnet", "stem": "imagenet", "channels": 3},
    "U-MCN": {"num_centers": 0},
    "CNN": {"num_centers": 0, "conv": "conv"},
    "WRN": {"num_centers": 0, "conv": "conv", "name": "wide_resnet"},
    "linear head": {"head": "linear"},
    "conv head": {"head": "conv"},
    "conv head, not square, padded": {"head": "conv", "size": (12, 20), "image_size": 21},
    "wide_resnet, linear head": {"name": "wide_resnet", "head": "linear"},
    "wide_resnet, conv head": {"name": "wide_resnet", "head": "conv", "num_centers": 4},
    "U-MCN, linear head": {"num_centers": 0, "head": "linear"},
    "WRN, conv head": {"num_centers": 0, "conv": "conv", "name": "wide_resnet", "head": "conv"},
    **{kind: fields | {"channels": 3} for kind, fields in COMPARED.items()},
    **{
        f"wide_resnet, {kind}": fields
        | {"name": "wide_resnet", "channels": 3, "planes": 8 if kind in FILTER_MAP else 2}
        for kind, fields in COMPARED.items()
    },
    "filter map of bits, not yet quantized": {"conv": "filter_map_sign", "num_centers": 0},
    "filter map, three centers": {"conv": "filter_map_kmeans", "num_centers": 3, "channels": 3},
    "filter map, larger kernels": {
        "name": "nin", "conv": "filter_map", "num_centers": 0, "channels": 3, "planes": 8,
    },
    "bwn, float": {"conv": "bwn", "num_centers": 0},
    "xnor, float": {"conv": "xnor", "num_centers": 0, "channels": 3},
    "irnet, float stem": {"conv": "irnet", "stem_conv": "conv", "name": "wide_resnet"},
    "MCN stem": {"conv": "mcdonnell", "stem_conv": "mcconv", "channels": 3},
    "lbcnn": {
        "name": "lbcnn",
        "conv": "lbc",
        "num_centers": 0,
        "stem_conv": "conv",
        "widths": (6,),
        "depth": 3,
        "planes": 1,
        "lbc_ratio": 2.0,
        "channels": 3,
    },
    "lbcnn, MCN": {"name": "lbcnn", "widths": (4,), "depth": 2, "size": (16, 13)},
    "lbc, many anchors": {"conv": "lbc", "num_centers": 0, "lbc_ratio": 2.5, "channels": 3},
    "phc of three": {"conv": "phc", "num_centers": 0, "phc_n": 3, "planes": 3, "channels": 3},
    "phc of four, wide_resnet": {
        "conv": "phc", "num_centers": 0, "phc_n": 4, "name": "wide_resnet", "channels": 3,
    },
    "phc stem": {"conv": "mcdonnell", "stem_conv": "phc", "channels": 3},
    "phc, resnet": {
        "name": "resnet", "conv": "phc", "pointwise": "phc", "num_centers": 0, "head": "linear",
        "channels": 3,
    },
    "phc after a CNN": {"conv": "phc", "stem_conv": "conv", "num_centers": 0, "name": "convnet"},
    "nin, odd size": {
        "name": "nin", "head": "conv_relu", "size": (13, 20), "channels": 3, "planes": 2,
    },
    "NIN": {"name": "nin", "num_centers": 0, "conv": "conv", "head": "linear"},
    "maxout": {"name": "maxout", "num_centers": 0, "conv": "conv", "head": "maxout"},
    "maxout, svhn": {"name": "maxout", "layout": "svhn", "head": "maxout", "num_centers": 4},
    "maxout, mnist": {"name": "maxout", "layout": "mnist", "conv": "bwn", "head": "linear"},
    "resnet": {"name": "resnet", "head": "linear", "channels": 3},
    "resnet, one-bit 1x1": {
        "name": "resnet", "conv": "bwn", "pointwise": "mcdonnell", "planes": 1, "size": (13, 20),
        "channels": 3,
    },
    "resnet, bottleneck": {
        "name": "resnet", "block": "bottleneck", "head": "linear", "preactivation": True,
        "num_centers": 3,
    },
    "resnet, zeros": {
        "name": "resnet", "conv": "conv", "shortcut": "zeros", "num_centers": 0, "head": "linear",
    },
    "resnet, signs": {
        "name": "resnet", "conv": "bnn", "preactivation": True, "head": "linear", "channels": 3,
    },
    "densenet": {"name": "densenet", "head": "linear", "size": (13, 20), "channels": 3},
    "densenet, one-bit 1x1": {
        "name": "densenet", "conv": "irnet", "pointwise": "irnet", "growth": 3, "channels": 3,
    },
    "nin, one-bit 1x1": {"name": "nin", "pointwise": "bwn", "head": "linear"},
    "convnet": {"name": "convnet", "head": "dense_batch_norm", "channels": 3},
    "convnet, signs": {"name": "convnet", "conv": "bnn", "head": "linear", "size": (12, 20)},
    "convnet, signs after a CNN": {
        "name": "convnet", "conv": "xnor", "stem_conv": "conv", "head": "dense_batch_norm",
    },
    "convnet, one-bit dense layers": {
        "name": "convnet", "conv": "binaryconnect", "head": "one_bit_dense", "size": (12, 20),
    },
    "convnet, dense layers of signs": {"name": "convnet", "conv": "bnn", "head": "one_bit_dense"},
    "convnet, float dense layers of signs": {
        "name": "convnet", "conv": "bnn", "head": "one_bit_dense", "num_centers": 0,
    },
    "convnet, float last layer": {
        "name": "convnet", "conv": "xnor", "stem_conv": "conv", "head": "one_bit_hidden",
        "planes": 1,
    },
    "wide_resnet, one-bit dense layers": {
        "name": "wide_resnet", "conv": "irnet", "head": "one_bit_dense", "channels": 3,
    },
    "simple_cnn, dense layers of signs": {"conv": "xnor", "head": "one_bit_dense", "planes": 2},
    "convnet, max": {
        "name": "convnet", "conv": "conv", "planes": 1, "num_centers": 0, "pooling": "max",
        "strides": (3, 2),
    },
    "resnet, average": {"name": "resnet", "pooling": "average", "strides": (2, 3)},
    "resnet, spectral": {
        "name": "resnet", "pooling": "spectral", "shortcut": "zeros", "strides": (1, 3),
    },
    "resnet, learned strides": {
        "name": "resnet", "pooling": "diffstride", "preactivation": True, "smoothness": 3.0,
    },
    "densenet, a learned stride": {
        "name": "densenet", "pooling": "diffstride", "shares_stride": True, "reading": "paper",
    },
}  # fmt: skip
# The slow tests also have every kind of layer with strides and shortcuts.
SLOW = [f"wide_resnet, {kind}" for kind in COMPARED]
EVERY = [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NETWORKS]
# Networks that version 0.1 could write; it had no choice of a head.
OF_0_1 = [
    name
    for name, fields in NETWORKS.items()
    if not {"head", "pooling", "plane_signs"} & set(fields)
    and fields.get("conv", "mcconv") in ("mcconv", "conv")
]


def trained_logits(model, variables, config, images):
    """Returns the logits of the network with its own batch norm, as training evaluates it."""
    module = models.make_model(config, CLASSES, quantized=model.network.quantized)
    x = padded_to(images, model.images.image_size)
    x = normalise(x, model.images.mean, model.images.std, jnp.dtype("float32"))
    return np.asarray(jax.jit(module.apply)(variables, x).logits)


@pytest.mark.parametrize("name", EVERY)
def test_checkpoint_file_and_graph_agree(name, tmp_path):
    model, variables, config = random_model(**NETWORKS[name])
    images = random_images(7, model)
    expected = trained_logits(model, variables, config, images)
    assert np.std(expected, axis=0).min() > 1e-3  # the images matter
    for file, write in (("model.safetensors", write_model), ("model.onnx", write_onnx)):
        if file == "model.onnx":
            pytest.importorskip("onnxruntime")
        write(model, tmp_path / file)
        predictor = open_predictor(tmp_path / file)
        assert predictor.class_names == tuple("abcde")
        difference = np.abs(predictor.logits(images) - expected).max()
        assert difference <= 1e-5 * np.abs(expected).max(), file


def test_every_choice_of_a_network_is_among_those_that_are_exported():
    default = ModelConfig()
    for field, table in (
        ("name", models.MODELS), ("conv", LAYERS), ("stem", STEMS), ("layout", LAYOUTS),
        ("block", BLOCKS), ("shortcut", SHORTCUTS),
        ("input_planes", INPUT_PLANES), ("plane_signs", {"", *PATTERNS}),
        ("pooling", POOLINGS), ("head", HEADS),
    ):  # fmt: skip
        tested = {fields.get(field, getattr(default, field)) for fields in NETWORKS.values()}
        assert tested == set(table), field


def test_codes_are_those_of_the_dtype_that_was_trained_in():
    centers = np.array([0.0, 1.0])
    latent = np.array([0.5 - 1e-12, 0.5])  # equal in float32
    assert codes_of(latent, centers).tolist() == [0, 1]


def test_filters_are_those_of_the_checkpoint(tmp_path):
    model, variables, _ = random_model(num_centers=3)
    write_model(model, tmp_path / "model.safetensors")
    read = read_model(tmp_path / "model.safetensors")
    params = jax.jit(read.unpacked)(read.tensors)
    expected = binary_filters(variables["params"], variables["centers"])
    assert list(expected) == ["conv_1", "conv_2"]
    for path, filters in expected.items():
        np.testing.assert_array_equal(params[path]["filters"], filters, strict=True)


def test_a_weight_takes_a_bit():
    model, _, _ = random_model(widths=(20, 40))
    bits = [tensor for name, tensor in model.tensors.items() if name.endswith("/bits")]
    assert [tensor.shape for tensor in bits] == [(1, 9 * 4 * 20 // 8), (1, 9 * 80 * 40 // 8)]
    assert {tensor.dtype.name for tensor in bits} == {"uint8"}


def test_a_weight_of_a_dense_layer_takes_a_bit():
    model, variables, _ = random_model(name="convnet", conv="binaryconnect", head="one_bit_dense")
    sizes = {"dense_1": 4 * 4 * 3 * 4 * 16, "dense_2": 16 * 16, "dense_3": 16 * CLASSES}
    for name, weights in sizes.items():
        latent = variables["params"][name]["latent_kernel"]
        assert latent.size == weights
        tensors = {n: t for n, t in model.tensors.items() if n.startswith(f"{name}/")}
        assert set(tensors) == {f"{name}/bits", f"{name}/scales"}
        assert tensors[f"{name}/bits"].nbytes == weights // 8
        signs = np.unpackbits(tensors[f"{name}/bits"], bitorder="little")
        np.testing.assert_array_equal(signs, latent.ravel() >= 0)
        scale = np.sqrt(1.5 / sum(latent.shape[2:]))
        np.testing.assert_allclose(tensors[f"{name}/scales"], [scale], rtol=1e-6)


@pytest.mark.parametrize(("dense", "most"), [("float16", 2e-3), ("int8", 3e-2)])
@pytest.mark.parametrize(("head", "layer"), [("dense", "dense_1"), ("linear", "dense")])
def test_dense_layers_in_fewer_bits(head, layer, dense, most, tmp_path):
    exact, _, _ = random_model(head=head)
    model, _, _ = random_model(head=head, dense=dense)
    images = random_images(9, exact)
    expected = of_model(exact).logits(images)
    write_model(model, tmp_path / "model.safetensors")
    logits = of_model(read_model(tmp_path / "model.safetensors")).logits(images)
    assert 0 < np.abs(logits - expected).max() <= most * np.abs(expected).max()
    assert model.tensors[f"{layer}/kernel"].dtype.name == dense


@pytest.mark.parametrize("dense", ["float16", "int8"])
def test_dense_layers_in_fewer_bits_in_a_graph(dense, tmp_path):
    pytest.importorskip("onnxruntime")
    model, _, _ = random_model(dense=dense)
    images = random_images(9, model)
    logits = of_model(model).logits(images)
    write_onnx(model, tmp_path / "model.onnx")
    difference = np.abs(of_onnx(tmp_path / "model.onnx").logits(images) - logits).max()
    assert difference <= 1e-5 * np.abs(logits).max()
    held = {tensor.name: tensor for tensor in onnx_model(model).graph.initializer}
    assert len(held["dense_1/kernel"].raw_data) == model.tensors["dense_1/kernel"].nbytes


def test_onnx_holds_bits_and_takes_any_batch():
    model, _, _ = random_model(widths=(8, 16))
    graph = onnx_model(model).graph
    held = {tensor.name: tensor for tensor in graph.initializer}
    assert held["conv_2/bits"].dims == [1, 9 * 32 * 16 // 8]
    sizes = [np.prod(tensor.dims) for name, tensor in held.items() if "dense" not in name]
    assert max(sizes) < 9 * 32 * 16  # filters are not stored in any other form
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def check_read(path, model):
    """Checks that a file is read as the model that was written."""
    read = read_model(path)
    assert dataclasses.replace(read, tensors={}) == dataclasses.replace(
        model, tensors={}, provenance=json.loads(json.dumps(model.provenance))
    )
    assert read.tensors.keys() == model.tensors.keys()
    for name, tensor in model.tensors.items():
        np.testing.assert_array_equal(read.tensors[name], tensor, strict=True)


def as_used(model):
    """Returns a model with default values for config fields that its network does not use."""
    network, config = model.network, model.network.config
    unused = {}
    if "dense_features" not in HEADS[config.model.head].options:
        unused["dense_features"] = ModelConfig().dense_features
    fields = dataclasses.replace(config.model, **unused)
    config = Config(
        model=fields, binarize=config.binarize if network.quantized else BinarizeConfig()
    )
    return dataclasses.replace(model, network=Network(config, network.quantized))


@pytest.mark.parametrize("name", EVERY)
def test_what_is_read_is_what_was_written(name, tmp_path):
    model, _, _ = random_model(**NETWORKS[name])
    write_model(model, tmp_path / "model.safetensors")
    check_read(tmp_path / "model.safetensors", as_used(model))


def network_of_0_1(model):
    """Returns the "network" of a header as version 0.1 wrote it: all fields, used or not."""
    config, quantized = model.network
    names = (
        "name", "conv", "widths", "depth", "stem", "planes", "input_planes", "dense_features",
    )  # fmt: skip
    fields = {name: getattr(config.model, name) for name in names}
    return fields | {"num_centers": config.binarize.num_centers if quantized else 0}


@pytest.mark.parametrize("name", OF_0_1)
def test_what_version_0_1_wrote_is_read(name, tmp_path):
    model, _, _ = random_model(**NETWORKS[name])
    path = tmp_path / "model.safetensors"
    written(model, path, layout=1, network=network_of_0_1(model))
    check_read(path, as_used(model))


# Networks of every kind of tensor, and of every kind of field in a header.
OF_VERSION_1 = (
    "simple_cnn", "three centers, first", "wide_resnet, conv head", "CNN", "bwn", "irnet",
    "filter map, three centers", "lbcnn", "phc stem", "nin, odd size", "maxout, svhn",
    "resnet, bottleneck", "resnet, learned strides", "densenet", "convnet, signs after a CNN",
)  # fmt: skip


@pytest.mark.parametrize("name", OF_VERSION_1)
def test_a_file_of_version_1_is_read(name, tmp_path):
    model, _, _ = random_model(**NETWORKS[name], dense="int8")
    path = tmp_path / "model.safetensors"
    written(model, path, layout=1)
    assert safetensors.numpy.load_file(path).keys() == model.tensors.keys()
    check_read(path, as_used(model))


def test_a_header_holds_what_its_network_depends_on():
    model, _, _ = random_model(num_centers=4)
    assert model.network.to_json() == {
        "name": "simple_cnn", "conv": "mcconv", "widths": (2, 3), "pooling": "strided",
        "head": "dense", "dense_features": 16, "planes": 4, "input_planes": "copy",
        "num_centers": 4, "quantized": True,
    }  # fmt: skip
    assert json.loads(header(model))["network"] == {
        "name": "simple_cnn", "conv": "mcconv", "widths": [2, 3], "head": "dense",
        "dense_features": 16, "num_centers": 4,
    }  # fmt: skip
    model, _, _ = random_model(plane_signs="circulant")
    assert json.loads(header(model))["network"]["plane_signs"] == "circulant"
    model, _, _ = random_model(name="wide_resnet", conv="conv", num_centers=0, head="linear")
    assert model.network.to_json() == {
        "name": "wide_resnet", "conv": "conv", "widths": (1, 2, 2, 3), "pooling": "strided",
        "head": "linear", "depth": 8, "stem": "cifar", "planes": 4, "quantized": False,
    }  # fmt: skip
    assert json.loads(header(model))["network"] == {
        "name": "wide_resnet", "conv": "conv", "widths": [1, 2, 2, 3], "head": "linear", "depth": 8,
        "quantized": False,
    }  # fmt: skip


def test_a_header_leaves_out_the_defaults_of_images_and_data(tmp_path):
    model, _, _ = random_model()
    images = dataclasses.replace(model.images, background=255, exif_orientation=True)
    data = {"name": "mnist", "train_split": "train", "test_split": "test", "test_fraction": 0.2}
    provenance = {"data": data | {"split_seed": 0, "full_name": "mnist/1.0.0"}, "step": 3}
    model = dataclasses.replace(model, images=images, provenance=provenance)
    fields = json.loads(header(model))
    assert fields["images"] == {
        "height": 16, "width": 16, "channels": 1, "mean": [0.3], "std": [0.2]
    }  # fmt: skip
    short = {"name": "mnist", "full_name": "mnist/1.0.0"}
    assert fields["provenance"] == {"data": short, "step": 3}
    path = tmp_path / "model.safetensors"
    write_model(model, path)
    check_read(path, as_used(model))
    others = {"background": 0, "exif_orientation": False, "image_size": 21, "center_crop": 0.5}
    changed = data | {"split_seed": 7, "full_name": None}
    model = dataclasses.replace(
        model,
        images=dataclasses.replace(images, **others),
        provenance={"data": changed | {"test_split": "validation"}},
    )
    assert others.items() <= json.loads(header(model))["images"].items()


@pytest.mark.parametrize(
    "name", ["name", "conv", "pooling", "head", "planes", "input_planes", "num_centers"]
)
def test_a_field_that_a_header_of_version_1_lacks_has_its_default(name, tmp_path):
    model, _, _ = random_model()
    fields = model.network.to_json()
    flat = dataclasses.asdict(ModelConfig()) | dataclasses.asdict(BinarizeConfig())
    default = flat[name]
    assert fields[name] == default
    del fields[name]
    if name == "num_centers":
        assert fields["quantized"]  # version 0.1 stored this as the number of centers
    path = tmp_path / "model.safetensors"
    written(model, path, layout=1, network=fields)
    check_read(path, model)


def test_a_model_file_is_a_plain_safetensors_file(tmp_path):
    model, _, _ = random_model(num_centers=3, dense="int8", scales="float16")
    write_model(model, tmp_path / "model.safetensors")
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    parts = {
        "bits": ["conv_1/bits", "conv_2/bits"],
        "centers": ["conv_1/centers", "conv_2/centers"],
        "m_filters": ["conv_1/m_filters", "conv_2/m_filters"],
        "batch_norm/scale": ["batch_norm_1/scale", "batch_norm_2/scale"],
        "batch_norm/offset": ["batch_norm_1/offset", "batch_norm_2/offset"],
        "dense/kernel": ["dense_1/kernel", "dense_2/kernel"],
        "dense/kernel_scale": ["dense_1/kernel_scale", "dense_2/kernel_scale"],
        "dense/bias": ["dense_1/bias", "dense_2/bias"],
    }
    assert tensors.keys() == parts.keys()
    for name, members in parts.items():
        expected = np.concatenate([model.tensors[member].ravel() for member in members])
        np.testing.assert_array_equal(tensors[name], expected, strict=True)


def written(model, path, tensors=None, layout=2, **changes):
    """Writes a model file of a version, with a changed header or with other tensors in it."""
    fields = json.loads(header(model)) if layout == 2 else header_of_version_1(model)
    for name, value in changes.items():
        *groups, last = name.split("__")
        place = fields
        for group in groups:
            place = place[group]
        place[last] = value
    if tensors is None:
        tensors = join(model.tensors, model.plan) if layout == 2 else model.tensors
    tensors = {k: np.ascontiguousarray(v) for k, v in tensors.items()}
    path.write_bytes(safetensors.numpy.save(tensors, metadata={KEY: json.dumps(fields)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 3}, "its version is 3, but .* reads only 1 and 2"),
        ({"version": True}, "its version is True, but .* reads only 1 and 2"),
        ({"network": []}, "its network is not an object"),
        ({"network__heads": "dense"}, "unknown field network.'heads'; did you mean head"),
        ({"network__dropout_rate": 0.5}, "unknown field network.'dropout_rate'"),
        ({"network__enabled": True}, "unknown field network.'enabled'"),
        ({"network__head": "tail"}, "network.head='tail' must be one of dense, linear, conv"),
        ({"network__head": "linear"},
         r"its tensor dense/kernel has the shape \[3152\] instead of \[960\]"),
        ({"network__head": "conv"}, "its tensor 'dense/bias' does not belong to its network"),
        ({"network__pooling": "x"}, "network.pooling='x' must be one of strided"),
        ({"network__quantized": 1}, "network.quantized=1 must be true or false"),
        ({"network__quantized": False}, "its tensor 'bits' does not belong to its network"),
        ({"network__head": "x" * 1000}, "network.head='x+ is too long for a name"),
        ({"network__name": "vgg"}, "network.name='vgg' must be one of simple_cnn"),
        ({"network__name": ["simple_cnn"]}, r"network.name=\['simple_cnn'\] must be of type str"),
        ({"network__planes": 65}, "network.planes=65 does not lie in 1..64"),
        ({"network__planes": True}, "network.planes=True must be of type int"),
        ({"network__widths": [2, 10**30]}, "network.widths=1000000"),
        ({"network__widths": [1048576, 2]}, "the bytes of a layer's output=4294967296 does not"),
        ({"network__widths": [2, 8192]}, "the bits of the filters=589896 does not lie in"),
        ({"network__widths": [2**20, 2**20]}, "are too large for a network"),
        ({"network__widths": [2**20] * 2, "network__conv": "conv", "network__quantized": False},
         "the bytes of a layer's output=4294967296 does not"),
        ({"network__widths": [3], "network__planes": 64, "images__height": 2048,
          "images__width": 2048}, "the bytes of a layer's output=3221225472 does not lie"),
        ({"network__name": "lbcnn", "network__conv": "lbc", "network__quantized": False,
          "network__widths": [16], "network__depth": 1, "network__lbc_ratio": 1024.0,
          "images__height": 2048, "images__width": 2048},
         "the bytes of a layer's output=1099511627776 does not lie"),
        ({"network__conv": "phc", "network__quantized": False, "network__phc_n": 3},
         "network.phc_n=3 does not divide the 8 output channels of conv_1, with"),
        ({"network__phc_n": 0}, r"network.phc_n=0 must lie in 1\.\.64"),
        ({"network__layout": "cifar"}, "network.layout='cifar' must be one of cifar10, svhn"),
        ({"network__dense_features": 2**20}, r"kernel has the shape \[3152\] instead of \[20"),
        ({"network__dense_features": 2**40}, "network.dense_features=1099511627776 does not lie"),
        ({"network__planes": 64, "network__widths": [300, 1]}, "the bits of the filters="),
        ({"network__widths": []}, "the number of network.widths=0 does not lie"),
        ({"network__widths": [2, 4]}, r"its tensor bits has the shape \[36\] instead of \[45\]"),
        ({"network__depth": 10**12}, "network.depth=1000000000000 does not lie"),
        ({"network__depth": 202}, "network.depth=202 does not lie in 0..200"),
        ({"network__num_centers": 0}, "network.num_centers=0 does not lie in 2..256"),
        ({"network__num_centers": 1}, "network.num_centers=1 does not lie in 2..256"),
        ({"network__conv": "conv"}, "network.conv=conv does not support quantized weights"),
        ({"network__input_planes": "rgbx"}, "network.input_planes='rgbx' needs 3 channels"),
        ({"images": 3}, "its images is not an object"),
        ({"images__heigth": 16}, "unknown field images.'heigth'; did you mean height"),
        ({"images": {"height": 16}}, "its images does not have the field width"),
        ({"images__height": 100000}, "images.height=100000 does not lie in 1..2048"),
        ({"images__center_crop": 10**400}, "its images.center_crop=1000"),
        ({"images__std": [0.0]}, r"images.std=\(0.0,\) is not positive"),
        ({"images__std": [1e-300]}, r"images.std=\(1e-300,\) is not positive in float32"),
        ({"images__std": [1e300]}, r"images.std=\(1e\+300,\) is not positive in float32"),
        ({"images__mean": [1e300]}, r"images.mean=\(1e\+300,\) is not finite in float32"),
        ({"images__mean": [0.1, 0.2]}, r"images.mean=\(0.1, 0.2\) is not one number per channel"),
        ({"images__mean": [float("nan")]}, r"images.mean=\(nan,\) is not one number per channel"),
        ({"images__image_size": 8}, "images.image_size=8 does not lie in 16..2048"),
        ({"images__background": 256}, r"images.background=256 does not lie in -1\.\.255"),
        ({"images__background": 1.5}, "images.background=1.5 is not of the right type"),
        ({"images__exif_orientation": 1}, "images.exif_orientation=1 is not of the right type"),
        ({"images__center_crop": 0}, r"images.center_crop=0.0 does not lie in \(0, 1\]"),
        (
            {"images__center_crop": 0.5, "images__height": 15},
            "images.center_crop=0.5 is for square images, not 15x16",
        ),
        ({"class_names": ["a"]}, r"dense/kernel has the shape \[3152\] instead of \[3088"),
        ({"class_names": "abcde"}, "its class_names are not a list of names"),
        ({"class_names": ["\udcff"]}, r"class_names='\\udcff' is not text of up to 300"),
        ({"class_names": ["a" * 301]}, "is not text of up to 300 characters"),
        ({"provenance": {"data": {"full_name": "\r"}}}, r"provenance.data.full_name='\\r' is no"),
        (
            {"provenance": {"data": {"full_name": 3}}},
            "provenance.data.full_name=3 is not printable",
        ),
    ],
)  # fmt: skip
def test_a_wrong_header_is_named(changes, message, tmp_path):
    model, _, _ = random_model()
    path = tmp_path / "model.safetensors"
    written(model, path, **changes)
    with pytest.raises(InputError, match=f"^{path} cannot be used: .*{message}"):
        read_model(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network__head": "linear"}, "its tensor dense/kernel is missing"),
        ({"network__head": "conv"}, "its tensor head/conv/kernel is missing"),
        ({"network__quantized": False}, "its tensor conv_1/latent_filters is missing"),
        ({"network__dense_features": 2**20}, "its tensor dense_1/kernel is float32"),
        ({"network__widths": [2, 4]}, "its filter_shapes do not match"),
        ({"network__widths": [2] * 99}, r"the number of network.widths=99 does not lie in 1\.\.14"),
        ({"class_names": ["a"]}, r"its tensor dense_2/kernel is float32 \[16, 5\] instead of"),
        ({"filter_shapes": {}}, "its filter_shapes do not match"),
    ],
)
def test_a_wrong_header_of_version_1_is_named(changes, message, tmp_path):
    model, _, _ = random_model()
    path = tmp_path / "model.safetensors"
    written(model, path, layout=1, **changes)
    with pytest.raises(InputError, match=f"^{path} cannot be used: .*{message}"):
        read_model(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("bits", None, "its tensor bits is missing"),
        ("bits", np.zeros(44, np.uint8), r"bits has the shape \[44\] instead of \[72\]"),
        ("bits", np.zeros((2, 36), np.uint8), r"bits has the shape \[2, 36\] instead of \[72\]"),
        (
            "bits",
            np.zeros(72, np.int8),
            r"its tensor conv_1/bits is int8 \[2, 9\] instead",
        ),
        ("bits", np.full(72, 255, np.uint8), "conv_1/bits has codes without a center"),
        ("m_filters", np.full(72, np.nan, np.float32), "conv_1/m_filters has values that are not"),
        ("m_filters", np.full(72, np.inf, np.float16), "conv_1/m_filters has values that are not"),
        ("m_filters", np.full(72, -1, np.float16), "conv_1/m_filters has negative values"),
        ("m_filters", np.zeros(72), "a tensor m_filters is float64, not one of float32, float16"),
        ("centers", np.zeros(6, np.float16), "conv_1/centers is float16"),
        ("centers", np.arange(6, 0, -1, np.float32), "conv_1/centers is not in ascending order"),
        ("batch_norm/scale", np.zeros(20, np.int8), "a tensor scale is int8, not one of float32"),
        ("batch_norm/offset", np.full(20, np.inf, np.float16), "batch_norm_1/offset has values"),
        ("dense/kernel", np.zeros(3152, np.int32), "dense_1/kernel is int32, not one of float32"),
        ("dense/kernel", np.zeros(3152, np.int8), "its tensor dense/kernel_scale is missing"),
        ("dense/kernel_scale", np.zeros(21, np.float32), "'dense/kernel_scale' does not belong"),
        ("conv_1/bits", np.zeros(18, np.uint8), "its tensor 'conv_1/bits' does not belong"),
        ("x\n" * 99, np.zeros(18, np.uint8), r"its tensor 'x\\nx\\n.* does not belong"),
    ],
)
def test_a_wrong_tensor_is_named(name, value, message, tmp_path):
    model, _, _ = random_model(num_centers=3)
    tensors = {**join(model.tensors, model.plan), name: value}
    if value is None:
        del tensors[name]
    path = tmp_path / "model.safetensors"
    written(model, path, tensors)
    with pytest.raises(InputError, match=f"^{path} cannot be used: .*{message}") as found:
        read_model(path)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("conv_1/bits", None, "its tensor conv_1/bits is missing"),
        ("conv_1/bits", np.zeros((1, 8), np.uint8), r"conv_1/bits is uint8 \[1, 8\] instead of"),
        ("conv_1/bits", np.full((2, 9), 255, np.uint8), "conv_1/bits has codes without a center"),
        ("conv_1/m_filters", np.full((3, 3, 4), np.nan, np.float32), "m_filters has values that"),
        ("conv_1/m_filters", np.full((3, 3, 4), np.inf, np.float32), "m_filters has values that"),
        ("conv_1/centers", np.zeros(3, np.float64), "conv_1/centers is float64"),
        ("conv_1/centers", np.array([1, 0, 2], np.float32), "conv_1/centers is not in ascending"),
        ("conv_1/m_filters", np.full((3, 3, 4), -1, np.float32), "m_filters has negative values"),
        ("dense_1/kernel", np.zeros((192, 16), np.int32), "dense_1/kernel is int32, not one of"),
        ("conv_9/bits", np.zeros(3, np.uint8), "its tensor 'conv_9/bits' does not belong"),
    ],
)
def test_a_wrong_tensor_of_version_1_is_named(name, value, message, tmp_path):
    model, _, _ = random_model(num_centers=3)
    tensors = {**model.tensors, name: value}
    if value is None:
        del tensors[name]
    path = tmp_path / "model.safetensors"
    written(model, path, tensors, layout=1)
    with pytest.raises(InputError, match=f"^{path} cannot be used: .*{message}"):
        read_model(path)


def test_a_scale_that_is_too_large_is_named(tmp_path):
    model, _, _ = random_model(dense="int8")
    scale = np.full(16, 3e38, np.float32)
    path = tmp_path / "model.safetensors"
    write_model(
        dataclasses.replace(model, tensors={**model.tensors, "dense_1/kernel_scale": scale}), path
    )
    with pytest.raises(InputError, match="its tensor dense_1/kernel_scale is too large for"):
        read_model(path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx"])
def test_logits_that_are_not_finite_are_one_line(name, tmp_path):
    model, _, _ = random_model()
    kernel = np.full((192, 16), 3e38, np.float32)
    model = dataclasses.replace(model, tensors={**model.tensors, "dense_1/kernel": kernel})
    (write_model if name == "model.safetensors" else write_onnx)(model, tmp_path / name)
    with pytest.raises(InputError, match="the network's logits of an image are not finite"):
        logits_of(open_predictor(tmp_path / name), random_images(2, model), 4)


def test_a_network_for_imagenet_can_be_read():
    for size, stem in ((224, "cifar"), (448, "imagenet")):
        model = ModelConfig(name="wide_resnet", stem=stem, depth=28, widths=(64, 64, 128, 256))
        network = Network(Config(model=model, binarize=BinarizeConfig(num_centers=2)), True)
        shape = {"height": size, "width": size, "channels": 3}
        images = InputImages(**shape, mean=(0.5,) * 3, std=(0.2,) * 3)
        fields = json.loads(json.dumps(network.to_json()))
        fields["dense_features"] = 512
        expected = dataclasses.replace(
            network.config, model=dataclasses.replace(model, dense_features=512)
        )
        read = network_from_json(fields, images, 1000, 200, 10**7)
        assert read == Network(expected, True)
        # The stem outputs 64 maps of 4 planes in float32. The ImageNet stem halves the image.
        assert layer_bytes(read.plan(1000, images.shape), images) == 224**2 * 64 * 4 * 4


def test_the_filters_that_are_convolved_with_are_bounded():
    """A small file may need much memory, because each bit becomes K numbers."""
    images = InputImages(height=8, width=8, channels=1, mean=(0.5,), std=(0.2,))
    model = ModelConfig(widths=(2, 1000), planes=64)
    fields = Network(Config(model=model), True).to_json() | {"widths": [2, 1000]}
    numbers = 9 * (2 * 64) * (1000 * 64)
    assert 4 * numbers > MAX_LAYER_BYTES > 4 * numbers // 1000 * 900
    with pytest.raises(InputError, match=f"the bytes of a layer's filters={4 * numbers} does not"):
        network_from_json(fields, images, 5, 100, 10**9)
    fields["widths"] = [2, 900]
    assert network_from_json(fields, images, 5, 100, 10**9).config.model.widths == (2, 900)


@pytest.mark.parametrize("conv", FILTER_MAP)
def test_the_filters_of_a_filter_map_are_bounded(conv):
    """A megabyte of bits would become 600 megabytes of filters."""
    images = InputImages(height=8, width=8, channels=1, mean=(0.5,), std=(0.2,))
    model = ModelConfig(conv=conv, widths=(2048, 8192), planes=1)
    quantized = FILTER_MAP[conv].quantizes
    fields = Network(Config(model=model), quantized).to_json()
    num_bytes = 4 * 9 * 2048 * 8192
    map_bits = (1 if quantized else 32) * 4 * 8192 // 8 * 2048
    assert num_bytes > MAX_LAYER_BYTES > 50 * map_bits // 8 * (1 if quantized else 0)
    with pytest.raises(InputError, match=f"the bytes of a layer's filters={num_bytes} does not"):
        network_from_json(fields, images, 5, 100, 10**9)
    fields["widths"] = [2048, 2048]
    assert network_from_json(fields, images, 5, 100, 10**9).config.model.widths == (2048, 2048)


@pytest.mark.parametrize("conv", FILTER_MAP)
def test_a_filter_map_that_no_window_fits_into_is_refused_in_one_line(conv):
    images = InputImages(height=8, width=8, channels=1, mean=(0.5,), std=(0.2,))
    fields = Network(Config(model=ModelConfig(conv=conv)), False).to_json()
    fields |= {"widths": [16, 1_048_573], "planes": 1}
    with pytest.raises(InputError, match=r"^the layer conv_2: .* take \d+ or \d+ filters$"):
        network_from_json(fields, images, 5, 100, 10**9)


@pytest.mark.parametrize(("conv", "bits"), [("filter_map", 32), ("filter_map_sign", 1)])
def test_files_hold_maps_and_not_filters(conv, bits, tmp_path):
    """Graphs cut filters out of the map that they store; they describe that in 4 kB a layer."""
    fields = {"planes": 1, "widths": (64, 64), "size": (4, 4), "head": "linear", "channels": 3}
    model, _, _ = random_model(0 if bits == 32 else 2, conv=conv, **fields)
    write_model(model, tmp_path / "model.safetensors")
    write_onnx(model, tmp_path / "model.onnx")
    elements = 16 * 16 * 3 + 8 * 8 * 64
    maps = elements * bits // 8 + (2 * 8 if bits == 1 else 0)
    rest = 4 * (2 * 2 * 64 + 64 * 5 + 5)  # batch norm and dense layer
    assert sum(tensor.nbytes for tensor in model.tensors.values()) == maps + rest
    size = (tmp_path / "model.safetensors").stat().st_size
    text = struct.unpack("<Q", (tmp_path / "model.safetensors").read_bytes()[:8])[0]
    assert size == 8 + text + maps + rest
    assert (tmp_path / "model.onnx").stat().st_size < maps + rest + len(header(model)) + 2 * 4_000


# Number of stages of every network, and the blocks that make the deepest ones.
STAGES = {
    "simple_cnn": 11, "wide_resnet": 4, "nin": 8, "maxout": 3, "convnet": 11, "lbcnn": 1,
    "resnet": 3, "densenet": 1,
}  # fmt: skip
DEEPEST_BLOCKS = {"resnet": [56, 57], "densenet": [113]}


def check_refusal(name, conv, depth, blocks, width=1):
    """Checks that a network for images of 2048x2048 pixels is refused."""
    shape = {"height": 2048, "width": 2048, "channels": 3}
    images = InputImages(**shape, mean=(0.5,) * 3, std=(0.2,) * 3)
    fields = {
        "name": name, "conv": conv, "widths": [width] * STAGES[name], "depth": depth, "planes": 64,
        "dense_features": 2**20, "head": "dense", "quantized": False,
    } | ({"blocks": blocks[name]} if name in blocks else {})  # fmt: skip
    with pytest.raises(InputError):
        network_from_json(fields, images, 2**20, MAX_TENSORS, 10)


@pytest.mark.parametrize("conv", LAYERS)
def test_an_absurd_network_is_refused_at_once(conv):
    """Planning needs little time and memory for any size.

    The time of a network is that of its layers. So all kinds are timed in networks of a tenth of
    the largest depth here, and one of the slowest kinds in the deepest networks below.
    """
    begin = time.process_time()
    assert set(STAGES) == set(models.MODELS)
    for name in STAGES:
        check_refusal(name, conv, MAX_DEPTH // 10, {"resnet": [5, 6], "densenet": [11]})
    check_refusal("simple_cnn", conv, MAX_DEPTH // 10, {}, width=2**20)
    assert time.process_time() - begin < 10  # of the processor


@pytest.mark.parametrize("name", ["wide_resnet", "lbcnn", "resnet", "densenet"])
def test_the_deepest_networks_are_refused_at_once(name):
    begin = time.process_time()
    check_refusal(name, "filter_map_kmeans", MAX_DEPTH, DEEPEST_BLOCKS)
    assert time.process_time() - begin < 20  # of the processor


def test_one_bit_dense_layers_are_bounded():
    """A kernel takes 32 times the memory of its bits."""
    images = InputImages(height=16, width=16, channels=1, mean=(0.5,), std=(0.2,))
    fields = {
        "name": "convnet", "conv": "bnn", "widths": [2, 3], "planes": 1, "head": "one_bit_dense",
        "dense_features": 8192, "quantized": True,
    }  # fmt: skip
    assert MAX_LAYER_BYTES == 4 * 8192**2
    assert network_from_json(fields, images, 5, 100, 10**8).config.model.dense_features == 8192
    fields["dense_features"] = 8193
    message = rf"the bytes of a layer's filters={4 * 8193**2} does not lie in"
    with pytest.raises(InputError, match=message):
        network_from_json(fields, images, 5, 100, 10**8)
    fields |= {"conv": "conv", "dense_features": 8}
    with pytest.raises(InputError, match=r"network.head='one_bit_dense' needs"):
        network_from_json(fields, images, 5, 100, 10**8)


def test_the_deepest_network_has_no_more_tensors_than_a_file_may_have():
    convolutions = 1 + 2 * sum([blocks_per_stage(MAX_DEPTH)] * 3)
    # Three per convolution, two per batch norm after it, and three per dense layer.
    most = convolutions * 5 + 2 * 3
    assert most == 1001 <= MAX_TENSORS
    model = ModelConfig(name="wide_resnet", depth=MAX_DEPTH, widths=(1, 1, 1, 1))
    network = Network(Config(model=model), True)
    dense = {"dense_1/kernel": "int8", "dense_2/kernel": "int8"}
    assert len(specs(network.plan(10, (8, 8, 3)), *network, dense)) == most


BYTES = {"F32": 4, "U8": 1, "I8": 1, "F16": 2, "BF16": 2, "I32": 4, "F64": 8, "I64": 8, "BOOL": 1}


def with_another_dtype(entries, generator):
    """Changes the dtype of a tensor, mostly with a shape of the same number of bytes."""
    entry = entries[generator.choice([name for name in entries if name != "__metadata__"])]
    before, entry["dtype"] = entry["dtype"], str(generator.choice(list(BYTES)))
    if generator.random() < 0.75:
        entry["shape"][-1] = entry["shape"][-1] * BYTES[before] // BYTES[entry["dtype"]]


def with_other_offsets(entries, generator):
    """Shifts a tensor, moves it onto another one, or swaps two tensors."""
    names = [name for name in entries if name != "__metadata__"]
    one, two = (entries[name] for name in generator.choice(names, 2, replace=False))
    kind = generator.integers(3)
    start, stop = one["data_offsets"]
    if kind == 0:
        one["data_offsets"] = [int(n + generator.integers(-8, 9)) for n in (start, stop)]
    elif kind == 1:
        first = two["data_offsets"][0]
        one["data_offsets"] = [first, first + stop - start]
    else:
        one["data_offsets"], two["data_offsets"] = two["data_offsets"], one["data_offsets"]


VALUES = (
    *models.MODELS, *LAYERS, *STEMS, *INPUT_PLANES, *POOLINGS, *HEADS, "", "x" * 400, None, True,
    False, -1, 0, 1, 2, 3, 8, 64, 199, 200, 256, 2048, 2**20, 2**31, 2**63, 1e308, [], [1],
    [1, 1, 1, 1], [2, 3], [1] * 11, [2**20] * 4, [1] * 2000, {}, {"name": "conv"},
)  # fmt: skip


def with_another_field(entries, generator):
    """Removes or changes one to three fields of the network or images, mostly keeping the type."""
    fields = json.loads(entries["__metadata__"][KEY])
    for _ in range(generator.integers(1, 4)):
        group = fields[generator.choice(["network", "network", "network", "images"])]
        others = () if "mean" in group else ("head", "num_centers", "depth", "planes", "quantized")
        name = str(generator.choice([*group, *others]))
        alike = [value for value in VALUES if type(value) is type(group.get(name))]
        if generator.random() < 0.2:
            group.pop(name, None)
        else:
            values = alike if generator.random() < 0.8 and alike else VALUES
            group[name] = values[generator.integers(len(values))]
    entries["__metadata__"][KEY] = json.dumps(fields)


def mutations(content, count):
    """Yields damaged files: truncated, or with changed bytes, header fields or tensor entries."""
    generator = np.random.default_rng(0)
    (length,) = struct.unpack("<Q", content[:8])
    numbers = (b"0", b"-1", b"1e999", b"99999999999999999999", b"null", b'"x"', b"[]", b"4096")
    for _ in range(count):
        kind = generator.integers(9)
        changed = bytearray(content)
        if kind == 0:
            del changed[generator.integers(len(changed)) :]
        elif kind == 1:  # bytes of the header or its length
            for place in generator.integers(0, 8 + length, generator.integers(1, 4)):
                changed[place] = generator.integers(256)
        elif kind == 2:  # a number in the header, with the length corrected
            text = bytes(changed[8 : 8 + length])
            places = [i for i, c in enumerate(text) if 48 <= c < 58]
            start = stop = int(generator.choice(places))
            while 48 <= text[stop] < 58:
                stop += 1
            text = text[:start] + numbers[generator.integers(len(numbers))] + text[stop:]
            changed = bytearray(struct.pack("<Q", len(text)) + text + content[8 + length :])
        elif kind == 3:  # a piece of the header copied elsewhere
            start, to = generator.integers(8, 8 + length, 2)
            piece = changed[start : start + generator.integers(1, 60)]
            changed[to : to + len(piece)] = piece
        elif kind == 4:  # the length of the header
            changed[:8] = struct.pack("<Q", int(generator.integers(0, 2**63)))
        elif kind in (5, 6, 7):
            entries = json.loads(content[8 : 8 + length])
            change = {5: with_another_dtype, 6: with_other_offsets, 7: with_another_field}[kind]
            change(entries, generator)
            text = json.dumps(entries).encode()
            changed = bytearray(struct.pack("<Q", len(text)) + text + content[8 + length :])
        else:  # the numbers
            for place in generator.integers(8 + length, len(changed), 8):
                changed[place] = generator.integers(256)
        yield bytes(changed)


# (fields of the network, whether the header is from version 0.1)
MUTATED = (
    ({}, False),
    ({}, True),
    ({"name": "wide_resnet", "head": "conv"}, False),
    ({"name": "wide_resnet"}, True),
    ({"num_centers": 3, "head": "linear"}, False),
    ({"num_centers": 3}, True),
    ({"dense": "int8", "scales": "float16"}, False),
    ({"num_centers": 0, "conv": "conv", "head": "conv"}, False),
    ({"num_centers": 3, "conv": "filter_map_kmeans"}, False),
)


def survive(count, tmp_path, run_every=16):
    """Returns how many mutated files can still be used; all others must give a one-line error.

    One in `run_every` usable files is run, without compilation, which is faster for one image.
    """
    path = tmp_path / "model.safetensors"
    usable = 0
    for fields, of_0_1 in MUTATED:
        model, _, _ = random_model(**fields)
        old = {"layout": 1, "network": network_of_0_1(model)}
        written(model, path, **(old if of_0_1 else {}))
        for content in mutations(path.read_bytes(), count // len(MUTATED)):
            path.write_bytes(content)
            try:
                read = read_model(path)
                usable += 1
                assert all(np.isfinite(leaf).all() for leaf in read.tensors.values())
                if usable % run_every == 0:
                    with jax.disable_jit():
                        logits = logits_of(of_model(read), random_images(1, read), 1)
                    assert logits.shape == (1, len(read.class_names))
                    assert np.isfinite(logits).all()
            except InputError as error:
                if "\n" in str(error):
                    raise AssertionError("more than one line") from error
    return usable


def test_mutated_files_do_no_harm(tmp_path):
    assert 0 < survive(300, tmp_path, run_every=25) < 150


@pytest.mark.slow
def test_ten_thousand_mutated_files_do_no_harm(tmp_path):
    program = (
        "import pathlib, re, sys; sys.path.append('deploy'); from test_model_file import survive;"
        f"usable = survive(10_000, pathlib.Path({str(tmp_path)!r}));"
        "status = pathlib.Path('/proc/self/status').read_text();"
        "print(usable, re.search(r'VmHWM:\\s*(\\d+) kB', status)[1])"
    )
    # A separate process shows its own peak memory. getrusage does not: on Linux, ru_maxrss includes
    # the memory of the parent before exec, which is gigabytes in the middle of the slow tests.
    finished = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True, text=True, check=True, cwd=pathlib.Path(__file__).parents[1],
    )  # fmt: skip
    usable, kilobytes = map(int, finished.stdout.split())
    assert 0 < usable < 5_000
    assert kilobytes < 1_000_000  # 0.63 million measured, nearly all of it JAX


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnx"])
def test_what_is_no_model_is_one_line(name, tmp_path):
    path = tmp_path / name
    with pytest.raises(InputError, match=f"^{path} does not exist; name a model file"):
        open_predictor(path)
    path.write_bytes(b"no model\n")
    with pytest.raises(InputError, match=rf"^{path} is not a .*; export it again$"):
        open_predictor(path)


def test_another_safetensors_file_is_told(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"x": np.zeros(2)}, path)
    with pytest.raises(InputError, match='has no "mcn_jax" in its metadata'):
        read_model(path)


def test_another_kind_of_file_is_told(tmp_path):
    (tmp_path / "model.pt").write_text("")
    with pytest.raises(InputError, match="neither a work directory nor a"):
        open_predictor(tmp_path / "model.pt")
