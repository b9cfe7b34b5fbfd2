"""Random numbers for arrays of several axes.

On a CPU, XLA takes seconds to compile a draw for an array of three or more axes, and tenths of a
second for one or two axes of as many numbers. The numbers are the same.
"""

import math
from collections.abc import Callable
from typing import Any

import jax


def drawn(
    draw: Callable[..., jax.Array], key: jax.Array, shape: tuple[int, ...], *arguments: Any
) -> jax.Array:
    """Returns `draw(key, shape, *arguments)`, drawn along one axis.

    Args:
        draw: draws independent numbers of one distribution, such as `jax.random.normal`.
        key: random key.
        shape: of the result.
        *arguments: further arguments of `draw`.
    """
    return draw(key, (math.prod(shape),), *arguments).reshape(shape)


def he_normal(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Draws filters like `jax.nn.initializers.he_normal()`, as a matrix of the same fan-in.

    Args:
        key: random key.
        shape: of the filters, (..., outputs).
        dtype: of the filters.
    """
    matrix = math.prod(shape[:-1]), shape[-1]
    return jax.nn.initializers.he_normal()(key, matrix, dtype).reshape(shape)
