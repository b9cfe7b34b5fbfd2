"""Formats the measures of a network as tables for the terminal."""

from collections.abc import Iterable, Mapping
from typing import Any

import rich.markup
import rich.table
from rich.table import Column

from mcn_jax.layers.family import Cell
from mcn_jax.layers.table import family_of_kind

FORMS = ("direct", "factored")
FORMATS = {"flip_ratio": ".2%"}  # of changes; all others have three decimals
CHANGES = {"m_drift": "drift of M", "latent_drift": "drift of C"}  # where the name alone is unclear


def tables(description: dict[str, Any]) -> list[rich.table.Table]:
    """Returns the result of `describe` as tables: costs of layers, and facts on filters if any."""
    costs = rich.table.Table(
        _layer_column(),
        "shape",
        "weights",
        "bits",
        "mult-adds",
        "factored",
        title=rich.markup.escape(description["path"]),
    )
    columns = fact_columns(description["layers"])
    facts = rich.table.Table(_layer_column(), *columns)
    for record in description["layers"]:
        adds = multiply_adds(record)
        costs.add_row(
            record["layer"],
            "x".join(map(str, record["shape"])),
            f"{record['weights']:,}",
            f"{record['bits']:,}",
            *("" if number is None else short(number) for number in adds),
        )
        cells = fact_cells(record, columns)
        if any(text for text, _ in cells):
            facts.add_row(record["layer"], *(text for text, _ in cells))
    totals = description["totals"]
    costs.add_section()
    for name, prefix in (("filters", "filter_"), ("everything", "")):
        bits, float32 = totals[f"{prefix}bits"], totals[f"float32_{prefix}bits"]
        smaller = f"{float32 / bits:.1f} x smaller" if bits else ""
        adds = [totals[f"multiply_adds_{form}"] if prefix else None for form in FORMS]
        shown = ("" if number is None else short(number) for number in adds)
        costs.add_row(name, smaller, f"{float32 // 32:,}", f"{bits:,}", *shown)
    costs.add_row("on disk", f"{totals['file_bytes']:,} bytes")
    return [costs, facts] if facts.row_count else [costs]


def multiply_adds(record: Mapping[str, Any]) -> list[int | None]:
    """Returns a layer's multiply-adds as a plain layer, and in factored form."""
    plain = record.get("multiply_adds_direct", record.get("multiply_adds_dense"))
    return [plain, record.get("multiply_adds_factored")]


def _layer_column() -> Column:
    # On a narrow terminal a long name continues on the next line. By default, rich would cut it.
    return Column("layer", overflow="fold")


def fact_columns(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the headers of what families show besides costs; see `Family.columns`."""
    kinds = dict.fromkeys(record["kind"] for record in records)
    return list(dict.fromkeys(name for kind in kinds for name in family_of_kind(kind).columns))


def fact_cells(record: Mapping[str, Any], columns: Iterable[str]) -> list[Cell]:
    """Returns a layer's cells in these columns; a cell is empty if its family lacks the column."""
    own = family_of_kind(record["kind"]).columns
    return [own[name](record) if name in own else ("", -1) for name in columns]


def short(number: int) -> str:
    """Returns a number as text, with a letter for thousands, millions or billions."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.1f}{letter}"
    return str(number)


def change_columns(records: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Returns {name in the records of `compare`: header}, without the column of layers."""
    names = dict.fromkeys(name for record in records for name in record if name != "layer")
    return {name: CHANGES.get(name, name.replace("_", " ")) for name in names}


def comparison_table(records: list[dict[str, Any]], title: str) -> rich.table.Table:
    """Returns the result of `compare` as a table for the terminal."""
    columns = change_columns(records)
    shown = rich.table.Table(_layer_column(), *columns.values(), title=rich.markup.escape(title))
    for record in records:
        numbers = [(name, record.get(name)) for name in columns]
        cells = ["" if n is None else f"{n:{FORMATS.get(name, '.3f')}}" for name, n in numbers]
        shown.add_row(record["layer"], *cells)
    return shown
