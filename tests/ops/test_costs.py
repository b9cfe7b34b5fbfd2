"""Compares the multiply-adds of both forms with counts from the programs that JAX traces."""

import math

import jax
import jax.numpy as jnp
import pytest

from mcn_jax.ops import factored
from mcn_jax.ops.conv_spec import ConvSpec
from mcn_jax.ops.convolution import xla_convolve
from mcn_jax.ops.costs import multiply_adds
from mcn_jax.ops.fastest import Shape

SHAPES = [Shape(2, 3, 4, 8, 1), Shape(2, 3, 4, 8, 2), Shape(5, 2, 8, 6, 1), Shape(1, 1, 1, 4, 1)]


def traced_multiply_adds(function, *arguments):
    """Counts the multiply-adds of all products and convolutions in a traced function."""

    def of(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            operands = [v.aval.shape for v in equation.invars if hasattr(v.aval, "shape")]
            outputs = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
            if equation.primitive.name == "dot_general":
                (contracted, _), _ = equation.params["dimension_numbers"]
                total += outputs * math.prod(operands[0][axis] for axis in contracted)
            elif equation.primitive.name == "conv_general_dilated":
                total += outputs * math.prod(operands[1][:-1])
            elif equation.primitive.name == "mul" and equation.outvars[0].aval.ndim:
                total += outputs
            elif equation.primitive.name == "cond":  # one branch per platform, at equal cost
                [of_each] = {of(branch.jaxpr) for branch in equation.params["branches"]}
                total += of_each
            for parameter in equation.params.values():
                inner = getattr(parameter, "jaxpr", parameter)
                if hasattr(inner, "eqns"):
                    total += of(inner)
        return total

    return of(jax.make_jaxpr(function)(*arguments).jaxpr)


def arrays(shape):
    channels, outputs = shape.in_maps * shape.planes, shape.out_maps * shape.planes
    out_size = shape.size // shape.stride
    return (
        jnp.ones((1, shape.size, shape.size, channels)),
        jnp.ones((3, 3, channels, shape.out_maps)),
        jnp.ones((3, 3, shape.planes)),
        jnp.ones((1, out_size, out_size, outputs)),
    )


@pytest.mark.parametrize("plane_signs", ["", "hadamard"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_factored_form_computes_what_is_counted(shape, plane_signs):
    features, filters, m, cotangent = arrays(shape)
    strides = (shape.stride, shape.stride)
    spec = ConvSpec(
        strides=strides, padding="SAME", m_gradient="binary", form="factored",
        plane_signs=plane_signs,
    )  # fmt: skip

    def both(features, filters, m, cotangent):
        output = factored.forward(spec, features, filters, m)
        return output, factored.backward(spec, features, filters, filters, m, cotangent)

    forward = traced_multiply_adds(lambda *a: factored.forward(spec, *a), features, filters, m)
    whole = traced_multiply_adds(both, features, filters, m, cotangent)
    slices = bool(plane_signs)
    # M is multiplied by the signs once per step, which the counts per image leave out.
    signs = 9 * shape.planes**2 if slices else 0
    assert forward == multiply_adds(shape, "factored", has_slices=slices) + signs
    gradients = multiply_adds(shape, "factored", gradients=True, has_slices=slices)
    assert whole == gradients + 3 * signs


@pytest.mark.parametrize("shape", SHAPES)
def test_the_direct_form_computes_what_is_counted(shape):
    features, filters, *_ = arrays(shape)
    kernel = jnp.repeat(filters, shape.planes, axis=-1)
    strides = (shape.stride, shape.stride)
    traced = traced_multiply_adds(
        lambda x, q: xla_convolve(x, q, strides, "SAME"), features, kernel
    )
    assert traced == multiply_adds(shape, "direct")
    assert multiply_adds(shape, "direct", gradients=True) == 3 * traced


def test_wide_layers_need_a_quarter_forward_and_a_third_with_gradients():
    shape = Shape(512, 512, 4, 8, 1)
    assert multiply_adds(shape, "direct") / multiply_adds(shape, "factored") == pytest.approx(
        4, rel=0.01
    )
    whole = [multiply_adds(shape, form, gradients=True) for form in ("direct", "factored")]
    assert whole[0] / whole[1] == pytest.approx(3, rel=0.01)


def test_filters_of_other_sizes_have_other_numbers_of_taps():
    shape = Shape(3, 5, 4, 7, 2)  # 4x4 output pixels
    assert multiply_adds(shape, "direct", taps=25) == 16 * 25 * 12 * 20
    assert multiply_adds(shape, "factored", taps=1) == 16 * (12 * 5 + 5 * 4)


def test_a_form_that_does_not_exist():
    with pytest.raises(ValueError, match="'indirect' is neither direct nor factored"):
        multiply_adds(SHAPES[0], "indirect")
