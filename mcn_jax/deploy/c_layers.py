"""Adds layers to a C program: their weights as constants, and calls of functions that apply them.

Layers of the same shape share a function, and their weights are its arguments.
"""

import math
import re

from mcn_jax.deploy import c_float_sums, c_quantized_sums
from mcn_jax.deploy.c_expressions import Expression, Shape, Stored
from mcn_jax.deploy.c_fusion import LayerInput, fused_input
from mcn_jax.deploy.c_geometry import Call, Geometry
from mcn_jax.deploy.c_memory import Buffer, Step
from mcn_jax.deploy.c_program import Program
from mcn_jax.deploy.c_text import identifier
from mcn_jax.errors import InputError
from mcn_jax.layers.arithmetic import Arithmetic, Quantized
from mcn_jax.ops.conv_spec import pads_and_out_size


def add_layer(
    program: Program, name: str, arithmetic: Arithmetic, value: Expression, shape: Shape
) -> Stored:
    """Adds a layer, and returns its output.

    Args:
        program: the program.
        name: of the layer.
        arithmetic: what it computes.
        value: its input, of one image.
        shape: of its output.

    Raises:
        InputError: naming the layer, if its weights have no C source.
    """
    taken = None
    if isinstance(arithmetic.weights, Quantized) and not arithmetic.scales_activations:
        taken = fused_input(value)
    taken = taken or LayerInput(program.stored(value))
    geometry = _geometry(arithmetic, value.shape)
    assert math.prod(shape) == geometry.out_size, (name, shape, geometry)
    call = _call(program, name, arithmetic, geometry, taken)
    source = taken.source.buffer
    assert source is not None
    result, scratch = program.buffer(geometry.out_size), program.buffer(max(call.scratch, 1))
    names = {"x": source.name, "y": result.name, "scratch": scratch.name}
    places = [re.sub(r"^\w+", lambda found: names[found[0]], place) for place in call.places]
    comment = f"/* {identifier(name)} */\n"
    arguments = f"({', '.join([*places, *call.constants])});\n"
    step = Step(
        code=comment + call.function + arguments,
        reads={source},
        writes=[result, scratch] if call.scratch else [result],
        accumulating=call.accumulating and comment + call.accumulating + arguments,
    )
    program.steps.append(step)
    if arithmetic.scales_activations:
        _scale_activations(program, geometry, source, step)
    return Stored(shape=shape, buffer=result, text=result.name + "[{}]")


def _geometry(arithmetic: Arithmetic, shape: Shape) -> Geometry:
    """Returns the sizes of a layer whose input has a shape of one image, [1, Y, X, C] or [1, F]."""
    weights = arithmetic.weights
    kernel = (weights.codes if isinstance(weights, Quantized) else weights).shape
    size = shape[1:3] if len(shape) == 4 else (1, 1)
    strides = (arithmetic.strides, arithmetic.strides)
    pads, out_size = pads_and_out_size(size, kernel[:2], strides, arithmetic.padding)
    planes = 1 if arithmetic.m_filters is None else arithmetic.m_filters.shape[-1]
    return Geometry(
        size=size,
        channels=kernel[2],
        maps=kernel[3],
        planes=planes,
        slices=1 if arithmetic.signs is None else len(arithmetic.signs),
        taps=kernel[0],
        strides=arithmetic.strides,
        low=(pads[0][0], pads[1][0]),
        out=out_size,
    )


def _call(
    program: Program, name: str, arithmetic: Arithmetic, geometry: Geometry, taken: LayerInput
) -> Call:
    if isinstance(arithmetic.weights, Quantized):
        levels = len(arithmetic.weights.levels)
        if levels > c_quantized_sums.MAX_LEVELS:
            raise InputError(
                f"the layer {name} has {levels} centers, but C source supports only"
                f" {c_quantized_sums.MAX_LEVELS}"
            )
        return c_quantized_sums.call(program, name, arithmetic, geometry, taken)
    if arithmetic.m_filters is not None:
        raise InputError(
            f"the layer {name} has float filters with M, which have no C source; train with"
            " binary filters, or an ordinary convolution (model.conv=conv)"
        )
    return c_float_sums.call(program, name, arithmetic, geometry)


def _scale_activations(program: Program, geometry: Geometry, source: Buffer, step: Step) -> None:
    """Multiplies the output of a step by XNOR-Net's K; see `Arithmetic.scales_activations`."""
    function = program.function("scale_by_activations", c_float_sums.activation_scales(geometry))
    mean = program.buffer(math.prod(geometry.size))
    step.code += f"{function}({source.name}, {step.writes[0].name}, {mean.name});\n"
    step.writes.append(mean)
    step.accumulating = ""
