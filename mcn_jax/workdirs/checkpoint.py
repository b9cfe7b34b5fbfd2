"""Saves and restores training states with Orbax, with a digest of every leaf.

Orbax detects truncated files, but silently restores flipped bits and casts dtypes. So a JSON item
beside the state holds the shape, dtype and SHA-256 of every leaf. Restoring checks all of them
before the state is used.
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
from mcn_jax.paths import plain_path

METRIC = "test_accuracy"
UNRANKED = -1.0  # for checkpoints inside an epoch: below any accuracy
# Errors that Orbax and its libraries raise for missing, truncated and malformed files.
READ_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError)


class DamagedCheckpointError(InputError):
    """A checkpoint is not what was saved: a file is missing, unreadable or has changed."""


def named_leaves(tree: Any) -> dict[str, np.ndarray]:
    """Returns {"params/dense_1/kernel": array, ...} for any tree of arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in leaves
    }


def digests(leaves: dict[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Computes the shape, dtype and SHA-256 of the bytes of every leaf."""
    return {
        name: {
            "shape": list(leaf.shape),
            "dtype": leaf.dtype.name,
            "sha256": hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest(),
        }
        for name, leaf in leaves.items()
    }


def saved_steps(directory: pathlib.Path) -> list[int]:
    """Returns the steps of complete checkpoints, ascending; [] if the directory is absent."""
    names = (path.name for path in directory.glob("*"))
    return sorted(int(name) for name in names if name.isascii() and name.isdecimal())


def sha256(record: Any) -> str:
    """Computes the SHA-256, in hexadecimal, of anything that JSON can hold, such as `digests`."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Returns False: `mcn_jax.training.stopping` asks the runtime instead.

        The runtime expects consecutive numbers, so Orbax must not pass it steps.
        """
        del step
        return False


class Checkpoints:
    """The checkpoints of one run, of which the last two and the best are kept.

    They are written while training continues. A checkpoint that a kill or a full disk left
    incomplete has a name that is not a step. It is removed when the directory is opened again.
    """

    def __init__(self, directory: pathlib.Path, *, read_only: bool = False):
        """Opens a directory of checkpoints.

        Args:
            directory: WORKDIR/checkpoints; created if absent, unless `read_only`.
            read_only: change nothing there. Incomplete checkpoints stay too, because a run may be
                writing them.
        """
        parallel.check_devices()  # without devices Orbax's error would look like a damaged file
        self.directory = directory.absolute()

        def accuracy(metrics: dict[str, float]) -> float:
            return metrics[METRIC]

        options = ocp.CheckpointManagerOptions(
            best_fn=accuracy,
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                [
                    checkpoint_managers.LatestN(2),
                    # A checkpoint without accuracy is one that a kill left half removed.
                    checkpoint_managers.BestN(
                        get_metric_fn=accuracy, n=1, keep_checkpoints_without_metrics=False
                    ),
                ]
            ),
            # Several processes save synchronously: if one cannot save, it ends at once, and the
            # others end with it.
            enable_async_checkpointing=not read_only and jax.process_count() == 1,
            read_only=read_only,
            save_interval_steps=0 if read_only else 1,
            create=not read_only,
        )
        for step in saved_steps(self.directory):
            self._check_metrics(step)
        if not read_only and parallel.is_primary():
            self._remove_half_written()
        with contextlib.ExitStack() as closing:
            if not read_only:
                self.directory.mkdir(parents=True, exist_ok=True)
            self._path = closing.enter_context(plain_path(self.directory))
            try:
                with without_warnings():  # Orbax warns if a directory is read-only
                    self._manager = _Manager(self._path, options=options)
            except READ_ERRORS as error:
                if parallel.peer_is_lost(error):
                    raise
                raise InputError(
                    f"the list of checkpoints in {self.directory} cannot be read:"
                    f" {self._reason(error)}; delete the damaged step's directory to resume"
                    " without it"
                ) from error
            self._closing = closing.pop_all()

    def _remove_half_written(self) -> None:
        # Orbax's own option removes them in a thread that only a later save waits for. If a run
        # ends without another save, that thread could remove what the next run writes.
        for path in self.directory.glob(f"*{ocp.path.step.TMP_DIR_SUFFIX}*"):
            try:
                shutil.rmtree(path)
            except OSError as error:
                raise InputError(
                    f"{path}, an incomplete checkpoint, cannot be removed:"
                    f" {first_line(error)}; delete it to resume"
                ) from error

    def _check_metrics(self, step: int) -> None:
        """Raises InputError if a checkpoint's accuracy is damaged.

        Orbax reads the accuracies of all checkpoints before it lists them, and they decide which
        checkpoints it removes.
        """
        path = self.directory / str(step) / "metrics" / "metrics"
        try:
            if path.exists():  # Orbax tolerates a missing file, but not a damaged one
                accuracy = float(json.loads(path.read_text())[METRIC])
                if self._accuracy_beside_digests(step) not in (None, accuracy):
                    raise ValueError("its accuracy differs from the one beside the digests")
        except READ_ERRORS as error:
            raise InputError(
                f"{path} is damaged ({first_line(error)}); delete the directory of step {step} to"
                " resume without it"
            ) from error

    def _accuracy_beside_digests(self, step: int) -> float | None:
        """Returns the accuracy stored with the digests, or None if it cannot be read.

        Restoring the checkpoint reports unreadable digests.
        """
        try:
            text = (self.directory / str(step) / "digests" / "metadata").read_text()
            return float(json.loads(text)[METRIC])
        except READ_ERRORS:
            return None

    def _reason(self, error: Exception) -> str:
        return first_line(error).replace(str(self._path), str(self.directory))

    def steps(self) -> list[int]:
        """Returns the saved steps, ascending, including one that is still being written."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """Returns the step with the highest test accuracy, the latest one in a tie.

        None if there is no checkpoint.
        """
        return self._manager.best_step()

    def save(self, step: int, state: Any, test_accuracy: float) -> None:
        """Starts writing a checkpoint, which becomes visible only when it is complete.

        Args:
            step: number of steps done, larger than that of any other checkpoint.
            state: a tree of arrays of one device, which must not be modified afterwards.
            test_accuracy: the accuracy that decides which checkpoint is the best.

        Raises:
            OSError: if this checkpoint or the previous one cannot be written. Writing continues
                in the background; the next call or `wait` raises its errors. Also if the first
                checkpoint of a run cannot be read back; only this one is waited for.
        """
        leaves = named_leaves(state)
        described = digests(leaves)
        is_first = not self.steps()
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
                f"{self.directory} has checkpoints of another process up to step"
                f" {self.steps()[-1]}; start the same command again, only once"
            )
        if is_first:
            self._check_first(step)

    def _check_first(self, step: int) -> None:
        self.wait()
        try:
            self.read(step)
        except DamagedCheckpointError as error:
            raise OSError(
                f"the first checkpoint of this run cannot be read back, so training would be lost"
                f" ({error}); use another --workdir, with a simpler path or on another disk"
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with without_warnings():  # Orbax logs what it raises
                yield
        except READ_ERRORS as error:
            if parallel.peer_is_lost(error):  # in a barrier at the end of Orbax's save
                raise
            raise OSError(
                f"a checkpoint in {self.directory} cannot be written: {self._reason(error)}; make"
                " room, then the same command resumes from the checkpoint before it"
            ) from error

    def digests(self, step: int) -> dict[str, dict[str, Any]]:
        """Returns the digest of every leaf, as `digests` computed it when the leaf was saved.

        Raises:
            DamagedCheckpointError: if the digests cannot be read or have changed.
        """
        record = self._read(step, digests=ocp.args.JsonRestore())["digests"]
        if not isinstance(record, dict) or record.get("sha256") != sha256(record.get("leaves")):
            raise DamagedCheckpointError(
                f"checkpoint {self.directory / str(step)} is damaged: its list of leaves differs"
                " from its digest"
            )
        return record["leaves"]

    def holds(self, step: int, template: Any) -> bool:
        """Returns whether a checkpoint has all leaves of a template; raises as `digests`.

        Shapes must agree, too; dtypes need not.
        """
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
        """Restores a checkpoint into the structure of a template.

        Args:
            step: one of `steps()`.
            template: a tree of arrays with the structure, shapes and dtypes expected.
            part: whether the checkpoint may hold more leaves than the template.
            remedy: the advice in an error about a leaf that does not fit.

        Returns:
            A tree like `template`, of numpy arrays.

        Raises:
            InputError: if a leaf is missing, is not in the template, or has another shape or
                dtype. The error names the leaf.
            DamagedCheckpointError: if a leaf is damaged or a file cannot be read. The error names
                the leaf or the file.
        """
        expected = named_leaves(template)
        saved = self.digests(step)
        self._check_leaves(step, saved, expected, part, remedy)
        leaves = self._read_leaves(step, saved)
        return jax.tree_util.tree_unflatten(
            jax.tree_util.tree_structure(template), [leaves[name] for name in expected]
        )

    def read(self, step: int) -> dict[str, np.ndarray]:
        """Returns all leaves of a checkpoint, by the names that `named_leaves` gave them.

        Raises:
            DamagedCheckpointError: as `restore` does.
        """
        return self._read_leaves(step, self.digests(step))

    def _read_leaves(self, step: int, saved: dict[str, Any]) -> dict[str, np.ndarray]:
        # Orbax reads either all leaves or none, so it gets a template of all. The broadcast arrays
        # take no memory.
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
        """Waits until every checkpoint is on disk; raises OSError if one cannot be written."""
        with self._writing():
            self._manager.wait_until_finished()

    def set_aside(self, step: int) -> pathlib.Path:
        """Moves a checkpoint to WORKDIR/damaged_checkpoints and returns its new path.

        There it can be examined. Every process of a run must call this method.
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
        """Waits for the checkpoints and releases Orbax's threads; raises OSError as `wait` does."""
        with self._closing, self._writing():
            self._manager.close()

    def _read(self, step: int, **items: Any) -> Any:
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except READ_ERRORS as error:
            if parallel.peer_is_lost(error):
                raise
            raise DamagedCheckpointError(
                f"checkpoint {self.directory / str(step)} cannot be read: {self._reason(error)}"
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
                raise InputError(f"{where} holds {name}, which this model does not have; {remedy}")
