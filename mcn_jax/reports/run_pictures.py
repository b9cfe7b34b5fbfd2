"""The pictures that a run leaves in its work directory."""

import pathlib

from mcn_jax.reports import figures, health_plots
from mcn_jax.workdirs.files import of_kind, read_metrics


def draw_run(workdir: pathlib.Path) -> None:
    """Draws curves.png, and health.png where weights were quantized, unless they are there.

    Args:
        workdir: of a run that has ended.
    """
    records = read_metrics(workdir / "metrics.jsonl")
    drawings = {"curves": figures.curves}
    if of_kind(records, "health"):
        drawings["health"] = health_plots.health
    for name, draw in drawings.items():
        if not (workdir / f"{name}.png").exists():
            figures.save(draw(records), workdir / name, formats=("png",))
