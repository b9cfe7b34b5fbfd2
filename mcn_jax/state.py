"""The state of a training run and its first value."""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mcn_jax.config import Config
from mcn_jax.seeds import Purpose, run_key


@flax.struct.dataclass
class EpochProgress:
    """What an epoch has gathered up to a step inside it.

    sums: of each metric over the steps, float64 scalars.
    filters_before: `latent_filters_of` the parameters that the epoch began with.
    seconds: of the whole run, a float64 scalar.
    """

    sums: dict[str, Any]
    filters_before: Any
    seconds: Any


@flax.struct.dataclass
class TrainState:
    """Everything that a training step changes, and all that a checkpoint holds.

    step: steps done, a scalar.
    params, batch_stats, centers: the collections of the model.
    class_means: [classes, Y, X, C] of the center loss; None where its weight is zero.
    opt_state: of the optax chains.
    epoch: in a checkpoint that was written inside an epoch; else None.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    centers: Any
    class_means: jax.Array | None
    opt_state: optax.OptState
    epoch: EpochProgress | None = None

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats, "centers": self.centers}


def create_state(
    config: Config,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    image_shape: tuple[int, int, int],
) -> TrainState:
    """The state before the first step, a function of `config.seed`.

    Args:
        config: of the run.
        model: from `make_model`.
        optimizer: from `make_optimizer`.
        image_shape: (Y, X, C) as the model sees it.
    """
    images = jnp.zeros((1, *image_shape), jnp.dtype(config.dtype))

    def initialise(key):
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
            centers=variables.get("centers", {}),
            class_means=class_means,
            opt_state=optimizer.init(variables["params"]),
        )

    return jax.jit(initialise)(run_key(config.seed, Purpose.PARAMETERS))
