"""Exports a trained network: `python -m mcn_jax.export WORKDIR OUT`.

Writes OUT/model.safetensors and OUT/model.onnx, in which every binary filter weight takes
ceil(log2 U) bits. Then reads the files, runs them on the test split, and prints their sizes and
accuracies. WORKDIR is only read; WORKDIR/checkpoints/STEP exports an earlier checkpoint, and a
model.safetensors is exported again, to another directory.
--small makes the smallest files; compare the accuracies that the command prints.
--no-evaluate needs no data set: it runs the files on generated images, and measures no accuracy.
--c and --web write further files.
"""

import contextlib
import json
import pathlib
import sys
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import rich.console
import rich.markup
import rich.table

from mcn_jax.command_line import add_places, make_parser, one_line_errors, places
from mcn_jax.config import Config
from mcn_jax.data.examples import Examples
from mcn_jax.deploy import model_file, predictor
from mcn_jax.deploy.c_library import of_c_source
from mcn_jax.deploy.c_source import SOURCE, c_source, write_c_source
from mcn_jax.deploy.model_file import Model, model_of, read_model, write_model
from mcn_jax.deploy.onnx import write_onnx
from mcn_jax.deploy.recoding import CHOICES, recoded, savings
from mcn_jax.deploy.wasm import check_compiler
from mcn_jax.deploy.web import PAGE, web_page, write_web_page
from mcn_jax.errors import InputError
from mcn_jax.layers.formats import DENSE_FORMATS, SCALE_FORMATS, SMALLEST, Formats
from mcn_jax.terminal import run_command
from mcn_jax.workdirs.files import environment
from mcn_jax.workdirs.trained import read_trained

GENERATED_IMAGES, SEED = 64, 0  # of `run_generated`
# Least share of images that must get the same class from all exported files. Rounding changes
# fewer, even where it flips signs of activations. Images whose two best logits differ by less than
# this part of the largest one do not count.
LEAST_AGREEMENT, NEARLY_TIED = 0.9, 1e-3
CHECKPOINT, GIVEN_FILE = "checkpoint", "given file"  # what is exported
FORMATS_HELP = """\
files in OUT, and who each is for:
  model.safetensors   always      Python programs, and readers in any language
  model.onnx          always      apps and servers with ONNX Runtime
  model.c, model.h,   with --c    microcontrollers and C programs: C99 without any library, and
    model_selftest.c                a program that tests it
  model.html          with --web  everyone with a browser: a page that runs the network offline
"""


class Source(NamedTuple):
    """What is exported.

    Attributes:
        name: `CHECKPOINT` or `GIVEN_FILE`.
        member: runs it.
        examples: the test split; None if it is not to be read.
        model: the content of its model file.
        file_bytes: of all its files.
        batch_size: most images at once.
    """

    name: str
    member: predictor.Predictor
    examples: Examples | None
    model: Model
    file_bytes: int
    batch_size: int


def open_source(
    path: pathlib.Path, formats: Formats, data: dict[str, Any], *, evaluate: bool
) -> Source:
    """Opens what `export` is given; see there for the arguments and errors."""
    if path.suffix == ".safetensors":
        given = read_model(path)
        member = predictor.of_model(given, path)
        examples = predictor.open_test_split(member, data) if evaluate else None
        model, file_bytes = recoded(given, formats), path.stat().st_size
        return Source(GIVEN_FILE, member, examples, model, file_bytes, Config.eval_batch_size)
    trained = read_trained(path)
    member = predictor.of_trained(trained, data)
    examples = predictor.open_test_split(member, data) if evaluate else None
    shape = predictor.stored_shape(trained, data) if examples is None else examples.shape
    model, batch_size = model_of(trained, shape, formats), trained.config.eval_batch_size
    return Source(CHECKPOINT, member, examples, model, trained.file_bytes, batch_size)


def run_generated(
    predictors: Mapping[str, predictor.Predictor], batch_size: int
) -> dict[str, np.ndarray]:
    """Computes the logits {name: [N, classes]} of images of random pixels with each predictor.

    The images are the same ones for all networks that take images of the same size.
    """
    taken = next(iter(predictors.values())).images
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
    source: pathlib.Path,
    out: pathlib.Path,
    formats: Formats,
    data: dict[str, Any],
    *,
    evaluate: bool = True,
    c: bool = False,
    web: bool = False,
) -> dict[str, Any]:
    """Writes the files, and compares all but the page with what is exported.

    Args:
        source: work directory of a run, a checkpoint in it, or a `.safetensors` file.
        out: directory for the files, created if absent.
        formats: how numbers are stored; "float32" leaves those of a file unchanged.
        data: fields of `DataConfig` that say where the data are now.
        evaluate: whether to compare them on the test split. If not, `run_generated` compares them
            without a data set, and nothing has an "accuracy".
        c: whether to write C source, too.
        web: whether to write a web page, too. It compares its logits with JAX when it opens.

    Returns:
        "model": the model that was written.
        "evaluated": `evaluate`.
        "images": the number of images on which they were compared.
        "parts": the parts of model.safetensors, {"filters": {"bytes": ..., "float32_bytes": ...},
            ...}, with "header" last.
        "savings": what the options would save that were not chosen, see `savings`.
        "checkpoint" or "given file", "model.safetensors", "model.onnx": for each of them "bytes" on
            disk and "accuracy". For the two files also "difference": the largest difference of a
            logit from that of the source, divided by the largest logit; and "same_class": the share
            of images to which both give the same class. Without ONNX Runtime, "model.onnx" has only
            "bytes".
        "model.c": with `c`, the sizes "arena_bytes" and "constant_bytes" of `CSource`, and the same
            comparisons. If it could not be compiled here, "untested" says why instead.
        "model.html": with `web`, "bytes" on disk, and "wasm_bytes" of `WebPage`.

    Raises:
        InputError: if there is nothing to export, the data cannot be read, the network has no C
            source or cannot be compiled for a web page, or `source` is the file that would be
            written. Then nothing has been written. Also if a written file computes other classes
            than model.safetensors; the files stay in `out`.
    """
    if web:
        check_compiler()
    files = {"model.safetensors": write_model, "model.onnx": write_onnx}
    if source.resolve() == (out / "model.safetensors").resolve():
        raise InputError(f"{source} would be overwritten; name another directory than {out}")
    opened = open_source(source, formats, data, evaluate=evaluate)
    model, examples = opened.model, opened.examples
    program = c_source(model) if c or web else None
    page = web_page(model, program) if web and program is not None else None
    out.mkdir(parents=True, exist_ok=True)
    if c and program is not None:
        write_c_source(program, out)
    if page is not None:
        write_web_page(page, out)
    for name, write in files.items():
        write(model, out / name)
    predictors = {opened.name: opened.member}
    predictors["model.safetensors"] = predictor.of_model(read_model(out / "model.safetensors"))
    if predictor.has_onnx_runtime():
        predictors["model.onnx"] = predictor.of_onnx(out / "model.onnx")
    untested = {}
    if c and program is not None:
        try:
            with tempfile.TemporaryDirectory(prefix="mcn_jax_c_") as place:
                predictors[SOURCE] = of_c_source(
                    program, predictors["model.safetensors"], pathlib.Path(place)
                )
        except InputError as error:
            untested["untested"] = str(error)
    if examples is None:
        logits, labels = run_generated(predictors, opened.batch_size), None
    else:
        logits, labels = predictor.run_all(predictors, examples, opened.batch_size)
    _check_agreement(out, logits)
    expected = logits[opened.name]
    result: dict[str, Any] = {"model": model, "evaluated": evaluate, "images": len(expected)}
    for name, values in logits.items():
        result[name] = {}
        if labels is not None:
            result[name]["accuracy"] = float(np.mean(values.argmax(1) == labels))
        if name != opened.name:
            difference = np.abs(values - expected).max() / np.abs(expected).max()
            result[name]["difference"] = float(difference)
            result[name]["same_class"] = float(np.mean(values.argmax(1) == expected.argmax(1)))
    for name in files:
        result.setdefault(name, {})["bytes"] = (out / name).stat().st_size
    result[opened.name]["bytes"] = opened.file_bytes
    parts = model_file.parts(model)
    tensors = sum(there for there, _ in parts.values())
    parts["header"] = (result["model.safetensors"]["bytes"] - tensors, 0)
    result["parts"] = {
        kind: {"bytes": there, "float32_bytes": float32} for kind, (there, float32) in parts.items()
    }
    result["savings"] = {option: saving._asdict() for option, saving in savings(model).items()}
    if c and program is not None:
        result.setdefault(SOURCE, untested).update(
            arena_bytes=program.arena_bytes, constant_bytes=program.constant_bytes
        )
    if page is not None:
        result[PAGE] = {"bytes": (out / PAGE).stat().st_size, "wasm_bytes": page.wasm_bytes}
    return result


def _check_agreement(out: pathlib.Path, logits: Mapping[str, np.ndarray]) -> None:
    """Raises InputError if a file in `out` computes other classes than model.safetensors."""
    expected = logits["model.safetensors"]
    if expected.shape[1] == 1:  # one class cannot differ
        return
    *_, second, best = np.sort(expected, axis=1).T
    clear = best - second > NEARLY_TIED * np.abs(expected).max()
    for name in ("model.onnx", SOURCE):
        if name not in logits or not clear.any():
            continue
        share = np.mean((logits[name].argmax(1) == expected.argmax(1))[clear])
        if share < LEAST_AGREEMENT:
            raise InputError(
                f"{out / name} gives another class than model.safetensors to {1 - share:.0%} of the"
                " images, so it is wrong; use another file, and report this network as a bug"
            )


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
    for option, saving in result["savings"].items():
        named = " and ".join(saving["parts"])
        console.print(
            f"{option} would store {named} in {saving['smaller']:,} bytes instead of"
            f" {saving['there']:,}",
            soft_wrap=True,
        )
    if len(result["savings"]) == len(CHOICES):
        console.print(f"--small chooses {' and '.join(CHOICES)}", soft_wrap=True)
    source = CHECKPOINT if CHECKPOINT in result else GIVEN_FILE
    measure, title = "same_class", f"same class as {source}"
    if result["evaluated"]:
        measure, title = "accuracy", "test accuracy"
    table = rich.table.Table("", "bytes", title, "largest difference")
    for name in (source, "model.safetensors", "model.onnx", SOURCE):
        if name not in result:
            continue
        values = result[name]
        untested = "" if name == source else "needs onnxruntime"
        untested = rich.markup.escape(values.get("untested", untested))
        table.add_row(
            name,
            f"{values['bytes']:,}" if "bytes" in values else "",
            f"{values[measure]:.2%}" if measure in values else untested,
            f"{values['difference']:.1e}" if "difference" in values else "",
        )
    console.print(table)
    if not result["evaluated"]:
        console.print(
            f"Accuracy was not measured. The files were compared with the {source} on"
            f" {result['images']} generated images."
        )

    if SOURCE in result:
        sizes = result[SOURCE]
        console.print(
            f"{SOURCE}: {sizes['constant_bytes']:,} bytes of weights and"
            f" {sizes['arena_bytes']:,} bytes of memory for activations. To test it elsewhere:"
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
    """Exports one network."""
    parser = make_parser("export", __doc__, epilog=FORMATS_HELP)
    parser.add_argument(
        "source",
        type="path",
        metavar="WORKDIR",
        help="a run, such as runs/digits, a checkpoint of it, or a model.safetensors",
    )
    parser.add_argument("out", type="path", metavar="OUT", help="directory for the files")
    parser.add_argument(
        "--small",
        action="store_true",
        help=f"short for --dense={SMALLEST.dense} --scales={SMALLEST.scales}",
    )
    parser.add_argument(
        "--dense", choices=DENSE_FORMATS, help="kernels of dense layers; float32 unless given"
    )
    parser.add_argument(
        "--scales",
        choices=SCALE_FORMATS,
        help="batch norm, M-filters and the scales of one-bit filters; float32 unless given",
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
        default = SMALLEST if options.small else Formats()
        formats = Formats(options.dense or default.dense, options.scales or default.scales)
        # If data are prepared, a message says so; stdout is for JSON.
        with contextlib.redirect_stdout(sys.stderr if options.json else sys.stdout):
            result = export(
                options.source,
                options.out,
                formats,
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
