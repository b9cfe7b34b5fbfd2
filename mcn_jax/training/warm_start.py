"""Starts a run from the filters of another run: `--config.init_from=WORKDIR`."""

import dataclasses
import pathlib
from collections.abc import Collection
from typing import Any

from flax import traverse_util

from mcn_jax.config import Config
from mcn_jax.errors import InputError, did_you_mean, require
from mcn_jax.layers.family import PROGRESS
from mcn_jax.models.plan import Plan, class_layers, plan_of
from mcn_jax.paths import user_path
from mcn_jax.training.state import TrainState
from mcn_jax.workdirs.checkpoint import Checkpoints, DamagedCheckpointError, saved_steps, sha256
from mcn_jax.workdirs.files import read_json
from mcn_jax.workdirs.trained import saved_epochs

LAST = "last"  # in config.init_exclude: the layers that depend on the number of classes
NAMED = 6  # most layers that an error names


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmStart:
    """The start of a run from another run's filters.

    state: state at step 0. Parameters and batch statistics come from the other run, and so do the
        centers if `keeps_centers`. Excluded layers, optimizer state and class means are new.
    keeps_centers: whether the other run's centers are taken, so the first epoch needs no k-means.
    description: record for config.json: "workdir", "step" and "test_accuracy" of the other run,
        the layers that were "taken" from it and those left "random", and "sha256" over everything
        taken.
    """

    state: TrainState
    keeps_centers: bool
    description: dict[str, Any]

    def summary(self) -> str:
        """Returns one line for the terminal."""
        kept = "with its centers" if self.keeps_centers else "without its centers"
        taken, random = self.description["taken"], self.description["random"]
        layers = f"layers taken: {len(taken)}"
        if random:
            layers += f", left random: {len(random)} ({', '.join(random)})"
        return (
            f"starting from {self.description['workdir']}, step {self.description['step']}"
            f" ({self.description['test_accuracy']:.2%}), {kept}; {layers}"
        )


def excluded_layers(config: Config, image_shape: tuple[int, int, int]) -> tuple[str, ...]:
    """Returns the names of the layers that `config.init_exclude` leaves random, in call order.

    A name such as "stage_1_block_1" stands for all layers below it.

    Args:
        config: config of the new run.
        image_shape: (Y, X, C) of its images at the input of the network.

    Raises:
        InputError: if a name is not a layer, or no layer is left to be taken.
    """
    if not config.init_exclude:
        return ()
    layers = [layer.name for layer in plan_of(config, 2, image_shape)]
    groups: dict[str, set[str]] = {LAST: set(class_layers(config, image_shape))}
    for layer in layers:
        for name in {layer, layer.partition("/")[0]}:
            groups.setdefault(name, set()).add(layer)
    excluded: set[str] = set()
    for name in config.init_exclude.split(","):
        name = name.strip()
        if name not in groups:
            raise InputError(
                f"config.init_exclude={config.init_exclude!r} names {name!r}, which is not a layer"
                f" of this network; use names of layers, such as {layers[-1]}, or {LAST!r},"
                f" separated by commas{did_you_mean(name, groups)}"
            )
        excluded |= groups[name]
    require(
        len(excluded) < len(layers),
        "init_exclude",
        config.init_exclude,
        "leaves no layer to take from config.init_from; name fewer layers",
    )
    return tuple(layer for layer in layers if layer in excluded)


def warm_start(config: Config, state: TrainState, image_shape: tuple[int, int, int]) -> WarmStart:
    """Builds the start of a new run from the last epoch of the run `config.init_from`.

    It takes the parameters and batch statistics of all layers except `excluded_layers`. It also
    takes the centers, if the other run's filters were binary with the same number and kind of
    centers and no excluded layer has centers. The other run's files are only read, so that run may
    still be training.

    Args:
        config: config of the new run.
        state: state of the new run, with random filters.
        image_shape: (Y, X, C) of its images at the input of the network.

    Raises:
        InputError: if `config.init_from` is not a work directory, has no checkpoint, or holds
            another network, or one with another `model.plane_signs`.
    """
    source = user_path(config.init_from)
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
    plan = plan_of(config, 2, image_shape)  # only names and families of its layers are used
    random = excluded_layers(config, image_shape)
    if any("plane_signs" in layer.settings and layer.name not in random for layer in plan):
        _check_plane_signs(source, config)
    # The share of the training that is done is that of the new run.
    layer_state = {name: tree for name, tree in state.layer_state.items() if name != PROGRESS}
    checkpoints = Checkpoints(source / "checkpoints", read_only=True)
    try:
        digests = checkpoints.digests(step)
        keeps_centers = (
            epoch["binarized"]
            and not any(layer.family.refresh for layer in plan if layer.name in random)
            and checkpoints.holds(step, layer_state)
            and _saved_field(source, "binarize", "centers", "kmeans") == config.binarize.centers
        )
        parts = {"params": state.params, "batch_stats": state.batch_stats, **layer_state}
        leaves = traverse_util.flatten_dict(parts, sep="/")
        recomputed = [layer.name for layer in plan if layer.family.refresh and not keeps_centers]
        states = tuple(f"{collection}/" for collection in layer_state)
        wanted = {
            name: leaf
            for name, leaf in leaves.items()
            if not _layer_in(random, name)
            and not (name.startswith(states) and _layer_in(recomputed, name))
        }
        remedy = (
            "start from a run with the same config.model and images of the same size and channels,"
            " or train the first stage again"
        )
        differing = [
            layer.name
            for layer in plan
            if any(
                _layer_in((layer.name,), name)
                and (name not in digests or tuple(digests[name]["shape"]) != leaf.shape)
                for name, leaf in wanted.items()
            )
        ]
        remedy += _advice(plan, random, differing, class_layers(config, image_shape))
        taken = checkpoints.restore(step, wanted, part=True, remedy=remedy)
    except DamagedCheckpointError as error:
        raise InputError(f"{error}; name another config.init_from") from error
    finally:
        checkpoints.close()
    tree = traverse_util.unflatten_dict({**leaves, **taken}, sep="/")
    return WarmStart(
        state=dataclasses.replace(
            state,
            params=tree["params"],
            batch_stats=tree.get("batch_stats", {}),
            layer_state=state.layer_state | {name: tree[name] for name in layer_state},
        ),
        keeps_centers=keeps_centers,
        description={
            "workdir": str(source),
            "step": step,
            "test_accuracy": epoch["test_accuracy"],
            "taken": [layer.name for layer in plan if layer.name not in random],
            "random": list(random),
            "sha256": sha256({name: digests[name] for name in taken}),
        },
    )


def _check_plane_signs(source: pathlib.Path, config: Config) -> None:
    """Raises InputError if the filters have other signs, which their shapes do not show."""
    signs = _saved_field(source, "model", "plane_signs", "")
    require(
        config.model.plane_signs == signs,
        "model.plane_signs",
        config.model.plane_signs,
        f"must be {signs!r}, with which the filters of config.init_from={source} were trained",
    )


def _saved_field(source: pathlib.Path, group: str, name: str, older: Any) -> Any:
    """Returns a field of the run's config, or `older` if it has been written without the field."""
    path = source / "config.json"
    try:
        return read_json(path)["config"][group].get(name, older)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} has no config of a run; name another config.init_from") from error


def _layer_in(layers: Collection[str], leaf: str) -> bool:
    """Returns whether a leaf, such as "params/dense_2/kernel", belongs to one of the layers."""
    path = leaf.partition("/")[2]
    return any(path.startswith(f"{layer}/") for layer in layers)


def _advice(
    plan: Plan, random: Collection[str], differing: Collection[str], last: Collection[str]
) -> str:
    """Returns how to leave out the layers that differ; "" if no filters would be left to take."""
    left = {layer.name for layer in plan if layer.family.filters} - {*random, *differing}
    if not differing or not left:
        return ""
    names = [name for name in (*random, *differing) if name not in last]
    names += [LAST] if {*random, *differing} & {*last} else []
    shown = ",".join(names[:NAMED]) + (",..." if len(names) > NAMED else "")
    return f", or leave the layers that differ random: --config.init_exclude={shown}"
