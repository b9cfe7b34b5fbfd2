"""Flax linen layers: they declare parameters and call `mcn_jax.ops`.

`family` defines the interface of layer families, `table` lists the families, and each family has a
file of its own.
"""

from mcn_jax.layers.batch_norm import Affine, folded_batch_norm
from mcn_jax.layers.conv import Conv, KernelConv
from mcn_jax.layers.mcconv import MCConv, binary_filters, updated_centers

__all__ = [
    "Affine", "Conv", "KernelConv", "MCConv", "binary_filters", "folded_batch_norm",
    "updated_centers",
]  # fmt: skip
