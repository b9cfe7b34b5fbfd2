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
