"""Data-parallel steps over all devices of all processes; the only file that uses `pmap`.

State and splits are replicated, and batches are sharded. Both are arrays with a leading axis of one
entry per device. They have exactly the sharding that a pmapped step returns, so the step is
compiled only once.

With several processes, each process holds the entries of its own devices. Processes exchange only
what the steps reduce over the axis `AXIS`.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mcn_jax.errors import InputError, first_line

AXIS = "devices"


def device_fault(error: Exception | None = None) -> str | None:
    """Returns why JAX has no devices, with the remedy, in one line; None if it has some.

    Args:
        error: an error that may have this cause. If JAX knows some of the platforms that it was
            asked for, it raises the error only once.
    """
    if error is None or "Unable to initialize backend" not in str(error):
        try:
            jax.devices()
            return None
        except Exception as found:  # JAX raises several types, an AssertionError among them
            error = found
    asked = jax.config.jax_platforms  # type: ignore[attr-defined]
    reason = first_line(error).partition(" (set JAX_PLATFORMS")[0]
    reason = f" ({reason})" if isinstance(error, RuntimeError) else ""
    if not asked:
        return f"JAX finds no devices{reason}; set JAX_PLATFORMS=cpu to compute on CPUs"
    jax.config.update("jax_platforms", None)  # the command ends, so this asks JAX what there is
    try:
        platforms = list(jax.extend.backend.backends())
    except Exception:  # as above
        platforms = ["cpu"]
    finally:
        jax.config.update("jax_platforms", asked)
    return (
        f"JAX_PLATFORMS={asked!r} names a platform that JAX does not have here{reason}; this"
        f" machine has {', '.join(platforms)}: set JAX_PLATFORMS={platforms[0]}, or unset it"
    )


def check_devices() -> None:
    """Raises InputError if JAX has no devices."""
    if fault := device_fault():
        raise InputError(fault)


def local_devices() -> list[jax.Device]:
    """Returns the devices of this process that share a batch."""
    return jax.local_devices()


def num_devices() -> int:
    """Returns the number of devices of all processes; each process has equally many."""
    return len(local_devices()) * jax.process_count()


def is_primary() -> bool:
    """Returns whether this process is the one that writes files and prints."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process of a run has reached the barrier."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def peer_is_lost(error: BaseException) -> bool:
    """Returns whether an error of a step or a barrier means that another process is lost.

    JAX raises a JaxRuntimeError. If each process has one device, it is a ValueError of Gloo.
    """
    return isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)


def from_primary(number: int) -> int:
    """Returns the primary process's number on all processes."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def all_equal(digest: str) -> bool:
    """Returns whether all processes of a run have the same digest.

    Args:
        digest: at least 16 hexadecimal digits, of which 16 are compared.
    """
    if jax.process_count() == 1:
        return True
    words = np.frombuffer(bytes.fromhex(digest[:16]), np.int32)
    return bool((multihost_utils.process_allgather(words) == words).all())


def anywhere(condition: bool) -> bool:
    """Returns whether a condition holds in any process of a run; all processes must call it."""
    if jax.process_count() == 1:
        return condition
    return bool(multihost_utils.process_allgather(np.bool_(condition)).any())


def share(tree: Any, axis: int = 0) -> Any:
    """Returns this process's part of a global batch: [B, ...] -> [B / processes, ...]."""
    count, index = jax.process_count(), jax.process_index()
    return jax.tree.map(lambda x: np.split(np.asarray(x), count, axis)[index], tree)


def host_cores() -> int | None:
    """Returns how many cores of the host this process may use, or None if unknown."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _sharding() -> NamedSharding:
    return NamedSharding(Mesh(np.array(local_devices()), (AXIS,)), PartitionSpec(AXIS))


def replicate(tree: Any) -> Any:
    """Copies every array to every local device: [...] -> [devices, ...]."""
    num_devices = len(local_devices())

    def copies(x):
        x = np.asarray(x)
        return jax.device_put(np.broadcast_to(x, (num_devices, *x.shape)), _sharding())

    return jax.tree.map(copies, tree)


def unreplicate(tree: Any) -> Any:
    """Returns the first device's copy of every array, as NumPy arrays."""
    # Fetched together: all copies start before the first is awaited.
    copies = jax.device_get(jax.tree.map(lambda x: x.addressable_shards[0].data, tree))
    return jax.tree.map(lambda x: x[0, ...], copies)


def shard(tree: Any, axis: int = 0) -> Any:
    """Divides this process's part of a batch: [B, ...] -> [devices, B / devices, ...].

    With axis=1, it divides a stack: [steps, B, ...] -> [devices, steps, B / devices, ...].
    """
    num_devices = len(local_devices())

    def divided(x):
        parts = np.split(np.asarray(x), num_devices, axis)
        return jax.device_put(np.stack(parts), _sharding())

    return jax.tree.map(divided, tree)


def parallel(step: Callable[..., Any], *, donate_state: bool) -> Callable[..., Any]:
    """Maps a step over the devices; all its arguments get a leading device axis.

    Args:
        step: function of arrays that reduces over the axis `AXIS`.
        donate_state: whether the first argument's buffers may be reused. The caller must then not
            read them again.
    """
    donated = (0,) if donate_state else ()
    # With several processes, each uses all its devices, as pmap does by default.
    devices = local_devices() if jax.process_count() == 1 else None
    return jax.pmap(step, axis_name=AXIS, devices=devices, donate_argnums=donated)


def must_await_steps() -> bool:
    """Returns whether each step must finish before the next one is dispatched.

    Several CPU devices share one thread pool. If steps queue up there, they end in a rendezvous
    time-out.
    """
    return jax.default_backend() == "cpu" and len(local_devices()) > 1
