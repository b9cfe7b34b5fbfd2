"""Starts a run from the filters of another run: `--config.init_from=WORKDIR`."""

import dataclasses
import pathlib
from typing import Any

from mcn_jax.errors import InputError
from mcn_jax.training.state import TrainState
from mcn_jax.workdirs.checkpoint import Checkpoints, DamagedCheckpointError, saved_steps, sha256
from mcn_jax.workdirs.trained import saved_epochs


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmStart:
    """The start of a run from another run's filters.

    state: state at step 0. Parameters and batch statistics come from the other run, and so do the
        centers if `keeps_centers`. Optimizer state and class means are new.
    keeps_centers: whether the other run's centers are taken, so the first epoch needs no k-means.
    description: record for config.json: "workdir", "step" and "test_accuracy" of the other run,
        and "sha256" over everything taken from it.
    """

    state: TrainState
    keeps_centers: bool
    description: dict[str, Any]

    def summary(self) -> str:
        """Returns one line for the terminal."""
        kept = "with its centers" if self.keeps_centers else "without its centers"
        return (
            f"starting from {self.description['workdir']}, step {self.description['step']}"
            f" ({self.description['test_accuracy']:.2%}), {kept}"
        )


def warm_start(source: pathlib.Path, state: TrainState) -> WarmStart:
    """Builds the start of a new run from the last epoch of another run.

    It takes the parameters and batch statistics. It also takes the centers, if the other run's
    filters were binary with the same number of centers. The other run's files are only read, so
    that run may still be training.

    Args:
        source: the other run's work directory.
        state: state of the new run, with random filters.

    Raises:
        InputError: if `source` is not a work directory, has no checkpoint, or holds another
            network.
    """
    field = f"config.init_from={source}"
    if not (source / "config.json").is_file():
        raise InputError(f"{field} is not the work directory of a run: it has no config.json")
    steps = saved_steps(source / "checkpoints")
    if not steps:
        raise InputError(f"{field} has no checkpoint yet; wait for the end of its first epoch")
    epochs = saved_epochs(source)
    if not epochs:
        raise InputError(
            f"{source / 'metrics.jsonl'} has no record of an epoch that ended at a checkpoint, at"
            f" step {' or '.join(map(str, steps))}; wait for the end of an epoch, restore the file,"
            " or name another config.init_from"
        )
    step = max(epochs)
    epoch = epochs[step]
    checkpoints = Checkpoints(source / "checkpoints", read_only=True)
    try:
        keeps_centers = epoch["binarized"] and checkpoints.holds(step, state.layer_state)
        parts = {"params": state.params, "batch_stats": state.batch_stats}
        if keeps_centers:
            parts |= state.layer_state
        digests = checkpoints.digests(step)
        parts = checkpoints.restore(
            step,
            parts,
            part=True,
            remedy="start from a run with the same config.model, or train the first stage again",
        )
    except DamagedCheckpointError as error:
        raise InputError(f"{error}; name another config.init_from") from error
    finally:
        checkpoints.close()
    taken = {name: d for name, d in digests.items() if name.split("/")[0] in parts}
    params, batch_stats = parts.pop("params"), parts.pop("batch_stats")
    return WarmStart(
        state=dataclasses.replace(
            state,
            params=params,
            batch_stats=batch_stats,
            layer_state=parts if keeps_centers else state.layer_state,
        ),
        keeps_centers=keeps_centers,
        description={
            "workdir": str(source),
            "step": step,
            "test_accuracy": epoch["test_accuracy"],
            "sha256": sha256(taken),
        },
    )
