"""Lists the settings that a sweep tries, from its --grid and --random flags."""

import itertools
import math
import re
from collections.abc import Sequence

import numpy as np

from mcn_jax.config import RESUMABLE_CHANGES, check_field
from mcn_jax.errors import InputError


def parse_grid(argument: str) -> tuple[str, list[str]]:
    """Parses "FIELD=A,B,C" into (FIELD, [A, B, C]).

    Semicolons separate values that contain commas: "model.widths=2,4;4,8". A single such value ends
    with a semicolon.
    """
    name, equals, values = argument.partition("=")
    found = values.removesuffix(";").split(";" if ";" in values else ",")
    _check_name(name, "--grid")
    if len(set(found)) < len(found):
        raise InputError(f"{argument!r} has a value twice; remove one")
    if not equals or not all(found):
        raise InputError(f"{argument!r} is not of the form FIELD=VALUE,VALUE,...")
    check_field(name)
    return name, found


def parse_range(argument: str) -> tuple[str, float, float]:
    """Parses "FIELD=LOW:HIGH" into (FIELD, LOW, HIGH)."""
    match = re.fullmatch(r"([\w.]+)=([^:]+):([^:]+)", argument)
    form = f"{argument!r} is not of the form FIELD=LOW:HIGH with 0 <= LOW < HIGH"
    if not match:
        raise InputError(form)
    try:
        low, high = float(match[2]), float(match[3])
    except ValueError as error:
        raise InputError(form) from error
    if not 0 <= low < high < math.inf:
        raise InputError(form)
    _check_name(match[1], "--random")
    check_field(match[1])
    return match[1], low, high


def _check_name(name: str, flag: str) -> None:
    if name == "seed":
        raise InputError(f"seed cannot be a field of {flag}; use --seeds")
    if name in RESUMABLE_CHANGES and name != "data.root":  # folders of other images
        raise InputError(
            f"{name} cannot be a field of {flag}: it changes no result; give it to all trials,"
            f" after --, as --config.{name}=VALUE"
        )


def settings(grids: Sequence[str], ranges: Sequence[str], samples: int) -> list[dict[str, str]]:
    """Returns all settings of a stage, {FIELD: value}: each grid point combined with each draw.

    Draws are log-uniform, or uniform if a range begins at zero. Every call draws the same values.
    Draws that are equal after rounding to four digits count once.

    Raises:
        InputError: if a flag has not its form, two flags name the same field, or `samples` is less
            than one.
    """
    if samples < 1:
        raise InputError(f"--samples={samples} must be at least 1")
    names, values = zip(*map(parse_grid, grids), strict=True) if grids else ((), ())
    fields = [*names, *(parse_range(argument)[0] for argument in ranges)]
    for name in fields:
        if fields.count(name) > 1:
            raise InputError(f"{name} is a field of two flags; give it once")
    generator = np.random.default_rng(0)
    draws = []
    for _ in range(samples if ranges else 1):
        draw = {}
        for name, low, high in map(parse_range, ranges):
            number = generator.uniform(low, high)
            if low:
                number = math.exp(generator.uniform(math.log(low), math.log(high)))
            draw[name] = f"{number:.4g}"
        if draw not in draws:
            draws.append(draw)
    points = [dict(zip(names, point, strict=True)) for point in itertools.product(*values)]
    return [point | draw for draw in draws for point in points]
