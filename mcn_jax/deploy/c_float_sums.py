"""Writes convolutions and dense layers with float or int8 weights, and XNOR-Net's K."""

import string

import numpy as np

from mcn_jax.deploy.c_geometry import Call, Geometry
from mcn_jax.deploy.c_program import Program
from mcn_jax.deploy.c_text import C_TYPES
from mcn_jax.layers.arithmetic import Arithmetic

AT_ONCE = 4  # channels of the input that are added to the sums at once


def call(program: Program, name: str, arithmetic: Arithmetic, geometry: Geometry) -> Call:
    """Returns the function of a layer with a plain kernel, and adds it to the program.

    The sums of an output pixel are next to each other, and so are their weights.
    """
    kernel = arithmetic.weights
    assert isinstance(kernel, np.ndarray)
    constants = [program.constant(kernel, f"{name}_kernel")]
    parameters, value = "", "sums[o]"
    for leaf in ("scales", "offsets"):
        values = getattr(arithmetic, leaf)
        if values is not None:
            constants.append(program.constant(values, f"{name}_{leaf}"))
            parameters += f", const float *restrict {leaf}"
    if arithmetic.scales is not None:
        value += f" * scales[{'o' if len(arithmetic.scales) > 1 else '0'}]"
    if arithmetic.offsets is not None:
        value += " + offsets[o]"
    weight = {"float16": "half({})", "int8": "(float){}"}.get(kernel.dtype.name, "{}")
    if kernel.dtype == np.float16:
        program.helpers.add("half")
    feature = "in[c + {}]"
    if arithmetic.taken == "clipped":
        program.helpers |= {"larger", "smaller"}
        feature = "larger(smaller(in[c + {}], 1.0f), -1.0f)"
    whole = geometry.channels // AT_ONCE * AT_ONCE
    channels = "".join(
        _channels(start, end, count, feature, weight)
        for start, end, count in ((0, whole, AT_ONCE), (whole, geometry.channels, 1))
        if start < end
    )
    text = string.Template(_FUNCTION).substitute(
        geometry.values(),
        type=C_TYPES[kernel.dtype.name],
        parameters=parameters,
        rows=_inside("y_in", geometry, 0),
        columns=_inside("x_in", geometry, 1),
        channels=channels.replace("$O", str(geometry.maps)),
        finish="" if value == "sums[o]" else _FINISH.format(geometry.maps, value),
    )
    return Call(program.function("add_weighed", text), 0, ("x", "y"), constants)


def _inside(name: str, geometry: Geometry, axis: int) -> str:
    low, end = geometry.low[axis], geometry.low[axis] + geometry.size[axis]
    return f"{name} < {low} || {name} >= {end}" if low else f"{name} >= {end}"


def _channels(start: int, end: int, count: int, feature: str, weight: str) -> str:
    """Returns the loop that adds some channels, `count` of them at once."""
    products = [f"in_{n} * {weight.format(f'weights[(c + {n}) * $O + o]')}" for n in range(count)]
    features = "".join(
        f"                    const float in_{n} = {feature.format(n)};\n" for n in range(count)
    )
    total = (" +\n" + " " * 35).join(products)
    return f"""\
                for (size_t c = {start}; c < {end}; c += {count}) {{
{features}\
                    for (size_t o = 0; o < $O; o++) {{
                        sums[o] += {total};
                    }}
                }}
"""


_FUNCTION = """\
static void NAME(const float *restrict x, float *restrict y,
                 const $type *restrict kernel$parameters)
{
    for (size_t pixel = 0; pixel < $OUT_Y * $OUT_X; pixel++) {
        float *const sums = y + pixel * $O;
        memset(sums, 0, $O * sizeof *sums);
        for (size_t i = 0; i < $W; i++) {
            const size_t y_in = pixel / $OUT_X * $S + i;
            if ($rows) {
                continue;
            }
            for (size_t j = 0; j < $W; j++) {
                const size_t x_in = pixel % $OUT_X * $S + j;
                if ($columns) {
                    continue;
                }
                const float *const in = x + ((y_in - $LOW_Y) * $X + x_in - $LOW_X) * $C;
                const $type *const weights = kernel + (i * $W + j) * ($C * $O);
$channels            }
        }
$finish    }
}
"""

_FINISH = """\
        for (size_t o = 0; o < {}; o++) {{
            sums[o] = {};
        }}
"""


def activation_scales(geometry: Geometry) -> str:
    """Returns a function that multiplies each pixel of an output by XNOR-Net's K.

    See `mcn_jax.ops.one_bit.activation_scales`.
    """
    return string.Template(_ACTIVATION_SCALES).substitute(
        geometry.values(),
        rows=_inside("y_in", geometry, 0),
        columns=_inside("x_in", geometry, 1),
    )


_ACTIVATION_SCALES = """\
static void NAME(const float *restrict x, float *restrict y, float *restrict mean)
{
    for (size_t pixel = 0; pixel < $Y * $X; pixel++) {
        float sum = 0.0f;
        for (size_t c = 0; c < $C; c++) {
            const float value = x[pixel * $C + c];
            sum += value < 0.0f ? -value : value;
        }
        mean[pixel] = sum / $C;
    }
    for (size_t pixel = 0; pixel < $OUT_Y * $OUT_X; pixel++) {
        float sum = 0.0f;
        for (size_t i = 0; i < $W; i++) {
            const size_t y_in = pixel / $OUT_X * $S + i;
            for (size_t j = 0; j < $W; j++) {
                const size_t x_in = pixel % $OUT_X * $S + j;
                if ($rows || $columns) {
                    continue;
                }
                sum += mean[(y_in - $LOW_Y) * $X + x_in - $LOW_X];
            }
        }
        for (size_t o = 0; o < $O; o++) {
            y[pixel * $O + o] *= sum / ($W * $W);
        }
    }
}
"""
