"""Cyclic correlation of blocks with fewer products than there are pairs of blocks.

The product is any bilinear operation; here, a convolution of images with filters. A cyclic
correlation of n blocks has n^2 products. With the Chinese remainder theorem and three real products
per complex one, it takes 1, 2, 5 and 11 for n = 1, 2, 4 and 8.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Product = Callable[[Any, Any], Any]


def takes(blocks: int) -> bool:
    """Returns whether this number of blocks can be correlated: a power of two."""
    return blocks > 0 and blocks & (blocks - 1) == 0


def products(blocks: int) -> int:
    """Returns the number of products that `cyclic` computes."""
    if blocks == 1:
        return 1
    half = blocks // 2
    return products(half) + (1 if half == 1 else 3 * half // 2)


class Matrices(NamedTuple):
    """A cyclic correlation of n blocks as P products of sums.

    y[k] = sum over g of give[k, g] * product(sum over b of take[g, b] * x[b],
                                              sum over b of weigh[g, b] * f[b])

    Attributes:
        take, weigh: [P, n].
        give: [n, P].
    """

    take: np.ndarray
    weigh: np.ndarray
    give: np.ndarray


@functools.cache
def matrices(blocks: int) -> Matrices:
    """Returns the sums of blocks that `cyclic` multiplies and combines, as float64 matrices."""
    pairs: list[tuple[np.ndarray, np.ndarray]] = []

    def product(x: np.ndarray, f: np.ndarray) -> np.ndarray:
        pairs.append((x, f))
        return np.eye(products(blocks))[len(pairs) - 1]

    units = list(np.eye(blocks))
    give = np.stack(cyclic(units, units, product))
    take, weigh = map(np.stack, zip(*pairs, strict=True))
    return Matrices(take, weigh, give)


def cyclic(x: Sequence[Any], f: Sequence[Any], product: Product) -> list[Any]:
    """Computes y[k] = sum over b of product(x[b], f[(b + k) mod n]).

    Sums and differences of the blocks b and b + n/2 give a cyclic and a negacyclic correlation of
    n/2 blocks each.

    Args:
        x: n arrays; n is a power of two.
        f: n arrays.
        product: bilinear function of a block of x and a block of f.

    Returns:
        n arrays, exact apart from rounding.
    """
    if len(x) == 1:
        return [product(x[0], f[0])]
    sums = cyclic(_halves(x, 1), _halves(f, 1), product)
    differences = _negacyclic(_halves(x, -1), _halves(f, -1), product)
    pairs = list(zip(sums, differences, strict=True))
    return [(c + d) / 2 for c, d in pairs] + [(c - d) / 2 for c, d in pairs]


def _halves(blocks: Sequence[Any], sign: int) -> list[Any]:
    half = len(blocks) // 2
    pairs = zip(blocks[:half], blocks[half:], strict=True)
    return [a + b if sign > 0 else a - b for a, b in pairs]


def _negacyclic(x: Sequence[Any], f: Sequence[Any], product: Product) -> list[Any]:
    """Computes y[k] = sum over b of product(x[b], f[b + k]), where f[n + j] = -f[j].

    At each root z = e^(i t) of z^n = -1, the polynomials X, F and Y of the blocks fulfil
    Y(z) = conj(X(z)) F(z). The other half of the roots are the conjugates of those used.
    """
    n = len(x)
    if n == 1:
        return [product(x[0], f[0])]
    y: list[Any] = [0] * n
    for j in range(n // 2):
        angle = math.pi * (2 * j + 1) / n
        (p, q), (r, s) = (_value(blocks, angle) for blocks in (x, f))
        both, imaginary = product(p, r), product(q, s)
        real = both + imaginary
        crossed = product(p - q, r + s) - both + imaginary
        for k in range(n):
            cosine, sine = _direction(k * angle)
            for weight, part in ((cosine, real), (sine, crossed)):
                if weight:
                    y[k] = y[k] + (2 / n * weight) * part
    return y


def _value(blocks: Sequence[Any], angle: float) -> tuple[Any, Any]:
    """Returns real and imaginary part of the sum of blocks[b] * e^(i b angle)."""
    parts: tuple[Any, Any] = (0, 0)
    for b, block in enumerate(blocks):
        weights = _direction(b * angle)
        parts = tuple(
            part + weight * block if weight else part
            for part, weight in zip(parts, weights, strict=True)
        )
    return parts


def _direction(angle: float) -> tuple[float, float]:
    """Returns cosine and sine; those of a right angle are exactly 0."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return (0.0 if abs(cosine) < 1e-9 else cosine), (0.0 if abs(sine) < 1e-9 else sine)
