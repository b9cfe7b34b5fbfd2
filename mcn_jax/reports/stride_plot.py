"""Draws how learned strides develop over the epochs."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mcn_jax.reports.axes import (
    COLORS,
    MARKERS,
    Record,
    epoch_numbers,
    legend_below,
    new_figure,
    over_epochs,
)
from mcn_jax.workdirs.files import of_kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def strides(records: Iterable[Record]) -> "Figure":
    """Draws the strides of each pooling layer over the epochs: in y solid, in x dashed.

    Args:
        records: of one run, with at least one of kind "strides".

    Raises:
        ValueError: if there is no record of kind "strides".
    """
    lines = of_kind(records, "strides")
    if not lines:
        raise ValueError("no stride records: the run has no learned strides, or no whole epoch yet")
    layers = list(dict.fromkeys(name.rpartition("/")[0] for name in lines[0] if "/" in name))
    figure = new_figure(7, 4.3)
    axes = figure.subplots()
    for index, layer in enumerate(layers):
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        for axis, style in (("y", "-"), ("x", "--")):
            axes.plot(
                epoch_numbers(lines),
                [record[f"{layer}/{axis}"] for record in lines],
                style,
                color=color,
                marker=marker,
                markersize=3.5,
                label=f"{layer}, {axis}",
            )
    axes.set_ylabel("stride")
    over_epochs(axes)
    legend_below(figure, axes)
    return figure
