"""Compares inference of an exported MCN with the float WRN of the same channels.

    python benchmarks/inference.py

Both networks have twenty layers and random weights. They map random uint8 images of CIFAR-10's
shape to logits. Both run from their model file with JAX. If ONNX Runtime is installed
(benchmarks/requirements.txt), they also run from their ONNX file.

The MCN's filters are unpacked once, when the file is loaded. So times differ only by the form of
MCconv: JAX may use the factored form, but the ONNX graph uses an ordinary convolution.
"""

import argparse
import pathlib
import statistics
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from measure import ROOT, add_out, alternated, ratio, write
from networks import load

from mcn_jax import models
from mcn_jax.config import Config
from mcn_jax.data.facts import DATASETS
from mcn_jax.deploy import predictor
from mcn_jax.deploy.header import InputImages, Network
from mcn_jax.deploy.model_file import Model, packed_tensors, read_model, write_model
from mcn_jax.deploy.onnx import write_onnx
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
    """Returns one record per batch size: median seconds, ratios to the WRN, and file sizes.

    A ratio compares two networks in the same runtime.
    """
    fields = {"model.widths": widths}
    networks = {
        "MCN": exported(load(CONFIG, fields), quantized=True),
        "WRN": exported(load(CONFIG, fields | {"model.conv": "conv"}), quantized=False),
    }
    members, sizes = {}, {}
    with tempfile.TemporaryDirectory() as directory:
        for name, model in networks.items():
            path = pathlib.Path(directory, f"{name}.safetensors")
            write_model(model, path)
            members[f"{name}, JAX"] = predictor.of_model(read_model(path))
            sizes[f"{name}, JAX"] = path.stat().st_size
            if predictor.has_onnx_runtime():
                path = path.with_suffix(".onnx")
                write_onnx(model, path)
                members[f"{name}, ONNX Runtime"] = predictor.of_onnx(path)
                sizes[f"{name}, ONNX Runtime"] = path.stat().st_size
    records = []
    shape = next(iter(members.values())).images.shape
    for batch_size in BATCH_SIZES:
        images = np.random.default_rng(0).integers(0, 256, (batch_size, *shape), np.uint8)
        functions = {
            name: lambda member=member, images=images: member.logits(images)
            for name, member in members.items()
        }
        # Threads of one runtime may still spin when the other starts, so they do not alternate.
        times = {}
        for runtime in ("JAX", "ONNX Runtime"):
            times |= alternated({n: f for n, f in functions.items() if runtime in n}, repeats)
        records.append(
            {
                "maps": widths,
                "batch_size": batch_size,
                "median_seconds": {name: statistics.median(times[name]) for name in times},
                "over_wrn": {
                    name: ratio(times, name, name.replace("MCN", "WRN"))
                    for name in times
                    if name.startswith("MCN")
                },
                "bytes": sizes,
            }
        )
    return records


def main() -> None:
    """Measures all networks, prints a table and writes a record to --out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=20, help="number of counted turns")
    add_out(parser, "inference.json")
    options = parser.parse_args()
    table = rich.table.Table("maps", "batch", "network", "median", "over WRN", "file")
    records = []
    for widths in WIDTHS:
        for record in measure(widths, options.repeats):
            records.append(record)
            for name, median in record["median_seconds"].items():
                table.add_row(
                    "-".join(map(str, widths)),
                    str(record["batch_size"]),
                    name,
                    f"{median * 1e3:,.1f} ms",
                    f"{record['over_wrn'][name]:.2f}" if name in record["over_wrn"] else "",
                    f"{record['bytes'][name]:,} bytes",
                )
    rich.console.Console(width=120, highlight=False).print(table)
    device = jax.local_devices()[0].device_kind
    write(options.out, {"device": device, "repeats": options.repeats, "networks": records})


if __name__ == "__main__":
    main()
