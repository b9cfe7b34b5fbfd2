"""Connects the processes of a run on several hosts, before JAX looks up its devices."""

import os
import socket
from collections.abc import Mapping

import jax

from mcn_jax.errors import InputError, first_line

HEARTBEAT_SECONDS = 20  # a process silent for this long counts as lost, and its peers exit


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    detect: bool = False,
) -> None:
    """Connects this process to the others of its run through `jax.distributed`.

    Returns at once if the run has only one process. JAX detects the tasks of Slurm's srun and the
    workers of a TPU pod. Elsewhere the first three arguments are required. With `num_processes=1`
    alone, each task of a cluster is a separate run.

    Args:
        coordinator_address: HOST:PORT at which process 0 listens.
        num_processes: number of processes of the run.
        process_id: number of this process, from 0.
        detect: query the cluster even if no environment variable shows several processes.

    Raises:
        InputError: if only some of the three arguments are given, they do not fit together, the
            port is in use, or the other processes do not connect within five minutes.
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
        raise InputError(
            f"{' and '.join(missing)} missing; give all of --coordinator_address, --num_processes"
            " and --process_id, or none"
        )
    elif not (process_id is not None and 0 <= process_id < (num_processes or 0)):
        raise InputError(
            f"--process_id={process_id} must be at least 0 and below"
            f" --num_processes={num_processes}"
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
            f"the processes of this run did not find each other ({reason}); start each of them"
            " exactly once, with the same --coordinator_address and --num_processes"
        ) from error


def _check_port(address: str) -> None:
    """Raises InputError if this process cannot listen at the coordinator's port.

    Without this check JAX would share the port with process 0 of another run, and each run would
    end the other.
    """
    port = address.rpartition(":")[2]
    try:
        socket.create_server(("", int(port))).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(
            f"--coordinator_address={address}: this process cannot listen there"
            f" ({first_line(error)}); use HOST:PORT with a free port"
        ) from error


def belongs_to_several(environment: Mapping[str, str]) -> bool:
    """Returns whether environment variables show a run of several processes.

    This holds for one of several tasks of srun and for one of several workers of a TPU pod.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "1")
    workers = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    return int(tasks) > 1 or len(workers) > 1
