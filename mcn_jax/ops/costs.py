"""Multiply-adds of one modulated convolution, for each form of computing it."""

import math

from mcn_jax.ops.fastest import Shape

TAPS = 9  # taps of a 3x3 filter


def multiply_adds(
    shape: Shape,
    form: str,
    *,
    gradients: bool = False,
    keeps_products: bool = False,
    has_slices: bool = False,
    taps: int = TAPS,
) -> int:
    """Returns the multiply-adds of one MCconv on one image.

    C is the number of input channels, H of output maps and K of planes. Per tap and output pixel,
    the direct form takes C*H*K multiply-adds forward and twice as many backward.

    The factored form takes C*H for the product with the binary filters and K*H for the mix by M,
    or K*K*H if a pattern of signs divides the channels into K slices. Its backward pass computes
    that product again, mixes twice and multiplies twice.

    Border pixels count like all others.

    Args:
        shape: shape of the layer.
        form: "direct" or "factored". "direct" also holds for an ordinary convolution with the same
            channels.
        gradients: whether to add the backward pass: the gradients of features, filters and M.
        keeps_products: whether the backward pass of the factored form uses the product of the
            forward pass instead of computing it again.
        has_slices: whether the layer has a pattern of signs, see
            `mcn_jax.ops.plane_signs.sliced_m`. It only changes the factored form.
        taps: taps per filter.

    Raises:
        ValueError: if `form` is unknown.
    """
    pixels = math.ceil(shape.size / shape.stride) ** 2
    filters = taps * shape.in_maps * shape.planes * shape.out_maps
    mix = taps * shape.planes * shape.out_maps * (shape.planes if has_slices else 1)
    if form == "direct":
        return pixels * shape.planes * filters * (3 if gradients else 1)
    if form == "factored":
        products = (3 if keeps_products else 4) if gradients else 1
        return pixels * (products * filters + (3 if gradients else 1) * mix)
    raise ValueError(f"form {form!r} is neither direct nor factored")
