"""Prepares, verifies and shows a data set: `python -m mcn_jax.data digits`.

The command reads and decodes every example of every split and checks its label. It prints the
number of examples, the class balance and pixel statistics. It draws a contact sheet of images
before and after augmentation. With --pack, it only writes a copy for a machine without TFDS.
"""

import argparse
import dataclasses
import pathlib
import sys

import numpy as np
import rich.console
import rich.markup
import rich.progress
import rich.table

from mcn_jax import parallel
from mcn_jax.command_line import make_parser, one_line_errors
from mcn_jax.config import NO_BACKGROUND, DataConfig
from mcn_jax.data import contact_sheet
from mcn_jax.data.dataset import open_dataset, open_store
from mcn_jax.data.examples import Examples, histograms, mean_and_std
from mcn_jax.data.facts import DATASETS
from mcn_jax.data.packed import pack
from mcn_jax.errors import InputError
from mcn_jax.escapes import shown
from mcn_jax.paths import user_path
from mcn_jax.terminal import run_command

MANY_SIZES = 224  # pixels; images that differ in size are resized to this height and width
SHOWN_CLASSES = 20


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} must be True or False")
    return text.lower() == "true"


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("data", __doc__, epilog="--list names the data sets.", allow_abbrev=False)
    parser.add_argument("name", nargs="?", help="a data set from --list, or one in --data_dir")
    parser.add_argument("--list", action="store_true", help="list the data sets and exit")
    texts = {
        "archive_dir": "directory of the official archives, extracted or not; empty downloads them",
        "data_dir": "directory of prepared data sets",
        "root": "image_folder: directory with a folder per class, or with train and test folders",
        "test_fraction": "image_folder without a test folder: test share of each class",
        "split_seed": "image_folder without a test folder: seed of the choice of test images",
        "wnids_file": "imagenet100: file of the classes, one wnid per line",
        "train_split": "in TFDS's notation, for a set in --data_dir with other splits",
        "test_split": "in the same notation",
        "background": "gray level behind transparent pixels; -1 ignores transparency",
        "exif_orientation": "whether images are turned upright as their EXIF data say",
        "image_size": f"as in a run; 0: as stored, or {MANY_SIZES} if images differ in size",
    }
    for field in dataclasses.fields(DataConfig):
        if field.name in texts:
            parser.add_argument(
                f"--{field.name}",
                f"--config.data.{field.name}",  # as errors and configs spell it
                dest=field.name,
                type=_boolean if isinstance(field.default, bool) else type(field.default),
                default=field.default,
                metavar=field.name.upper(),
                help=f"{texts[field.name]} (default: {field.default!r})",
            )
    parser.add_argument(
        "--sheet",
        type="path",
        metavar="FILE",
        help="the contact sheet, a PNG file (default: NAME.png here)",
    )
    parser.add_argument(
        "--pack",
        metavar="DIR",
        help="only write a packed copy, DIR/packed/NAME, which a machine without TFDS reads if"
        " its --config.data.data_dir is DIR",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the augmentations shown")
    return parser


def main(arguments: list[str]) -> None:
    """Runs the command; exits with one line and a non-zero code if something is wrong."""
    parser = _parser()
    options = parser.parse_args(arguments)
    # Without a terminal, rich would wrap tables at 80 columns.
    width = None if sys.stdout.isatty() else 160
    console = rich.console.Console(highlight=False, soft_wrap=True, emoji=False, width=width)
    if options.list:
        console.print(_list_of_datasets())
        return
    if options.name is None:
        parser.error(f"name a data set: {', '.join(DATASETS)}")
    fields = {field.name for field in dataclasses.fields(DataConfig)}
    config = DataConfig(**{k: v for k, v in vars(options).items() if k in fields})
    sheet = pathlib.Path(options.sheet or f"{config.name.replace('/', '_')}.png")
    with one_line_errors("data"):
        _check(config, sheet, options.seed)
        if options.pack is not None:
            if not options.pack:
                raise InputError("--pack= is empty; name a directory")
            packed = pack(open_store(config), config, user_path(options.pack))
            size = sum(file.stat().st_size for file in packed.iterdir())
            console.print(rich.markup.escape(f"packed {config.name} in {packed}: {size:,} bytes"))
            return
        parallel.check_devices()  # the contact sheet needs them
        _show(config, sheet, options.seed, console)


def _check(config: DataConfig, sheet: pathlib.Path, seed: int) -> None:
    """Raises InputError for wrong arguments, before any work."""
    if not 0 < config.test_fraction < 1:
        raise InputError(f"--test_fraction={config.test_fraction} must lie in (0, 1)")
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed={seed} must be from 0 to 2^32 - 1")
    if not NO_BACKGROUND <= config.background <= 255:
        raise InputError(f"--background={config.background} must lie in {NO_BACKGROUND}..255")
    for name in ("image_size", "split_seed"):
        if getattr(config, name) < 0:
            raise InputError(f"--{name}={getattr(config, name)} must not be negative")
    if not sheet.parent.is_dir():
        raise InputError(f"--sheet={sheet}: there is no directory {sheet.parent}")
    if sheet.suffix != ".png":
        raise InputError(f"--sheet={sheet} must end in .png")


def _list_of_datasets() -> rich.table.Table:
    table = rich.table.Table("name", "what", "examples", "classes", "image")
    for name, facts in DATASETS.items():
        examples = ", ".join(f"{split} {n:,}" for split, n in facts.examples.items())
        height, width, channels = facts.image_shape
        shape = f"{height}x{width}" if height else "many sizes"
        table.add_row(
            name,
            facts.summary,
            examples or "as found",
            str(facts.classes or "as found"),
            f"{shape}, {'gray' if channels == 1 else 'colour'}",
        )
    return table


def _show(
    config: DataConfig, sheet: pathlib.Path, seed: int, console: rich.console.Console
) -> None:
    store = open_store(config)
    if not config.image_size and store.sizes_differ:
        config = dataclasses.replace(config, image_size=MANY_SIZES)
    dataset = open_dataset(config)
    for line in dataset.findings:
        console.print(rich.markup.escape(line))
    # Data sets prepared by others may have splits without labels, so only a run's splits are read.
    names = store.split_names if config.name in DATASETS else (
        config.train_split, config.test_split
    )  # fmt: skip
    splits = {name: store.examples(config, name) for name in names}

    counts, pixels = {}, {}
    total = sum(len(examples) for examples in splits.values())
    with rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        rich.progress.MofNCompleteColumn(),
        console=rich.console.Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    ) as progress:
        task = progress.add_task("reading", total=total)
        for name, examples in splits.items():
            counts[name], pixels[name] = _read(examples, progress, task)

    console.print(rich.markup.escape(f"{config.name} in {store.path}"))
    table = rich.table.Table("split", "examples", "images per class", "mean of pixels", "std")
    for name, per_class in counts.items():
        few, many = per_class.min(), per_class.max()
        mean, std = (" ".join(f"{x:.4f}" for x in values) for values in pixels[name])
        balance = f"{few:,}" if few == many else f"{few:,} to {many:,}"
        table.add_row(name, f"{per_class.sum():,}", balance, mean, std)
    console.print(table)
    height, width, channels = dataset.image_shape
    console.print(f"images: {height}x{width}x{channels} uint8, as a run reads them")
    if transparent := sum(examples.count_transparent() for examples in splits.values()):
        ignored = config.background == NO_BACKGROUND
        how = "which is ignored" if ignored else f"shown on gray level {config.background}"
        console.print(
            f"images with transparency: {transparent:,} of {total:,}, {how}"
            f" (config.data.background={config.background})"
        )
    facts = DATASETS.get(config.name)
    origin = facts.statistics if facts else DATASETS["image_folder"].statistics
    console.print(f"normalised with mean {dataset.mean}, std {dataset.std}: {origin}")
    classes = rich.table.Table("label", "class", *counts)
    for label, class_name in enumerate(dataset.class_names[:SHOWN_CLASSES]):
        classes.add_row(
            str(label),
            rich.markup.escape(shown(class_name)),
            *(f"{c[label]:,}" for c in counts.values()),
        )
    console.print(classes)
    if len(dataset.class_names) > SHOWN_CLASSES:
        console.print(f"and {len(dataset.class_names) - SHOWN_CLASSES} more classes")
    contact_sheet.draw(dataset, sheet, seed)
    console.print(rich.markup.escape(f"contact sheet: {sheet}"))


def _read(
    examples: Examples, progress: rich.progress.Progress, task: rich.progress.TaskID
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Reads a whole split.

    Returns:
        The number of examples of each class, and mean and standard deviation of the pixels.
    """
    per_class = np.zeros(examples.classes, int)
    counts = np.zeros((examples.shape[2], 256), int)
    for images, labels in examples.chunks():
        per_class += np.bincount(labels, minlength=examples.classes)
        counts += histograms(images)
        progress.advance(task, len(labels))
    return per_class, mean_and_std(counts)


if __name__ == "__main__":
    run_command("data", lambda: main(sys.argv[1:]))
