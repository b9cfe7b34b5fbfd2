"""Draws the pictures that a run leaves in its work directory."""

import pathlib

from mcn_jax.reports import figures, health_plots, stride_plot
from mcn_jax.workdirs.files import PICTURES, of_kind, read_metrics

DRAWINGS = {  # file name without suffix: (kind of records, function that draws them)
    "curves": ("epoch", figures.curves),
    "health": ("health", health_plots.health),
    "strides": ("strides", stride_plot.strides),
}


def draw_run(workdir: pathlib.Path) -> None:
    """Draws the pictures of a run, unless they exist already.

    curves.png is for every run, health.png for quantized weights, strides.png for learned strides.

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
        if of_kind(records, kind) and not (workdir / f"{name}.png").exists():
            figures.save(draw(records), workdir / name, formats=("png",))
