"""Finding the other processes of a run on several hosts, before JAX is asked for its devices."""

import os
import socket
from collections.abc import Mapping

import jax

from mcn_jax.errors import InputError, first_line

HEARTBEAT_SECONDS = 20  # a process that is silent for so long is lost, and its peers end


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    detect: bool = False,
) -> None:
    """Joins the processes of a run through `jax.distributed`; returns at once if there is one.

    Tasks of Slurm's srun and workers of a TPU pod are found by what JAX knows of such clusters;
    elsewhere the first three arguments are needed. `num_processes=1` alone makes a run of its own
    of each task.

    Args:
        coordinator_address: HOST:PORT of the process 0, at which it will listen.
        num_processes: of the run.
        process_id: of this one, from 0.
        detect: ask the cluster even if no environment variable tells of several processes.

    Raises:
        InputError: if only some are given or do not fit, the port is in use, or the others do not
            come within five minutes.
    """
    given = {
        "--coordinator_address": coordinator_address,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if num_processes == 1:
        return
    if len(missing) == len(given):
        if not (detect or belongs_to_several(os.environ)):
            return
    elif missing:
        raise InputError(f"{' and '.join(missing)} missing; a process of several needs all three")
    elif not (process_id is not None and 0 <= process_id < (num_processes or 0)):
        raise InputError(
            f"--process_id={process_id} is none of {num_processes} processes, counted from 0"
        )
    if process_id == 0 and coordinator_address:
        _check_port(coordinator_address)
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator_address,
            num_processes=num_processes,
            process_id=process_id,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"the processes of this run did not find each other ({reason}); check that each was"
            " started, once, with the same --coordinator_address and --num_processes"
        ) from error


def _check_port(address: str) -> None:
    """JAX would share the port with another run's process 0, and the two runs end each other."""
    port = address.rpartition(":")[2]
    try:
        socket.create_server(("", int(port))).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(
            f"--coordinator_address={address}: this process cannot listen there"
            f" ({first_line(error)}); name HOST:PORT with a port that nothing uses"
        ) from error


def belongs_to_several(environment: Mapping[str, str]) -> bool:
    """Whether environment variables name this process one task of srun or one worker of a TPU pod
    among several."""
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    workers = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return int(tasks) > 1 or len(workers) > 1
