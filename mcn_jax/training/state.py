"""Defines and creates the state of a training run and the progress of an epoch."""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from mcn_jax.config import Config
from mcn_jax.models.plan import Plan, layer_collections, pooled_sizes
from mcn_jax.seeds import Purpose, run_key

# The record of an epoch contains the epoch means of these step metrics.
EPOCH_MEANS = ("softmax_loss", "accuracy", "filter_loss", "center_loss")
PROGRESS = "epoch"  # name of the epoch's progress in a checkpoint


@flax.struct.dataclass
class Progress:
    """What an epoch has accumulated so far. Checkpoints inside an epoch save it with the state.

    sums: sum of each metric over the steps done, as float64 scalars.
    pooled_sizes: sizes of images at present, [2 * layers] int32, see `ModelConfig.pooled_sizes`;
        None without learned strides.
    filters_before: the parameters that `Family.health` compares, from the start of the epoch.
    seconds: seconds that the whole run has taken so far, a float64 scalar.
    """

    sums: dict[str, Any]
    filters_before: Any
    seconds: Any
    pooled_sizes: Any = None


@flax.struct.dataclass
class TrainState:
    """Everything that a training step changes, and the teacher.

    step: number of steps done, a scalar.
    params, batch_stats: collections of the model.
    layer_state: {collection: tree} of the layers' other state, such as k-means centers.
    class_means: [classes, Y, X, C] of the center loss; None if its weight is zero.
    opt_state: state of the optax chains.
    teacher: variables of the network whose outputs this one learns, which checkpoints leave out;
        None without a teacher.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    layer_state: dict[str, Any]
    class_means: jax.Array | None
    opt_state: optax.OptState
    teacher: Any = None

    @property
    def collections(self) -> dict[str, Any]:
        """All collections of the model except the parameters."""
        return {"batch_stats": self.batch_stats, **self.layer_state}

    @property
    def variables(self) -> dict[str, Any]:
        """The variables that `model.apply` takes."""
        return {"params": self.params, **self.collections}


def saved_tree(state: TrainState, progress: Progress | None = None) -> dict[str, Any]:
    """Returns the parts of a checkpoint: a state and, inside an epoch, the progress."""
    tree = {**state.__dict__, **state.layer_state}
    del tree["layer_state"], tree["teacher"]
    return tree if progress is None else tree | {PROGRESS: progress}


def from_saved_tree(tree: dict[str, Any]) -> tuple[TrainState, Progress | None]:
    """Returns the state, without a teacher, and the progress from a tree made by `saved_tree`."""
    tree = dict(tree)
    progress = tree.pop(PROGRESS, None)
    own = ("step", "params", "batch_stats", "class_means", "opt_state")
    state = TrainState(
        **{name: tree.pop(name) for name in own},
        layer_state=tree,
    )
    return state, progress


def new_progress(state: TrainState, plan: Plan, seconds: float) -> Progress:
    """Creates the progress of an epoch with no steps done.

    Args:
        state: state at the start of the epoch, on the host.
        plan: plan of the network.
        seconds: seconds that the run has taken so far.
    """
    compared = {
        (*layer.path, *leaf.split("/")): value
        for layer in plan
        for leaf, value in layer.params_in(state.params, layer.family.compared).items()
    }
    sizes = pooled_sizes(plan, state.params)
    return Progress(
        sums=dict.fromkeys(EPOCH_MEANS, np.zeros((), np.float64)),
        filters_before=traverse_util.unflatten_dict(compared),
        seconds=np.float64(seconds),
        pooled_sizes=np.asarray(sizes, np.int32) if sizes else None,
    )


def create_state(
    config: Config,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    plan: Plan,
    image_shape: tuple[int, int, int],
) -> TrainState:
    """Creates the state before the first step; its random values depend only on `config.seed`.

    Args:
        config: the run's config.
        model: from `make_model`.
        optimizer: from `make_optimizer`.
        plan: plan of the network.
        image_shape: (Y, X, C) of the images as the model sees them.
    """
    images = jnp.zeros((1, *image_shape), jnp.dtype(config.dtype))

    def initialise(key: jax.Array) -> TrainState:
        outputs, variables = model.init_with_output(key, images)
        class_means = None
        if config.loss.center_loss_weight:
            shape = (outputs.logits.shape[-1], *outputs.features.shape[1:])
            class_means = jnp.zeros(shape, jnp.dtype(config.param_dtype))
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            # Flax always makes them float32. Without the cast a step would change their dtype.
            batch_stats=jax.tree.map(
                lambda x: x.astype(config.param_dtype), variables["batch_stats"]
            ),
            layer_state={name: variables[name] for name in layer_collections(plan)},
            class_means=class_means,
            opt_state=optimizer.init(variables["params"]),
        )

    return jax.jit(initialise)(run_key(config.seed, Purpose.PARAMETERS))
