"""Reads trained networks from work directories."""

import dataclasses
import pathlib
from typing import Any

from flax import traverse_util

from mcn_jax.config import Config, from_saved_config
from mcn_jax.errors import InputError
from mcn_jax.models.plan import plan_of, sized
from mcn_jax.workdirs.checkpoint import Checkpoints, DamagedCheckpointError, saved_steps
from mcn_jax.workdirs.files import of_kind, read_json, read_metrics

# Parts of a checkpoint that only training needs; the others are collections of the network.
TRAINING_PARTS = ("step", "opt_state", "class_means", "epoch")
DATA_FIELDS = ("full_name", "image_shape", "mean", "std", "class_names")
EPOCH_FIELDS = ("kind", "step", "epoch", "binarized", "test_accuracy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """A checkpoint at the end of an epoch, without the parts that only training needs.

    config: config of the run, with the sizes of images for the strides that it has learned.
    data: description of the data set, from config.json.
    epoch: record of the epoch that ended there.
    file_bytes: total size of the checkpoint's files.
    variables: collections of the network as numpy arrays: "params", "batch_stats" and the
        collections of its layers.
    """

    workdir: pathlib.Path
    config: Config
    data: dict[str, Any]
    git_revision: str | None
    epoch: dict[str, Any]
    file_bytes: int
    variables: dict[str, Any]

    @property
    def binary(self) -> bool:
        """Whether the convolutions use quantized weights."""
        return bool(self.epoch["binarized"])


def saved_epochs(workdir: pathlib.Path) -> dict[int, dict[str, Any]]:
    """Returns {step: record} of the whole epochs that ended with a checkpoint, in order.

    Raises:
        InputError: if a record lacks a field that `Trained.epoch` needs.
    """
    steps, path = saved_steps(workdir / "checkpoints"), workdir / "metrics.jsonl"
    records = of_kind(read_metrics(path), "epoch")
    epochs = {r["step"]: r for r in records if r.get("step") in steps}
    for name in EPOCH_FIELDS:
        if any(name not in record for record in epochs.values()):
            raise InputError(f"{path} is damaged: an epoch has no {name!r}")
    return epochs


def checkpoint_of(path: str | pathlib.Path) -> tuple[pathlib.Path, int] | None:
    """Returns (WORKDIR, STEP) if a path is WORKDIR/checkpoints/STEP of a work directory.

    The checkpoint itself need not exist. Returns None for any other path.
    """
    path = pathlib.Path(path)
    for named in (path, path.absolute(), path.resolve()):
        workdir = named.parent.parent
        if (
            named.parent.name == "checkpoints"
            and named.name.isascii()
            and named.name.isdecimal()
            and (workdir / "config.json").is_file()
            and not (named / "config.json").is_file()
        ):
            return workdir, int(named.name)
    return None


def read_trained(path: str | pathlib.Path, step: int | None = None) -> Trained:
    """Reads a checkpoint of a run without changing any file; the run may still be training.

    Args:
        path: WORKDIR, the work directory of the run, or WORKDIR/checkpoints/STEP.
        step: step of the checkpoint, if `path` does not name it. None takes the last whole epoch.

    Raises:
        InputError: if `path` is not in a work directory, its config does not fit this version, or
            there is no such checkpoint.
        DamagedCheckpointError: if the checkpoint is not what was saved.
    """
    workdir, step = checkpoint_of(path) or (pathlib.Path(path), step)
    path = workdir / "config.json"
    if not path.is_file():
        raise InputError(
            f"{workdir} is not the work directory of a run: it has no config.json; name one, such"
            " as runs/digits"
        )
    record = read_json(path)
    try:
        config = from_saved_config(record["config"])
        data, revision = dict(record["data"]), record["git_revision"]
        for name in DATA_FIELDS:
            data[name]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} does not fit this version ({error}); train the run again"
        ) from error
    epochs = saved_epochs(workdir)
    if not epochs:
        raise InputError(
            f"{workdir} has no checkpoint of a whole epoch yet; wait for the end of its first epoch"
        )
    chosen = max(epochs) if step is None else step
    if chosen not in epochs:
        raise InputError(
            f"{workdir} has no checkpoint of a whole epoch at step {step}; choose one of the steps"
            f" {', '.join(map(str, sorted(epochs)))}"
        )
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    try:
        leaves = checkpoints.read(chosen)
    except DamagedCheckpointError as error:
        others = [other for other in sorted(epochs) if other != chosen]
        remedy = "train the run again in another work directory"
        if others:
            remedy = f"name another one, such as {workdir / 'checkpoints' / str(others[-1])}"
        raise DamagedCheckpointError(f"{error}; {remedy}") from error
    finally:
        checkpoints.close()
    tree = traverse_util.unflatten_dict(leaves, sep="/")
    shape, classes = tuple(data["image_shape"]), len(data["class_names"])
    config = sized(config, plan_of(config, classes, shape), tree["params"])
    files = (workdir / "checkpoints" / str(chosen)).rglob("*")
    return Trained(
        workdir=workdir,
        config=config,
        data=data,
        git_revision=revision,
        epoch=epochs[chosen],
        file_bytes=sum(file.stat().st_size for file in files if file.is_file()),
        variables={part: value for part, value in tree.items() if part not in TRAINING_PARTS},
    )
