"""Modulated Convolutional Networks in JAX and Flax."""

from mcn_jax.layers import Conv, MCConv, binary_filters, updated_centers
from mcn_jax.training import optim
from mcn_jax.training.optim import absolute_projection

__all__ = [
    "Conv", "MCConv", "absolute_projection", "binary_filters", "optim", "updated_centers",
]  # fmt: skip
