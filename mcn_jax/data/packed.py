"""Packed data sets: plain files that are read without TFDS, ArrayRecord and Grain.

A packed data set is a small copy for a machine on which these packages are not installed. It keeps
the order of the prepared data set, so a run on either reads the same batches and can resume on the
other. Images must have one size, and the data set must fit in memory.

    DATA_DIR/packed/NAME/dataset.json       names, shape, and the number of examples of each split
    DATA_DIR/packed/NAME/SPLIT_labels.npy   [N] int32
    DATA_DIR/packed/NAME/SPLIT_0.webp, ...  the images in order, as tiles of lossless WebP sheets
"""

import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import math
import pathlib
import re
import shutil
import zipfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from mcn_jax import parallel
from mcn_jax.config import OLDER_RUNS, DataConfig
from mcn_jax.data.batches import Split
from mcn_jax.data.examples import READ_ERRORS, Examples
from mcn_jax.data.facts import check_stored_shape, stores_files
from mcn_jax.errors import InputError, first_line
from mcn_jax.paths import user_path

FORMAT = 1
# Fields of `DataConfig` that decide what pixels an encoded image gets, with their older values.
DECODED_AS = {name.removeprefix("data."): value for name, value in OLDER_RUNS.items()}
SHEET_PIXELS = 10_240_000  # of a sheet at most: 10,000 images of 32x32
LARGEST_BYTES = 2e9  # uint8 pixels of all splits together
# WebP: a tenth of a per cent larger than the smallest file, in a tenth of the time.
WEBP: dict[str, Any] = {"lossless": True, "method": 4, "quality": 80}
# A part of a split in TFDS's notation: "train", "train[:90%]", "train[100:-100]". TFDS also takes a
# mixture such as "train[10:90%]", but reads both as percentages.
PART = re.compile(
    r"(?P<name>[^\[\]]+)"
    r"(\[((?P<start>-?\d+)?:(?P<stop>-?\d+)?|(?P<start_percent>-?\d+%)?:(?P<stop_percent>-?\d+%)?)\])?"
)


def packed_directory(data_dir: str | pathlib.Path, name: str) -> pathlib.Path:
    """Returns where the packed data set `name` lies in a data directory."""
    return user_path(data_dir) / "packed" / name


def is_packed(config: DataConfig) -> bool:
    """Returns whether `config.data_dir` holds the data set in packed form."""
    return (packed_directory(config.data_dir, config.name) / "dataset.json").is_file()


def missing_files(config: DataConfig) -> list[str]:
    """Returns the files of a packed data set that are not there, such as those of another load."""
    if not is_packed(config):
        return [str(pathlib.Path("packed", config.name, "dataset.json"))]
    packed = Packed(config)
    files = [file for split in packed.split_names for file in packed.files(split)]
    return [str(packed.path / file) for file in files if not (packed.path / file).is_file()]


class Packed:
    """A packed data set; see `mcn_jax.data.dataset.Store`."""

    def __init__(self, config: DataConfig):
        """Reads the description of the data set, but no images.

        Raises:
            InputError: if the description is damaged.
        """
        self.path = packed_directory(config.data_dir, config.name)
        path = self.path / "dataset.json"
        try:
            record = json.loads(path.read_text())
            found = record["format"]
            self.full_name = str(record["full_name"])
            self.class_names = tuple(map(str, record["class_names"]))
            height, width, channels = map(int, record["image_shape"])
            splits = record["splits"].items()
            self._examples = {str(name): int(split["examples"]) for name, split in splits}
            self._sha256 = {str(name): str(split["sha256"]) for name, split in splits}
            # Copies of older versions lack these fields, as older runs do.
            decoded = {field: record.get(field, before) for field, before in DECODED_AS.items()}
        except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise InputError(
                f"{path} is damaged ({error!r:.200}); pack the data set again"
            ) from error
        if found != FORMAT:
            raise InputError(
                f"{path} has format {found}, but this version reads format {FORMAT}; pack the data"
                " set again"
            )
        for field, value in decoded.items():
            if stores_files(config.name) and value != getattr(config, field):
                raise InputError(
                    f"{path} was packed with config.data.{field}={value!r}, and not"
                    f" {getattr(config, field)!r}; use the same value, or pack the data set again"
                )
        self._shape = (height, width, channels)
        self._read: dict[str, Split] = {}

    @property
    def earlier_name(self) -> None:
        """No other name of the same data."""
        return None

    @property
    def findings(self) -> list[str]:
        """Lines about the files that were found: none."""
        return []

    @property
    def sizes_differ(self) -> bool:
        """Whether images differ in size: never."""
        return False

    @property
    def split_names(self) -> tuple[str, ...]:
        """Names of the stored splits."""
        return tuple(self._examples)

    def files(self, split: str) -> list[str]:
        """Returns the names of the files of a stored split."""
        sheets = _sheets(split, self._examples[split], self._shape)
        return [f"{split}_labels.npy", *(file for _, _, file in sheets)]

    def ranges(self, split: str) -> list[tuple[str, int, int]]:
        """Returns (stored split, first row, end row) of each part of a split.

        Raises:
            InputError: if the split is not one of this data set.
        """
        found = []
        for part in split.split("+"):
            match = PART.fullmatch(part.strip())
            name = match["name"] if match else ""
            if match is None or name not in self._examples:
                raise InputError(
                    f"split {split!r} does not fit the packed data set {self.path}, which has"
                    f" {', '.join(self._examples)}; set config.data.train_split and"
                    " config.data.test_split"
                )
            examples = self._examples[name]
            start = _row(match["start"] or match["start_percent"] or "0", examples)
            stop = _row(match["stop"] or match["stop_percent"] or str(examples), examples)
            found.append((name, start, max(start, stop)))
        return found

    def examples(self, config: DataConfig, split: str) -> Examples:
        """Opens a split; see `mcn_jax.data.dataset.Store`."""
        check_stored_shape(config, self._shape)
        ranges = self.ranges(split)
        if not sum(stop - start for _, start, stop in ranges):
            raise InputError(f"split {split!r} of data set {config.name} has no examples")
        parts = []
        for name, start, stop in ranges:
            whole = self._stored(config.name, name)
            parts.append(Split(whole.images[start:stop], whole.labels[start:stop]))
        return Examples(
            source=_Rows(parts),
            encoded=False,
            path=self.path,
            shape=self._shape,
            classes=len(self.class_names),
            config=config,
        )

    def _stored(self, name: str, split: str) -> Split:
        """Reads a stored split once."""
        if split not in self._read:
            try:
                self._read[split] = self._read_split(split)
            except (*READ_ERRORS, EOFError, zipfile.BadZipFile) as error:
                raise InputError(
                    f"packed data set {name} in {self.path} cannot be read ({first_line(error)});"
                    " copy it there again, or pack it again"
                ) from error
        return self._read[split]

    def _read_split(self, split: str) -> Split:
        count, (height, width, channels) = self._examples[split], self._shape
        labels = np.load(self.path / f"{split}_labels.npy", allow_pickle=False)
        if labels.shape != (count,) or labels.dtype != np.int32:
            raise ValueError(f"{split}_labels.npy has {labels.dtype}{list(labels.shape)}")
        images = np.empty((count, height, width, channels), np.uint8)

        def read(start: int, stop: int, file: str) -> None:
            try:
                read_sheet(start, stop, file)
            except READ_ERRORS as error:
                raise ValueError(f"{file}: {first_line(error)}") from error

        def read_sheet(start: int, stop: int, file: str) -> None:
            with Image.open(self.path / file, formats=["WEBP"]) as sheet:
                columns, rows = _grid(stop - start)
                if sheet.size != (columns * width, rows * height):
                    raise ValueError(f"it has {sheet.size[0]}x{sheet.size[1]} pixels")
                pixels = np.asarray(sheet.convert("RGB"))[..., :channels]
            images[start:stop] = _cut(pixels, (height, width))[: stop - start]

        with concurrent.futures.ThreadPoolExecutor(parallel.host_cores() or 1) as pool:
            list(pool.map(lambda sheet: read(*sheet), _sheets(split, count, self._shape)))
        found = Split(images, labels)
        if _sha256(found) != self._sha256[split]:
            raise ValueError(f"the {split} images or labels differ from their SHA-256")
        return found


class _Rows:
    """Examples in memory, with the interface of a TFDS data source."""

    def __init__(self, parts: list[Split]):
        self._split = Split(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def __len__(self) -> int:
        return len(self._split.labels)

    def __getitems__(self, rows: list[int]) -> list[dict[str, Any]]:
        images, labels = self._split
        return [{"image": images[row], "label": labels[row]} for row in rows]


def pack(store: Any, config: DataConfig, data_dir: pathlib.Path) -> pathlib.Path:
    """Writes a packed copy of a data set.

    It is written to a temporary directory that is renamed at the end, so it exists complete or not
    at all.

    Args:
        store: the data set, a `mcn_jax.data.dataset.Store`.
        config: config of the data.
        data_dir: the data directory that gets the copy.

    Returns:
        The directory of the packed data set.

    Raises:
        InputError: if its images differ in size, it is too large, or the copy exists.
    """
    target = packed_directory(data_dir, config.name)
    if target.exists():
        raise InputError(f"{target} exists; delete it to pack {config.name} again")
    config = dataclasses.replace(config, image_size=0)  # as stored
    if store.sizes_differ:
        raise InputError(
            f"the images of {config.name} differ in size; only data sets whose images have one size"
            " can be packed"
        )
    splits = {name: store.examples(config, name) for name in store.split_names}
    shape = next(iter(splits.values())).image_shape
    size = sum(map(len, splits.values())) * math.prod(shape)
    if size > LARGEST_BYTES:
        raise InputError(
            f"{config.name} takes {size / 1e9:.1f} GB in memory; only data sets of at most"
            f" {LARGEST_BYTES / 1e9:.0f} GB can be packed"
        )
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    record: dict[str, Any] = {
        "format": FORMAT,
        "full_name": store.full_name,
        "class_names": list(store.class_names),
        "image_shape": list(shape),
        **{field: getattr(config, field) for field in DECODED_AS},
        "splits": {},
    }
    for name, examples in splits.items():
        split = examples.read_all()
        _write_split(partial, name, split)
        record["splits"][name] = {"examples": len(split.labels), "sha256": _sha256(split)}
    (partial / "dataset.json").write_text(json.dumps(record, indent=2) + "\n")
    partial.rename(target)
    return target


def _write_split(directory: pathlib.Path, name: str, split: Split) -> None:
    np.save(directory / f"{name}_labels.npy", split.labels)

    def write(start: int, stop: int, file: str) -> None:
        sheet = _joined(split.images[start:stop])
        Image.fromarray(np.repeat(sheet, 3 // sheet.shape[-1], axis=-1)).save(
            directory / file, "webp", **WEBP
        )

    with concurrent.futures.ThreadPoolExecutor(parallel.host_cores() or 1) as pool:
        list(pool.map(lambda sheet: write(*sheet), _sheets(name, *_count_and_shape(split))))


def _count_and_shape(split: Split) -> tuple[int, tuple[int, int, int]]:
    count, height, width, channels = split.images.shape
    return count, (height, width, channels)


def _sheets(split: str, count: int, shape: tuple[int, int, int]) -> Iterator[tuple[int, int, str]]:
    """Yields (first row, end row, file) of each sheet of a split."""
    together = max(1, SHEET_PIXELS // (shape[0] * shape[1]))
    for number in itertools.count():
        start = number * together
        if start >= count:
            return
        yield start, min(start + together, count), f"{split}_{number}.webp"


def _grid(tiles: int) -> tuple[int, int]:
    """Returns the columns and rows of a sheet."""
    columns = math.isqrt(tiles - 1) + 1
    return columns, -(-tiles // columns)


def _joined(images: np.ndarray) -> np.ndarray:
    """Joins images [N, Y, X, C] to a sheet [rows * Y, columns * X, C]; missing tiles are black."""
    count, height, width, channels = images.shape
    columns, rows = _grid(count)
    tiles = np.zeros((rows * columns, height, width, channels), np.uint8)
    tiles[:count] = images
    grid = tiles.reshape(rows, columns, height, width, channels)
    return grid.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)


def _cut(sheet: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Cuts a sheet into its tiles [rows * columns, Y, X, C], the inverse of `_joined`."""
    height, width = size
    rows, columns, channels = sheet.shape[0] // height, sheet.shape[1] // width, sheet.shape[2]
    grid = sheet.reshape(rows, height, columns, width, channels)
    return grid.transpose(0, 2, 1, 3, 4).reshape(rows * columns, height, width, channels)


def _sha256(split: Split) -> str:
    digest = hashlib.sha256(split.images.tobytes())
    digest.update(split.labels.astype("<i4").tobytes())
    return digest.hexdigest()


def _row(bound: str, examples: int) -> int:
    """Returns the row that a bound such as "90%" or "-100" names; percentages are rounded."""
    row = round(examples * int(bound[:-1]) / 100) if bound.endswith("%") else int(bound)
    if abs(row) > examples:
        raise InputError(f"{bound} lies beyond the {examples} examples of the split; lower it")
    return row + examples if row < 0 else row
