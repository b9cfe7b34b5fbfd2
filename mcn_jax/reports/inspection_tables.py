"""The measures of a network as tables for the terminal."""

from collections.abc import Mapping
from typing import Any

import rich.markup
import rich.table
from rich.table import Column

FORMS = ("direct", "factored")


def tables(description: dict[str, Any]) -> list[rich.table.Table]:
    """`describe` as tables for the terminal: what the layers cost, and how their filters are."""
    costs = rich.table.Table(
        _layer_column(),
        "shape",
        "weights",
        "bits",
        "mult-adds",
        "factored",
        title=rich.markup.escape(description["path"]),
    )
    filters = rich.table.Table(
        _layer_column(), "maps", "floats", "centers", "shares", "range of M", "error"
    )
    for record in description["layers"]:
        adds = [record.get(f"multiply_adds_{form}") for form in FORMS]
        costs.add_row(
            record["layer"],
            "x".join(map(str, record["shape"])),
            f"{record['weights']:,}",
            f"{record['bits']:,}",
            *("" if number is None else short(number) for number in adds),
        )
        if has_facts(record):
            filters.add_row(*filter_cells(record))
    totals = description["totals"]
    costs.add_section()
    for name, prefix in (("filters", "filter_"), ("everything", "")):
        bits, float32 = totals[f"{prefix}bits"], totals[f"float32_{prefix}bits"]
        smaller = f"{float32 / bits:.1f} x smaller" if bits else ""
        adds = [totals[f"multiply_adds_{form}"] if prefix else None for form in FORMS]
        shown = ("" if number is None else short(number) for number in adds)
        costs.add_row(name, smaller, f"{float32 // 32:,}", f"{bits:,}", *shown)
    costs.add_row("on disk", f"{totals['file_bytes']:,} bytes")
    return [costs, filters] if filters.row_count else [costs]


def _layer_column() -> Column:
    # On a narrow terminal a name goes on in the next line; rich would cut it.
    return Column("layer", overflow="fold")


def has_facts(record: Mapping[str, Any]) -> bool:
    """Whether the family of a layer says more of it than what it costs."""
    return "in_maps" in record


def filter_cells(record: Mapping[str, Any]) -> list[str]:
    """The cells of a layer with `has_facts`: its name, maps, numbers in float32 (M and centers),
    centers, shares, range of M, quantization error."""

    def range_of(name: str) -> str:
        ends = record.get(f"{name}_min"), record.get(f"{name}_max")
        return "" if None in ends else f"{ends[0]:.2f}-{ends[1]:.2f}"

    return [
        record["layer"],
        f"{record['in_maps']}-{record['out_maps']}",
        str(record.get("m_and_center_bits", 0) // 32),
        " ".join(f"{center:.3g}" for center in record.get("centers", ())),
        " ".join(f"{share:.1%}" for share in record.get("shares", ())),
        range_of("m"),
        f"{record['quantization_error']:.3f}" if "quantization_error" in record else "",
    ]


def short(number: int) -> str:
    """A number with a letter for thousands, millions or billions."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.1f}{letter}"
    return str(number)


def comparison_table(records: list[dict[str, Any]], title: str) -> rich.table.Table:
    """`compare` as a table for the terminal."""
    shown = rich.table.Table(
        _layer_column(), "flip ratio", "drift of M", "drift of C", title=rich.markup.escape(title)
    )
    for record in records:
        flips = record.get("flip_ratio")
        drifts = [record.get(name) for name in ("m_drift", "latent_drift")]
        shown.add_row(
            record["layer"],
            "" if flips is None else f"{flips:.2%}",
            *("" if drift is None else f"{drift:.3f}" for drift in drifts),
        )
    return shown
