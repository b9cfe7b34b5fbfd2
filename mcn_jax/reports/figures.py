"""Figures of runs, drawn from their records; all can be read without colour.

Functions take the records of metrics.jsonl, or points made of them, and return a matplotlib
Figure; `save` writes it. matplotlib is imported where it is used, because it is slow to import.
"""

import io
import math
import pathlib
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]

FORMATS = ("png", "svg")
# Of about equal distance in lightness, told apart by the color-blind (Okabe and Ito 2008).
COLORS = ("#000000", "#0072B2", "#D55E00", "#56B4E9", "#009E73", "#CC79A7", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
TEST_LINES = ("-", "-.", ":")  # where "--" is the training's
FEW_LAYERS = 8  # up to which each layer has a line that can be told from the others


def save(
    figure: "Figure", path: str | pathlib.Path, formats: Iterable[str] = FORMATS
) -> list[pathlib.Path]:
    """Writes PATH.png at 120 dots per inch and PATH.svg; the same figure gives the same bytes.

    Args:
        figure: to be written.
        path: without suffix, in a directory that exists.
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
        paths[-1].write_bytes(content.getvalue())
    return paths


def curves(records: Iterable[Record]) -> "Figure":
    """Loss and accuracy of one run over its epochs: training a solid line, test a dashed one."""
    epochs = of_kind(records, "epoch")
    figure = _figure(10, 4.3)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    for axes, name, scale in ((loss_axes, "loss", 1), (accuracy_axes, "accuracy", 100)):
        for split, style, color in (("train", "-", "tab:blue"), ("test", "--", "black")):
            values = [scale * record[f"{split}_{name}"] for record in epochs]
            marker = "o" if len(epochs) == 1 else ""
            axes.plot(_x(epochs), values, style, color=color, marker=marker, label=split)
        binary_from = next((r["epoch"] for r in epochs if r["binarized"]), 0)
        if binary_from:
            axes.axvline(binary_from + 0.5, color="gray", linestyle=":", label="binary from here")
        _over_epochs(axes)
    _log(loss_axes)
    loss_axes.set_ylabel("softmax loss (nats)")
    accuracy_axes.set_ylabel("accuracy (%)")
    _legend_below(figure, loss_axes)
    return figure


def health(records: Iterable[Record]) -> "Figure":
    """How the filters of each layer of an MCN fare over the epochs with binary filters.

    Up to 8 layers have a line style each. Of more, the first and the last stand out from thin lines
    that darken with depth. A bold line is the measure of all layers together.

    Args:
        records: of one run, at least one of which is of the kind "health".

    Raises:
        ValueError: if none is.
    """
    records = list(records)
    lines = of_kind(records, "health")
    if not lines:
        raise ValueError("no health records: the run has no epoch with binary filters yet")
    together = [record for record in of_kind(records, "epoch") if "flip_ratio" in record]
    names = [name.rpartition("/") for name in lines[0] if "/" in name]
    layers = list(dict.fromkeys(layer for layer, _, _ in names))
    lines = [dict(record) | _least_shares(record, layers) for record in lines]
    panels: tuple[tuple[tuple[str, ...], int, str], ...] = (
        (("flip_ratio",), 100, "weights that changed center (%)"),
        (("quantization_error",), 1, "quantization error, ||C - Ĉ∘M|| / ||C||"),
        (("least_share",), 100, "weights at the center with fewest (%)"),
        (("m_min", "m_max"), 1, "least and greatest element of M"),
    )
    # A line of one epoch is seen by its mark alone.
    dot = {"marker": "."} if len(lines) == 1 else {}
    figure = _figure(11, 8)
    grid = figure.subplots(2, 2)
    for axes, (measures, scale, label) in zip(grid.flat, panels, strict=True):
        for index, layer in enumerate(layers):
            style = dot | _layer_style(index, layers)
            # Layer families measure what makes sense of their weights.
            for measure in (m for m in measures if f"{layer}/{m}" in lines[0]):
                values = [scale * record[f"{layer}/{measure}"] for record in lines]
                axes.plot(_x(lines), values, **style)
                style = style | {"label": None}
        if together and measures[0] in together[0]:
            values = [scale * record[measures[0]] for record in together]
            axes.plot(_x(together), values, "k-", linewidth=2.5, label="all layers together", **dot)
        if measures == ("flip_ratio",):
            _log_with_zero(axes)
        axes.set_ylabel(label)
        _over_epochs(axes)
    _legend_below(figure, grid.flat[0])
    return figure


def compare(runs: Mapping[str, Sequence[Iterable[Record]]]) -> "Figure":
    """Accuracy and error of several settings over epochs, in the manner of Figs. 6 and 9.

    Test is a thick line with filled marks, training a thin dashed one with hollow marks. Several
    runs of one setting become their mean, and a band of one standard deviation to either side of
    the test's, over the epochs that all of them have. Up to 24 settings differ by mark and line.

    Args:
        runs: of each setting, by its name in the legend, the records of one run or of several.
    """
    figure = _figure(11, 4.6)
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
        _over_epochs(axes)
    _log_with_zero(error_axes)
    figure.suptitle("test: thick, filled marks; training: thin, hollow marks", fontsize="medium")
    _legend_below(figure, accuracy_axes)
    return figure


def over_parameter(points: Iterable[Record], name: str) -> "Figure":
    """Accuracy over theta or lambda, in the manner of Fig. 5.

    Values stand at equal distances, zero apart from the others. Marks with error bars are the mean
    and standard deviation of several runs, the dots beside them single runs.

    Args:
        points: a record a run: "series" (its name in the legend), "value" of the parameter, and
            "accuracy" (0 to 1).
        name: of the parameter, for the axis.
    """
    return _sweep(list(points), name)


def over_centers(points: Iterable[Record]) -> "Figure":
    """Accuracy over U, the number of centers, in the manner of Fig. 7.

    Args:
        points: as of `over_parameter`, with U as "value".
    """
    return _sweep(list(points), "U, centers of a layer")


def confusion(counts: np.ndarray, class_names: Sequence[str]) -> "Figure":
    """How often images of each class (rows) were taken for each class (columns): shares of the
    row, written into the cells where there are at most 20 classes.

    Args:
        counts: [classes, classes].
        class_names: of both.
    """
    classes = len(class_names)
    few = classes <= 20
    size = 2.5 + (0.45 * classes if few else 6)
    figure = _figure(size, size)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="gray_r", vmin=0, vmax=1)
    if few:
        short = [n if len(n) <= 16 else f"{n[:13]}..." for n in class_names]
        names = [name.replace("$", r"\$") for name in short]  # which begins mathematics
        axes.set_xticks(range(classes), names, rotation=90)
        axes.set_yticks(range(classes), names)
        for (row, column), count in np.ndenumerate(counts):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count or ""), ha="center", va="center", color=color, size=7)
    axes.set_xlabel("predicted")
    axes.set_ylabel("class")
    return figure


def of_kind(records: Iterable[Record], kind: str) -> list[Record]:
    """The records of one kind, such as "epoch"."""
    return [record for record in records if record["kind"] == kind]


def _sweep(points: list[Record], label: str) -> "Figure":
    figure = _figure(7.5, 5)
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
            # Another line where the marks begin again.
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
    _legend_below(figure, axes)
    return figure


def _figure(width: float, height: float) -> "Figure":
    import matplotlib.figure

    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def _x(records: Iterable[Record]) -> list[int]:
    """Epochs counted from one."""
    return [record["epoch"] + 1 for record in records]


def _over_epochs(axes: "Axes") -> None:
    import matplotlib.ticker

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(visible=True, alpha=0.3)


def _log(axes: "Axes") -> None:
    """A logarithmic scale of y, all of whose values are positive, with plain numbers."""
    import matplotlib.ticker

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    few = high < 10 * low  # so that powers of ten alone would leave hardly a tick
    locator = matplotlib.ticker.AutoLocator() if few else matplotlib.ticker.LogLocator()
    if not few and high < 1000 * low:
        locator.set_params(subs=(1, 2, 5))
    axes.yaxis.set_major_locator(locator)
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def _log_with_zero(axes: "Axes") -> None:
    """A logarithmic scale of y, which is linear below the least value if there are zeros."""
    import matplotlib.ticker

    drawn = [np.asarray(line.get_ydata(), float) for line in axes.lines]
    paths = [path for band in axes.collections for path in band.get_paths()]
    drawn += [np.asarray(path.vertices, float)[:, 1] for path in paths]
    values = np.concatenate([*drawn, np.zeros(0)])
    if not np.any(values > 0):
        return
    if values.min() > 0:
        _log(axes)
        return
    lines = np.concatenate(drawn[: len(axes.lines)])
    least = 10 ** math.floor(math.log10(lines[lines > 0].min()))
    powers = range(round(math.log10(least)), math.ceil(math.log10(values.max())) + 1)
    axes.set_yscale("symlog", linthresh=least, linscale=0.6)
    axes.set_ylim(-least / 5, 1.5 * values.max())
    axes.set_yticks([0, *(10.0**power for power in powers if 10**power <= values.max())])
    axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))


def _least_shares(record: Record, layers: Iterable[str]) -> dict[str, float]:
    """The share of the center with the fewest weights, of every layer that has centers."""
    shares = {
        layer: [share for name, share in record.items() if name.startswith(f"{layer}/share_")]
        for layer in layers
    }
    return {f"{layer}/least_share": min(own) for layer, own in shares.items() if own}


def _layer_style(index: int, layers: Sequence[str]) -> dict[str, Any]:
    """How the line of a layer is drawn: from light to dark, with marks where there are few."""
    import matplotlib

    depth = index / max(1, len(layers) - 1)
    color = matplotlib.colormaps["viridis_r"](0.15 + 0.75 * depth)
    if len(layers) <= FEW_LAYERS:
        line, marker = LINES[index % len(LINES)], MARKERS[index % len(MARKERS)]
        style = {"linestyle": line, "marker": marker, "markersize": 3.5, "linewidth": 1.2}
        return style | {"color": color, "label": layers[index]}
    if index in (0, len(layers) - 1):
        kind, line = ("first", "--") if index == 0 else ("last", "-.")
        label = f"{kind} layer, {layers[index]}"
        return {"color": color, "linestyle": line, "linewidth": 2, "label": label}
    between = f"the {len(layers) - 2} between" if index == 1 else None
    return {"color": color, "linestyle": "-", "linewidth": 0.6, "label": between}


def _legend_below(figure: "Figure", axes: "Axes") -> None:
    """One legend for the whole figure, where it covers no data; long names take fewer columns.

    The figure grows by its lines, so that the axes keep their height.
    """
    handles, labels = axes.get_legend_handles_labels()
    characters = 12 * figure.get_figwidth() - 6
    columns = min(len(labels), max(1, int(characters // (max(map(len, labels)) + 8))))
    labels = [textwrap.fill(label, int(characters)) for label in labels]
    rows = math.ceil(len(labels) / columns)
    lines = rows if columns > 1 else sum(label.count("\n") + 1 for label in labels)
    figure.set_figheight(figure.get_figheight() + 0.21 * (lines - 1))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
