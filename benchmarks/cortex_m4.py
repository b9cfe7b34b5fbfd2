"""Builds the C source of small networks for a Cortex-M4, and runs it on QEMU's board mps2-an386.

    python benchmarks/cortex_m4.py    prints a table, writes runs/benchmarks/cortex_m4.json

Needs arm-none-eabi-gcc and qemu-system-arm. On Debian: apt-get install gcc-arm-none-eabi
libnewlib-arm-none-eabi qemu-system-arm. The networks have random weights. Flash and RAM are those
of model.c, as arm-none-eabi-size counts them: without the images, the start-up code and the stack.
QEMU does not count the cycles of a Cortex-M4, so no time is measured.
"""

import argparse
import pathlib
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import rich.console
import rich.table
from inference import exported
from measure import ROOT, add_out, write
from networks import load

from mcn_jax.deploy import predictor
from mcn_jax.deploy.c_source import SOURCE, CSource, c_source, write_c_source
from mcn_jax.deploy.recoding import recoded
from mcn_jax.layers.formats import SMALLEST

BOARD = pathlib.Path(__file__).parent / "board"
COMPILER, SIZE, QEMU = "arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm"
TARGET = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")
STRICT = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Wconversion", "-Werror")
LEVELS = ("-O2", "-Os")
IMAGES = 4
# {name: (config, fields)}
NETWORKS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "digits, 5-10-20-40 maps": ("digits", {}),
    "MNIST at 28x28, 5-10-20-40 maps": ("mnist_28", {}),
    "CIFAR-10, 20 layers, 4-4-8-16 maps": ("cifar10_cpu", {"model.head": "linear"}),
    "CIFAR-10, 20 layers, 8-8-16-32 maps": (
        "cifar10_cpu", {"model.widths": (8, 8, 16, 32), "model.head": "linear"},
    ),
}  # fmt: skip


class Built(NamedTuple):
    """The compiled source of a network.

    Attributes:
        program: runs it on images, see `build`.
        flash: bytes of its code and constants.
        ram: bytes of its variables.
    """

    program: pathlib.Path
    flash: int
    ram: int


def missing_tools() -> list[str]:
    """Returns the names of the tools that this machine lacks."""
    return [tool for tool in (COMPILER, SIZE, QEMU) if not shutil.which(tool)]


def build(
    source: CSource, directory: pathlib.Path, images: np.ndarray, level: str = LEVELS[0]
) -> Built:
    """Builds a program for the board that computes the logits of images.

    Args:
        source: the network.
        directory: for all files.
        images: [N, height, width, channels] uint8 of the network's size.
        level: of optimization.

    Raises:
        RuntimeError: with its errors, if a tool fails. A warning of the compiler is one.
    """
    write_c_source(source, directory)
    rows = ",".join(map(str, images.ravel().tolist()))
    (directory / "images.c").write_text(
        "#include <stddef.h>\n#include <stdint.h>\n"
        f"const size_t num_images = {len(images)};\nconst uint8_t images[] = {{{rows}}};\n"
    )
    network, program = directory / "model.o", directory / "board.elf"
    compiler = (COMPILER, *TARGET, level, f"-I{directory}")
    _run(*compiler, *STRICT, "-c", directory / SOURCE, "-o", network)
    files = (BOARD / "startup.c", BOARD / "main.c", directory / "images.c", network)
    _run(*compiler, "-nostartfiles", "-T", BOARD / "board.ld", *files, "-o", program)
    code, initialized, zeros, *_ = _run(SIZE, network).splitlines()[1].split()
    return Built(program, int(code) + int(initialized), int(initialized) + int(zeros))


def logits_of(built: Built, count: int) -> np.ndarray:
    """Runs the program on QEMU, and returns the logits [count, classes] of its images."""
    printed = _run(
        QEMU, "-machine", "mps2-an386", "-kernel", built.program, "-display", "none",
        "-monitor", "none", "-serial", "none", "-chardev", "stdio,id=out",
        "-semihosting-config", "chardev=out",
    )  # fmt: skip
    bits = np.array([int(word, 16) for word in printed.split()], np.uint32)
    return bits.view(np.float32).reshape(count, -1)


def _run(*command: str | pathlib.Path) -> str:
    done = subprocess.run(command, capture_output=True, check=False, timeout=900, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr[:2000]}")
    return done.stdout


def measure(name: str) -> dict[str, Any]:
    """Returns the record of one network.

    "difference" is the largest difference of a logit on the board from that of the same file in
    JAX, over the largest logit. "sizes" are {storage of the other numbers: {optimization:
    {"flash": ..., "ram": ...}}}.
    """
    config, fields = NETWORKS[name]
    model = exported(load(ROOT / "configs" / f"{config}.py", fields), quantized=True)
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, *model.images.shape), np.uint8)
    sizes: dict[str, Any] = {}
    differences = []
    for storage, stored in {"float32": model, "--small": recoded(model, SMALLEST)}.items():
        expected = predictor.of_model(stored).logits(images)
        sizes[storage] = {}
        for level in LEVELS:
            with tempfile.TemporaryDirectory() as directory:
                built = build(c_source(stored), pathlib.Path(directory), images, level)
                found = logits_of(built, IMAGES)
            differences.append(np.abs(found - expected).max() / np.abs(expected).max())
            sizes[storage][level] = {"flash": built.flash, "ram": built.ram}
    return {"network": name, "difference": float(max(differences)), "sizes": sizes}


def main() -> None:
    """Measures all networks, prints a table and writes a record to --out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_out(parser, "cortex_m4.json")
    options = parser.parse_args()
    if missing := missing_tools():
        parser.error(f"{missing[0]} is not installed; see --help for the packages")
    compiler = _run(COMPILER, "--version").splitlines()[0]
    table = rich.table.Table("network", "numbers", "level", "flash", "RAM", title=compiler)
    records = []
    for name in NETWORKS:
        records.append(measure(name))
        for storage, levels in records[-1]["sizes"].items():
            for level, size in levels.items():
                cells = (f"{size['flash']:,} bytes", f"{size['ram']:,} bytes")
                table.add_row(name, storage, level, *cells)
    rich.console.Console(width=140, highlight=False).print(table)
    write(options.out, {"compiler": compiler, "networks": records})


if __name__ == "__main__":
    main()
