"""Checks of a run's `DataConfig`."""

from mcn_jax.config import NO_BACKGROUND, DataConfig
from mcn_jax.data.dataset import check_name
from mcn_jax.data.facts import DATASETS, check_stored_shape
from mcn_jax.data.sources import SOURCES
from mcn_jax.errors import require, require_one_of

OWN_FIELDS = ("root", "test_fraction", "split_seed", "wnids_file")  # used by some data sets


def check_data(config: DataConfig) -> None:
    """Checks every value of a config, as far as possible without opening the data.

    Raises:
        InputError: if a value is wrong; the error names the first, and what is allowed.
    """
    check_name(config)
    require_one_of("data.pipeline", config.pipeline, ("auto", *SOURCES))
    require(
        config.mixup > 0 or not config.mixup_pairs,
        "data.mixup_pairs",
        config.mixup_pairs,
        "needs config.data.mixup above 0",
    )
    for name in ("split_seed", "workers", "image_size", "crop_padding", "cutout", "mixup"):
        value = getattr(config, name)
        require(value >= 0, f"data.{name}", value, "must not be negative")
    require(
        0 < config.center_crop <= 1, "data.center_crop", config.center_crop, "must lie in (0, 1]"
    )
    require(
        NO_BACKGROUND <= config.background <= 255,
        "data.background",
        config.background,
        f"must be a gray level from 0 to 255, or {NO_BACKGROUND} to ignore transparency",
    )
    for name in ("min_crop_area", "color_jitter"):
        value = getattr(config, name)
        require(0 <= value <= 1, f"data.{name}", value, "must lie in [0, 1]")
    fraction = config.test_fraction
    require(0 < fraction < 1, "data.test_fraction", fraction, "must lie in (0, 1)")
    require(
        not (config.min_crop_area and config.pipeline == "resident"),
        "data.pipeline",
        config.pipeline,
        "cannot crop images at random; use 'streamed', or set config.data.min_crop_area=0",
    )
    facts = DATASETS.get(config.name)
    if facts is None:
        return
    for name in OWN_FIELDS:
        value = getattr(config, name)
        require(
            name in facts.fields or value == getattr(DataConfig, name),
            f"data.{name}",
            value,
            f"is not used by {config.name}; leave it out, or choose another data set",
        )
    check_stored_shape(config, facts.image_shape)


def check_augmentation(config: DataConfig, height: int, width: int) -> None:
    """Raises InputError unless shifts and cutouts fit images of this size in pixels."""
    for name in ("crop_padding", "cutout"):
        value = getattr(config, name)
        require(
            value <= min(height, width),
            f"data.{name}",
            value,
            f"is larger than an image of {height}x{width} pixels; lower it",
        )
