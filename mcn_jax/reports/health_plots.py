"""Draws how quantized weights develop over the epochs."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from mcn_jax.reports.axes import (
    LINES,
    MARKERS,
    Record,
    epoch_numbers,
    legend_below,
    log_scale_with_zero,
    new_figure,
    over_epochs,
)
from mcn_jax.workdirs.files import of_kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Measures that records of older versions do not have. An older run that is resumed has them from
# then on.
NEWER_MEASURES = ("plane_correlation", "effective_planes", "m_spread")
FEW_LAYERS = 8  # up to this many layers, every layer has a line style of its own


def health(records: Iterable[Record]) -> "Figure":
    """Draws measures of the filters of each layer over the epochs with binary filters.

    Up to 8 layers have a line style each. With more layers, the first and the last stand out, and
    the others are thin lines that darken with depth. A bold line is the measure of all layers
    together.

    Two more panels show how the planes of a map differ, if any record has these measures.

    Args:
        records: of one run, with at least one of kind "health".

    Raises:
        ValueError: if there is no record of kind "health".
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
        (("quantization_error",), 1, "quantization error"),
        (("least_share",), 100, "weights at the least used center (%)"),
        (("m_min", "m_max"), 1, "least and greatest element of M"),
    )
    if any(name.endswith("/effective_planes") for record in lines for name in record):
        panels += (
            (("plane_correlation",), 1, "correlation between planes"),
            (("effective_planes",), 1, "effective number of planes"),
        )
    rows = len(panels) // 2
    figure = new_figure(11, 4 * rows)
    grid = figure.subplots(rows, 2)
    for axes, (measures, scale, label) in zip(grid.flat, panels, strict=True):
        for index, layer in enumerate(layers):
            style = _layer_style(index, layers)
            # A layer family reports only the measures that suit its weights.
            for measure in measures:
                having = [record for record in lines if f"{layer}/{measure}" in record]
                if having:
                    values = [scale * record[f"{layer}/{measure}"] for record in having]
                    axes.plot(epoch_numbers(having), values, **_dot(having) | style)
                    style = style | {"label": None}
        if together and measures[0] in together[0]:
            values = [scale * record[measures[0]] for record in together]
            axes.plot(
                epoch_numbers(together),
                values,
                "k-",
                linewidth=2.5,
                label="all layers together",
                **_dot(together),
            )
        if measures == ("flip_ratio",):
            log_scale_with_zero(axes)
        axes.set_ylabel(label)
        over_epochs(axes)
    legend_below(figure, grid.flat[0])
    return figure


def _dot(records: Sequence[Record]) -> dict[str, Any]:
    """Returns a mark if there is one record, for a line through one point is not visible."""
    return {"marker": "."} if len(records) == 1 else {}


def _least_shares(record: Record, layers: Iterable[str]) -> dict[str, float]:
    """Returns the share of weights at the least used center, for every layer with centers."""
    shares = {
        layer: [share for name, share in record.items() if name.startswith(f"{layer}/share_")]
        for layer in layers
    }
    return {f"{layer}/least_share": min(own) for layer, own in shares.items() if own}


def _layer_style(index: int, layers: Sequence[str]) -> dict[str, Any]:
    """Returns the style of a layer's line: darker with depth, with marks if layers are few."""
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
