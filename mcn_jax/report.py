"""Compares runs: prints a table, and draws curves, the health of filters, and sweeps.

Runs whose configs differ only in the seed share one row, with the mean and standard deviation of
their accuracy. A run that has not ended is shown up to its last epoch, and left out of means.
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
from mcn_jax.reports.runs import group_runs, read_runs
from mcn_jax.reports.tables import print_table, summary, table, write_report
from mcn_jax.terminal import run_command
from mcn_jax.workdirs.files import write_atomically


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "report",
        __doc__,
        epilog="Figures, each as PNG and SVG: curves; health_RUN for the filters of an MCN; theta,"
        " lambda or\ncenters for runs that differ in this field only.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "workdirs",
        nargs="+",
        metavar="WORKDIR",
        type="path",
        help="a run, such as runs/digits, or a file of runs, such as results/figure5_cpu.jsonl",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type="path",
        default=pathlib.Path("report"),
        help="directory for report.md and the figures (default: report)",
    )
    parser.add_argument(
        "--json", metavar="FILE", type="path", help="file for the unrounded numbers"
    )
    return parser


def main(arguments: Sequence[str]) -> None:
    """Runs the command; for wrong input, exits with one line and a non-zero code."""
    options = _parser().parse_args(arguments)
    # A file or a pipe has no width of its own, so tables written there get a large one.
    width = None if sys.stdout.isatty() else 250
    console = rich.console.Console(highlight=False, soft_wrap=True, emoji=False, width=width)
    with one_line_errors("report"):
        if options.out.exists() and not options.out.is_dir():
            raise InputError(f"--out={options.out} is a file; name a directory")
        if options.json and not options.json.parent.is_dir():
            raise InputError(f"--json={options.json}: there is no directory {options.json.parent}")
        if options.json and options.json.is_dir():
            raise InputError(f"--json={options.json} is a directory; name a file")
        groups = group_runs([run for workdir in options.workdirs for run in read_runs(workdir)])
        print_table(table(groups), console)
        paths = write_report(groups, options.out)
        if options.json:
            write_atomically(options.json, json.dumps(summary(groups), indent=2) + "\n")
            paths.append(options.json)
    for path in paths:
        console.print(rich.markup.escape(str(path)))


if __name__ == "__main__":
    run_command("report", lambda: main(sys.argv[1:]))
