"""The data structures that pass batches to the steps."""

from typing import Any, NamedTuple

Array = Any  # NumPy on the host, jax inside a step


class Split(NamedTuple):
    """Examples on the device: a whole split, or a streamed batch.

    Attributes:
        images: [S, Y, X, C] uint8.
        labels: [S] int32.
    """

    images: Array
    labels: Array


class Batch(NamedTuple):
    """One device's part of a training batch.

    Attributes:
        indices: [N] int32, rows of the split.
        positions: [N] int32, positions in the global batch.
    """

    indices: Array
    positions: Array


class EvalBatch(NamedTuple):
    """One device's part of an evaluation batch.

    Attributes:
        indices: [N] int32, rows of the split.
        mask: [N] bool, False for padding.
    """

    indices: Array
    mask: Array
