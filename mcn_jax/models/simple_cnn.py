"""The four-layer network of the paper's Fig. 8."""

import itertools
from collections.abc import Callable

import flax.linen as nn
import jax

from mcn_jax.config import ModelConfig
from mcn_jax.errors import InputError
from mcn_jax.layers import max_pool_2x2
from mcn_jax.models.classifier import Classifier


class SimpleCNN(Classifier):
    """As many times as there are widths: convolution 3x3, batch norm, ReLU, 2x2 max-pooling; then
    dense, ReLU, dropout, dense.

    The paper pools before the ReLU; the two commute. `widths` are the output maps of each layer,
    the other attributes are those of `Classifier`.
    """

    def convolutions(
        self, x: jax.Array, batch_norm: Callable[..., nn.Module]
    ) -> tuple[jax.Array, jax.Array]:
        """See `Classifier`."""
        for layer, width in enumerate(self.widths, start=1):
            x = self.conv(width, name=f"conv_{layer}")(x)
            features = nn.relu(batch_norm(name=f"batch_norm_{layer}")(x))
            x = max_pool_2x2(features)
        return features, x.reshape(x.shape[0], -1)


def conv_maps(model: ModelConfig, in_maps: int) -> list[tuple[int, int]]:
    """(input maps, output maps) of every convolution, in order, from `in_maps` on."""
    return list(itertools.pairwise((in_maps, *model.widths)))


def check(model: ModelConfig) -> None:
    """Raises InputError unless the network can be built."""
    if not model.widths:
        raise InputError("config.model.widths=() must name at least one layer")


def check_image_size(model: ModelConfig, height: int, width: int) -> None:
    """Raises InputError unless a pixel is left after every layer has halved the image."""
    size = min(height, width)
    if not size >> len(model.widths):
        raise InputError(
            f"config.model.widths={model.widths} has more layers than images of {size} pixels can"
            " be halved"
        )
