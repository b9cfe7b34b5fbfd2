"""Counts the fresh pages that a program of JAX waits for."""

import platform
import subprocess
import sys

import pytest

# XLA needs about 256 MiB of temporary memory for the sorted copies.
FAULTS = """
import resource, sys
import jax, jax.numpy as jnp
from mcn_jax.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
program = jax.jit(lambda x: jnp.sum(jnp.sort(x + 1, axis=0)[0]))
x = jnp.ones((4, 2**22))
faults = []
for _ in range(8):
    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    program(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start)
print(min(faults))  # of a call after which memory was kept
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_a_program_waits_for_no_fresh_pages():
    faults = {}
    for way in ("default", "keep"):
        command = [sys.executable, "-c", FAULTS, way]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        faults[way] = int(result.stdout)
    assert faults["default"] > 1000
    assert faults["keep"] < faults["default"] / 10
