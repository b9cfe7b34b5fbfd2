"""Tests the family of parameterized hypercomplex convolutions: counts, images, files and errors."""

import dataclasses
import json
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exported import random_images, random_model
from mcn_jax import models
from mcn_jax.config import Config, ModelConfig, OptimizerConfig
from mcn_jax.deploy.header import MAX_LAYER_BYTES, InputImages, Network, network_from_json
from mcn_jax.deploy.model_file import read_model, write_model
from mcn_jax.deploy.onnx import onnx_model
from mcn_jax.deploy.predictor import of_model
from mcn_jax.errors import InputError
from mcn_jax.layers.conv import CONV, KernelConv
from mcn_jax.layers.family import View
from mcn_jax.layers.phc import PHC, PHConv
from mcn_jax.models.plan import filter_bits, plan_of, plan_of_module
from mcn_jax.ops import phc
from mcn_jax.ops.convolution import convolve
from mcn_jax.training import checks, optim


def layer_of(channels, **attributes):
    """Returns module, planned layer, p and an input [2, 7, 8, channels]."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return PHConv(**attributes, name="layer")(x)

    x = jax.random.normal(jax.random.key(0), (2, 7, 8, channels))
    p = Layer().init(jax.random.key(1), x)["params"]["layer"]
    (planned,) = plan_of_module(Layer(), (7, 8, channels))
    return PHConv(**attributes), planned, p, x


def network_config(widths=(32, 64), **fields):
    return Config(model=ModelConfig(**{"conv": "phc", "planes": 1, "widths": widths} | fields))


def phc_layers(config, image_shape=(32, 32, 3)):
    return [layer for layer in plan_of(config, 10, image_shape) if layer.family is PHC]


@pytest.mark.parametrize(("n", "size", "strides"), [(2, 3, 1), (3, 1, 2), (4, 3, 2), (6, 1, 1)])
def test_it_convolves_with_its_kernel(n, size, strides):
    module, _, p, x = layer_of(12, out_maps=12, planes=2, kernel_size=size, strides=strides, n=n)
    assert {name: leaf.shape for name, leaf in p.items()} == {
        "rules": (n, n, n), "filters": (n, size, size, 12 // n, 24 // n),
    }  # fmt: skip
    expected = convolve(x, phc.kernel(p["rules"], p["filters"]), (strides, strides), "SAME")
    np.testing.assert_allclose(module.apply({"params": p}, x), expected, rtol=1e-6)


@pytest.mark.parametrize(("n", "channels"), [(2, 3), (2, 1), (3, 3), (3, 1), (4, 3), (4, 1)])
def test_zeros_come_before_the_channels_of_an_image(n, channels):
    module, layer, p, x = layer_of(channels, out_maps=12, n=n, pads_input=True)
    lacking = -channels % n
    assert layer.params["filters"] == (n, 3, 3, (channels + lacking) // n, 12 // n)
    padded = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (lacking, 0)))
    expected = module.clone(pads_input=False).apply({"params": p}, padded)
    np.testing.assert_allclose(module.apply({"params": p}, x), expected, rtol=1e-5, atol=1e-5)


def test_the_kernel_is_built_in_float32_and_cast_once():
    module, _, p, x = layer_of(8, out_maps=8, n=4)
    halved = module.clone(dtype=jnp.bfloat16).apply({"params": p}, x)
    kernel = phc.kernel(p["rules"], p["filters"]).astype(jnp.bfloat16)
    expected = convolve(x.astype(jnp.bfloat16), kernel, (1, 1), "SAME")
    assert halved.dtype == jnp.bfloat16
    np.testing.assert_array_equal(halved, expected)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("size", [1, 3])
def test_weights_bits_and_multiply_adds_of_a_layer(n, size):
    _, layer, p, _ = layer_of(24, out_maps=48, kernel_size=size, strides=2, n=n)
    weights = n**3 + 24 * 48 * size**2 // n
    assert sum(leaf.size for leaf in p.values()) == weights
    tensors = PHC.spec(layer, network_config(), False, {}).values()
    assert sum(tensor.bits for tensor in tensors) == 32 * weights
    assert PHC.multiply_adds(layer) == {"direct": 4 * 4 * 24 * 48 * size**2}


@pytest.mark.parametrize(("n", "first"), [(2, 4), (3, 3), (4, 4)])
def test_a_network_counts_its_stored_weights(n, first):
    """`first` is the number of input channels of the first layer, with its zeros."""
    config = network_config(widths=(12, 24), phc_n=n)
    weights = 2 * n**3 + 9 * (first * 12 + 12 * 24) // n
    assert filter_bits(plan_of(config, 10, (32, 32, 3)), config, False) == (32 * weights,) * 2
    stem, second = phc_layers(config)
    assert PHC.multiply_adds(stem) == {"direct": 1024 * 9 * 3 * 12}
    assert PHC.multiply_adds(second) == {"direct": 256 * 9 * 12 * 24}


@pytest.mark.parametrize(
    ("widths", "n", "weights"),
    [
        ((60, 60, 120, 240, 516), 2, 5_450_906 - 4_680),
        ((60, 60, 120, 240, 516), 3, 3_640_594 - 4_680),
        ((60, 60, 120, 240, 516), 4, 2_736_258 - 4_680),
        ((64, 64, 128, 256, 512), 2, 5_599_594 - 4_800),
        ((64, 64, 128, 256, 512), 4, 2_810_762 - 4_800),
    ],
)
def test_a_resnet_18_has_the_weights_of_the_authors_but_for_their_unused_biases(widths, n, weights):
    fields = {"name": "resnet", "pointwise": "phc", "head": "linear"}
    plan = plan_of(network_config(widths, phc_n=n, **fields), 10, (32, 32, 3))
    assert sum(math.prod(shape) for layer in plan for shape in layer.params.values()) == weights


def test_a_file_holds_rules_and_filters():
    module, layer, p, x = layer_of(3, out_maps=6, planes=2, n=4, strides=2, pads_input=True)
    stored = PHC.pack(p, {}, False)
    held = PHC.spec(layer, network_config(), False, {})
    assert {n: (str(t.dtype), t.shape) for n, t in stored.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in held.items()
    }
    unpacked = PHC.unpack({name: jnp.asarray(t) for name, t in stored.items()}, layer)
    deployed = KernelConv(out_maps=6, planes=2, strides=2).apply({"params": unpacked}, x)
    np.testing.assert_array_equal(deployed, module.apply({"params": p}, x))


def test_files_have_a_share_of_the_bytes_and_agree(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    fields = {"num_centers": 0, "channels": 3, "planes": 1, "widths": (24, 48), "head": "linear"}
    model, *_ = random_model(conv="phc", phc_n=4, **fields)
    ordinary, *_ = random_model(conv="conv", **fields)
    sizes = [
        sum(t.nbytes for name, t in one.tensors.items() if name.startswith("conv_2/"))
        for one in (model, ordinary)
    ]
    assert sizes == [4 * (64 + 9 * 24 * 48 // 4), 4 * 9 * 24 * 48]
    images = random_images(5, model)
    expected = of_model(model).logits(images)
    write_model(model, tmp_path / "model.safetensors")
    read = read_model(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(of_model(read).logits(images), expected)

    exported = onnx_model(model)
    held = {tensor.name: tuple(tensor.dims) for tensor in exported.graph.initializer}
    assert held["conv_2/rules"] == (4, 4, 4)
    assert held["conv_2/filters"] == (4, 3, 3, 6, 12)
    others = [
        np.prod(dims)
        for name, dims in held.items()
        if not name.endswith(("/filters", "/rules")) and not name.startswith("dense")
    ]
    assert max(others) < 100  # no kernel, which would have 10,368 numbers
    session = runtime.InferenceSession(exported.SerializeToString())
    (logits,) = session.run(None, {"images": images})
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": (64,)}, "the 64 output channels of conv_1, .*planes=1 .*: 63 and 66$"),
        ({"widths": (63, 64)}, "the 64 output channels of conv_2, .*planes=1 .*: 63 and 66$"),
        ({"widths": (2,)}, "the 2 output channels of conv_1, .*: 3$"),
        (
            {"widths": (16,), "planes": 4},
            "the 64 output channels of conv_1, .*planes=4 .*: 15 and 18$",
        ),
        (
            {"widths": (16, 30), "planes": 2, "stem_conv": "conv"},
            "the 32 input channels of conv_2, .*planes=2 .*: 15 and 18$",
        ),
        # A hidden width of 1 or 3 channels is not an image.
        ({"widths": (1, 3), "stem_conv": "conv"}, "the 1 input channels of conv_2, .*: 3$"),
    ],
)
def test_widths_that_n_does_not_divide_are_refused_with_the_nearest(fields, message):
    config = network_config(phc_n=3, **fields)
    with pytest.raises(InputError) as caught:
        checks.validate_for_data(config, (32, 32, 3), None)
    # JAX adds a note to the error, which no command prints.
    message = f"^config.model.phc_n=3 does not divide {message}"
    assert re.search(message, str(caught.value))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"phc_n": 0}, r"phc_n=0 must lie in 1\.\.64"),
        ({"phc_n": 65}, r"phc_n=65 must lie in 1\.\.64"),
        ({"phc_init": "xavier"}, "phc_init='xavier' must be one of he, reference"),
    ],
)
def test_bad_options_are_refused_in_one_line(fields, message):
    with pytest.raises(InputError, match=f"^config.model.{message}$"):
        checks.validate(network_config(**fields))


def test_only_the_first_convolution_of_a_network_pads_its_input():
    config = network_config(widths=(6, 9), phc_n=3)
    assert [layer.params["filters"] for layer in phc_layers(config, (32, 32, 1))] == [
        (3, 3, 3, 1, 2), (3, 3, 3, 2, 3),
    ]  # fmt: skip
    stem = dataclasses.replace(config.model, conv="conv", stem_conv="phc")
    plan = plan_of(dataclasses.replace(config, model=stem), 10, (32, 32, 1))
    assert [layer.family for layer in plan if layer.name.startswith("conv")] == [PHC, CONV]


@pytest.mark.parametrize("name", ["he", "reference"])
def test_the_initial_values_follow_the_config(name):
    config = network_config(widths=(96, 96), phc_n=4, phc_init=name)
    model = models.make_model(config, 10, quantized=False)
    params = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    rules, filters = params["conv_2"]["rules"], params["conv_2"]["filters"]
    he = 2 * 4 / (96 * 9)
    reference = 2 / (96 * 9 * (1 + 96 / 16))
    expected = he if name == "he" else reference
    assert float(jnp.var(filters)) == pytest.approx(expected, rel=0.03)
    assert float(jnp.abs(rules).max()) <= 3**0.5 / 4
    # The first layer sees three channels and not the zero before them.
    stem = params["conv_1"]["filters"]
    he, reference = 2 * 4 / (3 * 9), 2 / (4 * 9 * (1 + 96 / 16))
    expected = he if name == "he" else reference
    assert float(jnp.var(stem)) == pytest.approx(expected, rel=0.15)


def test_decay_reaches_the_filters_and_not_the_rules():
    _, layer, p, _ = layer_of(8, out_maps=8)
    config = OptimizerConfig(learning_rate=1.0, schedule="constant", momentum=0.0)
    optimizer = optim.make_optimizer(config, 1, 1, (layer,))
    assert optim.parameter_groups((layer,)) == {
        "layer": {"rules": "phc_rules", "filters": "kernels"}
    }
    params = {"layer": p}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_array_equal(updates["layer"]["rules"], 0)
    np.testing.assert_allclose(updates["layer"]["filters"], -5e-4 * p["filters"], rtol=1e-5)


def test_an_inspection_shows_the_rules_and_the_kernel():
    _, layer, p, _ = layer_of(3, out_maps=6, n=2, pads_input=True)
    facts = PHC.facts(View(layer, PHC.pack(p, {}, False), None))
    assert facts["kernel_shape"] == [3, 3, 3, 6]
    np.testing.assert_array_equal(np.float32(facts["rules"]), p["rules"])
    assert {name: cell(facts) for name, cell in PHC.columns.items()} == {
        "n": ("2", 2), "kernel": ("3x3x3x6", 162),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        # A kernel has n times the bytes of its filters.
        ({"widths": [64, 2**17]}, f"^the bytes of a layer's filters={36 * 2**23} does not lie"),
        ({"phc_n": 3}, "^network.phc_n=3 does not divide the 64 output channels of conv_1, with"),
        ({"phc_n": 65}, r"^network.phc_n=65 must lie in 1\.\.64$"),
        ({"phc_n": 2.0}, "^network.phc_n=2.0 must be of type int$"),
    ],
)
def test_a_small_file_with_a_large_kernel_is_refused(fields, message):
    shape = {"height": 8, "width": 8, "channels": 3}
    images = InputImages(**shape, mean=(0.5,) * 3, std=(0.2,) * 3)
    config = network_config(widths=(64, 64), phc_n=64, head="linear")
    network = json.loads(json.dumps(Network(config, False).to_json()))
    assert network["phc_n"] == 64
    stored = 4 * (2 * 64**3 + 9 * (64 + 2**23 // 64))  # bytes of the first case: 7 million
    assert 36 * 2**23 > MAX_LAYER_BYTES > 30 * stored
    network_from_json(network, images, 5, 100, stored)
    with pytest.raises(InputError, match=message):
        network_from_json(network | fields, images, 5, 100, stored)
