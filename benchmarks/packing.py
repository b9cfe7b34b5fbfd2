"""Measures packing filters into bits, and unpacking them: `python benchmarks/packing.py`.

The times are compared with numpy.packbits and numpy.unpackbits for the same number of bits. The
number of weights is that of 20 layers with 32-64-128-256 maps. Weights have two centers (one bit
each) or four (two bits each).
"""

import argparse
import statistics
from typing import Any

import numpy as np
import rich.console
import rich.table
from measure import add_out, alternated, ratio, write

from mcn_jax.ops.packing import bits_per_weight, pack, unpack

WEIGHTS = 17_100_000
SLOWEST = 4  # target: at most this many times the time of NumPy


def measure(num_centers: int, repeats: int) -> dict[str, Any]:
    """Returns median seconds, and ratios to NumPy."""
    generator, bits = np.random.default_rng(0), bits_per_weight(num_centers)
    codes = generator.integers(0, num_centers, WEIGHTS, np.uint8)
    packed = pack(codes, num_centers)
    plain = generator.integers(0, 2, WEIGHTS * bits, np.uint8)
    plain_packed = np.packbits(plain, bitorder="little")
    times = alternated(
        {
            "pack": lambda: pack(codes, num_centers),
            "numpy.packbits": lambda: np.packbits(plain, bitorder="little"),
            "unpack": lambda: unpack(packed, codes.shape),
            "numpy.unpackbits": lambda: np.unpackbits(plain_packed, bitorder="little"),
        },
        repeats,
    )
    return {
        "centers": num_centers,
        "median_seconds": {name: statistics.median(times[name]) for name in times},
        "over_numpy": {
            name: ratio(times, name, f"numpy.{name}bits") for name in ("pack", "unpack")
        },
    }


def main() -> None:
    """Measures, prints a table and writes a record to --out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=20, help="number of counted turns")
    add_out(parser, "packing.json")
    options = parser.parse_args()
    records = [measure(num_centers, options.repeats) for num_centers in (2, 4)]
    table = rich.table.Table("centers", "", "median", "over NumPy", "target")
    for record in records:
        for name, over in record["over_numpy"].items():
            seconds = f"{record['median_seconds'][name] * 1e3:.1f} ms"
            table.add_row(str(record["centers"]), name, seconds, f"{over:.2f}", str(SLOWEST))
    rich.console.Console(highlight=False).print(table)
    write(options.out, {"repeats": options.repeats, "weights": WEIGHTS, "codes": records})


if __name__ == "__main__":
    main()
