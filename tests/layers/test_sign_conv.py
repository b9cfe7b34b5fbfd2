"""Tests the convolutions that take the signs of their input: BNN and XNOR-Net."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcn_jax.config import BinarizeConfig, Config, ModelConfig
from mcn_jax.layers import sign_conv
from mcn_jax.layers.batch_norm import BatchNorm
from mcn_jax.layers.sign_conv import FAMILIES, SignKernelConv
from mcn_jax.models import make_model
from mcn_jax.ops import one_bit
from mcn_jax.ops.convolution import convolve

KINDS = sorted(FAMILIES)


def network_config(kind, name="wide_resnet", **fields):
    widths = (2, 2, 4, 4) if name == "wide_resnet" else (2, 4, 4)
    model = ModelConfig(name=name, conv=kind, widths=widths, depth=8, planes=2, **fields)
    return Config(model=model, binarize=BinarizeConfig(start_epoch=0))


def layer_of(kind, **attributes):
    module = FAMILIES[kind].module(out_maps=3, planes=2, **attributes)
    x = 2 * jax.random.normal(jax.random.key(0), (2, 7, 8, 5))
    return module, module.init(jax.random.key(1), x), x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strides", [1, 2])
def test_it_convolves_signs(kind, strides):
    module, variables, x = layer_of(kind, strides=strides)
    latent = variables["params"]["latent_kernel"]
    kernel = one_bit.RULES[module.rule](latent)
    expected = convolve(jnp.where(x >= 0, 1.0, -1.0), kernel, (strides, strides), "SAME")
    if kind == "xnor":
        expected *= one_bit.activation_scales(x, 3, strides, "SAME")
    np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-5, atol=1e-6)
    # The border stays zero: the sign of a padded zero would be one.
    padded = jnp.pad(jnp.where(x >= 0, 1.0, -1.0), ((0, 0), (1, 1), (1, 1), (0, 0)))
    if kind != "xnor" and strides == 1:
        inside = convolve(padded, kernel, (1, 1), "VALID")
        np.testing.assert_allclose(module.apply(variables, x), inside, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_ends_where_inputs_exceed_one(kind):
    module, variables, _ = layer_of(kind)
    x = (
        jnp.linspace(-2, 2, 2 * 5 * 4 * 5)
        .reshape(2, 5, 4, 5)
        .at[0, 0, 0, :2]
        .set(jnp.array([1.0, -1.0]))
    )
    gradient = jax.grad(lambda x: jnp.sum(module.apply(variables, x) ** 2))(x)
    passes = jnp.abs(x) <= 1 if kind == "bnn" else jnp.abs(x) < 1
    assert np.all(np.asarray(gradient)[~np.asarray(passes)] == 0)
    assert np.mean(np.asarray(gradient)[np.asarray(passes)] != 0) > 0.9
    assert bool(gradient[0, 0, 0, 0] != 0) == (kind == "bnn")


def test_k_gets_a_gradient_only_if_asked():
    module, variables, x = layer_of("xnor")
    outside = jnp.abs(x) > 1
    for k_gradient in (False, True):
        layer = module.clone(k_gradient=k_gradient)
        gradient = jax.grad(lambda x, layer=layer: jnp.sum(layer.apply(variables, x) ** 2))(x)
        assert bool(jnp.any(jnp.where(outside, gradient, 0) != 0)) == k_gradient


def test_the_config_says_whether_k_gets_a_gradient():
    for k_gradient in (False, True):
        config = network_config("xnor")
        binarize = dataclasses.replace(config.binarize, k_gradient=k_gradient)
        make = FAMILIES["xnor"].make(dataclasses.replace(config, binarize=binarize), True)
        assert make(out_maps=1).k_gradient == k_gradient


@pytest.mark.parametrize("kind", KINDS)
def test_without_quantization_the_input_is_clipped(kind):
    module, variables, x = layer_of(kind, binarized=False)
    latent = variables["params"]["latent_kernel"]
    expected = convolve(jnp.clip(x, -1, 1), latent, (1, 1), "SAME")
    np.testing.assert_allclose(module.apply(variables, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["wide_resnet", "simple_cnn"])
def test_no_relu_precedes_the_signs_and_the_first_convolution_takes_the_image(kind, name):
    network = make_model(network_config(kind, name, dropout_rate=0.0), 10, quantized=True)
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    variables = network.init(jax.random.key(1), images)
    inputs, relus = {}, {}

    def note(call, arguments, keywords, context):
        module = context.module
        if isinstance(module, sign_conv.SignConv):
            inputs["/".join(module.path)] = (module.signs_input, arguments[0])
        if isinstance(module, BatchNorm):
            relus["/".join(module.path)] = module.relu
        return call(*arguments, **keywords)

    with nn.intercept_methods(note):
        network.apply(variables, images, train=True, mutable=["batch_stats"])
    (first, (takes_signs, x)), *others = inputs.items()
    assert first == ("stem" if name == "wide_resnet" else "conv_1")
    assert not takes_signs
    np.testing.assert_array_equal(x, images)
    for path, (takes_signs, x) in others:
        assert takes_signs, path
        assert 0.3 < np.mean(np.asarray(x) < 0) < 0.7, path
    last = "batch_norm" if name == "wide_resnet" else "batch_norm_3"
    assert relus == {path: path == last for path in relus}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("quantized", [True, False])
def test_the_deployed_module_computes_the_same(kind, quantized):
    module, variables, x = layer_of(kind, binarized=quantized)
    x = x.at[0, 0, 0].set(0.0)  # ties
    latent = variables["params"]["latent_kernel"]
    kernel = one_bit.RULES[module.rule](latent) if quantized else latent
    config = network_config(kind)
    deployed = FAMILIES[kind].deployed(config, quantized)(out_maps=3)
    assert isinstance(deployed, SignKernelConv)
    np.testing.assert_allclose(
        deployed.apply({"params": {"kernel": kernel}}, x), module.apply(variables, x), rtol=1e-6
    )
    first = deployed.clone(signs_input=False).apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_allclose(
        first, module.clone(signs_input=False).apply(variables, x), rtol=1e-6, atol=1e-6
    )


def test_the_first_convolution_may_be_of_another_kind():
    config = network_config("bnn", stem_conv="conv")
    variables = jax.eval_shape(
        make_model(config, 10, quantized=True).init,
        jax.random.key(0),
        jnp.zeros((1, 16, 16, 3)),
    )
    assert list(variables["params"]["stem"]) == ["conv"]
    mixed = dataclasses.replace(
        config, model=dataclasses.replace(config.model, conv="conv", stem_conv="mcconv", planes=4)
    )
    network = make_model(mixed, 10, quantized=True)
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    # Each channel of the image becomes a map of four planes.
    assert variables["params"]["stem"]["latent_filters"].shape == (3, 3, 12, 2)
