"""Starts processes without importing JAX in each of them.

They are forked from a server that has imported what the commands import and has not touched a
device. So each has its own devices, flags, working directory and exit code, and starts in 50 ms.
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
# The commands themselves are not among these, because runpy runs them as `__main__`.
_CONTEXT.set_forkserver_preload(
    [
        "grain",
        "mcn_jax.data.prepared",
        "mcn_jax.reports.run_pictures",
        "mcn_jax.training.run",
        "ml_collections.config_flags",
    ]
)


class Finished(NamedTuple):
    """What a process left."""

    returncode: int
    stdout: str
    stderr: str


class Running:
    """A process that runs `function(*arguments)`, a function of a module."""

    def __init__(self, function, *arguments, cwd=ROOT, devices=1):
        self._output = tempfile.TemporaryDirectory()
        self._process = _CONTEXT.Process(
            target=_run, args=(function, arguments, str(cwd), devices, self._output.name)
        )
        self._process.start()

    def finish(self):
        """Waits for the end of the process."""
        self._process.join()
        with self._output as directory:
            printed = [pathlib.Path(directory, name).read_text() for name in ("stdout", "stderr")]
        return Finished(self._process.exitcode, *printed)


def run(module, *arguments, cwd=ROOT, devices=1):
    """Runs `python -m MODULE ARGUMENTS` to its end, on this number of CPU devices."""
    return Running(_run_module, module, arguments, cwd=cwd, devices=devices).finish()


def _run(function, arguments, cwd, devices, output):
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{output}/{name}", os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(cwd)
    os.environ["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
    os.environ["COLUMNS"] = "100"
    function(*arguments)


def _run_module(module, arguments):
    sys.argv = [module, *map(str, arguments)]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
