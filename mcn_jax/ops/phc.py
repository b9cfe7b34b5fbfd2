"""Kernels of parameterized hypercomplex convolutions, built from rules and filters.

A kernel of I input and O output channels consists of n x n blocks of I/n x O/n channels. Each block
is a sum of the same n small filters, weighted by the rules:

    kernel[y, x, s*I/n + t, u*O/n + v] = sum over i of rules[i, u, s] * filters[i, y, x, t, v]

This is a sum of Kronecker products. For n = 2 and n = 4, some rules give the products of complex
numbers and of quaternions. Here, rules are learned like filters, so n may be any number.

Source: Grassucci et al. 2022 (PHNNs) and Zhang et al. 2021 (products of n dimensions).
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mcn_jax.ops.draws import drawn


def kernel(rules: jax.Array, filters: jax.Array) -> jax.Array:
    """Builds the kernel of a layer; see the equation above.

    The product is computed in the dtype of the arguments, also where a device would round float32
    factors by default.

    Args:
        rules: [n, n, S]: index of the filter, block of output channels, block of input channels. S
            is n, or less for a kernel of fewer input channels.
        filters: [n, W, W, I/n, O/n].

    Returns:
        [W, W, S*I/n, O].
    """
    blocks = jnp.einsum("ius,iyxtv->yxstuv", rules, filters, precision=lax.Precision.HIGHEST)
    height, width, in_blocks, inputs, out_blocks, outputs = blocks.shape
    return blocks.reshape(height, width, in_blocks * inputs, out_blocks * outputs)


def kernel_of_last_inputs(rules: jax.Array, filters: jax.Array, channels: int) -> jax.Array:
    """Builds the kernel for an input that lacks the first of the layer's I channels.

    The convolution is the same as if channels of zeros preceded the input. Blocks without an input
    are not built.

    Args:
        rules: [n, n, n].
        filters: [n, W, W, I/n, O/n].
        channels: channels of the input, at most I.

    Returns:
        [W, W, channels, O].
    """
    inputs = filters.shape[3]
    lacking = rules.shape[2] * inputs - channels
    whole, rest = divmod(lacking, inputs)
    return kernel(rules[:, :, whole:], filters)[:, :, rest:]


def draw_rules(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Draws rules [n, n, n] from a uniform distribution of variance 1 / n^2 (Xavier)."""
    return _uniform(key, shape, 1 / shape[0] ** 2, dtype)


def draw_he_filters(key: jax.Array, shape: tuple[int, ...], channels: int, dtype: Any) -> jax.Array:
    """Draws filters that give the kernel He's variance, 2 / (W*W*channels).

    The filters are normal with n times this variance: the kernel sums n products, and rules have
    the variance 1 / n^2.

    Args:
        key: random key.
        shape: [n, W, W, I/n, O/n].
        channels: channels of the input, I or less.
        dtype: dtype of the filters.
    """
    n, *taps, _, _ = shape
    std = math.sqrt(2 * n / (channels * math.prod(taps)))
    return std * drawn(jax.random.normal, key, shape, dtype)


def draw_reference_filters(
    key: jax.Array, shape: tuple[int, ...], channels: int, dtype: Any
) -> jax.Array:
    """Draws filters as the authors' program does, with Xavier's uniform distribution.

    The program takes n x I/n as the number of outputs of a filter, so the variance is
    2 / (W*W*I * (1 + O / n^2)). The variance of the kernel is n * (1 + O / n^2) times below He's,
    which a batch norm after the layer hides.

    Args:
        key: random key.
        shape: [n, W, W, I/n, O/n].
        channels: not used.
        dtype: dtype of the filters.
    """
    del channels
    n, *taps, inputs, outputs = shape
    variance = 2 / (math.prod(taps) * n * inputs * (1 + outputs / n))
    return _uniform(key, shape, variance, dtype)


def _uniform(key: jax.Array, shape: tuple[int, ...], variance: float, dtype: Any) -> jax.Array:
    bound = math.sqrt(3 * variance)
    return drawn(jax.random.uniform, key, shape, dtype, -bound, bound)


# Names for config.model.phc_init.
INITS: dict[str, Callable[..., jax.Array]] = {
    "he": draw_he_filters,
    "reference": draw_reference_filters,
}
