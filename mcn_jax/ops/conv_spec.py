"""The settings of a convolution that are static, and the padding that follows from them."""

import dataclasses

from jax import lax

# "CENTERED" pads W // 2 zeros on each side, as most PyTorch programs do. With "SAME" and stride 2,
# XLA pads images of an even size by one zero less on the low side.
PADDINGS = ("SAME", "VALID", "CENTERED")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvSpec:
    """Settings of an MCconv or of an ordinary convolution; hashable, so they can be static."""

    strides: tuple[int, int]
    padding: str
    m_gradient: str
    form: str
    plane_signs: str = ""


def pads_and_out_size(
    size: tuple[int, ...], kernel_size: tuple[int, ...], strides: tuple[int, int], padding: str
) -> tuple[list[tuple[int, int]], tuple[int, ...]]:
    """Returns the low and high padding in y and x, and the size of the output.

    Args:
        size: of the image, in pixels.
        kernel_size: (W, W).
        strides: as given to `convolve`.
        padding: as given to `convolve`.
    """
    pads = explicit_pads(size, kernel_size, strides, padding)
    out_size = (
        (pixels + low + high - taps) // stride + 1
        for pixels, (low, high), taps, stride in zip(size, pads, kernel_size, strides, strict=True)
    )
    return pads, tuple(out_size)


def explicit_pads(
    size: tuple[int, ...], kernel_size: tuple[int, ...], strides: tuple[int, int], padding: str
) -> list[tuple[int, int]]:
    """Returns the low and high padding in y and x; the arguments are as in `pads_and_out_size`."""
    if padding == "CENTERED":
        return [(taps // 2, taps // 2) for taps in kernel_size]
    found = lax.padtype_to_pads(size, kernel_size, strides, padding)
    return [(int(low), int(high)) for low, high in found]
