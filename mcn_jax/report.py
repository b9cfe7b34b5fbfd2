"""Compares runs: a table, and figures of their curves, of their filters' health and of sweeps.

Runs that have the same config but for their seed are one row, with mean and standard deviation of
the accuracy. A run that has not ended is shown as far as it is, and left out of means.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

import rich.console
import rich.markup

from mcn_jax.command_line import make_parser, one_line_errors
from mcn_jax.errors import InputError
from mcn_jax.reports.runs import group_runs, read_run
from mcn_jax.reports.tables import print_table, summary, table, write_report
from mcn_jax.workdirs.files import write_atomically


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "report",
        __doc__,
        epilog="Figures, each as PNG and SVG: curves; health_RUN of the filters of an MCN; theta,"
        " lambda and\ncenters where these differ among runs that share the rest of their config.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "workdirs",
        nargs="+",
        metavar="WORKDIR",
        type=pathlib.Path,
        help="of a run, such as runs/digits, or a record of one, such as results/digits_mcn_seed0",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=pathlib.Path,
        default=pathlib.Path("report"),
        help="gets report.md and the figures (default: report)",
    )
    parser.add_argument(
        "--json", metavar="FILE", type=pathlib.Path, help="gets the table's numbers, unrounded"
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    """Runs the command; exits with one line and a non-zero code where something is wrong."""
    options = _parser().parse_args(arguments)
    # Tables are as wide as they are where nobody sees a terminal, in a file for instance.
    width = None if sys.stdout.isatty() else 250
    console = rich.console.Console(highlight=False, soft_wrap=True, emoji=False, width=width)
    with one_line_errors("report"):
        if options.out.exists() and not options.out.is_dir():
            raise InputError(f"--out={options.out} is a file; name a directory")
        if options.json and not options.json.parent.is_dir():
            raise InputError(f"--json={options.json}: there is no directory {options.json.parent}")
        if options.json and options.json.is_dir():
            raise InputError(f"--json={options.json} is a directory; name a file")
        groups = group_runs([read_run(workdir) for workdir in options.workdirs])
        print_table(table(groups), console)
        paths = write_report(groups, options.out)
        if options.json:
            write_atomically(options.json, json.dumps(summary(groups), indent=2) + "\n")
            paths.append(options.json)
    for path in paths:
        console.print(rich.markup.escape(str(path)))


if __name__ == "__main__":
    main(sys.argv[1:])
