"""Compares inference of an exported MCN with the float WRN of the same channels.

    python benchmarks/inference.py

Both networks have twenty layers and random weights. They map random uint8 images of CIFAR-10's
shape to logits. Both run from their model file with JAX. If ONNX Runtime is installed
(benchmarks/requirements.txt), they also run from their ONNX file, each in a process of its own and
in pairs with the MCN in JAX.

The MCN's filters are unpacked once, when the file is loaded. So times differ only by the code of
convolutions: JAX may use the native kernel, but the ONNX graph has ordinary convolutions.
"""

import argparse
import functools
import pathlib
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from measure import ROOT, OtherProcess, add_out, alternated, pairs, ratio, write
from networks import load

from mcn_jax import models
from mcn_jax.config import Config
from mcn_jax.data.facts import DATASETS
from mcn_jax.deploy import predictor
from mcn_jax.deploy.header import InputImages, Network
from mcn_jax.deploy.model_file import Model, packed_tensors, read_model, write_model
from mcn_jax.deploy.onnx import write_onnx
from mcn_jax.memory import keep_freed_memory
from mcn_jax.models.plan import plan_of

CONFIG = ROOT / "configs" / "cifar10_20_16_16_32_64.py"
WIDTHS = ((4, 4, 8, 16), (16, 16, 32, 64), (16, 32, 64, 128))
BATCH_SIZES = (1, 32)


def exported(config: Config, *, quantized: bool) -> Model:
    """Returns the model file of a network with random weights."""
    facts = DATASETS[config.data.name]
    module = models.make_model(config, facts.classes or 0, quantized=quantized)
    images = jax.ShapeDtypeStruct((1, *facts.image_shape), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    generator = np.random.default_rng(config.seed)

    def random(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key == "centers":
            return np.linspace(-0.05, 0.05, leaf.size, dtype=np.float32)
        if path[-1].key in ("m_filters", "var"):
            return generator.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return 0.05 * generator.standard_normal(leaf.shape, np.float32)

    variables = jax.tree_util.tree_map_with_path(random, shapes)
    height, width, channels = facts.image_shape
    return Model(
        network=Network(config, quantized),
        images=InputImages(
            height=height, width=width, channels=channels, mean=facts.mean, std=facts.std
        ),
        class_names=tuple(map(str, range(facts.classes or 0))),
        provenance={},
        tensors=packed_tensors(
            variables, plan_of(config, facts.classes or 0, facts.image_shape), quantized
        ),
    )


def measure(widths: tuple[int, ...], repeats: int) -> list[dict[str, Any]]:
    """Returns one record per batch size: median seconds, ratios, and file sizes.

    "over_wrn" is the ratio of the MCN to the WRN in JAX. "over_onnx_runtime" are the ratios of the
    MCN in JAX to both networks in ONNX Runtime.
    """
    fields = {"model.widths": widths}
    networks = {
        "MCN": exported(load(CONFIG, fields), quantized=True),
        "WRN": exported(load(CONFIG, fields | {"model.conv": "conv"}), quantized=False),
    }
    with tempfile.TemporaryDirectory() as directory:
        paths = {name: pathlib.Path(directory, f"{name}.safetensors") for name in networks}
        graphs = {name: path.with_suffix(".onnx") for name, path in paths.items()}
        for name, model in networks.items():
            write_model(model, paths[name])
            if predictor.has_onnx_runtime():
                write_onnx(model, graphs[name])
        sizes = {f"{name}, JAX": path.stat().st_size for name, path in paths.items()}
        members = {name: predictor.of_model(read_model(path)) for name, path in paths.items()}
        sizes |= {
            f"{name}, ONNX Runtime": path.stat().st_size
            for name, path in graphs.items()
            if path.exists()
        }
        records = []
        for batch_size in BATCH_SIZES:
            shape = members["MCN"].images.shape
            images = np.random.default_rng(0).integers(0, 256, (batch_size, *shape), np.uint8)
            functions = {
                f"{name}, JAX": functools.partial(member.logits, images)
                for name, member in members.items()
            }
            times = alternated(functions, repeats)
            record: dict[str, Any] = {"maps": widths, "batch_size": batch_size}
            record["over_wrn"] = ratio(times, "MCN, JAX", "WRN, JAX")
            record["over_onnx_runtime"] = {}
            for name, path in graphs.items():
                if path.exists():
                    with OtherProcess(_onnx_function, path, images) as other:
                        found = pairs(functions["MCN, JAX"], other, repeats)
                    times[f"{name}, ONNX Runtime"] = [theirs for _, theirs in found]
                    record["over_onnx_runtime"][name] = statistics.median(
                        ours / theirs for ours, theirs in found
                    )
            record["median_seconds"] = {name: statistics.median(times[name]) for name in times}
            records.append(record | {"bytes": sizes})
    return records


def _onnx_function(path: pathlib.Path, images: np.ndarray) -> Callable[[], np.ndarray]:
    return functools.partial(predictor.of_onnx(path).logits, images)


def main() -> None:
    """Measures all networks, prints a table and writes a record to --out."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=20, help="number of counted turns")
    add_out(parser, "inference.json")
    options = parser.parse_args()
    table = rich.table.Table("maps", "batch", "network", "median", "MCN in JAX over this", "file")
    records = []
    for widths in WIDTHS:
        for record in measure(widths, options.repeats):
            records.append(record)
            over = {"WRN, JAX": record["over_wrn"]} | {
                f"{name}, ONNX Runtime": value
                for name, value in record["over_onnx_runtime"].items()
            }
            for name, median in record["median_seconds"].items():
                table.add_row(
                    "-".join(map(str, widths)),
                    str(record["batch_size"]),
                    name,
                    f"{median * 1e3:,.1f} ms",
                    f"{over[name]:.2f}" if name in over else "",
                    f"{record['bytes'][name]:,} bytes",
                )
    rich.console.Console(width=120, highlight=False).print(table)
    device = jax.local_devices()[0].device_kind
    write(options.out, {"device": device, "repeats": options.repeats, "networks": records})


if __name__ == "__main__":
    main()
