"""The number formats in which a model file may store values that are not bits."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from mcn_jax.errors import InputError
from mcn_jax.layers.family import Tensor

DENSE_FORMATS = ("float32", "float16", "int8")
SCALE_FORMATS = ("float32", "float16")


class Formats(NamedTuple):
    """What an export chooses.

    Attributes:
        dense: of the kernels of dense layers, a name in `DENSE_FORMATS`. "int8" is symmetric, with
            one float32 scale per output.
        scales: of batch norm, M-filters and the scales of one-bit filters, a name in
            `SCALE_FORMATS`.
    """

    dense: str = "float32"
    scales: str = "float32"


FLOAT32, SMALLEST = Formats(), Formats("int8", "float16")


def rounded(array: np.ndarray, dtype: str, what: str, remedy: str) -> np.ndarray:
    """Returns a float32 array in a float dtype.

    Args:
        array: any shape.
        dtype: "float32" or "float16".
        what: the array, in the plural, for errors.
        remedy: options of the export that have no such range, for errors.

    Raises:
        InputError: if a value exceeds the range of float16.
    """
    if dtype == "float16" and np.abs(array).max() > np.finfo(np.float16).max:
        raise InputError(f"{what} are beyond float16; use {remedy}")
    return array.astype(dtype)


def with_scales(
    stored: Mapping[str, np.ndarray], leaves: Iterable[str], formats: Formats, what: str
) -> dict[str, np.ndarray]:
    """Returns the tensors of a layer with its scales in their format.

    Args:
        stored: float32 tensors of a layer.
        leaves: names of its scales; the layer may lack some.
        formats: from the export.
        what: the scales, in the plural, for errors.

    Raises:
        InputError: if a scale exceeds the range of float16.
    """
    scales = {
        leaf: rounded(stored[leaf], formats.scales, what, "--scales=float32")
        for leaf in leaves
        if leaf in stored
    }
    return dict(stored) | scales


def scale_tensor(
    name: str, dtypes: Mapping[str, str], shape: tuple[int, ...], part: str, weights: int
) -> Tensor:
    """Describes a tensor of scales in the format that a file has.

    Args:
        name: of the leaf.
        dtypes: {leaf name: dtype} of the layer in the file.
        shape: of the tensor.
        part: see `Tensor.part`.
        weights: see `Tensor.weights`.

    Raises:
        InputError: if the format is not in `SCALE_FORMATS`.
    """
    dtype = dtypes.get(name, "float32")
    if dtype not in SCALE_FORMATS:
        raise InputError(f"a tensor {name} is {dtype}, not one of {', '.join(SCALE_FORMATS)}")
    size = int(np.prod(shape, dtype=object))
    return Tensor(dtype, tuple(shape), part, 8 * np.dtype(dtype).itemsize * size, weights)
