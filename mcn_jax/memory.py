"""How a process treats memory that it frees, and what it says when there is no more."""

import ctypes
import re
import sys

from mcn_jax.errors import first_line

# Parameters of glibc's mallopt(3): {M_ARENA_MAX: one arena, M_MMAP_MAX: no block outside of it,
# M_TRIM_THRESHOLD: bytes of free memory to keep at its end}.
MALLOC_OPTIONS = {-8: 1, -4: 0, -1: 2**31 - 1}


def keep_freed_memory() -> None:
    """Lets this process keep memory that it frees, if its C library is glibc.

    XLA allocates the temporary memory of a program at each call. glibc returns such large blocks to
    the kernel, and each call would wait for thousands of fresh pages. Call this before JAX
    is used, because threads that run already keep arenas of their own.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in MALLOC_OPTIONS.items():
            mallopt(option, value)


def memory_fault(error: BaseException) -> str | None:
    """Returns that memory is full, in one line, if this is what an error of JAX or NumPy means."""
    is_of_xla = re.search("RESOURCE_EXHAUSTED.*(memory|alloc)", str(error), re.IGNORECASE)
    if not (is_of_xla or isinstance(error, MemoryError)):
        return None
    return f"memory is full ({first_line(error).removeprefix('RESOURCE_EXHAUSTED: ').strip('.')})"
