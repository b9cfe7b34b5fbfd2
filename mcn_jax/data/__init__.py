"""Data sets: TFDS builders without TensorFlow, and their batches on the devices.

`open_dataset` prepares and opens a data set, `make_source` gives its batches: from splits that live
on the devices as uint8, or streamed by worker processes. What can be done inside the compiled
step is done there (`mcn_jax.data.augment`).
"""

from mcn_jax.data.dataset import Dataset, open_dataset
from mcn_jax.data.facts import DATASETS, DatasetFacts
from mcn_jax.data.prepare import check_name
from mcn_jax.data.sources import SOURCES, make_source

__all__ = [
    "DATASETS",
    "SOURCES",
    "Dataset",
    "DatasetFacts",
    "check_name",
    "make_source",
    "open_dataset",
]
