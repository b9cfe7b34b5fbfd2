"""Measures the cost of the input pipelines: `python benchmarks/input.py`.

1. Resident: the jitted input function against a whole training step of configs/cifar10.py, on
   random data. The input function turns row numbers into augmented and normalised images.
2. Streamed: the whole streamed source against a bare loop of Pillow, on JPEGs of 500x375 pixels.
   The source reads ArrayRecord, decodes, crops to 224x224 in worker processes and places images on
   the devices. The loop decodes JPEGs in memory, crops and resizes, in as many processes.

Both sides of a ratio run alternately in one process. Medians are printed and written as JSON.
"""

import argparse
import functools
import io
import itertools
import multiprocessing
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np
import rich.console
import rich.table
from measure import ROOT, add_out, alternated, ratio, write
from networks import TrainingStep, load
from PIL import Image

from mcn_jax import parallel
from mcn_jax.config import Config, DataConfig
from mcn_jax.data import images
from mcn_jax.data.dataset import open_dataset
from mcn_jax.data.sources import make_source
from mcn_jax.seeds import Purpose, example_generators
from mcn_jax.training.steps import step_inputs

SIZE, MIN_AREA = 224, 0.08


def resident(config_path: pathlib.Path, batch_size: int, repeats: int) -> dict:
    """Measures the input function and a training step, both on one device."""
    step = TrainingStep(load(config_path), batch_size, quantized=True)
    inputs = jax.jit(functools.partial(step_inputs, settings=step.settings))
    functions = {
        "input function": lambda: inputs(step.split, step.batch, step.state.step),
        "training step": step,
    }
    times = alternated(functions, repeats)
    return {
        "config": str(config_path.relative_to(ROOT)),
        "batch_size": batch_size,
        "repeats": repeats,
        "median_seconds": {name: statistics.median(times[name]) for name in times},
        "ratio": ratio(times, *functions),
        "target": "at most 0.02",
    }


def photo(generator: np.random.Generator) -> bytes:
    """Returns a random JPEG of 500x375 pixels (about 100 kB) with the spectrum of a photograph."""
    y, x = np.fft.fftfreq(375)[:, None], np.fft.rfftfreq(500)[None, :]
    amplitude = 1 / np.maximum(np.hypot(y, x), 1 / 500)
    planes = []
    for _ in range(3):
        phases = generator.uniform(0, 2 * np.pi, amplitude.shape)
        plane = np.fft.irfft2(amplitude * np.exp(1j * phases), (375, 500))
        planes.append(128 + 50 * plane / plane.std())
    pixels = np.stack(planes, -1).clip(0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=92)
    return file.getvalue()


def bare_loop(paths: list[str], repeats: int) -> float:
    """Returns the seconds that one process takes to decode and crop files `repeats` times."""
    contents = [pathlib.Path(path).read_bytes() for path in paths]
    positions = np.arange(len(contents))
    start = time.perf_counter()
    for repeat in range(repeats):
        generators = example_generators(0, Purpose.RANDOM_CROP, repeat, positions)
        for content, generator in zip(contents, generators, strict=True):
            with Image.open(io.BytesIO(content)) as image:
                box = images.random_box(*image.size, MIN_AREA, generator)
                # The JPEG is decoded at full size, not at a reduced scale.
                np.asarray(
                    image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR, box)
                )
    return time.perf_counter() - start


def streamed(photos: int, batches: int, repeats: int) -> dict:
    """Measures the images per second of the streamed source and of the bare loop."""
    cores = parallel.host_cores() or 1
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder, "photos")
        for number in range(photos):
            path = root / "train" / f"class_{number % 2}" / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(photo(generator))
        for name in ("class_0", "class_1"):
            (root / "test" / name).mkdir(parents=True)
            (root / "test" / name / "0.jpg").write_bytes(photo(generator))
        paths = [str(path) for path in sorted((root / "train").rglob("*.jpg"))]
        config = Config(
            batch_size=64,
            num_epochs=10**6,
            data=DataConfig(
                name="image_folder", root=str(root), data_dir=folder, image_size=SIZE,
                min_crop_area=MIN_AREA, pipeline="streamed",
            ),
        )  # fmt: skip
        source = make_source(config, open_dataset(config.data))
        stream = itertools.chain.from_iterable(
            itertools.chain(source.train_batches(epoch), source.test_batches(epoch))
            for epoch in itertools.count()
        )
        shares = [paths[core::cores] for core in range(cores)]
        loops = -(-batches * config.batch_size // photos)
        rates: dict[str, list[float]] = {"streamed": [], "bare loop": []}
        with multiprocessing.get_context("spawn").Pool(cores) as pool:
            for repeat in range(repeats + 1):  # the first is not counted
                slowest = max(pool.starmap(bare_loop, [(share, loops) for share in shares]))
                bare = loops * len(paths) / slowest
                # Batches that were decoded ahead during the bare loop must not count.
                for _ in range(3 * cores + 3):
                    next(stream)
                start = time.perf_counter()
                seen = 0
                while seen < batches * config.batch_size:
                    split, batch = next(stream)
                    if hasattr(batch, "positions"):
                        jax.block_until_ready(split)
                        seen += config.batch_size
                rate = seen / (time.perf_counter() - start)
                if repeat:
                    rates["streamed"].append(rate)
                    rates["bare loop"].append(bare)
        source.close()
    return {
        "processes": cores,
        "images": photos,
        "batch_size": config.batch_size,
        "repeats": repeats,
        "median_images_per_second": {n: statistics.median(v) for n, v in rates.items()},
        "ratio": statistics.median(a / b for a, b in zip(*rates.values(), strict=True)),
        "target": "at least 0.8",
    }


def main() -> None:
    """Runs both, prints a table and writes a record to --out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/cifar10.py", help="of the training step")
    parser.add_argument("--batch_size", type=int, default=8, help="in the training step")
    parser.add_argument("--repeats", type=int, default=20, help="turns of the training step")
    parser.add_argument("--photos", type=int, default=512, help="different JPEGs, an even number")
    parser.add_argument("--batches", type=int, default=24, help="batches of 64 per measurement")
    parser.add_argument("--rounds", type=int, default=5, help="number of streamed measurements")
    add_out(parser, "input.json")
    options = parser.parse_args()
    record = {
        "streamed": streamed(options.photos, options.batches, options.rounds),
        "resident": resident(ROOT / options.config, options.batch_size, options.repeats),
    }
    table = rich.table.Table("input", "a", "b", "a / b", "target")
    a, b = record["resident"]["median_seconds"].items()
    table.add_row(
        f"resident, {record['resident']['config']}, batch {options.batch_size}",
        f"{a[0]} {1000 * a[1]:.2f} ms", f"{b[0]} {1000 * b[1]:,.0f} ms",
        f"{record['resident']['ratio']:.5f}", record["resident"]["target"],
    )  # fmt: skip
    a, b = record["streamed"]["median_images_per_second"].items()
    table.add_row(
        f"streamed JPEG, {record['streamed']['processes']} processes",
        f"{a[0]} {a[1]:.0f} images/s", f"{b[0]} {b[1]:.0f} images/s",
        f"{record['streamed']['ratio']:.3f}", record["streamed"]["target"],
    )  # fmt: skip
    rich.console.Console(width=160, highlight=False).print(table)
    write(options.out, record)


if __name__ == "__main__":
    main()
