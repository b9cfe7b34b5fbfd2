"""Fixed patterns of signs and planes, with which each output plane reads a filter differently.

All K planes of an output map share one filter of K planes per input map, so they differ only by M.
A pattern applies the filter to each output plane k in another way. Input plane i meets the filter's
plane order[k, i], times signs[k, i]:

    "hadamard":   order[k, i] = i, signs[k, i] = (-1)^(number of ones in the bits of k & i)
    "quaternion": order[k, i] = k xor i, and the signs of the Hamilton product filter * input, with
                  the planes as the components 1, i, j, k
    "circulant":  order[k, i] = (i - k) mod K, no signs

In terms of the filter's planes j, "circulant" takes input plane (j + k) mod K for output plane k.
The signs of "hadamard" are Sylvester's matrix, so the rows of signs are orthogonal. "quaternion" is
the convolution of Gaudet and Maida 2018 (Deep Quaternion Networks). A pattern depends on K alone,
so it takes no bits.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class _Pattern(NamedTuple):
    """Order and signs of all output planes, each [K, K]: row k, column i."""

    order: np.ndarray
    signs: np.ndarray


def _hadamard(planes: int) -> _Pattern:
    _, i = np.indices((planes, planes))
    signs = np.ones((1, 1), int)
    while len(signs) < planes:
        signs = np.kron([[1, 1], [1, -1]], signs)
    return _Pattern(i, signs)


def _quaternion(planes: int) -> _Pattern:
    k, i = np.indices((planes, planes))
    signs = [[1, -1, -1, -1], [1, 1, -1, 1], [1, 1, 1, -1], [1, -1, 1, 1]]
    return _Pattern(k ^ i, np.array(signs))


def _circulant(planes: int) -> _Pattern:
    k, i = np.indices((planes, planes))
    return _Pattern((i - k) % planes, np.ones_like(k))


# {name: (the pattern of K planes, the allowed K)}
PATTERNS: dict[str, tuple[Callable[[int], _Pattern], tuple[int, ...]]] = {
    "hadamard": (_hadamard, (2, 4, 8)),
    "quaternion": (_quaternion, (4,)),
    "circulant": (_circulant, (2, 4, 8)),
}


def why_unsuitable(plane_signs: str, planes: int) -> str | None:
    """Returns why maps of K planes cannot have a pattern, or None if they can.

    Args:
        plane_signs: a name in `PATTERNS`, or "".
        planes: K.
    """
    if not plane_signs or planes in PATTERNS[plane_signs][1]:
        return None
    allowed = ", ".join(map(str, PATTERNS[plane_signs][1]))
    return f"is for maps of {allowed} planes, not {planes}"


def has_slices(plane_signs: str) -> bool:
    """Returns whether a pattern has signs only; then `sliced_m` computes it. False for ""."""
    if not plane_signs:
        return False
    make, allowed = PATTERNS[plane_signs]
    return all(np.array_equal(make(k).order, np.indices((k, k))[1]) for k in allowed)


def signs_of_slices(plane_signs: str, planes: int) -> np.ndarray:
    """Returns the sign with which each output plane meets each slice of the channels.

    With a pattern of signs, slice i consists of plane i of all input maps: channels i, i + K, ...

    Args:
        plane_signs: a name in `PATTERNS` with signs only, or "", where one slice has all channels.
        planes: K.

    Returns:
        Integers 1 and -1, [K, K] or [1, K]: row i for slice i, column k for output plane k.

    Raises:
        ValueError: if the pattern has more than signs.
    """
    if not plane_signs:
        return np.ones((1, planes), int)
    if not has_slices(plane_signs):
        raise ValueError(f"plane_signs={plane_signs!r} also orders planes, so it has no slices")
    return PATTERNS[plane_signs][0](planes).signs.T


def sliced_m(m_filters: jax.Array, plane_signs: str) -> jax.Array:
    """Returns the M of each slice. The convolution is the sum over the slices of the channels.

    The sign with which output plane k meets slice i can be moved into M:

        Q[.., g*K + i, h*K + k] = C[.., g*K + i, h] * (signs[i, k] * M[.., k])

    So the convolution is a sum of MCconvs without a pattern, each of one slice, and all K planes of
    an output map share the products of a filter.

    Args:
        m_filters: [W, W, K].
        plane_signs: as in `signs_of_slices`.

    Returns:
        [K, W, W, K], or [1, W, W, K] for ""; the first axis is the slice.
    """
    signs = signs_of_slices(plane_signs, m_filters.shape[-1])
    return m_filters[None] * jnp.asarray(signs, m_filters.dtype)[:, None, None]


def of_plane(filters: jax.Array, plane: int, planes: int, plane_signs: str) -> jax.Array:
    """Returns the filters as one output plane reads them, before M.

    Args:
        filters: [W, W, G*K, H].
        plane: k, the output plane.
        planes: K.
        plane_signs: a name in `PATTERNS`; "" returns the filters themselves.

    Returns:
        The same shape.
    """
    if not plane_signs:
        return filters
    pattern = PATTERNS[plane_signs][0](planes)
    return _signed(_ordered(filters, pattern.order[plane]), pattern.signs[plane])


def gradient_of_plane(gradient: jax.Array, plane: int, planes: int, plane_signs: str) -> jax.Array:
    """Applies the transpose of `of_plane`, which is also its inverse; arguments are the same."""
    if not plane_signs:
        return gradient
    pattern = PATTERNS[plane_signs][0](planes)
    signed = _signed(gradient, pattern.signs[plane])
    return _ordered(signed, np.argsort(pattern.order[plane]))


def _ordered(filters: jax.Array, order: np.ndarray) -> jax.Array:
    if np.array_equal(order, np.arange(len(order))):
        return filters
    height, width, channels, maps = filters.shape
    grouped = filters.reshape(height, width, -1, len(order), maps)
    places = grouped.at[:, :, :, order]
    taken = places.get(mode="promise_in_bounds", wrap_negative_indices=False)
    return taken.reshape(height, width, channels, maps)


def _signed(filters: jax.Array, signs: np.ndarray) -> jax.Array:
    if np.all(signs == 1):
        return filters
    of_channels = np.tile(signs, filters.shape[2] // len(signs))
    return filters * jnp.asarray(of_channels, filters.dtype)[None, None, :, None]
