"""Predicts the classes of images: `python -m mcn_jax.predict MODEL IMAGE|DIR...`.

An image that cannot be read is named at the end, with exit code 1; the others are predicted.
MODEL is a `.safetensors` or `.onnx` file that `mcn_jax.export` wrote, the work directory of a run,
or one of its checkpoints (WORKDIR/checkpoints/STEP). Images that do not have the model's size are
center-cropped and resized.
"""

import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import rich.console
import rich.markup
import rich.progress

from mcn_jax import escapes
from mcn_jax.command_line import (
    add_batch_size,
    check_batch_size,
    error_line,
    make_parser,
    one_line_errors,
)
from mcn_jax.data import folder_listing
from mcn_jax.data import images as image_ops
from mcn_jax.deploy.header import InputImages
from mcn_jax.deploy.predictor import Predictor, logits_of, open_predictor
from mcn_jax.errors import InputError
from mcn_jax.terminal import lost_output, run_command
from mcn_jax.training.evaluation import probabilities

TOP = 5


def find_images(paths: Sequence[pathlib.Path]) -> tuple[list[pathlib.Path], list[str]]:
    """Finds the images in and below directories; other paths are taken as they are.

    Returns:
        The paths, sorted within each directory, and lines about the files that are skipped.

    Raises:
        InputError: if a path does not exist, or a directory has no images.
    """
    found: list[pathlib.Path] = []
    lines: list[str] = []
    for path in paths:
        if path.is_dir():
            skipped: list[folder_listing.Skipped] = []
            inside = folder_listing.images_below(path, skipped)
            lines += folder_listing.skipped_lines(skipped, path)
            if not inside:
                raise InputError(f"{path} has no images that can be decoded here")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"{path} does not exist; name images or directories of images")
    return found, lines


def read_image(path: pathlib.Path, spec: InputImages) -> np.ndarray:
    """Reads an image as a model takes it: [Y, X, C] uint8.

    Raises:
        InputError: if the file cannot be decoded or resized to the model's size. The error names
            the file.
    """
    pixels = spec.pixel_format
    try:
        image_ops.check_regular(path)
        content = path.read_bytes()
        image_ops.check_readable(content, str(path))
        fits = image_ops.upright_size(content, pixels) == (spec.width, spec.height)
        if fits and spec.center_crop == 1:
            return image_ops.decode(content, pixels)
        if spec.height != spec.width:
            raise InputError(
                f"{path} does not have the model's {spec.height}x{spec.width} pixels, and images"
                " are resized only to squares; resize it"
            )
        return image_ops.center_crop(content, pixels, spec.height, spec.center_crop)
    except image_ops.UNREADABLE as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} cannot be read as an image ({error}); replace it") from error


def predictions(
    predictor: Predictor, paths: Sequence[pathlib.Path], batch_size: int
) -> Iterator[dict[str, Any] | InputError]:
    """Yields a model's prediction for each image, or the error of an image that cannot be read.

    Within a batch, the errors come first.

    Args:
        predictor: the model.
        paths: paths of the images.
        batch_size: number of images per batch; the network may force a smaller one.

    Yields:
        "image": the path.
        "top": the likeliest classes, at most five, each with "class", "index" and "probability".
    """
    batch_size = min(batch_size, predictor.most_images, len(paths))
    for start in range(0, len(paths), batch_size):
        part = paths[start : start + batch_size]
        readable, pixels = [], []
        for path in part:
            try:
                pixels.append(read_image(path, predictor.images))
                readable.append(path)
            except InputError as error:
                yield error
        if not readable:
            continue
        rows = probabilities(logits_of(predictor, np.stack(pixels), batch_size))
        for path, row in zip(readable, rows, strict=True):
            best = np.argsort(-row, kind="stable")[:TOP]
            yield {
                "image": str(path),
                "top": [
                    {
                        "class": predictor.class_names[index],
                        "index": int(index),
                        "probability": float(row[index]),
                    }
                    for index in best
                ],
            }


def main(arguments: list[str] | None = None) -> None:
    """Predicts the classes of some images."""
    parser = make_parser("predict", __doc__)
    parser.add_argument(
        "model", type="path", help="a .safetensors or .onnx file, a work directory or a checkpoint"
    )
    parser.add_argument("images", nargs="+", type="path", help="images or directories")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    add_batch_size(parser, 64)
    options = parser.parse_args(arguments)
    with one_line_errors("predict"):
        check_batch_size(options)
        progress = rich.console.Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
        paths, lines = find_images(options.images)
        predictor = open_predictor(options.model)
        for line in lines:
            progress.print(rich.markup.escape(line))
        found = predictions(predictor, paths, options.batch_size)
        console = rich.console.Console(highlight=False, soft_wrap=True, emoji=False)
        bar = rich.progress.track(
            found,
            "images",
            total=len(paths),
            console=progress,
            transient=True,
            disable=not progress.is_terminal,
        )
        unreadable = []
        for record in bar:
            if isinstance(record, InputError):
                unreadable.append(error_line("predict", record))
                continue
            if lost_output() is not None:
                break  # nobody reads the rest
            if options.json:
                print(json.dumps(record))
                continue
            best = [
                f"{escapes.shown(entry['class'])} {entry['probability']:.1%}"
                for entry in record["top"]
            ]
            image = escapes.shown(record["image"])
            console.print(rich.markup.escape(f"{image}: {', '.join(best)}"))
        if unreadable:
            sys.exit("\n".join(unreadable))


if __name__ == "__main__":
    run_command("predict", main)
