"""Makes the loads for launch/accelerator.sh: what an air-gapped machine with a GPU still lacks.

    python launch/accelerator/pack.py .carry --data cifar10 --archive_dir=DIR

writes .carry/1, .carry/2 and so on. Each load has the wheels of `WHEELS` and the revision of this
source tree, so the stages that need no data run with any load. After a change of the source tree,
--revision_only brings the revision up to date. The packed data sets are spread over
the loads. A load fits, together with this source tree without results/, into a channel of 64 MiB.

The machine needs Python with jax for its GPU, flax, optax, orbax-checkpoint, onnx, numpy, scipy,
scikit-learn, matplotlib, pillow, protobuf, requests, rich, safetensors and absl-py. It needs
neither TFDS nor ArrayRecord nor Grain.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Sequence

from source import write_revision

from mcn_jax.config import DataConfig
from mcn_jax.data.dataset import open_store
from mcn_jax.data.packed import pack
from mcn_jax.errors import InputError
from mcn_jax.paths import user_path
from mcn_jax.workdirs.files import git_revision

WHEELS = ("ml-collections", "tensorboardX")
LOAD_BYTES = 54_000_000


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=pathlib.Path, help="directory for the loads, such as .carry")
    parser.add_argument("--data", default="", help="data sets to pack, separated by commas")
    parser.add_argument("--archive_dir", default="", help="directory of the official archives")
    parser.add_argument("--data_dir", default=DataConfig().data_dir, help="prepared data sets")
    parser.add_argument(
        "--revision_only",
        action="store_true",
        help="only write the present revision into the loads, after a change of the source tree",
    )
    parser.add_argument("--load_bytes", type=int, default=LOAD_BYTES, help="largest data of a load")
    options = parser.parse_args(arguments)
    try:
        options.out = user_path(options.out)
        make_loads(options)
    except (InputError, OSError) as error:
        print(f"launch/accelerator/pack.py: error: {error}", file=sys.stderr)
        return 1
    return 0


def make_loads(options: argparse.Namespace) -> None:
    """Writes all loads.

    Raises:
        InputError: if a data set or a wheel cannot be obtained, or a file is larger than a load.
    """
    old = sorted(path for path in options.out.glob("*") if path.name.isdecimal())
    if options.revision_only:
        if not old:
            raise InputError(f"{options.out} has no loads; leave out --revision_only to make them")
        for load in old:
            write_revision(load, git_revision())
        return
    if old:
        raise InputError(f"{options.out} has the load {old[0].name}; delete it to make the loads")
    options.out.mkdir(parents=True, exist_ok=True)
    whole, wheels = options.out / "whole", options.out / "wheels"
    shutil.rmtree(whole, ignore_errors=True)
    try:
        download_wheels(wheels)
        loads: list[list[pathlib.Path]] = []
        for name in filter(None, options.data.split(",")):
            config = DataConfig(
                name=name, archive_dir=options.archive_dir, data_dir=options.data_dir
            )
            files = sorted(pack(open_store(config), config, whole).iterdir())
            loads += spread(files, options.load_bytes)
        for number, files in enumerate(loads or [[]], start=1):
            load = options.out / str(number)
            shutil.copytree(wheels, load / "wheels")
            write_revision(load, git_revision())
            for file in files:
                target = load / "data" / file.relative_to(whole)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.rename(target)
            size = sum(path.stat().st_size for path in load.rglob("*") if path.is_file())
            names = [f"{file.parent.name}/{file.name}" for file in files]
            print(f"{load}: {size:,} bytes, {', '.join(names) or 'no data'}")
    finally:
        shutil.rmtree(whole, ignore_errors=True)
        shutil.rmtree(wheels, ignore_errors=True)


def download_wheels(target: pathlib.Path) -> None:
    """Downloads `WHEELS`, which are pure Python and fit any version of it."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(target)]
    done = subprocess.run(
        [*command, "--only-binary=:all:", *WHEELS], capture_output=True, text=True
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["pip failed"]
        raise InputError(f"the wheels of {', '.join(WHEELS)} could not be downloaded: {lines[-1]}")


def spread(files: Sequence[pathlib.Path], load_bytes: int) -> list[list[pathlib.Path]]:
    """Spreads files over as few loads as their order allows."""
    loads: list[list[pathlib.Path]] = [[]]
    room = load_bytes
    for file in files:
        size = file.stat().st_size
        if size > load_bytes:
            raise InputError(f"{file} has {size:,} bytes, more than --load_bytes={load_bytes}")
        if size > room:
            loads.append([])
            room = load_bytes
        loads[-1].append(file)
        room -= size
    return loads


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
