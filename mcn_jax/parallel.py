"""The one file that knows `pmap`: data-parallel steps over all devices of all processes.

State and splits are replicated, batches are sharded, both as arrays with a leading axis of one
entry a device and exactly the sharding that a pmap'd step returns, so that the step compiles once.
In a run of several processes these arrays hold the entries of the process's own devices; only what
the steps reduce over the axis `AXIS` passes from one process to another.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"


def local_devices() -> list[jax.Device]:
    """The devices of this process that share a batch."""
    return jax.local_devices()


def num_devices() -> int:
    """The devices of all processes that share a batch; every process has as many."""
    return len(local_devices()) * jax.process_count()


def is_primary() -> bool:
    """Whether this is the one process of a run that writes files and speaks."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process of a run has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def peer_is_lost(error: BaseException) -> bool:
    """Whether a step or a barrier raised this in a run of several processes, as they do once
    another process is lost. With devices alone in their process it is a ValueError of Gloo's."""
    return isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)


def from_primary(number: int) -> int:
    """What the first process knows, on all processes."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def all_equal(digest: str) -> bool:
    """Whether every process of a run has the same digest, of at least 16 hexadecimal digits."""
    if jax.process_count() == 1:
        return True
    words = np.frombuffer(bytes.fromhex(digest[:16]), np.int32)
    return bool((multihost_utils.process_allgather(words) == words).all())


def anywhere(condition: bool) -> bool:
    """Whether a condition holds in any process of a run; all of them ask."""
    if jax.process_count() == 1:
        return condition
    return bool(multihost_utils.process_allgather(np.bool_(condition)).any())


def share(tree: Any, axis: int = 0) -> Any:
    """This process's part of a global batch: [B, ...] -> [B / processes, ...]."""
    count, index = jax.process_count(), jax.process_index()
    return jax.tree.map(lambda x: np.split(np.asarray(x), count, axis)[index], tree)


def host_cores() -> int | None:
    """Cores of the host that this process may use; None where that is not known."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _sharding() -> NamedSharding:
    return NamedSharding(Mesh(np.array(local_devices()), (AXIS,)), PartitionSpec(AXIS))


def replicate(tree: Any) -> Any:
    """A copy of every array on every local device: [...] -> [devices, ...]."""
    num_devices = len(local_devices())

    def copies(x):
        x = np.asarray(x)
        return jax.device_put(np.broadcast_to(x, (num_devices, *x.shape)), _sharding())

    return jax.tree.map(copies, tree)


def unreplicate(tree: Any) -> Any:
    """The first device's copy of every array, as numpy."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_shards[0].data)[0, ...], tree)


def shard(tree: Any, axis: int = 0) -> Any:
    """Divides this process's part of a batch: [B, ...] -> [devices, B / devices, ...].

    With axis=1 it divides each of several: [steps, B, ...] -> [devices, steps, B / devices, ...].
    """
    num_devices = len(local_devices())

    def divided(x):
        parts = np.split(np.asarray(x), num_devices, axis)
        return jax.device_put(np.stack(parts), _sharding())

    return jax.tree.map(divided, tree)


def parallel(step: Callable[..., Any], *, donate_state: bool) -> Callable[..., Any]:
    """Maps a step over the devices; all its arguments have a leading device axis.

    Args:
        step: a function of arrays that reduces over the axis `AXIS`.
        donate_state: let the first argument's buffers be reused; the caller must not read them.
    """
    donated = (0,) if donate_state else ()
    # Several processes always take all their devices.
    devices = local_devices() if jax.process_count() == 1 else None
    return jax.pmap(step, axis_name=AXIS, devices=devices, donate_argnums=donated)


def must_await_steps() -> bool:
    """Several CPU devices share one thread pool: steps that pile up there end in a rendezvous
    time-out, so each is awaited before the next is dispatched."""
    return jax.default_backend() == "cpu" and len(local_devices()) > 1
