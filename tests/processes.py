"""Runs `python -m MODULE` in a process of its own, without importing JAX each time.

The process is forked from a server that has imported what the commands import, and has not touched
a device. So it has its own devices, flags, working directory and exit code, and starts in 50 ms.
"""

import multiprocessing
import os
import pathlib
import runpy
import sys
import tempfile
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]

_CONTEXT = multiprocessing.get_context("forkserver")
# The commands themselves are not among these: runpy runs them as `__main__`.
_CONTEXT.set_forkserver_preload(
    ["ml_collections.config_flags", "mcn_jax.reports.run_pictures", "mcn_jax.training.run"]
)


class Finished(NamedTuple):
    """What a process left."""

    returncode: int
    stdout: str
    stderr: str


def run(module, *arguments, cwd=ROOT, devices=1):
    """Runs a module with these arguments to its end, on this number of CPU devices."""
    environment = {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "COLUMNS": "100",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as output:
        process = _CONTEXT.Process(
            target=_run_module, args=(module, arguments, str(cwd), output, environment)
        )
        process.start()
        process.join()
        printed = [pathlib.Path(output, name).read_text() for name in ("stdout", "stderr")]
        return Finished(process.exitcode, *printed)


def _run_module(module, arguments, cwd, output, environment):
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{output}/{name}", os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(cwd)
    os.environ.update(environment)
    sys.argv = [module, *map(str, arguments)]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
