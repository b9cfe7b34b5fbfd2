"""Shows what a trained network holds: `python -m mcn_jax.inspect_checkpoint PATH`.

PATH is the work directory of a run, one of its checkpoints (WORKDIR/checkpoints/STEP), or a
`.safetensors` file that `mcn_jax.export` wrote. Prints one line per layer and the totals;
--compare, --array, --json and --html show more. PATH is only read.
"""

import argparse
import io
import json

import numpy as np
import rich.console

from mcn_jax.command_line import make_parser, one_line_errors
from mcn_jax.errors import InputError
from mcn_jax.paths import user_path
from mcn_jax.reports.inspected import array_of, inspect
from mcn_jax.reports.inspection_tables import comparison_table, tables
from mcn_jax.reports.measures import compare, describe
from mcn_jax.terminal import run_command
from mcn_jax.workdirs.files import write_atomically, write_bytes_atomically


def main(arguments: list[str] | None = None) -> None:
    """Shows what one network holds."""
    parser = make_parser("inspect_checkpoint", __doc__)
    parser.add_argument("path", type="path", help="work directory, checkpoint or .safetensors file")
    parser.add_argument(
        "--compare", type="path", metavar="OTHER", help="show how layers differ from OTHER's"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--json", action="store_true", help="print JSON instead of tables")
    instead.add_argument(
        "--html", type="path", metavar="FILE", help="write an HTML page with pictures"
    )
    instead.add_argument(
        "--array", nargs=2, metavar=("NAME", "FILE.npy"),
        help="write an array, such as conv_1/binary_filters, or layers/3/binary_filters",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    with one_line_errors("inspect_checkpoint"):
        _show(options)


def _show(options: argparse.Namespace) -> None:
    if options.array and options.compare:
        raise InputError(
            f"--compare={options.compare} does nothing with --array, which writes an array of PATH;"
            " leave one of them out"
        )
    inspected = inspect(options.path)
    if options.array:
        name, path = options.array
        array = array_of(inspected, name)
        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        write_bytes_atomically(user_path(path), content.getvalue())
        print(f"{path}: {name}, {array.dtype.name} {list(array.shape)}")
        return
    description = describe(inspected)
    if options.compare:
        description["compare"] = compare(inspect(options.compare), inspected)
    if options.html:
        from mcn_jax.reports.page import page  # slow to import, because it draws

        write_atomically(options.html, page(inspected, description))
        print(f"{options.html} is written")
        return
    if options.json:
        print(json.dumps(description, indent=2))
        return
    console = rich.console.Console(highlight=False, emoji=False)
    for table in tables(description):
        console.print(table)
    if options.compare:
        title = f"from {options.compare} to {options.path}"
        console.print(comparison_table(description["compare"], title))


if __name__ == "__main__":
    run_command("inspect_checkpoint", main)
