"""What passes from the data to the steps."""

from typing import Any, NamedTuple

Array = Any  # of numpy where the host makes it, of jax inside a step


class Split(NamedTuple):
    """Examples on the device: a whole split, or a streamed batch.

    images: [S, Y, X, C] uint8. labels: [S] int32.
    """

    images: Array
    labels: Array


class Batch(NamedTuple):
    """One device's part of a training batch.

    indices: [N] int32, rows of the split. positions: [N] int32, places in the global batch.
    """

    indices: Array
    positions: Array


class EvalBatch(NamedTuple):
    """One device's part of an evaluation batch.

    indices: [N] int32, rows of the split. mask: [N] bool, False for padding.
    """

    indices: Array
    mask: Array
