"""The state of a training run and its first value, and the progress of an epoch beside it."""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from mcn_jax.config import Config
from mcn_jax.models.plan import Plan, layer_collections
from mcn_jax.seeds import Purpose, run_key

# Metrics of the steps whose means an epoch records.
EPOCH_MEANS = ("softmax_loss", "accuracy", "filter_loss", "center_loss")
PROGRESS = "epoch"  # name of the progress of an epoch among the parts of a checkpoint


@flax.struct.dataclass
class Progress:
    """What an epoch has gathered up to a step inside it; a checkpoint holds it beside the state.

    sums: of each metric over the steps, float64 scalars.
    filters_before: the parameters that `Family.health` compares, as the epoch began with them.
    seconds: of the whole run, a float64 scalar.
    """

    sums: dict[str, Any]
    filters_before: Any
    seconds: Any


@flax.struct.dataclass
class TrainState:
    """Everything that a training step changes.

    step: steps done, a scalar.
    params, batch_stats: collections of the model.
    layer_state: {collection: tree} of what the layers keep besides, such as k-means centers.
    class_means: [classes, Y, X, C] of the center loss; None where its weight is zero.
    opt_state: of the optax chains.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    layer_state: dict[str, Any]
    class_means: jax.Array | None
    opt_state: optax.OptState

    @property
    def collections(self) -> dict[str, Any]:
        """All collections of the model but the parameters."""
        return {"batch_stats": self.batch_stats, **self.layer_state}

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params, **self.collections}


def saved_tree(state: TrainState, progress: Progress | None = None) -> dict[str, Any]:
    """The parts of a checkpoint: a state, and the progress of the epoch that it stands inside."""
    tree = {**state.__dict__, **state.layer_state}
    del tree["layer_state"]
    return tree if progress is None else tree | {PROGRESS: progress}


def from_saved_tree(tree: dict[str, Any]) -> tuple[TrainState, Progress | None]:
    """The state and the progress of `saved_tree`."""
    tree = dict(tree)
    progress = tree.pop(PROGRESS, None)
    own = ("step", "params", "batch_stats", "class_means", "opt_state")
    state = TrainState(
        **{name: tree.pop(name) for name in own},
        layer_state=tree,
    )
    return state, progress


def new_progress(state: TrainState, plan: Plan, seconds: float) -> Progress:
    """Progress of an epoch with no steps done.

    Args:
        state: that the epoch begins with, on the host.
        plan: of the network.
        seconds: that the run has taken.
    """
    compared = {
        (*layer.path, *leaf.split("/")): value
        for layer in plan
        for leaf, value in layer.params_in(state.params, layer.family.compared).items()
    }
    return Progress(
        sums=dict.fromkeys(EPOCH_MEANS, np.zeros((), np.float64)),
        filters_before=traverse_util.unflatten_dict(compared),
        seconds=np.float64(seconds),
    )


def create_state(
    config: Config,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    plan: Plan,
    image_shape: tuple[int, int, int],
) -> TrainState:
    """The state before the first step, a function of `config.seed`.

    Args:
        config: of the run.
        model: from `make_model`.
        optimizer: from `make_optimizer`.
        plan: of the network.
        image_shape: (Y, X, C) as the model sees it.
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
            # Flax makes them float32 whatever the parameters are; a step would change the dtype.
            batch_stats=jax.tree.map(
                lambda x: x.astype(config.param_dtype), variables["batch_stats"]
            ),
            layer_state={name: variables[name] for name in layer_collections(plan)},
            class_means=class_means,
            opt_state=optimizer.init(variables["params"]),
        )

    return jax.jit(initialise)(run_key(config.seed, Purpose.PARAMETERS))
