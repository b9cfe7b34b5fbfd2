"""Exports a trained network: `python -m mcn_jax.export WORKDIR OUT`.

Writes OUT/model.safetensors and OUT/model.onnx, in which every binary filter weight takes
ceil(log2 U) bits. Then reads both files, runs them on the test split, and prints their sizes and
accuracies. WORKDIR is only read; WORKDIR/checkpoints/STEP exports an earlier checkpoint.
"""

import json
import pathlib
from typing import Any

import numpy as np
import rich.console
import rich.markup
import rich.table

from mcn_jax.command_line import add_places, make_parser, one_line_errors, places
from mcn_jax.deploy import model_file, predictor
from mcn_jax.deploy.model_file import model_of, read_model, write_model
from mcn_jax.deploy.onnx import write_onnx
from mcn_jax.layers.dense import FORMATS
from mcn_jax.terminal import run_command
from mcn_jax.workdirs.files import environment
from mcn_jax.workdirs.trained import read_trained


def export(
    workdir: pathlib.Path, out: pathlib.Path, dense: str, data: dict[str, Any]
) -> dict[str, Any]:
    """Writes both files and compares them with the checkpoint.

    Args:
        workdir: work directory of a run, or a checkpoint in it.
        out: directory for the files, created if absent.
        dense: how kernels of dense layers are stored, a name in `FORMATS`.
        data: fields of `DataConfig` that say where the data are now.

    Returns:
        "model": the model that was written.
        "parts": the parts of model.safetensors, {"filters": {"bytes": ..., "float32_bytes": ...},
            ...}, with "header" last.
        "checkpoint", "model.safetensors", "model.onnx": for each of them "bytes" on disk and
            "accuracy". For the two files also "difference": the largest difference of a logit from
            the checkpoint's, divided by the largest logit. Without ONNX Runtime, "model.onnx" has
            only "bytes".

    Raises:
        InputError: if there is nothing to export, or the data cannot be read.
    """
    trained = read_trained(workdir)
    checkpoint = predictor.of_trained(trained)
    examples = predictor.open_test_split(checkpoint, data)
    model = model_of(trained, examples.shape, dense)
    out.mkdir(parents=True, exist_ok=True)
    files = {"model.safetensors": write_model, "model.onnx": write_onnx}
    for name, write in files.items():
        write(model, out / name)
    predictors = {"checkpoint": checkpoint}
    predictors["model.safetensors"] = predictor.of_model(read_model(out / "model.safetensors"))
    if predictor.has_onnx_runtime():
        predictors["model.onnx"] = predictor.of_onnx(out / "model.onnx")
    logits, labels = predictor.run_all(predictors, examples, trained.config.eval_batch_size)
    expected = logits["checkpoint"]
    result: dict[str, Any] = {"model": model}
    for name, values in logits.items():
        result[name] = {"accuracy": float(np.mean(values.argmax(1) == labels))}
        if name != "checkpoint":
            difference = np.abs(values - expected).max() / np.abs(expected).max()
            result[name]["difference"] = float(difference)
    for name in files:
        result.setdefault(name, {})["bytes"] = (out / name).stat().st_size
    result["checkpoint"]["bytes"] = trained.file_bytes
    parts = model_file.parts(model)
    tensors = sum(there for there, _ in parts.values())
    parts["header"] = (result["model.safetensors"]["bytes"] - tensors, 0)
    result["parts"] = {
        kind: {"bytes": there, "float32_bytes": float32} for kind, (there, float32) in parts.items()
    }
    return result


def _print_json(result: dict[str, Any]) -> None:
    model = result["model"]
    described = {"network": model.network.to_json(), "provenance": model.provenance}
    measured = {name: value for name, value in result.items() if name != "model"}
    print(json.dumps(described | measured | {"exported_by": environment()}, indent=2))


def _print(result: dict[str, Any], out: pathlib.Path) -> None:
    console = rich.console.Console(highlight=False, emoji=False)
    size = result["model.safetensors"]["bytes"]
    title = rich.markup.escape(f"{out}/model.safetensors")
    table = rich.table.Table("", "bytes", "in float32", "smaller", title=title)
    for kind, part in result["parts"].items():
        there, float32 = part["bytes"], part["float32_bytes"]
        table.add_row(kind, f"{there:,}", f"{float32:,}" if float32 else "", _ratio(float32, there))
    total = sum(part["float32_bytes"] for part in result["parts"].values())
    table.add_section()
    table.add_row("file", f"{size:,}", f"{total:,}", _ratio(total, size))
    console.print(table)
    table = rich.table.Table("", "bytes", "test accuracy", "largest difference")
    for name in ("checkpoint", "model.safetensors", "model.onnx"):
        values = result[name]
        table.add_row(
            name,
            f"{values['bytes']:,}",
            f"{values['accuracy']:.2%}" if "accuracy" in values else "needs onnxruntime",
            f"{values['difference']:.1e}" if "difference" in values else "",
        )
    console.print(table)


def _ratio(float32: int, there: int) -> str:
    return f"{float32 / there:.1f} x" if float32 else ""


def main(arguments: list[str] | None = None) -> None:
    """Exports one run."""
    parser = make_parser("export", __doc__)
    parser.add_argument("workdir", type="path", help="a run, such as runs/digits")
    parser.add_argument("out", type="path", help="directory for the files")
    parser.add_argument(
        "--dense", default="float32", choices=FORMATS, help="how kernels of dense layers are stored"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    add_places(parser)
    options = parser.parse_args(arguments)
    with one_line_errors("export"):
        result = export(options.workdir, options.out, options.dense, places(options))
        if options.json:
            _print_json(result)
        else:
            _print(result, options.out)


if __name__ == "__main__":
    run_command("export", main)
