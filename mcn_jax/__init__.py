"""Modulated Convolutional Networks in JAX and Flax."""

import sys
from typing import Any

try:
    import jax as jax  # reads its environment variables
except ValueError as error:
    if sys.argv[:1] != ["-m"]:  # a command begins; a program that imports the package goes on
        raise
    sys.exit(f"mcn_jax: error: {error}; correct or unset this environment variable")

from mcn_jax.layers import Conv, MCConv, binary_filters, updated_centers

__all__ = [
    "Conv", "MCConv", "absolute_projection", "binary_filters", "optim", "updated_centers",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports `absolute_projection` and the module `optim` on first access.

    So importing a lower layer of the package does not load `training`.
    """
    if name not in ("absolute_projection", "optim"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mcn_jax.training import optim

    return optim if name == "optim" else optim.absolute_projection
