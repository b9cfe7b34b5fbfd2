"""Modulated Convolutional Networks in JAX and Flax."""

from mcn_jax.layers import Conv, MCConv, binary_filters, updated_centers

__all__ = ["Conv", "MCConv", "binary_filters", "updated_centers"]
