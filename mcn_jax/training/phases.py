"""Tells when a run quantizes weights, refreshes layers and saves checkpoints."""

from mcn_jax.config import Config
from mcn_jax.layers.table import LAYERS
from mcn_jax.models import convolution_kinds


def quantizes(config: Config) -> bool:
    """Returns whether the fully trained model has quantized weights."""
    kinds = convolution_kinds(config.model).values()
    return config.binarize.enabled and any(LAYERS[kind].quantizes for kind in kinds)


def quantized_in(config: Config, epoch: int) -> bool:
    """Returns whether the convolutions use quantized weights in an epoch, counted from 0."""
    return quantizes(config) and epoch >= config.binarize.start_epoch


def refreshes_before(config: Config, epoch: int) -> bool:
    """Returns whether layers recompute their state, such as k-means centers, before an epoch."""
    if not quantized_in(config, epoch):
        return False
    epochs_quantized = epoch - config.binarize.start_epoch
    refresh = config.binarize.refresh_epochs
    return epochs_quantized == 0 or (refresh > 0 and epochs_quantized % refresh == 0)


def finishes(config: Config) -> bool:
    """Returns whether the run changes its network once more after the last update."""
    return bool(config.optimizer.average_epochs or config.batch_norm_steps)


def saves_between(config: Config, before: int, after: int) -> bool:
    """Returns whether a checkpoint inside an epoch is due in steps `before` + 1 to `after`."""
    every = config.checkpoint_every_steps
    return every > 0 and after // every > before // every
