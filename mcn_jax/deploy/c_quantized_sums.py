"""Writes convolutions with quantized weights: each sum takes additions of table entries only.

A group of channels is four channels with weights of one bit, or two channels with weights of two
bits. Its weights have only 16 combinations. So for each pixel, all 16 weighed sums of a group go
into a table, and four bits of the filters choose the one to add. The products are only those of
each feature with each level. MCconv's sums of a tap then count K times, weighed by M. If the
channels form slices, the groups of a slice come one after another.

A function goes through the rows of the padded input. The table holds one row, 16 entries per group,
each entry with all pixels of the row next to each other, so that one addition of two entries takes
many pixels. A row of the input contributes to several rows of the output. They wait in `sums` with
their pixels next to each other, until they are complete.

With strides, the pixels of a row are ordered by their phase, which is their position modulo the
strides. So the pixels that a tap reads are next to each other, too. A wide image is computed in
tiles of some columns.
"""

import string

import numpy as np

from mcn_jax.deploy import c_quantized_text
from mcn_jax.deploy.c_fusion import LayerInput
from mcn_jax.deploy.c_geometry import Call, Geometry
from mcn_jax.deploy.c_program import Program
from mcn_jax.deploy.c_text import indented
from mcn_jax.layers.arithmetic import Arithmetic, Quantized

MAX_LEVELS = 4
TILE = 32  # most columns of the output that are computed at once
LANES = 4  # columns are rounded up to a multiple, so that they fill registers


def call(
    program: Program, name: str, arithmetic: Arithmetic, geometry: Geometry, taken: LayerInput
) -> Call:
    """Adds the functions of a layer with quantized weights, and returns how they are called."""
    weights = arithmetic.weights
    assert isinstance(weights, Quantized)
    bits = 1 if len(weights.levels) == 2 else 2
    levels = np.pad(weights.levels, (0, 2**bits - len(weights.levels)))
    constants = [
        program.constant(_nibbles(weights.codes, bits, geometry.slices), f"{name}_codes"),
        program.constant(levels, "levels"),
    ]
    parameters, value = "", "own[n * $RUN + p]"
    for leaf in ("m_filters", "signs", "scales", "offsets"):
        values = getattr(arithmetic, leaf)
        if values is not None:
            constants.append(program.constant(values, f"{name}_{leaf}"))
            parameters += f", const float *restrict {leaf}"
    in_parameters, in_arguments = "", ""
    for leaf in ("factors", "offsets") if taken.factors is not None else ():
        constants.append(program.constant(getattr(taken, leaf), f"{name}_in_{leaf}"))
        in_parameters += f", const float *restrict in_{leaf}"
        in_arguments += f", in_{leaf}"
    if taken.relu:
        program.helpers.add("larger")
    if arithmetic.scales is not None:
        value += " * scales[n / $K]" if len(arithmetic.scales) > 1 else " * scales[0]"
    if arithmetic.offsets is not None:
        value += " + offsets[n / $K]"
    sizes = geometry.values() | _sizes(geometry, bits)

    def filled(text: str, **pieces: str) -> str:
        return string.Template(text).substitute(sizes, **pieces)

    gather = "".join(
        _gather(geometry, phase, sizes, taken, signs=arithmetic.taken == "signs")
        for phase in range(min(geometry.strides, geometry.taps))
    )
    whole = geometry.channels // geometry.slices % sizes["GROUP"] == 0
    of_slice = "g" if geometry.slices == 1 else "g % $GROUPS"
    pieces = {
        "gather": indented(gather, 2),
        "halves": indented(c_quantized_text.HALVES[bits], 4),
        "count": filled("$GROUP" if whole else f"{of_slice} == $LAST_GROUP ? $LAST_COUNT : $GROUP"),
    }
    table = program.function(
        "fill_table", filled(c_quantized_text.TABLE, parameters=in_parameters, **pieces)
    )
    has_m = arithmetic.m_filters is not None
    products = (f"m[{j} * $K] * of_taps[{j}][p]" for j in range(geometry.taps))
    total, begin, at, map_ = " + ".join(products), c_quantized_text.BEGIN, "table", "o"
    if geometry.slices > 1:
        total = f"signs[slice * $K + k] * ({total})"
        begin += c_quantized_text.SLICE
        at += " + slice * ($GROUPS * 16 * $PIXELS)"
        map_ = "o / $SLICES"
    mix = filled(c_quantized_text.MIX, total=filled(total), map=filled(map_))
    called = [
        program.function(
            kind + "_modulated" if has_m else kind + "_signed",
            filled(
                c_quantized_text.FUNCTION,
                parameters=parameters + in_parameters,
                table=table,
                arguments=in_arguments,
                sum="of_taps[j]" if has_m else f"own + o * {sizes['RUN']}",
                add=indented(filled(c_quantized_text.additions(sizes["GROUPS"])), 6),
                begin=indented(filled(begin), 5) if has_m else "",
                at=filled(at),
                mix=indented(mix, 5) if has_m else "",
                value=f"{assigns} {filled(value)}",
                inside=_inside(geometry),
            ),
        )
        for kind, assigns in (("write", "="), ("add", "+="))
    ]
    places = ("x", "y", "scratch", f"scratch + {sizes['ROW']}")
    scratch = sizes["ROW"] + sizes["WAITING"] * sizes["SUMS"]
    return Call(called[0], scratch, places, constants, called[1])


def _nibbles(codes: np.ndarray, bits: int, slices: int) -> np.ndarray:
    """Returns four bits per group of each tap, map and slice: [W, W, O, slices, bytes].

    The lower four bits of a byte are the first group, and the first channel of a group has the
    lowest bits. Groups are filled up with zeros.
    """
    channels_last = np.moveaxis(codes, 2, 3)
    by_slice = np.moveaxis(channels_last.reshape(*channels_last.shape[:3], -1, slices), 3, 4)
    channels, in_byte = by_slice.shape[-1], 8 // bits
    padded = np.pad(by_slice, (*[(0, 0)] * 4, (0, -channels % in_byte)))
    split = padded.reshape(*padded.shape[:4], -1, in_byte)
    shifts = (bits * np.arange(in_byte)).astype(np.uint8)
    return np.bitwise_or.reduce(split << shifts, axis=-1)


def _sizes(geometry: Geometry, bits: int) -> dict[str, int]:
    """Returns the sizes that follow from those of a layer.

    GROUP is the number of channels per group; GROUPS the number of groups of a slice; BYTES those
    of the groups' bits; ALL_GROUPS the groups and SLICED_MAPS the maps of all slices; RUN the
    columns of the output at once, of which COLUMNS are needed; PHASE the pixels of a phase; PIXELS
    those of a table's entry; ROW the floats of the table; ROWS the rows of the padded input;
    WAITING the rows of the output that wait, of SUMS floats each.
    """
    group = 4 // bits
    channels = geometry.channels // geometry.slices
    groups = -(-channels // group)
    all_groups = geometry.slices * groups
    columns = min(geometry.out[1], TILE)
    run = columns if columns < LANES else -(-columns // LANES) * LANES
    phase = run + (geometry.taps - 1) // geometry.strides
    if run >= LANES:
        phase = -(-phase // LANES) * LANES
    pixels = min(geometry.strides, geometry.taps) * phase
    return {
        "GROUP": group, "GROUPS": groups, "BYTES": -(-groups // 2), "RUN": run, "COLUMNS": columns,
        "ALL_GROUPS": all_groups, "SLICED_MAPS": geometry.maps * geometry.slices,
        "PHASE": phase, "PIXELS": pixels, "ROW": all_groups * 16 * pixels,
        "ROWS": geometry.strides * (geometry.out[0] - 1) + geometry.taps,
        "WAITING": -(-geometry.taps // geometry.strides),
        "SUMS": geometry.maps * geometry.planes * run, "OK": geometry.maps * geometry.planes,
        "TILES": -(-geometry.out[1] // TILE), "LAST_GROUP": groups - 1,
        "LAST_COUNT": channels - (groups - 1) * group, "LAST_TAP": geometry.taps - 1,
    }  # fmt: skip


def _inside(geometry: Geometry) -> str:
    """Returns the condition that a row of the padded input is one of the image that is read."""
    low, end = geometry.low[0], geometry.low[0] + geometry.size[0]
    inside = f"row >= {low} && row < {end}" if low else f"row < {end}"
    skips = geometry.strides > geometry.taps
    return f"{inside} && row % {geometry.strides} < {geometry.taps}" if skips else inside


def _gather(
    geometry: Geometry, phase: int, sizes: dict[str, int], taken: LayerInput, *, signs: bool
) -> str:
    """Returns the code that takes the pixels of one phase of a row to `values`."""
    strides, low = geometry.strides, geometry.low[1]
    first = max(0, -((phase - low) // strides))
    end = -((phase - low - geometry.size[1]) // strides)
    begin = f"column < {first} ? {first} - column : 0" if first else "0"
    place = "column + p" if strides == 1 else f"(column + p) * {strides}"
    place += f" + {phase - low}" if phase > low else f" - {low - phase}" if phase < low else ""
    channel = "g * $GROUP + c"
    if geometry.slices > 1:
        channel = "(g % $GROUPS * $GROUP + c) * $SLICES + g / $GROUPS"
    value = f"row[({place}) * $C + {channel}]"
    if taken.factors is not None:
        value = f"{value} * in_factors[{channel}] + in_offsets[{channel}]"
    if taken.relu:
        value = f"larger({value}, 0.0f)"
    if signs:
        value = f"({value} >= 0.0f ? 1.0f : -1.0f)"
    return string.Template(
        f"""\
const size_t first_{phase} = {begin};
const size_t end_{phase} = {end} - column < $PHASE ? {end} - column : $PHASE;
for (size_t p = first_{phase}; p < end_{phase}; p++) {{
    for (size_t c = 0; c < count; c++) {{
        values[c][{f"{phase} * $PHASE + p" if phase else "p"}] = {value};
    }}
}}
"""
    ).substitute(geometry.values() | sizes)
