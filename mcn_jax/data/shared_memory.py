"""Checks the memory in which worker processes pass batches, before any worker starts.

Writing more than fits there ends a worker with SIGBUS, possibly hours after the start of a run.
"""

import os
import pathlib
import sys
import tempfile

from mcn_jax.errors import InputError

DIRECTORY = pathlib.Path("/dev/shm")  # where Linux keeps it
BATCHES_PER_WORKER = 3  # in progress, waiting, and received but not yet released
MORE_BATCHES = 3  # in transfer to the devices
PAGES_BYTES = 2**16  # of a batch, because each of its arrays begins a page


def check_shared_memory(workers: int, batch_bytes: int) -> None:
    """Checks that shared memory holds the batches of all workers; does nothing outside Linux.

    Args:
        workers: number of worker processes.
        batch_bytes: size of the largest batch.

    Raises:
        InputError: if shared memory is missing, cannot be written, or is too small.
    """
    if sys.platform != "linux":
        return
    try:
        tempfile.TemporaryFile(dir=DIRECTORY).close()
        status = os.statvfs(DIRECTORY)
    except OSError as error:
        raise InputError(
            f"config.data.pipeline=streamed needs shared memory, but {DIRECTORY} cannot be written"
            f" ({error.strerror}); mount a tmpfs there, or use config.data.pipeline=resident"
        ) from error
    needed = (BATCHES_PER_WORKER * workers + MORE_BATCHES) * (batch_bytes + PAGES_BYTES)
    free = status.f_bavail * status.f_frsize
    if free < needed:
        raise InputError(
            f"{workers} workers need {needed:,} bytes of shared memory, but {DIRECTORY} has"
            f" {free:,} bytes free; enlarge it, as docker run --shm-size=1g does, or lower"
            " config.data.workers"
        )
