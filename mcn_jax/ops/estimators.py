"""Derivatives that stand for that of a quantizer, which is zero almost everywhere.

Sources: Bengio et al. 2013 (the straight-through estimator), Qin et al. 2020 (IR-Net), Wu et al.
2023 (ReSTE).
"""

import jax
import jax.numpy as jnp
from jax import lax

IDENTITY = "identity"
ESTIMATORS = (IDENTITY, "ede", "reste")

RESTE_CHORD, RESTE_BOUND = 0.1, 1.5


@jax.custom_vjp
def with_slope(x: jax.Array, value: jax.Array, slope: jax.Array) -> jax.Array:
    """Returns `value`, whose derivative by x is defined to be `slope`.

    Args:
        x: any shape.
        value: the result, in the shape of x. It gets no gradient.
        slope: broadcasts to the shape of x. It gets no gradient.
    """
    del x, slope
    return value


def _with_slope_forward(
    x: jax.Array, value: jax.Array, slope: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    del x
    return value, (value, slope)


def _with_slope_backward(
    saved: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    value, slope = saved
    return cotangent * slope, jnp.zeros_like(value), jnp.zeros_like(slope)


with_slope.defvjp(_with_slope_forward, _with_slope_backward)


def straight_through(x: jax.Array, value: jax.Array) -> jax.Array:
    """Returns `value`, whose derivative by x is defined to be one."""
    return with_slope(x, value, jnp.ones((), x.dtype))


def slope_of_sign(z: jax.Array, progress: jax.Array | float, estimator: str) -> jax.Array:
    """Returns the derivative of the sign of z by an estimator, which may change during training.

    With p = `progress`:

    - "identity": 1.
    - "ede" (IR-Net): k*t*(1 - tanh(t*z)^2), t = 0.1 * 100^p, k = max(1/t, 1).
    - "reste": abs(z)^((1-o)/o) / o, o = 1 + 2*(1 - cos(pi*p/2)). It is zero beyond 1.5. Inside 0.1
      it is the slope of the chord, 0.1^(1/o) / 0.1.

    Args:
        z: any shape; its magnitude should be near one. It gets no gradient.
        progress: share of the training that is done, in [0, 1].
        estimator: a name in `ESTIMATORS`.

    Raises:
        ValueError: if the estimator is unknown.
    """
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator={estimator!r} must be one of {', '.join(ESTIMATORS)}")
    z, progress = lax.stop_gradient(z), jnp.asarray(progress, z.dtype)
    if estimator == IDENTITY:
        return jnp.ones_like(z)
    if estimator == "ede":
        t, k = ede(progress)
        return k * t * (1 - jnp.tanh(t * z) ** 2)
    size = jnp.abs(z)
    o = 1 + 2 * (1 - jnp.cos(jnp.pi * progress / 2))
    curve = jnp.maximum(size, RESTE_CHORD) ** ((1 - o) / o) / o
    chord = RESTE_CHORD ** (1 / o) / RESTE_CHORD
    return jnp.where(size > RESTE_BOUND, 0, jnp.where(size < RESTE_CHORD, chord, curve))


def ede(progress: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns t and k of IR-Net's estimator at a share of the training in [0, 1]."""
    t = 0.1 * 100.0**progress
    return t, jnp.maximum(1 / t, 1)


def with_slope_of_two_centers(
    values: jax.Array, centers: jax.Array, progress: jax.Array | float, estimator: str
) -> jax.Array:
    """Returns `values`, whose derivative by themselves is an estimator's for the nearest center.

    A quantizer that passes its gradient straight through, such as `mcn_jax.ops.mcconv`, then gives
    the gradient of that estimator. The nearest of two centers is the sign of the distance to their
    midpoint. `slope_of_sign` takes this distance in units in which the centers are -1 and 1.

    Args:
        values: any shape.
        centers: [2], sorted, not equal.
        progress: see `slope_of_sign`.
        estimator: a name in `ESTIMATORS`.

    Raises:
        ValueError: if the estimator is unknown, or there are not two centers.
    """
    if len(centers) != 2:
        raise ValueError(f"estimator={estimator!r} needs two centers, not {len(centers)}")
    lower, higher = centers
    z = (2 * values - lower - higher) / (higher - lower)
    return with_slope(values, values, slope_of_sign(z, progress, estimator))
