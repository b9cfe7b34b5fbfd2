"""Compares the C source of an MCN with the float network of its channels in ONNX Runtime.

    python benchmarks/c_inference.py    prints a table, writes runs/benchmarks/c_inference.json

Both run one image at a time on one core. The networks have random weights. The C source is compiled
by `cc` for the processor of this machine, and called in this process. ONNX Runtime has one thread.
They run in turn. Memory is what a process of its own gains from before it opens the network until
it has run it, without the libraries that it had loaded before. It is read from Linux's /proc.
"""

import argparse
import concurrent.futures
import functools
import multiprocessing
import os
import pathlib
import shutil
import statistics
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import rich.console
import rich.table
from inference import exported
from measure import ROOT, add_out, alternated, ratio, write
from networks import load

from mcn_jax.deploy.c_library import compiled, function_of
from mcn_jax.deploy.c_source import c_source
from mcn_jax.deploy.onnx import write_onnx
from mcn_jax.deploy.predictor import INPUT

FLAGS = ("-O3", "-march=native")
CALLS = 10  # before the memory is read
# {name: (config, fields of the MCN)}
NETWORKS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "digits, 5-10-20-40 maps": ("digits", {}),
    "CIFAR-10, 20 layers, 8-8-16-32 maps": (
        "cifar10_20_16_16_32_64", {"model.widths": (8, 8, 16, 32), "model.head": "linear"},
    ),
}  # fmt: skip


def of_c(library: pathlib.Path, image: np.ndarray, classes: int) -> Callable[[], np.ndarray]:
    """Returns a function that computes the logits [classes] of an image by the compiled source."""
    return functools.partial(function_of(library, classes), image)


def of_onnx(path: pathlib.Path, image: np.ndarray) -> Callable[[], np.ndarray]:
    """Returns a function that computes the logits of an image by ONNX Runtime, in one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    feeds = {INPUT: image[None]}
    return lambda: session.run(None, feeds)[0][0]


def gained_bytes(make: Callable[..., Callable[[], Any]], *arguments: Any) -> int:
    """Returns the memory that a process of its own gains when it opens and runs a network."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_gained_here, make, *arguments).result()


def _gained_here(make: Callable[..., Callable[[], Any]], *arguments: Any) -> int:
    import onnxruntime  # noqa: F401  # before memory is read

    before = _resident_bytes()
    function = make(*arguments)
    for _ in range(CALLS):
        function()
    return _resident_bytes() - before


def _resident_bytes() -> int:
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Returns the record of one network.

    "over_onnx_runtime" is the median ratio of the times, C over ONNX Runtime; "memory_over" that of
    the memory; "difference" is the largest difference of a logit between the C source and the same
    network in ONNX Runtime, over the largest logit.
    """
    config, fields = NETWORKS[name]
    path = ROOT / "configs" / f"{config}.py"
    mcn = exported(load(path, fields), quantized=True)
    floats = exported(load(path, {**fields, "model.conv": "conv"}), quantized=False)
    shape, classes = mcn.images.shape, len(mcn.class_names)
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    with tempfile.TemporaryDirectory() as place:
        directory = pathlib.Path(place)
        library = compiled(c_source(mcn), directory, FLAGS)
        graphs = {"float": directory / "float.onnx", "mcn": directory / "mcn.onnx"}
        write_onnx(floats, graphs["float"])
        write_onnx(mcn, graphs["mcn"])
        c_function = functools.partial(of_c, library, image, classes)
        functions = {"C": c_function(), "ONNX Runtime": of_onnx(graphs["float"], image)}
        expected, found = of_onnx(graphs["mcn"], image)(), functions["C"]()
        difference = float(np.abs(found - expected).max() / np.abs(expected).max())
        times = alternated(functions, repeats)
        memory = {
            "C": gained_bytes(of_c, library, image, classes),
            "ONNX Runtime": gained_bytes(of_onnx, graphs["float"], image),
        }
        return {
            "network": name,
            "median_seconds": {side: statistics.median(found) for side, found in times.items()},
            "over_onnx_runtime": ratio(times, "C", "ONNX Runtime"),
            "memory_bytes": memory,
            "memory_over": memory["C"] / memory["ONNX Runtime"],
            "file_bytes": {
                "C": library.stat().st_size, "ONNX Runtime": graphs["float"].stat().st_size,
            },
            "difference": difference,
        }  # fmt: skip


def main() -> None:
    """Measures all networks, prints a table and writes a record to --out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=50, help="number of counted turns")
    add_out(parser, "c_inference.json")
    options = parser.parse_args()
    if shutil.which("cc") is None:
        parser.error("there is no C compiler named cc; install one, such as gcc")
    table = rich.table.Table("network", "side", "time", "over", "memory", "over", "file")
    records = []
    for name in NETWORKS:
        record = measure(name, options.repeats)
        records.append(record)
        for side, seconds in record["median_seconds"].items():
            is_c = side == "C"
            table.add_row(
                name if is_c else "",
                "MCN in C" if is_c else "float network in ONNX Runtime",
                f"{1e3 * seconds:.2f} ms",
                f"{record['over_onnx_runtime']:.2f}" if is_c else "",
                f"{record['memory_bytes'][side]:,} bytes",
                f"{record['memory_over']:.2f}" if is_c else "",
                f"{record['file_bytes'][side]:,} bytes",
            )
    rich.console.Console(width=140, highlight=False).print(table)
    write(options.out, {"repeats": options.repeats, "networks": records})


if __name__ == "__main__":
    main()
