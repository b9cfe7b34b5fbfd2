"""Sets sizes, scales, colors and legends of axes in the same way for all figures."""

import math
import textwrap
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]

# About equally spaced in lightness, and distinct for color-blind people (Okabe and Ito 2008).
COLORS = ("#000000", "#0072B2", "#D55E00", "#56B4E9", "#009E73", "#CC79A7", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")


def new_figure(width: float, height: float) -> "Figure":
    """Returns an empty figure of this width and height in inches."""
    import matplotlib.figure

    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def epoch_numbers(records: Iterable[Record]) -> list[int]:
    """Returns the epoch of each record, counted from one."""
    return [record["epoch"] + 1 for record in records]


def over_epochs(axes: "Axes") -> None:
    """Labels the x axis as epochs and gives it whole-number ticks."""
    import matplotlib.ticker

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(visible=True, alpha=0.3)


def log_scale(axes: "Axes") -> None:
    """Sets a logarithmic y scale labelled with plain numbers; all values must be positive."""
    import matplotlib.ticker

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    few = high < 10 * low  # powers of ten alone would leave hardly any ticks
    locator = matplotlib.ticker.AutoLocator() if few else matplotlib.ticker.LogLocator()
    if not few and high < 1000 * low:
        locator.set_params(subs=(1, 2, 5))
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def log_scale_with_zero(axes: "Axes") -> None:
    """Sets a logarithmic y scale; if there are zeros, it is linear near zero."""
    import matplotlib.ticker

    drawn = [np.asarray(line.get_ydata(), float) for line in axes.lines]
    paths = [path for band in axes.collections for path in band.get_paths()]
    drawn += [np.asarray(path.vertices, float)[:, 1] for path in paths]
    values = np.concatenate([*drawn, np.zeros(0)])
    if not np.any(values > 0):
        return
    if values.min() > 0:
        log_scale(axes)
        return
    lines = np.concatenate(drawn[: len(axes.lines)])
    least = 10 ** math.floor(math.log10(lines[lines > 0].min()))
    powers = range(round(math.log10(least)), math.ceil(math.log10(values.max())) + 1)
    axes.set_yscale("symlog", linthresh=least, linscale=0.6)
    axes.set_ylim(-least / 5, 1.5 * values.max())
    axes.set_yticks([0, *(10.0**power for power in powers if 10**power <= values.max())])
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))


def legend_below(figure: "Figure", axes: "Axes") -> None:
    """Puts one legend below all axes of a figure, where it covers no data.

    Long names take fewer columns. The figure grows with the legend, so the axes keep their height.
    """
    handles, labels = axes.get_legend_handles_labels()
    characters = 12 * figure.get_figwidth() - 6
    columns = min(len(labels), max(1, int(characters // (max(map(len, labels)) + 8))))
    labels = [textwrap.fill(label, int(characters)) for label in labels]
    rows = math.ceil(len(labels) / columns)
    lines = rows if columns > 1 else sum(label.count("\n") + 1 for label in labels)
    figure.set_figheight(figure.get_figheight() + 0.21 * (lines - 1))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
