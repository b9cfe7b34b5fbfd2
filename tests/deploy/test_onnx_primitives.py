"""Compares every rule from a JAX primitive to ONNX with JAX, using ONNX Runtime."""

import collections

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from jax import lax
from jax.extend import core

from mcn_jax.deploy.onnx_primitives import RULES
from mcn_jax.deploy.onnx_translator import translate
from mcn_jax.errors import InputError
from mcn_jax.layers import pooling
from onnx_cases import CASES, SHAPE, convolution, of_floats, random_images, run, weights


@pytest.mark.parametrize("name", CASES)
def test_a_primitive_does_in_onnx_runtime_what_it_does_in_jax(name):
    images = random_images(3)
    expected = np.asarray(jax.jit(CASES[name])({}, images))
    found = run(translate(CASES[name], {}, SHAPE), images)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    scale = np.abs(expected[np.isfinite(expected)].astype(np.float64)).max(initial=1e-30)
    np.testing.assert_allclose(
        found.astype(np.float64), expected.astype(np.float64), rtol=2e-5, atol=2e-6 * scale
    )


def primitives(jaxpr):
    """Returns the names of all primitives in a function and in the functions that it calls."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr):
            if is_jaxpr(value):
                yield from primitives(getattr(value, "jaxpr", value))


def is_jaxpr(value):
    return isinstance(value, (core.Jaxpr, core.ClosedJaxpr))


def test_every_rule_is_tested():
    seen = set()
    for function in CASES.values():
        seen |= set(primitives(jax.make_jaxpr(function)({}, random_images(2)).jaxpr))
    assert RULES.keys() - seen <= {"log2"}  # JAX 0.11 and later have it


def test_of_a_choice_by_platform_the_default_is_taken():
    def function(tensors, images):
        x = images.astype(jnp.float32)
        return lax.platform_dependent(x, cpu=jnp.sin, default=lambda x: 2 * x)

    images = random_images(2)
    np.testing.assert_array_equal(run(translate(function, {}, SHAPE), images), 2.0 * images)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: jnp.sort(x, axis=1), "the JAX primitive 'sort' has no rule .*'dimension': '1'"),
        (lambda x: lax.fori_loop(0, 3, lambda i, x: x * 2, x), "the JAX primitive 'scan' has no"),
        (lambda x: x / len(x), "div: a constant depends on the number of images: 61"),
        (
            lambda x: x - jnp.mean(x, axis=0)[None],
            "div: a constant depends on the number of images",
        ),
        (
            lambda x: x[:-1],
            r"slice: a shape is \(60, 4, 6, 3\) for 61 images, \(96, 4, 6, 3\) for 97",
        ),
        (lambda x: x if len(x) < 70 else x + 1, "depends on the number of images"),
        (lambda x: x[np.array([0, 1])], "gather .* images cannot be indexed|a constant depends"),
        (
            lambda x: x * jnp.arange(len(x))[:, None, None, None],
            "depends on the number of images",
        ),
        (
            lambda x: lax.cond(x[0, 0, 0, 0] > 0, lambda x: x, lambda x: x + 1, x),
            "the branch depends on the images",
        ),
        (lambda x: jnp.take_along_axis(x, x.astype(int), axis=1), "only whole rows can be indexed"),
        (
            lambda x: lax.dynamic_slice_in_dim(x, x[0, 0, 0, 0].astype(int), 2, 1),
            "its start depends",
        ),
        (lambda x: lax.population_count(x.astype(jnp.uint8)), "'population_count' has no rule"),
        (
            lambda x: jnp.einsum("nyxc,myxc->nm", x, x).reshape(-1, len(x), 1) + 0,
            "more than one axis of images",
        ),
        (lambda x: x[:, :0], r"slice returns float32\[61,0,6,3\], which cannot be written"),
        (
            lambda x: x + jax.random.uniform(jax.random.key(0), (1, 4, 6, 3)),
            "cannot be written as ONNX|has no rule",
        ),
        (
            lambda x: jnp.einsum("nyxc,myxc->nm", x, x).reshape(-1),
            r"reshape: a shape is \(3721,\) for 61 images, \(9409,\) for 97",
        ),
        (lambda x: (x, x), "must return one array, not 2"),
    ],
)
def test_what_cannot_be_written_is_an_error_that_says_so(function, message):
    with pytest.raises(InputError, match=message):
        translate(of_floats(function), {}, SHAPE)


def operators(function, tensors=None, shape=SHAPE):
    """Returns how often each operator occurs in the graph of a function."""
    model = translate(of_floats(function), tensors or {}, shape)
    return collections.Counter(node.op_type for node in model.graph.node)


def test_transposes_between_convolutions_vanish():
    def network(x):
        for _ in range(3):
            x = nn.relu(
                convolution(x, (3, 3, 3, 3)) * weights(1, 1, 1, 3) + weights(3)[None, None, None]
            )
            x = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))[:, 1:-1]
            x = x.reshape(len(x), -1).reshape(x.shape)
        return jnp.mean(pooling.average_pool(pooling.max_pool(x + 1, 2), 1), axis=(1, 2))

    counts = operators(network)
    assert (counts["Transpose"], counts["Conv"]) == (1, 3)
    assert (counts["MaxPool"], counts["ReduceMean"], counts["Reshape"]) == (1, 1, 0)


def test_what_jax_writes_as_several_primitives_is_one_operator():
    assert operators(lambda x: pooling.average_pool(x, 2))["AveragePool"] == 1
    assert operators(lambda x: pooling.average_pool(x, 2))["Mul"] == 0
    counts = operators(lambda x: weights(5)[jnp.floor(x).astype(jnp.int32)])
    assert counts == {"Cast": 2, "Add": 1, "Div": 1, "Floor": 1, "Gather": 1}
    assert operators(nn.relu) == {"Cast": 1, "Add": 1, "Div": 1, "Relu": 1}
    assert operators(lambda x: x.reshape(-1, 72).reshape(x.shape)) == {
        "Cast": 1,
        "Add": 1,
        "Div": 1,
    }


def test_only_standard_operators_of_one_opset():
    model = translate(of_floats(nn.softmax), {}, SHAPE)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 18)]
    assert model.ir_version == 8
    onnx.checker.check_model(model, full_check=True)
