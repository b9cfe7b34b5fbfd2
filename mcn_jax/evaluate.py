"""Evaluates a network on its test split: `python -m mcn_jax.evaluate MODEL`.

MODEL is the work directory of a run, one of its checkpoints (WORKDIR/checkpoints/STEP), or a
`.safetensors` or `.onnx` file that `mcn_jax.export` wrote. Prints the accuracy on the test split,
the accuracy of every class, and the calibration error.
"""

import contextlib
import json
import pathlib
import sys
from typing import Any

import rich.console
import rich.markup
import rich.table

from mcn_jax.command_line import (
    add_batch_size,
    add_places,
    check_batch_size,
    make_parser,
    one_line_errors,
    places,
)
from mcn_jax.deploy import predictor
from mcn_jax.errors import InputError
from mcn_jax.escapes import shown
from mcn_jax.reports import figures
from mcn_jax.terminal import run_command
from mcn_jax.training.evaluation import measures


def main(arguments: list[str] | None = None) -> None:
    """Evaluates one network."""
    parser = make_parser("evaluate", __doc__)
    parser.add_argument(
        "model", type="path", help="work directory, checkpoint, .safetensors or .onnx file"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with the confusion matrix")
    parser.add_argument(
        "--confusion", type="path", metavar="FILE.png", help="draw the confusion matrix"
    )
    add_batch_size(parser, 256)
    add_places(parser)
    options = parser.parse_args(arguments)
    with one_line_errors("evaluate"):
        check_batch_size(options)
        if options.confusion:
            _check_picture(options.confusion)
        member = predictor.open_predictor(options.model, places(options))
        # If data are prepared, a message says so; stdout is for JSON.
        with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
            examples = predictor.open_test_split(member, places(options))
        logits, labels = predictor.run_all({"": member}, examples, options.batch_size)
        found = measures(logits[""], labels, member.class_names)
        _print(found, str(options.model), as_json=options.json)
        if options.confusion:
            figure = figures.confusion(found["confusion"], member.class_names)
            figures.save(figure, options.confusion.with_suffix(""), formats=("png",))


def _check_picture(path: pathlib.Path) -> None:
    if path.suffix != ".png" or not path.parent.is_dir():
        raise InputError(f"--confusion={path} must be a .png file in a directory that exists")


def _print(found: dict[str, Any], title: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(found | {"confusion": found["confusion"].tolist()}))
        return
    table = rich.table.Table("class", "examples", "accuracy", title=rich.markup.escape(title))
    for record in found["classes"]:
        accuracy = record["accuracy"]
        share = "" if accuracy is None else f"{accuracy:.2%}"
        name = rich.markup.escape(shown(record["class"]))
        table.add_row(name, f"{record['examples']:,}", share)
    table.add_section()
    table.add_row("all", f"{found['examples']:,}", f"{found['accuracy']:.2%}")
    console = rich.console.Console(highlight=False, emoji=False)
    console.print(table)
    console.print(f"expected calibration error {found['calibration_error']:.4f}")


if __name__ == "__main__":
    run_command("evaluate", main)
