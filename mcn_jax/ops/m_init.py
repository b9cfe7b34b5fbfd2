"""Initial values of M-filters.

The planes of a map share one filter and differ only by M. Each start below has the mean square one
over the taps of each plane, so responses to uncorrelated inputs have the same variance with all of
them. Wang et al. 2018 do not say how M starts; "disjoint" and "orientations" are our additions.
"""

import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mcn_jax.ops.draws import drawn

# Least value of a plane over its greatest one, before noise. Above zero, so that the gradient of
# the filters reaches every tap of every plane.
LEAST_SHARE = 0.1


def _ones(taps: int, planes: int) -> jax.Array:
    return jnp.ones((taps, taps, planes))


def _disjoint(taps: int, planes: int) -> jax.Array:
    """Plane k is large at the taps t = W * i + j with t mod K = k, and small at all others."""
    is_own = jnp.arange(taps * taps)[:, None] % planes == jnp.arange(planes)[None]
    return jnp.where(is_own, 1.0, LEAST_SHARE).reshape(taps, taps, planes)


def _orientations(taps: int, planes: int) -> jax.Array:
    """Plane k is a ramp that rises in the direction of the angle 2 pi k / K from the x axis."""
    places = jnp.arange(taps) - (taps - 1) / 2
    angles = 2 * math.pi * jnp.arange(planes) / planes
    along_x = places[:, None] * jnp.cos(angles)[None]
    along_y = places[:, None] * jnp.sin(angles)[None]
    ramps = along_y[:, None] + along_x[None]
    ramps = ramps / jnp.max(jnp.abs(ramps), axis=(0, 1), keepdims=True)
    return 1 + (1 - LEAST_SHARE) / (1 + LEAST_SHARE) * ramps


M_INITS = {"noise": _ones, "disjoint": _disjoint, "orientations": _orientations}


def why_unsuitable(start: str, taps: int, planes: int) -> str | None:
    """Returns why M-filters of a size cannot have a start, or None if they can.

    Args:
        start: a name in `M_INITS`.
        taps: W.
        planes: K.
    """
    if start == "disjoint" and planes > taps * taps:
        return f"gives each plane its own taps, but {planes} planes share {taps}x{taps} taps"
    if start == "orientations" and taps == 1:
        return "needs more than one tap, but filters have 1x1 taps"
    return None


def initial_m(start: str, taps: int, planes: int) -> jax.Array:
    """Computes M before noise.

    - "noise": ones.
    - "disjoint": each plane has its own taps, where it is ten times as large as at the others.
    - "orientations": each plane is a ramp in its own direction, whose greatest value is ten times
      its least one.

    Args:
        start: a name in `M_INITS`.
        taps: W.
        planes: K.

    Returns:
        [W, W, K], positive; the mean square of each plane is one.

    Raises:
        ValueError: if the start is unknown or does not suit the size.
    """
    if start not in M_INITS:
        raise ValueError(f"start of M {start!r} must be one of {', '.join(M_INITS)}")
    if (reason := why_unsuitable(start, taps, planes)) is not None:
        raise ValueError(f"start of M {start!r} {reason}")
    m = M_INITS[start](taps, planes)
    return m / jnp.sqrt(jnp.mean(m**2, axis=(0, 1), keepdims=True))


def draw_m(
    key: jax.Array, shape: tuple[int, int, int], dtype: DTypeLike, start: str, noise: float
) -> jax.Array:
    """Draws M = |initial_m + noise * N(0, 1)|, which is not negative.

    Args:
        key: random key.
        shape: (W, W, K).
        dtype: of the result.
        start: a name in `M_INITS`.
        noise: standard deviation of the noise.
    """
    mean = initial_m(start, shape[0], shape[2]).astype(dtype)
    return jnp.abs(mean + noise * drawn(jax.random.normal, key, shape, dtype))
