"""Exports a trained network: `python -m mcn_jax.export WORKDIR OUT`.

Writes OUT/model.safetensors and OUT/model.onnx, in which every binary filter weight takes
ceil(log2 U) bits. Then reads both files, runs them on the test split, and prints their sizes and
accuracies. WORKDIR is only read; WORKDIR/checkpoints/STEP exports an earlier checkpoint.
--no-evaluate needs no data set: it runs the files on generated images, and measures no accuracy.
--c and --web write further files.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import rich.console
import rich.markup
import rich.table

from mcn_jax.command_line import add_places, make_parser, one_line_errors, places
from mcn_jax.deploy import model_file, predictor
from mcn_jax.deploy.c_source import c_source, write_c_source
from mcn_jax.deploy.model_file import model_of, read_model, write_model
from mcn_jax.deploy.onnx import write_onnx
from mcn_jax.deploy.wasm import check_compiler
from mcn_jax.deploy.web import PAGE, web_page, write_web_page
from mcn_jax.errors import InputError
from mcn_jax.layers.dense import FORMATS
from mcn_jax.terminal import run_command
from mcn_jax.workdirs.files import environment
from mcn_jax.workdirs.trained import read_trained

GENERATED_IMAGES, SEED = 64, 0  # of `run_generated`
FORMATS_HELP = """\
files in OUT, and who each is for:
  model.safetensors   always      Python programs, and readers in any language
  model.onnx          always      apps and servers with ONNX Runtime
  model.c, model.h,   with --c    microcontrollers and C programs: C99 without any library, and
    model_selftest.c                a program that tests it
  model.html          with --web  everyone with a browser: a page that runs the network offline
"""


def run_generated(
    predictors: Mapping[str, predictor.Predictor], batch_size: int
) -> dict[str, np.ndarray]:
    """Computes the logits {name: [N, classes]} of images of random pixels with each predictor.

    The images are the same ones for all networks that take images of the same size.
    """
    taken = predictors["checkpoint"].images
    shape = (GENERATED_IMAGES, taken.height, taken.width, taken.channels)
    images = np.random.default_rng(SEED).integers(0, 256, shape, np.uint8)
    most = min(member.most_images for member in predictors.values())
    size = min(batch_size, most, len(images))
    batches = [images[start : start + size] for start in range(0, len(images), size)]
    return {
        name: np.concatenate([predictor.logits_of(member, batch, size) for batch in batches])
        for name, member in predictors.items()
    }


def export(
    workdir: pathlib.Path,
    out: pathlib.Path,
    dense: str,
    data: dict[str, Any],
    *,
    evaluate: bool = True,
    c: bool = False,
    web: bool = False,
) -> dict[str, Any]:
    """Writes both files and compares them with the checkpoint.

    Args:
        workdir: work directory of a run, or a checkpoint in it.
        out: directory for the files, created if absent.
        dense: how kernels of dense layers are stored, a name in `FORMATS`.
        data: fields of `DataConfig` that say where the data are now.
        evaluate: whether to compare them on the test split. If not, `run_generated` compares them
            without a data set, and nothing has an "accuracy".
        c: whether to write C source, too. Nothing compiles it here; its self-test compares it.
        web: whether to write a web page, too. It compares its logits with JAX when it opens.

    Returns:
        "model": the model that was written.
        "evaluated": `evaluate`.
        "images": the number of images on which they were compared.
        "parts": the parts of model.safetensors, {"filters": {"bytes": ..., "float32_bytes": ...},
            ...}, with "header" last.
        "checkpoint", "model.safetensors", "model.onnx": for each of them "bytes" on disk and
            "accuracy". For the two files also "difference": the largest difference of a logit from
            the checkpoint's, divided by the largest logit; and "same_class": the share of images
            to which both give the same class. Without ONNX Runtime, "model.onnx" has
            only "bytes".
        "model.c": with `c`, the sizes "arena_bytes" and "constant_bytes" of `CSource`.
        "model.html": with `web`, "bytes" on disk, and "wasm_bytes" of `WebPage`.

    Raises:
        InputError: if there is nothing to export, the data cannot be read, the network has no C
            source, or it cannot be compiled for a web page. Then nothing has been written.
    """
    if web:
        check_compiler()
    trained = read_trained(workdir)
    checkpoint = predictor.of_trained(trained)
    examples = predictor.open_test_split(checkpoint, data) if evaluate else None
    shape = predictor.stored_shape(trained) if examples is None else examples.shape
    model = model_of(trained, shape, dense)
    source = c_source(model) if c or web else None
    page = web_page(model, source) if web and source else None
    out.mkdir(parents=True, exist_ok=True)
    if c and source:
        write_c_source(source, out)
    if page:
        write_web_page(page, out)
    files = {"model.safetensors": write_model, "model.onnx": write_onnx}
    for name, write in files.items():
        write(model, out / name)
    predictors = {"checkpoint": checkpoint}
    predictors["model.safetensors"] = predictor.of_model(read_model(out / "model.safetensors"))
    if predictor.has_onnx_runtime():
        predictors["model.onnx"] = predictor.of_onnx(out / "model.onnx")
    batch_size = trained.config.eval_batch_size
    if examples is None:
        logits, labels = run_generated(predictors, batch_size), None
    else:
        logits, labels = predictor.run_all(predictors, examples, batch_size)
    expected = logits["checkpoint"]
    result: dict[str, Any] = {"model": model, "evaluated": evaluate, "images": len(expected)}
    for name, values in logits.items():
        result[name] = {}
        if labels is not None:
            result[name]["accuracy"] = float(np.mean(values.argmax(1) == labels))
        if name != "checkpoint":
            difference = np.abs(values - expected).max() / np.abs(expected).max()
            result[name]["difference"] = float(difference)
            result[name]["same_class"] = float(np.mean(values.argmax(1) == expected.argmax(1)))
    for name in files:
        result.setdefault(name, {})["bytes"] = (out / name).stat().st_size
    result["checkpoint"]["bytes"] = trained.file_bytes
    parts = model_file.parts(model)
    tensors = sum(there for there, _ in parts.values())
    parts["header"] = (result["model.safetensors"]["bytes"] - tensors, 0)
    result["parts"] = {
        kind: {"bytes": there, "float32_bytes": float32} for kind, (there, float32) in parts.items()
    }
    if c and source:
        result["model.c"] = {
            "arena_bytes": source.arena_bytes, "constant_bytes": source.constant_bytes
        }  # fmt: skip
    if page:
        result[PAGE] = {"bytes": (out / PAGE).stat().st_size, "wasm_bytes": page.wasm_bytes}
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
    measure, title = "same_class", "same class as checkpoint"
    if result["evaluated"]:
        measure, title = "accuracy", "test accuracy"
    table = rich.table.Table("", "bytes", title, "largest difference")
    for name in ("checkpoint", "model.safetensors", "model.onnx"):
        values = result[name]
        untested = "" if name == "checkpoint" else "needs onnxruntime"
        table.add_row(
            name,
            f"{values['bytes']:,}",
            f"{values[measure]:.2%}" if measure in values else untested,
            f"{values['difference']:.1e}" if "difference" in values else "",
        )
    console.print(table)
    if not result["evaluated"]:
        console.print(
            f"Accuracy was not measured. The files were compared with the checkpoint on"
            f" {result['images']} generated images."
        )

    if "model.c" in result:
        sizes = result["model.c"]
        console.print(
            f"model.c: {sizes['constant_bytes']:,} bytes of weights and"
            f" {sizes['arena_bytes']:,} bytes of memory for activations. To test it, run there:"
        )
        command = "cc -std=c99 -O2 model.c model_selftest.c -o selftest && ./selftest && echo equal"
        console.print(command, soft_wrap=True)
    if PAGE in result:
        sizes = result[PAGE]
        console.print(
            f"{PAGE}: {sizes['bytes']:,} bytes, of which WebAssembly {sizes['wasm_bytes']:,} before"
            " encoding. Open it in a browser; it tests itself."
        )


def _ratio(float32: int, there: int) -> str:
    return f"{float32 / there:.1f} x" if float32 else ""


def main(arguments: list[str] | None = None) -> None:
    """Exports one run."""
    parser = make_parser("export", __doc__, epilog=FORMATS_HELP)
    parser.add_argument("workdir", type="path", help="a run, such as runs/digits")
    parser.add_argument("out", type="path", help="directory for the files")
    parser.add_argument(
        "--dense", default="float32", choices=FORMATS, help="how kernels of dense layers are stored"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument(
        "--no-evaluate",
        action="store_true",
        help="compare the files on generated images instead of the test split; needs no data set",
    )
    parser.add_argument(
        "--c",
        action="store_true",
        help="also write model.c, model.h and model_selftest.c, for microcontrollers",
    )
    parser.add_argument(
        "--web",
        action="store_true",
        help="also write model.html, a page that runs the network; needs: pip install ziglang",
    )
    add_places(parser)
    options = parser.parse_args(arguments)
    with one_line_errors("export"):
        data = places(options)
        if options.no_evaluate and data:
            raise InputError(
                f"--{next(iter(data))} has no effect with --no-evaluate; drop one of them"
            )
        result = export(
            options.workdir,
            options.out,
            options.dense,
            data,
            evaluate=not options.no_evaluate,
            c=options.c,
            web=options.web,
        )
        if options.json:
            _print_json(result)
        else:
            _print(result, options.out)


if __name__ == "__main__":
    run_command("export", main)
