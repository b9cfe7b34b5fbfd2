"""Builds a page that shows a trained network: one HTML file that works offline."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mcn_jax.layers.family import Pictures
from mcn_jax.reports import figures, health_plots
from mcn_jax.reports.inspected import Inspected
from mcn_jax.reports.inspection_tables import (
    change_columns,
    fact_cells,
    fact_columns,
    multiply_adds,
    short,
)
from mcn_jax.workdirs.files import of_kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4  # small pictures per row
MAX_HISTOGRAMS = 24  # layers shown of a deep network, evenly spread

STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 70rem; margin: auto; padding: 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2rem; }
img { max-width: 100%; height: auto; background: white; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tbody tr:nth-child(odd) { background: color-mix(in srgb, currentColor 7%, transparent); }
th button { all: unset; cursor: pointer; font-weight: bold; }
th button:focus-visible { outline: 2px solid; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
"""

SCRIPT = """
for (const header of document.querySelectorAll("th button")) {
  header.addEventListener("click", () => {
    const cell = header.parentElement, body = cell.closest("table").tBodies[0];
    const descending = cell.getAttribute("aria-sort") === "ascending";
    for (const other of cell.parentElement.children) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const key = row => row.children[cell.cellIndex].dataset.key;
    const compare = (a, b) => {
      const x = key(a), y = key(b), difference = Number(x) - Number(y);
      return Number.isNaN(difference) ? x.localeCompare(y, undefined, {numeric: true}) : difference;
    };
    const rows = [...body.rows].sort((a, b) => descending ? compare(b, a) : compare(a, b));
    body.append(...rows);
  });
}
"""


def page(inspected: Inspected, description: Mapping[str, Any]) -> str:
    """Returns the page as HTML.

    Args:
        inspected: from `mcn_jax.reports.inspected.inspect`.
        description: from `describe`, with "compare" added if there is a comparison.
    """
    title = html.escape(f"{inspected.path}")
    sections = [
        ("Totals", _table(("", "bits", "in float32", "smaller"), _totals(description["totals"]))),
        ("Layers", _table(*_layers(description["layers"]))),
    ]
    if "compare" in description:
        sections.append(("Changes", _table(*_changes(description["compare"]))))
    if of_kind(inspected.records, "epoch"):
        sections.append(("Training", _picture(figures.curves(inspected.records), "curves")))
    if of_kind(inspected.records, "health"):
        sections.append(
            ("Filters over the epochs", _picture(health_plots.health(inspected.records), ""))
        )
    pictures = {
        name: view.layer.family.pictures(view) for name, view in inspected.quantizable.items()
    }
    with_weights = {name: drawn for name, drawn in pictures.items() if drawn.weights.size}
    if with_weights:
        heading = "Latent weights and their quantization levels"
        sections.append((heading, _picture(_histograms(with_weights), "")))
    with_planes = {name: drawn for name, drawn in pictures.items() if drawn.planes.size}
    if with_planes:
        sections.append(("M-filters, plane by plane", _picture(_planes(with_planes), "")))
    for name, drawn in list(pictures.items())[:1]:
        if drawn.filters:
            heading = f"Filters of {name}"
            sections.append((heading, _picture(_filters(drawn.filters), heading)))
    body = "".join(f"<h2>{html.escape(name)}</h2>{content}" for name, content in sections)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{title}</title><style>{STYLE}</style></head>"
        f"<body><h1>{title}</h1>{body}<script>{SCRIPT}</script></body></html>\n"
    )


def _table(headers: Sequence[str], rows: Sequence[Sequence[tuple[str, Any]]]) -> str:
    """Returns a sortable HTML table; a cell is (text, sort key)."""
    head = "".join(
        f"<th><button type='button'>{html.escape(header)}</button></th>" for header in headers
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-key="{html.escape(str(key))}">{html.escape(text)}</td>' for text, key in row
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def _number(value: int | None) -> tuple[str, Any]:
    return ("", -1) if value is None else (f"{value:,}", value)


def _totals(totals: Mapping[str, int]) -> list[list[tuple[str, Any]]]:
    rows = []
    for name, prefix in (("filters", "filter_"), ("everything", "")):
        bits, float32 = totals[f"{prefix}bits"], totals[f"float32_{prefix}bits"]
        ratio = float32 / bits if bits else 0
        rows.append([(name, name), _number(bits), _number(float32), (f"{ratio:.1f} x", ratio)])
    on_disk = totals["file_bytes"]
    rows.append([("on disk",) * 2, (f"{on_disk:,} bytes", 8 * on_disk), ("", -1), ("", -1)])
    return rows


def _layers(
    records: Sequence[Mapping[str, Any]],
) -> tuple[tuple[str, ...], list[list[tuple[str, Any]]]]:
    columns = fact_columns(records)
    headers = ("layer", "kind", "shape", "weights", "bits", "mult-adds", "factored", *columns)
    rows = []
    for place, record in enumerate(records):
        row: list[tuple[str, Any]] = [
            (record["layer"], place),
            (record["kind"], record["kind"]),
            ("x".join(map(str, record["shape"])), record["weights"]),
            _number(record["weights"]),
            _number(record["bits"]),
        ]
        for adds in multiply_adds(record):
            row.append(("", -1) if adds is None else (short(adds), adds))
        row += fact_cells(record, columns)
        rows.append(row)
    return headers, rows


def _changes(
    records: Sequence[Mapping[str, Any]],
) -> tuple[tuple[str, ...], list[list[tuple[str, Any]]]]:
    columns = change_columns(records)
    rows = []
    for place, record in enumerate(records):
        row: list[tuple[str, Any]] = [(record["layer"], place)]
        for name in columns:
            value = record.get(name)
            row.append(("", -1) if value is None else (f"{value:.4f}", value))
        rows.append(row)
    return ("layer", *columns.values()), rows


def _picture(figure: "Figure", text: str) -> str:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    data = base64.b64encode(content.getvalue()).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'


def _grid(count: int, height: float) -> "tuple[Figure, list[Axes]]":
    """Returns a figure of `count` small pictures, and their axes."""
    from matplotlib.figure import Figure

    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(2.6 * columns, height * rows))
    figure.set_layout_engine("constrained", w_pad=0.12)  # inches
    axes = list(np.atleast_1d(figure.subplots(rows, columns)).ravel())
    for unused in axes[count:]:
        unused.set_axis_off()
    return figure, axes[:count]


def _spread(layers: Mapping[str, Pictures]) -> list[tuple[str, Pictures]]:
    """Returns all layers, or `MAX_HISTOGRAMS` of them including the first and the last."""
    items = list(layers.items())
    chosen = np.unique(np.linspace(0, len(items) - 1, MAX_HISTOGRAMS).round().astype(int))
    return [items[index] for index in chosen]


def _histograms(layers: Mapping[str, Pictures]) -> "Figure":
    """Draws a histogram of each layer's latent weights, with its quantization levels as lines."""
    shown = _spread(layers)
    figure, all_axes = _grid(len(shown), 1.9)
    for axes, (name, drawn) in zip(all_axes, shown, strict=True):
        axes.hist(drawn.weights.ravel(), bins=50, color="0.6")
        for level in drawn.levels:
            axes.axvline(level, color="black", linestyle="--")
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.set_yticks([])
    return figure


def _planes(layers: Mapping[str, Pictures]) -> "Figure":
    """Draws the planes of each layer side by side, all on the same scale."""
    shown = _spread(layers)
    figure, all_axes = _grid(len(shown), 1.3)
    most = max(float(drawn.planes.max()) for drawn in layers.values())
    for axes, (name, drawn) in zip(all_axes, shown, strict=True):
        tiles = _tiles(np.moveaxis(drawn.planes, -1, 0), drawn.planes.shape[-1])
        image = axes.imshow(tiles, cmap="gray", vmin=0, vmax=most)
        axes.set_title(name, fontsize=8)
        axes.set_axis_off()
    figure.colorbar(image, ax=all_axes, shrink=0.8)
    return figure


def _filters(filters: Mapping[str, np.ndarray]) -> "Figure":
    """Draws the filters of a layer, one per row, with their channels side by side.

    At most eight filters and 16 channels are shown.
    """
    from matplotlib.figure import Figure

    pictures = {name: array[:, :, :16, :8] for name, array in filters.items()}
    *_, channels, count = next(iter(pictures.values())).shape
    most = max(float(np.abs(array).max()) for array in pictures.values())
    height = 10 / len(pictures) * count / channels + 0.5
    figure = Figure(figsize=(10, height), layout="constrained")
    all_axes = np.atleast_1d(figure.subplots(1, len(pictures)))
    for axes, (name, array) in zip(all_axes, pictures.items(), strict=True):
        flat = np.moveaxis(array, (2, 3), (1, 0)).reshape(-1, *array.shape[:2])
        axes.imshow(_tiles(flat, channels), cmap="gray", vmin=-most, vmax=most)
        axes.set_title(name, fontsize=8)
        axes.set_axis_off()
    return figure


def _tiles(images: np.ndarray, columns: int) -> np.ndarray:
    """Returns images [N, Y, X] as one picture, with white (NaN) margins between them."""
    count, height, width = images.shape
    rows = -(-count // columns)
    picture = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1), np.nan)
    for index, image in enumerate(images):
        y, x = index // columns * (height + 1), index % columns * (width + 1)
        picture[y : y + height, x : x + width] = image
    return picture
