"""Batch norm with the statistics of a batch, followed by ReLU, with its own gradient.

The arithmetic is that of `nn.BatchNorm` and `nn.relu`. Only x is kept for the backward pass: the
normalised features and the mask of ReLU are recomputed inside the passes that need them.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

# x, mean, variance, scale and bias.
Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def batch_norm_relu(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    dtype: jnp.dtype,
    axis_name: str | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises each channel by the batch's mean and variance, and applies ReLU.

    Forward:  z = scale * (x - mean) / sqrt(var + epsilon) + bias,  y = max(z, 0)
    Backward: with d = dy where z > 0, else 0, and x-hat = (x - mean) / sqrt(var + epsilon):
              dbias = sum of d,  dscale = sum of d * x-hat
              dx = scale / sqrt(var + epsilon) * (d - mean of d - x-hat * mean of d * x-hat)

    Sums and means run over all axes but the last. Means also run over the mapped axis. The
    statistics are computed in float32 or better, the variance from x - mean. They get no gradient.

    Args:
        x: [..., C].
        scale: [C].
        bias: [C].
        epsilon: added to the variance.
        dtype: dtype of y.
        axis_name: the mapped axis over whose devices the batch is split, or None.

    Returns:
        y, and the mean and variance of the batch, [C] each.
    """
    return _forward(x, scale, bias, epsilon, dtype, axis_name)[0]


def _forward(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
    dtype: jnp.dtype,
    axis_name: str | None,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], Residuals]:
    exact = x.astype(jnp.promote_types(dtype, jnp.float32))
    mean = _mean(exact, axis_name)
    var = _mean((exact - _broadcast(mean, x)) ** 2, axis_name)
    z = _affine(exact, mean, var, scale, bias, epsilon)
    return (jnp.maximum(z, 0).astype(dtype), mean, var), (x, mean, var, scale, bias)


def _backward(
    epsilon: float,
    dtype: jnp.dtype,
    axis_name: str | None,
    residuals: Residuals,
    cotangents: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    x, mean, var, scale, bias = residuals
    exact = x.astype(jnp.promote_types(dtype, jnp.float32))
    z = _affine(exact, mean, var, scale, bias, epsilon)
    d = jnp.where(z > 0, cotangents[0].astype(exact.dtype), 0)
    centered = exact - _broadcast(mean, x)
    inverse = lax.rsqrt(var + epsilon)
    axes = tuple(range(x.ndim - 1))
    d_bias, products = jnp.sum(d, axes), jnp.sum(d * centered, axes)
    count = x.size // x.shape[-1]
    means = jnp.stack([d_bias, products]) / count
    if axis_name is not None:
        means = lax.pmean(means, axis_name)
    slope = _broadcast(means[1] * inverse**2, x)
    dx = _broadcast(scale * inverse, x) * (d - _broadcast(means[0], x) - centered * slope)
    d_scale = products * inverse
    return dx.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(bias.dtype)


batch_norm_relu.defvjp(_forward, _backward)


def _mean(x: jax.Array, axis_name: str | None) -> jax.Array:
    mean = jnp.mean(x, tuple(range(x.ndim - 1)))
    return mean if axis_name is None else lax.pmean(mean, axis_name)


def _affine(
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float,
) -> jax.Array:
    factor = lax.rsqrt(var + epsilon) * scale
    return (x - _broadcast(mean, x)) * _broadcast(factor, x) + _broadcast(bias, x)


def _broadcast(values: jax.Array, x: jax.Array) -> jax.Array:
    """Returns [C] as an array that rank promotion accepts next to x, [..., C]."""
    return values.reshape((1,) * (x.ndim - 1) + values.shape)
