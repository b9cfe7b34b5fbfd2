"""The data sets with a builder in this package, and what is known without reading them."""

import dataclasses
from typing import Any

from mcn_jax.config import DataConfig
from mcn_jax.errors import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetFacts:
    """What is known about a data set without reading it.

    Attributes:
        fields: fields of `DataConfig` that the builder takes as arguments.
        summary: description in one line.
        examples: number of examples of each split; empty if they depend on the user's files.
        classes: number of classes; None if it depends on the user's files.
        image_shape: (Y, X, C) as stored; (None, None, C) if images differ in size.
        mean: mean of each channel, for pixels divided by 255. None if it is computed when the data
            set is opened, see `mcn_jax.data.examples.pixel_statistics`.
        std: standard deviation of each channel, likewise.
        statistics: where mean and std come from.
    """

    fields: tuple[str, ...] = ("archive_dir",)
    summary: str
    examples: dict[str, int]
    classes: int | None
    image_shape: tuple[int | None, int | None, int]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    statistics: str = "over all pixels of the training split"


DATASETS = {
    "digits": DatasetFacts(
        fields=(),
        summary="scans bundled with scikit-learn, enlarged to 32x32; no download",
        examples={"train": 1437, "test": 360},
        classes=10,
        image_shape=(32, 32, 1),
        mean=(0.3057,),
        std=(0.3235,),
    ),
    "mnist": DatasetFacts(
        summary="handwritten digits (LeCun et al. 1998)",
        examples={"train": 60000, "test": 10000},
        classes=10,
        image_shape=(28, 28, 1),
        mean=(0.1307,),
        std=(0.3081,),
    ),
    "cifar10": DatasetFacts(
        summary="small colour images (Krizhevsky 2009)",
        examples={"train": 50000, "test": 10000},
        classes=10,
        image_shape=(32, 32, 3),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": DatasetFacts(
        summary="small colour images, also with 20 coarse labels (Krizhevsky 2009)",
        examples={"train": 50000, "test": 10000},
        classes=100,
        image_shape=(32, 32, 3),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    ),
    "svhn_cropped": DatasetFacts(
        summary="house numbers, one digit per image (Netzer et al. 2011)",
        examples={"train": 73257, "test": 26032, "extra": 531131},
        classes=10,
        image_shape=(32, 32, 3),
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        statistics="as commonly published for the training split; not computed here",
    ),
    "imagenet100": DatasetFacts(
        fields=("archive_dir", "wnids_file"),
        summary="100 classes of ILSVRC-2012, chosen by a file of wnids",
        examples={},
        classes=None,
        image_shape=(None, None, 3),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        statistics="as commonly published for all 1,000 classes; not computed here",
    ),
    "image_folder": DatasetFacts(
        fields=("root", "test_fraction", "split_seed"),
        summary="your own images, one folder per class, under --config.data.root",
        examples={},
        classes=None,
        image_shape=(None, None, 3),
        mean=None,
        std=None,
        statistics="over at most 1,024 training images as evaluation prepares them",
    ),
}


def why_other(full_name: Any) -> str:
    """Returns what to do if the data no longer have the full name that was recorded, for errors.

    Args:
        full_name: the recorded name.
    """
    if not str(full_name).startswith("image_folder/"):
        return ""
    if str(full_name).endswith("/1.0.0"):
        return (
            " (an earlier version named a folder by the times of its files, and skipped deeper"
            " folders and some formats; restore the times, for example by cp -p or rsync -t)"
        )
    return (
        " (the folder's images, their names or their classes changed; times of files do not count)"
    )


def stores_files(name: str) -> bool:
    """Returns whether the images of a data set are files that others encoded.

    Only these can have transparency and EXIF data.
    """
    return name not in DATASETS or None in DATASETS[name].image_shape


def check_stored_shape(config: DataConfig, shape: tuple[int | None, ...]) -> None:
    """Checks that the config's fields about image size fit the stored images.

    Args:
        config: config of the data.
        shape: (Y, X, C) as stored, with None if images differ in size.

    Raises:
        InputError: if a field does not fit; the error names the field.
    """
    differ = None in shape
    require(
        bool(config.image_size) or not differ,
        "data.image_size",
        config.image_size,
        f"must be set for {config.name}, whose images differ in size; choose the height and width"
        " to resize them to",
    )
    require(
        differ or not config.min_crop_area,
        "data.min_crop_area",
        config.min_crop_area,
        f"is for images that differ in size, unlike those of {config.name}; use"
        " config.data.crop_padding",
    )
    require(
        differ or config.center_crop == 1,
        "data.center_crop",
        config.center_crop,
        f"is for images that differ in size, unlike those of {config.name}; use 1",
    )
    if not differ and config.image_size:
        height, width = shape[:2]
        require(
            max(height or 0, width or 0) <= config.image_size,
            "data.image_size",
            config.image_size,
            f"is smaller than the images of {height}x{width}; use 0 to keep them as stored",
        )
