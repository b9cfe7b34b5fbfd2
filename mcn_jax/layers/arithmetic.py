"""What a deployed layer computes, described as data, so that code can be generated from it."""

import dataclasses
from typing import NamedTuple

import numpy as np

# Names for `Arithmetic.taken`: what a layer makes of its input before it is weighed.
TAKEN = ("values", "signs", "clipped")


class Quantized(NamedTuple):
    """Weights that take one of a few values.

    Attributes:
        codes: [W, W, C, O] uint8, the index of each weight's level.
        levels: [U] float32.
    """

    codes: np.ndarray
    levels: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Arithmetic:
    """A convolution, or a dense layer as a convolution of a single pixel.

    The weighed sums over taps and channels are multiplied by `scales`, then `offsets` are added.
    With `m_filters`, each tap's sum over the channels counts K times, weighed by M, so O maps
    become O*K channels. With `signs`, slice i consists of the channels i, i + S, i + 2S, ... Each
    tap then has a sum for each slice, and plane k adds the slices with their signs.

    Attributes:
        weights: [W, W, C, O], float32, float16 or int8, or quantized.
        strides: step in y and x, in pixels.
        padding: a name in `mcn_jax.ops.conv_spec.PADDINGS`.
        m_filters: [W, W, K] float32, or None.
        signs: [S, K] float32, 1 and -1, of each slice in each plane; None for one slice of all
            channels. S divides C.
        scales: [1] or [O] float32, or None for ones.
        offsets: [O] float32, or None for zeros.
        taken: a name in `TAKEN`: the values of the input, their signs (+1 for 0), or the values
            clipped to [-1, 1]. Zeros are padded afterwards.
        scales_activations: whether the output is also multiplied by XNOR-Net's K, see
            `mcn_jax.ops.one_bit.activation_scales`.

    Raises:
        ValueError: if C source cannot have this combination: signs of the input need quantized
            weights, clipped values need others, and M excludes XNOR-Net's K.
    """

    weights: np.ndarray | Quantized
    strides: int = 1
    padding: str = "VALID"
    m_filters: np.ndarray | None = None
    signs: np.ndarray | None = None
    scales: np.ndarray | None = None
    offsets: np.ndarray | None = None
    taken: str = "values"
    scales_activations: bool = False

    def __post_init__(self) -> None:
        quantized = isinstance(self.weights, Quantized)
        if self.taken != "values" and quantized != (self.taken == "signs"):
            raise ValueError(f"C source takes no {self.taken} with weights of this kind")
        if self.scales_activations and self.m_filters is not None:
            raise ValueError("C source scales no activations of a layer with M")
