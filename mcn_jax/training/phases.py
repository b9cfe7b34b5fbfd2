"""The phases of a run: when weights are quantized, and what is due before and after an epoch."""

from mcn_jax.config import Config
from mcn_jax.layers.table import LAYERS


def quantizes(config: Config) -> bool:
    """Whether the weights of the trained model are quantized."""
    return LAYERS[config.model.conv].quantizes and config.binarize.enabled


def quantized_in(config: Config, epoch: int) -> bool:
    """Whether the convolutions of this epoch (from 0) use quantized weights."""
    return quantizes(config) and epoch >= config.binarize.start_epoch


def refreshes_before(config: Config, epoch: int) -> bool:
    """Whether the layers compute their state, such as k-means centers, before this epoch."""
    if not quantized_in(config, epoch):
        return False
    epochs_quantized = epoch - config.binarize.start_epoch
    refresh = config.binarize.refresh_epochs
    return epochs_quantized == 0 or (refresh > 0 and epochs_quantized % refresh == 0)


def saves_between(config: Config, before: int, after: int) -> bool:
    """Whether a checkpoint inside an epoch is due after a step from `before` + 1 to `after`."""
    every = config.checkpoint_every_steps
    return every > 0 and after // every > before // every
