"""Whole training steps: MCN, U-MCN and WRN of the same channels: `python benchmarks/step.py`.

Twenty layers, random images of CIFAR-10's shape; augmentation, losses and updates included; one
device. "MCN, direct" convolves with the reconstructed filters. Where PyTorch is installed
(benchmarks/requirements.txt) the same WRN in PyTorch stands beside them: forward, backward and
update on images that need no augmentation.
"""

import argparse
import importlib.util
import statistics
from typing import Any

import jax
import rich.console
import rich.table
from measure import ROOT, add_out, alternated, ratio, write
from networks import TrainingStep, load

from mcn_jax.models.wide_resnet import blocks_per_stage

CONFIG = ROOT / "configs" / "cifar10_20_16_16_32_64.py"
# Widths in maps: (batch size, what is asked of MCN over WRN on a CPU).
NETWORKS = {
    (4, 4, 8, 16): (128, None), (16, 16, 32, 64): (32, 0.8), (32, 64, 128, 256): (8, 0.55),
}  # fmt: skip
HAS_PYTORCH = importlib.util.find_spec("torch") is not None


def measure(widths: tuple[int, ...], batch_size: int, dtype: str, repeats: int) -> dict[str, Any]:
    """Median seconds a step, ratios to the WRN, and bytes of temporary memory."""
    fields = {"model.widths": widths, "dtype": dtype}
    mcn, wrn = load(CONFIG, fields), load(CONFIG, fields | {"model.conv": "conv"})
    steps: dict[str, Any] = {
        "WRN": TrainingStep(wrn, batch_size, binarized=False),
        "U-MCN": TrainingStep(mcn, batch_size, binarized=False),
        "MCN": TrainingStep(mcn, batch_size, binarized=True),
        "MCN, direct": TrainingStep(mcn, batch_size, binarized=True, form="direct"),
    }
    memory = {
        name: step.compiled.memory_analysis().temp_size_in_bytes for name, step in steps.items()
    }
    if HAS_PYTORCH:
        import pytorch_wrn

        channels = tuple(width * mcn.model.planes for width in widths)
        blocks = blocks_per_stage(mcn.model.depth)
        steps["WRN, PyTorch"] = pytorch_wrn.TrainingStep(channels, blocks, batch_size, dtype)
    times = alternated(steps, repeats)
    return {
        "widths": widths,
        "batch_size": batch_size,
        "median_seconds": {name: statistics.median(times[name]) for name in times},
        "over_wrn": {name: ratio(times, name, "WRN") for name in times},
        "temporary_bytes": memory,
    }


def main() -> None:
    """Measures all networks, prints a table and writes results/benchmarks/step.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batch_size", type=int, help="of all networks; default: one for each")
    parser.add_argument("--repeats", type=int, default=20, help="turns that are counted")
    parser.add_argument("--large_repeats", type=int, default=5, help="of the largest network")
    add_out(parser, "step.json")
    options = parser.parse_args()
    table = rich.table.Table(
        "maps", "batch", "network", "median", "over WRN", "asked", "temporary memory"
    )
    records = []
    for widths, (batch_size, asked) in NETWORKS.items():
        repeats = options.large_repeats if widths == max(NETWORKS) else options.repeats
        record = measure(widths, options.batch_size or batch_size, options.dtype, repeats)
        records.append(record | {"repeats": repeats})
        for name, median in record["median_seconds"].items():
            memory = record["temporary_bytes"].get(name)
            table.add_row(
                "-".join(map(str, widths)),
                str(record["batch_size"]),
                name,
                f"{median:.3f} s",
                f"{record['over_wrn'][name]:.2f}",
                f"{asked:.2f}" if asked and name == "MCN" else "",
                f"{memory / 1e6:,.0f} MB" if memory else "",
            )
    rich.console.Console(width=120, highlight=False).print(table)
    device = jax.local_devices()[0].device_kind
    write(options.out, {"device": device, "dtype": options.dtype, "networks": records})


if __name__ == "__main__":
    main()
