"""Multiply-adds of one modulated convolution: what each form has to compute."""

import math

from mcn_jax.ops.fastest import Shape

TAPS = 9  # of 3x3 filters


def multiply_adds(shape: Shape, form: str, *, gradients: bool = False, taps: int = TAPS) -> int:
    """Multiply-adds of one image, border pixels counted like all others.

    With C input channels, H maps and K planes, the direct form takes C*H*K a tap and output pixel,
    and twice as many in the backward pass. The factored form takes C*H for the product with the
    binary filters and K*H for its mix by M; its backward pass computes the products anew (which
    XLA may find in the forward pass), mixes twice and multiplies twice.

    Args:
        shape: of the layer.
        form: "direct", which is an ordinary convolution of the same channels too, or "factored".
        gradients: adds those of features, filters and M to the forward pass.
        taps: of a filter.
    """
    pixels = math.ceil(shape.size / shape.stride) ** 2
    filters = taps * shape.in_maps * shape.planes * shape.out_maps
    mix = taps * shape.planes * shape.out_maps
    if form == "direct":
        return pixels * shape.planes * filters * (3 if gradients else 1)
    if form == "factored":
        return pixels * (filters * (4 if gradients else 1) + mix * (3 if gradients else 1))
    raise ValueError(f"form {form!r} is neither direct nor factored")
