"""Evaluation that counts every example exactly once: `python -m mcn_jax.evaluate MODEL`.

MODEL is the work directory of a run, one of its checkpoints (WORKDIR/checkpoints/STEP), or a
`.safetensors` or `.onnx` file that `mcn_jax.export` wrote. Prints the accuracy on the test split,
that of every class, and the calibration error.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
import rich.console
import rich.markup
import rich.table

from mcn_jax import figures, parallel
from mcn_jax.data.batches import EvalBatch, Split
from mcn_jax.errors import InputError

CALIBRATION_BINS = 15
PLACES = ("data_dir", "archive_dir", "root")  # fields of the data's config that tell where they are


def evaluate(
    step: Callable[..., dict[str, jax.Array]],
    state: Any,
    batches: Iterable[tuple[Split, EvalBatch]],
) -> dict[str, float]:
    """Loss and accuracy over a whole split.

    Args:
        step: `parallel(eval_step)`.
        state: replicated.
        batches: of a source, from `test_batches`.

    Returns:
        "test_loss" in nats, "test_accuracy" from 0 to 1, "test_examples".
    """
    sums = {"loss": 0.0, "correct": 0, "examples": 0}
    for split, batch in batches:
        for name, value in parallel.unreplicate(step(state, split, batch)).items():
            sums[name] += value.item()
    return {
        "test_loss": sums["loss"] / sums["examples"],
        "test_accuracy": sums["correct"] / sums["examples"],
        "test_examples": sums["examples"],
    }


def probabilities(logits: np.ndarray) -> np.ndarray:
    """The softmax of logits [N, classes], in float64."""
    exact = logits.astype(np.float64)
    weights = np.exp(exact - exact.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def measures(logits: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """How well a network does.

    Args:
        logits: [N, classes].
        labels: [N].
        class_names: of the logits.

    Returns:
        "examples"; "accuracy" from 0 to 1; "calibration_error", the expected one: over 15 bins of
        equal width in the probability of the likeliest class, the mean distance of that probability
        from the accuracy, weighted by the examples (Guo et al. 2017); "classes", a record each with
        "class", "examples" and "accuracy" (null without examples); "confusion", counts [classes,
        classes] by label (rows) and prediction (columns).
    """
    confidence = probabilities(logits).max(axis=1)
    predicted = logits.argmax(axis=1)
    right = predicted == labels
    confusion = np.zeros((len(class_names), len(class_names)), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = [abs(np.sum(right[bins == b] - confidence[bins == b])) for b in range(CALIBRATION_BINS)]
    counts = confusion.sum(axis=1)
    return {
        "examples": len(labels),
        "accuracy": float(np.mean(right)),
        "calibration_error": float(np.sum(gaps) / len(labels)),
        "classes": [
            {
                "class": name,
                "examples": int(count),
                "accuracy": float(confusion[index, index] / count) if count else None,
            }
            for index, (name, count) in enumerate(zip(class_names, counts, strict=True))
        ],
        "confusion": confusion,
    }


def add_places(parser: argparse.ArgumentParser) -> None:
    """Adds flags for where the data lie now."""
    for name in PLACES:
        parser.add_argument(f"--{name}", help=f"where the data are, instead of config.data.{name}")


def places(options: argparse.Namespace) -> dict[str, Any]:
    """Those of the flags of `add_places` that were given."""
    return {n: value for n in PLACES if (value := getattr(options, n)) is not None}


def main(arguments: list[str] | None = None) -> None:
    """Evaluates one network."""
    from mcn_jax import predictor  # which reads files; training does without

    parser = argparse.ArgumentParser(
        prog="python -m mcn_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="work directory, checkpoint, .safetensors or .onnx file")
    parser.add_argument("--json", action="store_true", help="print numbers, confusion included")
    parser.add_argument(
        "--confusion", type=pathlib.Path, metavar="FILE.png", help="draw the confusion matrix"
    )
    parser.add_argument(
        "--batch_size",
        type=int,
        default=256,
        help="images at once; default and most 256, of large images fewer",
    )
    add_places(parser)
    options = parser.parse_args(arguments)
    try:
        if options.batch_size < 1:
            raise InputError(f"--batch_size={options.batch_size} must be at least 1")
        if options.confusion:
            _check_picture(options.confusion)
        member = predictor.open_predictor(options.model)
        examples = predictor.open_test_split(member, places(options))
        logits, labels = predictor.run_all({"": member}, examples, options.batch_size)
        found = measures(logits[""], labels, member.class_names)
        _print(found, options.model, as_json=options.json)
        if options.confusion:
            figure = figures.confusion(found["confusion"], member.class_names)
            figures.save(figure, options.confusion.with_suffix(""), formats=("png",))
    except (InputError, OSError) as error:
        sys.exit(f"mcn_jax.evaluate: error: {error}")


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
        shown = "" if accuracy is None else f"{accuracy:.2%}"
        table.add_row(rich.markup.escape(record["class"]), f"{record['examples']:,}", shown)
    table.add_section()
    table.add_row("all", f"{found['examples']:,}", f"{found['accuracy']:.2%}")
    console = rich.console.Console(highlight=False, emoji=False)
    console.print(table)
    console.print(f"expected calibration error {found['calibration_error']:.4f}")


if __name__ == "__main__":
    main()
