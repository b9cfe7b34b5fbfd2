"""A picture of a data set: images with their labels, before and after each augmentation."""

import dataclasses
import functools
import pathlib

import jax.numpy as jnp
import numpy as np

from mcn_jax.config import DataConfig
from mcn_jax.data.augment import training_inputs
from mcn_jax.data.batches import Batch, Split
from mcn_jax.data.dataset import Dataset
from mcn_jax.escapes import drawn
from mcn_jax.seeds import Purpose, example_generators, example_keys

ROWS = 8  # examples on the sheet
LONGEST_NAME = 30  # characters; a longer one would push the images aside
MIN_CROP_AREA = 0.08


def augmentations(size: int) -> dict[str, DataConfig]:
    """Returns {title: config with only this augmentation}.

    Strengths are those in common use for images of `size` pixels.
    """
    return {
        f"crop_padding={size // 8}": DataConfig(crop_padding=size // 8),
        "flip": DataConfig(flip=True),
        "color_jitter=0.4": DataConfig(color_jitter=0.4),
        f"cutout={size // 2}": DataConfig(cutout=size // 2),
        "mixup=1": DataConfig(mixup=1.0),
    }


def columns(dataset: Dataset, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Computes the images on the sheet.

    Args:
        dataset: open data set.
        seed: seed of the random choices.

    Returns:
        Labels [N], and {title: images [N, Y, X, C] from 0 to 1}.
    """
    rows = spread_rows(dataset)
    positions = jnp.arange(len(rows))
    split = dataset.train.read(rows)
    result = {"as evaluated": split.images / 255}
    if dataset.train.shape[0] is None:
        config = dataclasses.replace(dataset.train.config, min_crop_area=MIN_CROP_AREA)
        examples = dataclasses.replace(dataset.train, config=config)
        generators = example_generators(seed, Purpose.RANDOM_CROP, 0, np.asarray(positions))
        title = f"min_crop_area={MIN_CROP_AREA}"
        result[title] = examples.read(rows, generators).images / 255
    for title, config in augmentations(min(dataset.image_shape[:2])).items():
        inputs = training_inputs(
            Split(jnp.asarray(split.images), jnp.asarray(split.labels)),
            Batch(positions, positions),
            functools.partial(example_keys, seed, step=jnp.int32(0), positions=positions),
            config,
            mean=dataset.mean,
            std=dataset.std,
            dtype=jnp.dtype("float32"),
        )
        pixels = np.asarray(inputs.images) * np.array(dataset.std) + np.array(dataset.mean)
        result[title] = pixels.clip(0, 1)
    return split.labels, result


def spread_rows(dataset: Dataset) -> np.ndarray:
    """Returns an even number of training rows, from as many classes as possible."""
    first_rows: list[int] = []
    seen: set[int] = set()
    others: list[int] = []
    count = min(ROWS, len(dataset.train) // 2 * 2)
    for row in range(min(len(dataset.train), 50 * ROWS)):
        [label] = dataset.train.read(np.array([row])).labels
        (others if label in seen else first_rows).append(row)
        seen.add(label)
        if len(first_rows) == count:
            break
    return np.array((first_rows + others)[:count])


def draw(dataset: Dataset, path: pathlib.Path, seed: int = 0) -> None:
    """Draws the sheet, with one row per example and one column per augmentation.

    Args:
        dataset: open data set.
        path: path of the PNG file.
        seed: seed of the random choices.
    """
    import matplotlib.figure  # slow to import

    labels, shown = columns(dataset, seed)
    size = (1.5 * len(shown) + 1.2, 1.5 * len(labels) + 0.4)
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(labels), len(shown), squeeze=False)
    for column, (title, images) in enumerate(shown.items()):
        axes[0, column].set_title(title, fontsize=10)
        for row, image in enumerate(images):
            gray = {"cmap": "gray", "vmin": 0, "vmax": 1} if image.shape[-1] == 1 else {}
            axes[row, column].imshow(image, interpolation="nearest", **gray)
            axes[row, column].set_xticks([])
            axes[row, column].set_yticks([])
    for row, label in enumerate(labels):
        name = drawn(dataset.class_names[label])
        short = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."
        axes[row, 0].set_ylabel(
            short, rotation=0, ha="right", va="center", fontsize=10, parse_math=False
        )
    figure.savefig(path, dpi=100)
