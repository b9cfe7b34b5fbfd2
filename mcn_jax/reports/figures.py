"""Draws figures of runs from their records; all of them can be read without color.

Functions take the records of metrics.jsonl, or points made from them. They return a matplotlib
Figure, which `save` writes. Functions import matplotlib themselves, because its import is slow.
"""

import io
import math
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mcn_jax.escapes import drawn
from mcn_jax.reports.axes import (
    COLORS,
    LINES,
    MARKERS,
    Record,
    epoch_numbers,
    legend_below,
    log_scale,
    log_scale_with_zero,
    new_figure,
    over_epochs,
)
from mcn_jax.workdirs.files import of_kind, write_bytes_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
TEST_LINES = ("-", "-.", ":")  # "--" is for training


def save(
    figure: "Figure", path: str | pathlib.Path, formats: Iterable[str] = FORMATS
) -> list[pathlib.Path]:
    """Writes PATH.png at 120 dots per inch and PATH.svg; the same figure gives the same bytes.

    Args:
        figure: the figure to write.
        path: without suffix, in an existing directory.
        formats: suffixes of the files.

    Returns:
        The paths of the files.
    """
    import matplotlib

    paths = []
    for suffix in formats:
        content = io.BytesIO()
        metadata: dict[str, Any] = {"Date": None} if suffix == "svg" else {}
        with matplotlib.rc_context({"svg.hashsalt": "mcn_jax"}):
            figure.savefig(content, format=suffix, dpi=120, metadata=metadata)
        paths.append(pathlib.Path(f"{path}.{suffix}"))
        write_bytes_atomically(paths[-1], content.getvalue())
    return paths


def curves(records: Iterable[Record]) -> "Figure":
    """Draws a run's loss and accuracy over epochs: training solid, test dashed."""
    epochs = of_kind(records, "epoch")
    figure = new_figure(10, 4.3)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    for axes, name, scale in ((loss_axes, "loss", 1), (accuracy_axes, "accuracy", 100)):
        for split, style, color in (("train", "-", "tab:blue"), ("test", "--", "black")):
            values = [scale * record[f"{split}_{name}"] for record in epochs]
            marker = "o" if len(epochs) == 1 else ""
            axes.plot(epoch_numbers(epochs), values, style, color=color, marker=marker, label=split)
        binary_from = next((r["epoch"] for r in epochs if r["binarized"]), 0)
        if binary_from:
            axes.axvline(binary_from + 0.5, color="gray", linestyle=":", label="binary from here")
        over_epochs(axes)
    log_scale(loss_axes)
    loss_axes.set_ylabel("loss")
    accuracy_axes.set_ylabel("accuracy (%)")
    legend_below(figure, loss_axes)
    return figure


def compare(runs: Mapping[str, Sequence[Iterable[Record]]]) -> "Figure":
    """Draws accuracy and error of several settings over epochs, like Figs. 6 and 9 of the paper.

    Test is a thick line with filled marks, training a thin dashed line with hollow marks. Several
    runs of one setting are drawn as their mean, over the epochs that all of them have. A band shows
    one standard deviation on each side of the test mean. Up to 24 settings differ by mark and line.

    Args:
        runs: for each name in the legend, the records of one or several runs.
    """
    figure = new_figure(11, 4.6)
    accuracy_axes, error_axes = figure.subplots(1, 2)
    for index, (name, records) in enumerate(runs.items()):
        by_epoch = [{r["epoch"]: r for r in of_kind(run, "epoch")} for run in records]
        shared = sorted(set.intersection(*(set(epochs) for epochs in by_epoch)))
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        line = TEST_LINES[index // len(MARKERS) % len(TEST_LINES)]
        step = max(1, len(shared) // 8)
        mark: dict[str, Any] = {
            "color": color, "marker": marker, "markevery": (index % step, step), "markersize": 5,
        }  # fmt: skip
        x = [epoch + 1 for epoch in shared]
        for axes, sign, offset, alpha in (
            (accuracy_axes, 100, 0, 0.2),
            (error_axes, -100, 100, 0.1),
        ):
            for split, style in (
                ("train", {"linestyle": "--", "linewidth": 0.7, "markerfacecolor": "white"}),
                ("test", {"linestyle": line, "linewidth": 1.5, "label": name}),
            ):
                values = [
                    [offset + sign * epochs[epoch][f"{split}_accuracy"] for epochs in by_epoch]
                    for epoch in shared
                ]
                means = np.array([statistics.fmean(v) for v in values])
                axes.plot(x, means, **mark, **style)
                if split == "test" and len(by_epoch) > 1:
                    spreads = np.array([statistics.stdev(v) for v in values])
                    low, high = np.clip([means - spreads, means + spreads], 0, 100)
                    axes.fill_between(x, low, high, color=color, alpha=alpha, linewidth=0)
    for axes, label in ((accuracy_axes, "accuracy (%)"), (error_axes, "error (%)")):
        axes.set_ylabel(label)
        over_epochs(axes)
    log_scale_with_zero(error_axes)
    figure.suptitle("test: thick, filled marks; training: thin, hollow marks", fontsize="medium")
    legend_below(figure, accuracy_axes)
    return figure


def over_parameter(points: Iterable[Record], name: str) -> "Figure":
    """Draws accuracy over theta or lambda, like Fig. 5 of the paper.

    Values are equally spaced, and zero is set apart from the others. Marks with error bars are the
    mean and standard deviation of several runs. The dots beside them are single runs.

    Args:
        points: one record per run: "series" (name in the legend), "value" of the parameter, and
            "accuracy" (0 to 1).
        name: label of the axis.
    """
    return _sweep(list(points), name)


def over_centers(points: Iterable[Record]) -> "Figure":
    """Draws accuracy over U, the number of centers, like Fig. 7 of the paper.

    Args:
        points: as for `over_parameter`, with U as "value".
    """
    return _sweep(list(points), "U, centers of a layer")


def confusion(counts: np.ndarray, class_names: Sequence[str]) -> "Figure":
    """Draws how often images of each class (rows) were predicted as each class (columns).

    Shades show shares of a row. The counts are written into the cells of up to 20 classes.

    Args:
        counts: [classes, classes].
        class_names: names of rows and columns.
    """
    classes = len(class_names)
    few = classes <= 20
    size = 2.5 + (0.45 * classes if few else 6)
    figure = new_figure(size, size)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="gray_r", vmin=0, vmax=1)
    if few:
        drawn_names = map(drawn, class_names)
        short = [n if len(n) <= 16 else f"{n[:13]}..." for n in drawn_names]
        names = [name.replace("$", r"\$") for name in short]  # $ begins math text
        axes.set_xticks(range(classes), names, rotation=90)
        axes.set_yticks(range(classes), names)
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count or ""), ha="center", va="center", color=color, size=7)
    axes.set_xlabel("predicted")
    axes.set_ylabel("class")
    return figure


def _sweep(points: list[Record], label: str) -> "Figure":
    figure = new_figure(7.5, 5)
    axes = figure.subplots()
    values = sorted({point["value"] for point in points})
    names = list(dict.fromkeys(point["series"] for point in points))
    spacing = min(0.18, 0.6 / len(names))
    for index, name in enumerate(names):
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        shift = (index - (len(names) - 1) / 2) * spacing
        x, means, spreads = [], [], []
        for position, value in enumerate(values):
            accuracies = [
                100 * point["accuracy"]
                for point in points
                if point["series"] == name and point["value"] == value
            ]
            if accuracies:
                several = len(accuracies) > 1
                x.append(position + shift)
                means.append(statistics.fmean(accuracies))
                spreads.append(statistics.stdev(accuracies) if several else math.nan)
                if several:
                    beside = [position + shift + spacing / 3] * len(accuracies)
                    axes.plot(beside, accuracies, ".", color=color, markersize=4)
        axes.errorbar(x, means, spreads, fmt=marker, color=color, capsize=4, markersize=7)
        # No line leads to zero, which has no place on a logarithmic scale.
        connected = [(a, mean) for a, mean in zip(x, means, strict=True) if values[0] or a > 0.5]
        line: dict[str, Any] = {
            # The line style changes when the marks start to repeat.
            "linestyle": LINES[(index + index // len(MARKERS)) % len(LINES)],
            "marker": marker,
            "markersize": 7,
        }
        axes.plot(*zip(*connected, strict=True), color=color, label=name, **line)
    if values[0] == 0 and len(values) > 1:
        axes.text(
            0.5, 0, "//", transform=axes.get_xaxis_transform(), ha="center", va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1}, zorder=4,
        )  # fmt: skip
    axes.set_xticks(range(len(values)), [f"{value:g}" for value in values])
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_xlabel(label)
    axes.set_ylabel("test accuracy of the last epoch (%)")
    axes.ticklabel_format(axis="y", useOffset=False)
    figure.suptitle(
        "large marks: mean ± standard deviation; dots beside them: single runs", fontsize="medium"
    )
    axes.grid(visible=True, axis="y", alpha=0.3)
    legend_below(figure, axes)
    return figure
