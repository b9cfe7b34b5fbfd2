"""Reads the trained network that a run is distilled from: `--config.loss.teacher=WORKDIR`."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from mcn_jax import models
from mcn_jax.config import Config
from mcn_jax.errors import InputError, require
from mcn_jax.paths import user_path
from mcn_jax.workdirs.checkpoint import digests, named_leaves, sha256
from mcn_jax.workdirs.files import read_json, read_result
from mcn_jax.workdirs.trained import read_trained

# What the data of both networks must have in common, as config.json names it.
SHARED = ("image_shape", "mean", "std", "class_names")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """A trained network whose outputs another one learns.

    model: the network; in evaluation mode, its statistics and weights do not change.
    variables: its collections.
    description: record for config.json: "workdir", "step" and "test_accuracy" of its run, and
        "sha256" over its variables.
    """

    model: nn.Module
    variables: dict[str, Any]
    description: dict[str, Any]


def read_teacher(config: Config, data: Mapping[str, Any]) -> Teacher | None:
    """Reads the last whole epoch of the run `config.loss.teacher`; None if the field is empty.

    The other run's files are only read.

    Args:
        config: config of the run that is about to start or resume.
        data: description of its data set.

    Raises:
        InputError: if the field does not name a run that has ended, or that run had images of
            another size, with another mean or standard deviation, or other classes.
    """
    if not config.loss.teacher:
        return None
    name, workdir = "loss.teacher", user_path(config.loss.teacher)
    if (workdir / "config.json").is_file():
        message = "has not ended, and its weights may still change; wait for its end"
        require(read_result(workdir) is not None, name, config.loss.teacher, message)
    try:
        trained = read_trained(workdir)
    except InputError as error:
        raise InputError(f"config.{name}: {error}") from error
    for field in SHARED:
        own, other = list(data[field]), list(trained.data[field])
        if other != own:
            raise InputError(
                f"config.{name}={config.loss.teacher!r} was trained with other data:"
                f" {_difference(field, other, own)}; name another run"
            )
    dtypes = {np.asarray(leaf).dtype for leaf in jax.tree.leaves(trained.variables)}
    message = (
        "has float64 weights, and this run has no float64; name a run with float32 weights, or set"
        " config.param_dtype=float64"
    )
    holds = all(jax.dtypes.canonicalize_dtype(dtype) == dtype for dtype in dtypes)
    require(holds, name, config.loss.teacher, message)
    model = models.make_model(trained.config, len(data["class_names"]), quantized=trained.binary)
    return Teacher(
        model=model,
        variables=trained.variables,
        description={
            "workdir": str(trained.workdir),
            "step": trained.epoch["step"],
            "test_accuracy": trained.epoch["test_accuracy"],
            "sha256": sha256(digests(named_leaves(trained.variables))),
        },
    )


def _difference(field: str, other: list[Any], own: list[Any]) -> str:
    """Returns what differs; of classes, their number or the first name."""
    if field == "class_names" and len(other) == len(own):
        a, b = next(pair for pair in zip(other, own, strict=True) if pair[0] != pair[1])
        return f"a class is {a!r:.100}, in this run {b!r:.100}"
    if field == "class_names":
        return f"{len(other)} classes, this run has {len(own)}"
    return f"{field} {other!r:.100}, this run has {own!r:.100}"


def check_teacher(workdir: pathlib.Path, teacher: Teacher) -> None:
    """Raises InputError if a run that resumes has begun with other values of its teacher."""
    begun = read_json(workdir / "config.json").get("teacher") or {}
    if begun.get("sha256") != teacher.description["sha256"]:
        raise InputError(
            f"the weights of config.loss.teacher={teacher.description['workdir']} have changed"
            f" since {workdir} began (step {begun.get('step')} then,"
            f" {teacher.description['step']} now); restore them, or use another --workdir"
        )
