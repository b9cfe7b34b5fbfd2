"""Pure functions on arrays: the mathematics of modulated convolutional networks."""

from mcn_jax.ops.binarize import kmeans_centers, nearest_center, nearest_index
from mcn_jax.ops.mcconv import mcconv
from mcn_jax.ops.modulate import filter_loss, reconstructed_filters

__all__ = [
    "filter_loss",
    "kmeans_centers",
    "mcconv",
    "nearest_center",
    "nearest_index",
    "reconstructed_filters",
]
