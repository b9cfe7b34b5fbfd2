"""The four-layer network of the paper's Fig. 8."""

from collections.abc import Callable

import flax.linen as nn
import jax

from mcn_jax.config import ModelConfig
from mcn_jax.errors import InputError
from mcn_jax.models.classifier import Classifier
from mcn_jax.models.halving import check_sizes


class SimpleCNN(Classifier):
    """One convolution 3x3, batch norm, ReLU and pooling per width, followed by the head.

    The paper pools before the ReLU; the result is the same, because maximum and ReLU commute.
    Before a layer without ReLU, pooling comes before batch norm, as in BNN: after it, a maximum
    would leave few negative values. Linear poolings also come before batch norm. Each layer is
    followed by a pooling layer.

    `widths` are the output maps of each layer. For the other attributes see `Classifier`.
    """

    def convolutions(
        self,
        x: jax.Array,
        batch_norm: Callable[..., nn.Module],
        dropout: Callable[..., jax.Array],
    ) -> tuple[jax.Array, jax.Array]:
        """Computes everything before the head; see `Classifier`."""
        del dropout
        for layer, width in enumerate(self.widths, start=1):
            conv = self.stem_conv if layer == 1 else self.conv
            norm = f"batch_norm_{layer}"
            x = conv(width, name=f"conv_{layer}")(x)
            relu = self.relu_before_head if layer == len(self.widths) else self.relu
            if relu and not self.pooling_kind.precedes_batch_norm:
                features = batch_norm(name=norm, relu=True)(x)
                x = self.pooled(features, layer)
            else:
                features = x = batch_norm(name=norm, relu=relu)(self.pooled(x, layer))
        return features, x

    def vector(self, maps: jax.Array) -> jax.Array:
        """Returns all pixels of all maps as vectors."""
        return maps.reshape(maps.shape[0], -1)


def usual_strides(model: ModelConfig) -> tuple[int, ...]:
    """Returns the strides of the pooling layers if the config names none."""
    return (2,) * len(model.widths)


def check(model: ModelConfig) -> None:
    """Raises InputError unless the network can be built."""
    if not model.widths:
        raise InputError("config.model.widths=() must name at least one layer")


def check_image_size(model: ModelConfig, height: int, width: int) -> None:
    """Raises InputError unless a pixel is left after every layer has halved the image."""
    size = min(height, width)
    if model.pooling == "strided" and not model.strides and not size >> len(model.widths):
        raise InputError(
            f"config.model.widths={model.widths} has too many layers for images of {size} pixels,"
            " which each layer halves; use fewer layers or larger images"
        )
    check_sizes(model, model.strides or usual_strides(model), (height, width))
