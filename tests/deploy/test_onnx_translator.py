"""Compares whole networks that were translated to ONNX with JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from exported import random_images, random_model
from mcn_jax.deploy.onnx import prediction
from mcn_jax.deploy.onnx_translator import translate
from mcn_jax.errors import InputError
from mcn_jax.ops import packing
from onnx_cases import run


def translated(model):
    """Returns (graph of a model file, function that it was translated from)."""
    function, spec = prediction(model), model.images
    shape = (spec.height, spec.width, spec.channels)
    return translate(function, model.tensors, shape), function


NETWORKS = {
    "simple_cnn": {},
    "four_centers": {"num_centers": 4},
    "three_centers": {"num_centers": 3, "planes": 2},
    "eight_planes": {"planes": 8, "num_centers": 4, "channels": 3},
    "rgbx": {"input_planes": "rgbx", "channels": 3, "num_centers": 4},
    "first": {"input_planes": "first", "channels": 3},
    "umcn": {"num_centers": 0},
    "hadamard": {"plane_signs": "hadamard", "widths": (16, 3)},
    "cnn": {"num_centers": 0, "conv": "conv", "channels": 3},
    "odd_size": {"size": (13, 19), "widths": (2, 3, 2)},
    "int8": {"dense": "int8", "num_centers": 4},
    "float16": {"dense": "float16"},
    "padded": {"image_size": 21, "size": (16, 13), "dense": "int8"},
    "as_many_pixels_as_images": {"size": (61, 97), "widths": (1, 1)},
    "wide_resnet": {"name": "wide_resnet", "channels": 3},
    "wide_resnet_imagenet": {"name": "wide_resnet", "stem": "imagenet", "size": (32, 32)},
    "wide_resnet_eight_planes": {"name": "wide_resnet", "planes": 8, "num_centers": 4},
    "wide_resnet_rgbx": {"name": "wide_resnet", "input_planes": "rgbx", "channels": 3},
    "wide_resnet_int8": {"name": "wide_resnet", "dense": "int8", "depth": 14},
    "linear_head": {"head": "linear", "channels": 3},
    "conv_head": {"head": "conv"},
    "wide_resnet_linear_head": {"name": "wide_resnet", "head": "linear", "dense": "int8"},
    "wide_resnet_conv_head": {"name": "wide_resnet", "head": "conv", "num_centers": 4},
    "nin": {"name": "nin", "head": "conv_relu", "size": (13, 20), "channels": 3, "planes": 2},
    "maxout": {"name": "maxout", "num_centers": 0, "conv": "conv", "head": "maxout"},
    "convnet": {"name": "convnet", "conv": "xnor", "head": "dense_batch_norm", "dense": "int8"},
    "one_bit_hidden_int8": {"conv": "xnor", "head": "one_bit_hidden", "dense": "int8"},
    "one_bit_dense": {"name": "convnet", "conv": "bnn", "head": "one_bit_dense"},
    "wrn": {"name": "wide_resnet", "num_centers": 0, "conv": "conv", "planes": 4},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_agrees_with_jax_for_any_number_of_images(name):
    model, _, _ = random_model(**NETWORKS[name])
    graph, function = translated(model)
    images = random_images(7, model)
    expected = np.asarray(jax.jit(function)(dict(model.tensors), images))
    assert np.std(expected, axis=0).min() > 1e-3 * np.abs(expected).max()
    for count in (1, 2, 7):
        logits = run(graph, images[:count])
        assert np.abs(logits - expected[:count]).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["int8", "float16", "eight_planes", "umcn", "wrn"])
def test_tensors_are_stored_as_they_are(name):
    model, _, _ = random_model(**NETWORKS[name])
    graph, _ = translated(model)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    for key, tensor in model.tensors.items():
        assert stored[key].dtype == tensor.dtype
        np.testing.assert_array_equal(stored.pop(key), tensor)
    # The remaining initializers are constants of the network, which must be few.
    assert max(array.size for array in stored.values()) <= 24
    assert sum(array.nbytes for array in stored.values()) < 2500


def test_inputs_and_outputs_have_names_and_shapes():
    model, _, _ = random_model(channels=3)
    graph, function = translated(model)
    [taken], [given] = graph.graph.input, graph.graph.output
    assert (taken.name, given.name) == ("images", "logits")
    assert taken.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert given.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    shapes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (taken, given)
    ]
    assert shapes == [["N", 16, 16, 3], ["N", 5]]
    renamed = translate(
        function, model.tensors, (16, 16, 3), input_name="pixels", output_name="scores"
    )
    assert renamed.graph.input[0].name == "pixels"
    assert renamed.graph.output[0].name == "scores"


def test_a_tensor_that_nothing_depends_on_is_left_out():
    tensors = {"a": np.ones(3, np.float32), "b": np.ones(3, np.float32)}

    def function(tensors, images):
        return images.astype(jnp.float32) * tensors["a"][None, None, None]

    graph = translate(function, tensors, (2, 2, 3))
    assert [tensor.name for tensor in graph.graph.initializer] == ["a"]


def test_names_of_tensors_are_not_taken_by_nodes():
    names = ("Cast_0", "Mul_1", "constant_0", "Add_2")
    tensors = {name: np.full(3, i, np.float32) for i, name in enumerate(names)}

    def function(tensors, images):
        x = images.astype(jnp.float32)
        for tensor in tensors.values():
            x = x * 3 + tensor[None, None, None]
        return x

    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    found = run(translate(function, tensors, (4, 5, 3)), images)
    np.testing.assert_allclose(found, jax.jit(function)(tensors, images), rtol=1e-6)


@pytest.mark.parametrize("name", ["images", "logits"])
def test_a_tensor_must_not_have_the_name_of_input_or_output(name):
    tensors = {name: np.ones(3, np.float32)}
    with pytest.raises(InputError, match=f"tensor '{name}' has the name of the input or output"):
        translate(lambda tensors, images: images, tensors, (2, 2, 3))


@pytest.mark.parametrize("result", ["images", "tensor", "constant"])
def test_a_result_may_be_an_input(result):
    tensors = {"tensor": np.arange(6, dtype=np.float32)}
    functions = {
        "images": lambda tensors, images: images,
        "tensor": lambda tensors, images: tensors["tensor"],
        "constant": lambda tensors, images: jnp.arange(5.0) * 2,
    }
    images = np.full((2, 1, 1, 3), 7, np.uint8)
    found = run(translate(functions[result], tensors, (1, 1, 3)), images)
    np.testing.assert_array_equal(found, functions[result](tensors, images))


@pytest.mark.parametrize("centers", [2, 3, 4, 16, 256])
@pytest.mark.parametrize("weights", [1, 8, 21])
def test_codes_are_unpacked_as_on_the_host(centers, weights):
    codes = np.random.default_rng(weights).integers(0, centers, weights).astype(np.uint8)
    bits = packing.pack(codes, centers)
    np.testing.assert_array_equal(packing.unpack_traced(jnp.asarray(bits), (weights,)), codes)
    function = lambda tensors, images: packing.unpack_traced(tensors["bits"], (weights,))  # noqa: E731
    found = run(translate(function, {"bits": bits}, (1, 1, 1)), np.zeros((1, 1, 1, 1), np.uint8))
    np.testing.assert_array_equal(found, codes)
