"""Which settings a sweep tries: what --grid and --random ask for."""

import itertools
import math
import re
from collections.abc import Sequence

import numpy as np

from mcn_jax.config import check_field
from mcn_jax.errors import InputError


def parse_grid(argument: str) -> tuple[str, list[str]]:
    """ "FIELD=A,B,C" -> (FIELD, [A, B, C]).

    Values that hold commas are divided, or ended, by semicolons: "model.widths=2,4;4,8".
    """
    name, equals, values = argument.partition("=")
    found = values.removesuffix(";").split(";" if ";" in values else ",")
    if name == "seed":
        raise InputError("the seeds are given by --seeds")
    if len(set(found)) < len(found):
        raise InputError(f"{argument!r} has a value twice")
    if not equals or not all(found):
        raise InputError(f"{argument!r} is not of the form FIELD=VALUE,VALUE,...")
    check_field(name)
    return name, found


def parse_range(argument: str) -> tuple[str, float, float]:
    """ "FIELD=LOW:HIGH" -> (FIELD, LOW, HIGH)."""
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
    check_field(match[1])
    return match[1], low, high


def settings(grids: Sequence[str], ranges: Sequence[str], samples: int) -> list[dict[str, str]]:
    """All settings of a stage, {FIELD: value}: every point of the grids with every draw.

    The draws are the same each time: log-uniform, or uniform where a range begins at zero.
    """
    names, values = zip(*map(parse_grid, grids), strict=True) if grids else ((), ())
    generator = np.random.default_rng(0)
    draws = []
    for _ in range(samples if ranges else 1):
        draw = {}
        for name, low, high in map(parse_range, ranges):
            number = generator.uniform(low, high)
            if low:
                number = math.exp(generator.uniform(math.log(low), math.log(high)))
            draw[name] = f"{number:.4g}"
        draws.append(draw)
    points = [dict(zip(names, point, strict=True)) for point in itertools.product(*values)]
    return [point | draw for draw in draws for point in points]
