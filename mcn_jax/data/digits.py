"""The 1,797 handwritten digits bundled with scikit-learn, as a TFDS builder; no download."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

TEST_IMAGES = 360
SPLIT_SEED = 0  # part of the data set's definition: every run has the same split


class Digits(tfds.core.GeneratorBasedBuilder):
    """Scans of 8x8 gray levels (Alpaydin and Kaynak 1998), enlarged to 32x32.

    The test split holds one fifth of every class.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="scikit-learn's handwritten digits at 32x32, split 1,437 / 360",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(32, 32, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        # Not needed once the data are prepared, slow to import, and noisy without shared memory.
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        del dl_manager
        digits = load_digits()
        train, test = train_test_split(
            np.arange(len(digits.target)),
            test_size=TEST_IMAGES,
            random_state=SPLIT_SEED,
            stratify=digits.target,
        )
        return {
            "train": self._generate_examples(digits, np.sort(train)),
            "test": self._generate_examples(digits, np.sort(test)),
        }

    def _generate_examples(self, digits: Any, rows: np.ndarray) -> Iterator[tuple[int, Any]]:
        for row in rows.tolist():
            yield row, {"image": enlarged(digits.images[row]), "label": int(digits.target[row])}


def enlarged(scan: np.ndarray) -> np.ndarray:
    """Enlarges [8, 8] gray levels 0 to 16 to [32, 32, 1] uint8, bilinearly."""
    pixels = Image.fromarray(np.round(scan * (255 / 16)).astype(np.uint8))
    return np.asarray(pixels.resize((32, 32), Image.Resampling.BILINEAR))[..., None]
