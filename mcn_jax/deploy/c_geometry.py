"""The sizes of a layer in C source, and the call of its function."""

import dataclasses
import math
from typing import NamedTuple


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """The sizes of a convolution of one image.

    Attributes:
        size: height and width of the input, Y and X.
        channels: C, of the input.
        maps: O, sums per pixel of the output.
        planes: K, channels of the output per map.
        slices: into which the channels are divided, see `Arithmetic`.
        taps: W, height and width of the kernel.
        strides: in y and x.
        low: zeros padded above and to the left.
        out: height and width of the output.
    """

    size: tuple[int, ...]
    channels: int
    maps: int
    planes: int
    slices: int
    taps: int
    strides: int
    low: tuple[int, int]
    out: tuple[int, ...]

    @property
    def out_size(self) -> int:
        """The number of elements of the output."""
        return math.prod(self.out) * self.maps * self.planes

    def values(self) -> dict[str, int]:
        """Returns the sizes by the names that the texts of functions have for them."""
        return {
            "Y": self.size[0], "X": self.size[1], "C": self.channels, "O": self.maps,
            "K": self.planes, "SLICES": self.slices, "W": self.taps, "S": self.strides,
            "LOW_Y": self.low[0], "LOW_X": self.low[1], "OUT_Y": self.out[0],
            "OUT_X": self.out[1],
        }  # fmt: skip


class Call(NamedTuple):
    """How the function of a layer is called.

    Attributes:
        function: its name.
        scratch: floats that it needs while it runs.
        places: its first arguments, in which "x" stands for the input, "y" for the output and
            "scratch" for the floats that it needs.
        constants: its other arguments.
        accumulating: a function that adds to the output instead of writing it; may be empty.
    """

    function: str
    scratch: int
    places: tuple[str, ...]
    constants: list[str]
    accumulating: str = ""
