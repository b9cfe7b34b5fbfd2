"""Draws the pictures that a run leaves in its work directory."""

import os
import pathlib

from absl import logging

from mcn_jax.reports import figures, health_plots
from mcn_jax.workdirs.files import PICTURES, of_kind, read_metrics

DRAWINGS = {  # file name without suffix: (kind of records, function that draws them)
    "curves": ("epoch", figures.curves),
    "health": ("health", health_plots.health),
}


def draw_run(workdir: pathlib.Path) -> None:
    """Draws curves.png, and health.png if weights were quantized, unless they exist already.

    Only warns if the directory cannot be written, so a finished run can still print its result.

    Args:
        workdir: of a finished run.

    Raises:
        InputError: if a picture is missing and metrics.jsonl is damaged.
        OSError: if a picture cannot be written.
    """
    if all((workdir / name).exists() for name in PICTURES):
        return
    records = read_metrics(workdir / "metrics.jsonl")
    for name, (kind, draw) in DRAWINGS.items():
        path = workdir / f"{name}.png"
        if not of_kind(records, kind) or path.exists():
            continue
        if os.access(workdir, os.W_OK):
            figures.save(draw(records), workdir / name, formats=("png",))
        else:
            logging.warning("%s is not drawn, because its directory cannot be written", path)
