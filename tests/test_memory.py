"""Counts the fresh pages that a program of JAX waits for, and fills the memory."""

import os
import platform
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import processes
from mcn_jax.command_line import one_line_errors
from mcn_jax.memory import memory_fault

BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

# XLA needs about 256 MiB of temporary memory for the sorted copies.
FAULTS = """
import resource, sys
import jax, jax.numpy as jnp
from mcn_jax.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
program = jax.jit(lambda x: jnp.sum(jnp.sort(x + 1, axis=0)[0]))
x = jnp.ones((4, 2**22))
calls, faults = int(sys.argv[2]), 2**30
while calls and faults > 1000:
    calls -= 1
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    program(x).block_until_ready()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start
print(faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_program_waits_for_no_fresh_pages():
    faults = {}
    # What was kept may lie in pieces that are too small, so some calls need more. This must end.
    for way, calls in (("default", 8), ("keep", 60)):
        command = [sys.executable, "-c", FAULTS, way, str(calls)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        faults[way] = int(result.stdout)
    assert faults["default"] > 1000
    assert faults["keep"] < faults["default"] / 10


@pytest.mark.parametrize("zeros", [jnp.zeros, np.zeros])
def test_commands_say_in_one_line_that_memory_is_full(zeros):
    message = r"mcn_jax.report: error: memory is full \(.*allocat[^;\n]*[^.]\); take smaller"
    with pytest.raises(SystemExit, match=message) as end, one_line_errors("report"):
        zeros(2**50, np.float32)
    assert "\n" not in end.value.code


def test_other_errors_are_not_about_memory():
    assert memory_fault(ValueError("memory")) is None
    assert memory_fault(RuntimeError("RESOURCE_EXHAUSTED: received a message that is long")) is None


@pytest.mark.skipif(BYTES > 30e9, reason="a machine with so much memory fills it slowly")
def test_a_run_that_fills_the_memory_ends_in_one_line(data_dir, tmp_path):
    result = processes.run(
        "mcn_jax.main", "--config=configs/digits.py", f"--config.data.data_dir={data_dir}",
        "--config.model.widths=8,1000000", f"--workdir={tmp_path}/run",
    )  # fmt: skip
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert re.fullmatch(
        r"mcn_jax.main: error: memory is full \(Out of memory allocating \d+ bytes\); free some and"
        r" run the same command again, which resumes, or start a run with a config.batch_size below"
        r" 128",
        line,
    )
