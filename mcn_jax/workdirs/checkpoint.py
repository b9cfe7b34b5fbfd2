"""Checkpoints: a training state through Orbax, with a digest of every leaf.

Orbax notices truncated files; it restores flipped bits and casts dtypes without a word. So a
JSON item beside the state holds shape, dtype and SHA-256 of every leaf, and restoring checks all
of them before the state is used.
"""

import contextlib
import hashlib
import json
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from mcn_jax import parallel
from mcn_jax.errors import InputError, first_line, without_warnings

METRIC = "test_accuracy"
UNRANKED = -1.0  # accuracy of a checkpoint inside an epoch, below that of any other
# What Orbax and the libraries under it raise for missing, truncated and malformed files.
READ_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError)


class DamagedCheckpointError(InputError):
    """A checkpoint is not what was saved: a file is missing, cannot be read or has other bytes."""


def named_leaves(tree: Any) -> dict[str, np.ndarray]:
    """{"params/dense_1/kernel": array, ...} of any tree of arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }


def digests(leaves: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Shape, dtype and SHA-256 of the bytes of every leaf."""
    return {
        name: {
            "shape": list(leaf.shape),
            "dtype": leaf.dtype.name,
            "sha256": hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest(),
        }
        for name, leaf in leaves.items()
    }


def saved_steps(directory: pathlib.Path) -> list[int]:
    """The steps of the whole checkpoints in a directory, ascending; none where it is absent."""
    names = (path.name for path in directory.glob("*"))
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal())


def sha256(record: Any) -> str:
    """Of anything that JSON can hold, such as `digests`; in hexadecimal digits."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Never: `mcn_jax.training.stopping` asks the runtime, by other numbers than steps."""
        del step
        return False


class Checkpoints:
    """The checkpoints of one run: the last two steps and the best one are kept.

    They are written while training continues. One that a kill, or a full disk, cut short has a name
    that is not a step, and is removed when the directory is opened again.
    """

    def __init__(self, directory: pathlib.Path, *, read_only: bool = False):
        """Args:
        directory: WORKDIR/checkpoints; created if absent.
        read_only: change nothing there, not even what a running run has half written.
        """
        self.directory = directory.absolute()

        def accuracy(metrics: dict[str, float]) -> float:
            return metrics[METRIC]

        options = ocp.CheckpointManagerOptions(
            best_fn=accuracy,
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                [
                    checkpoint_managers.LatestN(2),
                    # One without accuracy is what a kill left of a checkpoint being removed.
                    checkpoint_managers.BestN(
                        get_metric_fn=accuracy, n=1, keep_checkpoints_without_metrics=False
                    ),
                ]
            ),
            # Several processes save in step: one that fails then ends, and the others with it.
            enable_async_checkpointing=not read_only and jax.process_count() == 1,
            read_only=read_only,
            save_interval_steps=0 if read_only else 1,
            create=not read_only,
        )
        for step in saved_steps(self.directory):
            self._check_metrics(step)
        if not read_only and parallel.is_primary():
            self._remove_half_written()
        try:
            with without_warnings():  # Orbax warns of a directory that it is told only to read
                self._manager = _Manager(self.directory, options=options)
        except READ_ERRORS as error:
            if parallel.peer_is_lost(error):
                raise
            raise InputError(
                f"the list of checkpoints in {self.directory} cannot be read: {first_line(error)};"
                " delete the damaged step's directory to resume without it"
            ) from error

    def _remove_half_written(self) -> None:
        # Orbax's own option removes them in a thread that only a later save waits for; a run that
        # ended before it could remove what the next one writes.
        for path in self.directory.glob(f"*{ocp.path.step.TMP_DIR_SUFFIX}*"):
            try:
                shutil.rmtree(path)
            except OSError as error:
                raise InputError(
                    f"{path}, which a kill left half written, cannot be removed:"
                    f" {first_line(error)}; delete it to go on"
                ) from error

    def _check_metrics(self, step: int) -> None:
        """Orbax reads the accuracies of all checkpoints before it lists them, and removes
        checkpoints by them."""
        path = self.directory / str(step) / "metrics" / "metrics"
        try:
            if path.exists():  # Orbax does without the file, but not with a damaged one
                accuracy = float(json.loads(path.read_text())[METRIC])
                if self._accuracy_beside_digests(step) not in (None, accuracy):
                    raise ValueError("its accuracy differs from that beside the digests")
        except READ_ERRORS as error:
            raise InputError(
                f"{path} is damaged ({first_line(error)}); delete the directory of step {step} to"
                " resume without it"
            ) from error

    def _accuracy_beside_digests(self, step: int) -> float | None:
        """None where it cannot be read, which restoring tells of."""
        try:
            text = (self.directory / str(step) / "digests" / "metadata").read_text()
            return float(json.loads(text)[METRIC])
        except READ_ERRORS:
            return None

    def steps(self) -> list[int]:
        """The steps that were saved, that which is still being written included, ascending."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step of the highest test accuracy, the latest of equals; None without any."""
        return self._manager.best_step()

    def save(self, step: int, state: Any, test_accuracy: float) -> None:
        """Begins to write a checkpoint, which becomes visible only when it is whole.

        Args:
            step: steps done, more than those of any checkpoint.
            state: a tree of arrays of one device, which nobody writes to.
            test_accuracy: that decides which checkpoint is the best.

        Raises:
            OSError: if this or the one before cannot be written; see `wait`, too.
        """
        leaves = named_leaves(state)
        described = digests(leaves)
        record = {"leaves": described, "sha256": sha256(described), METRIC: float(test_accuracy)}
        with self._writing():
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(leaves), digests=ocp.args.JsonSave(record)
                ),
                metrics={METRIC: test_accuracy},
            )
        if not saved:
            raise OSError(
                f"{self.directory} has got checkpoints of another process up to step"
                f" {self.steps()[-1]}; start the same command again, once"
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with without_warnings():  # Orbax logs what it raises
                yield
        except READ_ERRORS as error:
            if parallel.peer_is_lost(error):  # in one of the barriers in which Orbax's save ends
                raise
            raise OSError(
                f"a checkpoint in {self.directory} cannot be written: {first_line(error)}; make"
                " room, then the same command resumes from the one before"
            ) from error

    def digests(self, step: int) -> dict[str, dict[str, Any]]:
        """What `digests` said of every leaf when it was saved.

        Raises:
            DamagedCheckpointError: if that is not known any more.
        """
        record = self._read(step, digests=ocp.args.JsonRestore())["digests"]
        if not isinstance(record, dict) or record.get("sha256") != sha256(record.get("leaves")):
            raise DamagedCheckpointError(
                f"checkpoint {self.directory / str(step)} is damaged: its list of leaves differs"
                " from its digest"
            )
        return record["leaves"]

    def holds(self, step: int, template: Any) -> bool:
        """Whether a checkpoint has every leaf of a template in its shape; raises as `digests`."""
        saved = self.digests(step)
        return all(
            name in saved and tuple(saved[name]["shape"]) == leaf.shape
            for name, leaf in named_leaves(template).items()
        )

    def restore(
        self,
        step: int,
        template: Any,
        *,
        part: bool = False,
        remedy: str = "resume it with the config it was written with, or use another --workdir",
    ) -> Any:
        """Reads a checkpoint into the structure of a template.

        Args:
            step: one of `steps()`.
            template: a tree of arrays with the structure, shapes and dtypes expected.
            part: whether the checkpoint may hold more than the template.
            remedy: what an error about a leaf that does not fit advises.

        Returns:
            A tree like `template` of numpy arrays.

        Raises:
            InputError: naming the leaf that is missing, left over, of another shape or dtype.
            DamagedCheckpointError: naming the leaf that is damaged or the file that cannot be
                read.
        """
        expected = named_leaves(template)
        saved = self.digests(step)
        self._check_leaves(step, saved, expected, part, remedy)
        leaves = self._read_leaves(step, saved)
        return jax.tree_util.tree_unflatten(
            jax.tree_util.tree_structure(template), [leaves[name] for name in expected]
        )

    def read(self, step: int) -> dict[str, np.ndarray]:
        """All that a checkpoint holds, by the names that `named_leaves` gave it.

        Raises:
            DamagedCheckpointError: as `restore`.
        """
        return self._read_leaves(step, self.digests(step))

    def _read_leaves(self, step: int, saved: dict[str, Any]) -> dict[str, np.ndarray]:
        # Orbax reads all leaves or none, so that it is told of all, by arrays without memory.
        whole = {
            name: np.broadcast_to(np.zeros((), digest["dtype"]), digest["shape"])
            for name, digest in saved.items()
        }
        leaves = self._read(step, state=ocp.args.StandardRestore(whole))["state"]
        for name, digest in digests(leaves).items():
            if digest != saved[name]:
                raise DamagedCheckpointError(
                    f"checkpoint {self.directory / str(step)} is damaged: {name} differs from its"
                    " digest"
                )
        return leaves

    def wait(self) -> None:
        """Returns when all that was saved is on the disk; raises OSError if it cannot be."""
        with self._writing():
            self._manager.wait_until_finished()

    def set_aside(self, step: int) -> pathlib.Path:
        """Moves a checkpoint out of the way, for somebody to look at; returns where it is.

        Every process of a run calls it.
        """
        place = self.directory.parent / "damaged_checkpoints" / str(step)
        parallel.barrier(f"all know that {step} is damaged")
        if parallel.is_primary():
            place.parent.mkdir(exist_ok=True)
            if place.exists():
                shutil.rmtree(place)
            shutil.move(self.directory / str(step), place)
        parallel.barrier(f"{step} is set aside")
        self._manager.reload()
        return place

    def close(self) -> None:
        """Waits for what was saved, and releases Orbax's threads; raises OSError as `wait`."""
        with self._writing():
            self._manager.close()

    def _read(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except READ_ERRORS as error:
            if parallel.peer_is_lost(error):
                raise
            raise DamagedCheckpointError(
                f"checkpoint {self.directory / str(step)} cannot be read: {first_line(error)}"
            ) from error

    def _check_leaves(
        self,
        step: int,
        saved: dict[str, Any],
        expected: dict[str, np.ndarray],
        part: bool,
        remedy: str,
    ) -> None:
        where = f"checkpoint {self.directory / str(step)}"
        for name, leaf in expected.items():
            if name not in saved:
                raise InputError(f"{where} has no {name}, which this model needs; {remedy}")
            shape, dtype = tuple(saved[name]["shape"]), saved[name]["dtype"]
            if shape != leaf.shape:
                raise InputError(
                    f"{where} holds {name} of shape {shape}, this model needs {leaf.shape};"
                    f" {remedy}"
                )
            if dtype != leaf.dtype.name:
                raise InputError(
                    f"{where} holds {name} as {dtype}, this model needs {leaf.dtype.name}; {remedy}"
                )
        for name in saved:
            if name not in expected and not part:
                raise InputError(f"{where} holds {name}, which this model has not; {remedy}")
