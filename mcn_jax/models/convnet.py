"""The VGG-like network of BinaryConnect, BNN and XNOR-Net.

Courbariaux et al. 2015 write it as 2x128C3-P2-2x256C3-P2-2x512C3-P2-1024-1024-10 for CIFAR-10. With
`widths` (128, 256, 512), `planes` 1 and the head "one_bit_dense" it is this network. For SVHN they
halve the widths of the convolutions. With the head "dense_batch_norm" the dense layers are float.
"""

from collections.abc import Callable

import flax.linen as nn
import jax

from mcn_jax.config import ModelConfig
from mcn_jax.errors import InputError
from mcn_jax.models.classifier import Classifier
from mcn_jax.models.halving import check_sizes

CONVOLUTIONS = 2  # in a stage


class ConvNet(Classifier):
    """Stages of two convolutions 3x3 with batch norm and ReLU, followed by the head.

    The order is that of the authors' programs: convolution, pooling after the second layer of a
    stage, batch norm, ReLU. So `Outputs.features` are pooled. Layers that take signs have no ReLU
    before them. With such layers the order is also that of XNOR-Net's blocks: batch norm, sign,
    convolution, pooling.

    `widths` are the output maps of each stage. For the other attributes see `Classifier`.
    """

    head: str = "dense_batch_norm"

    def convolutions(
        self,
        x: jax.Array,
        batch_norm: Callable[..., nn.Module],
        dropout: Callable[..., jax.Array],
    ) -> tuple[jax.Array, jax.Array]:
        """Computes everything before the head; see `Classifier`."""
        del dropout
        layers = CONVOLUTIONS * len(self.widths)
        for layer in range(1, layers + 1):
            relu = self.relu_before_head if layer == layers else self.relu
            conv = self.stem_conv if layer == 1 else self.conv
            x = conv(self.widths[(layer - 1) // CONVOLUTIONS], name=f"conv_{layer}")(x)
            if layer % CONVOLUTIONS == 0:
                x = self.pooled(x, layer // CONVOLUTIONS)
            x = batch_norm(name=f"batch_norm_{layer}", relu=relu)(x)
        return x, x

    def vector(self, maps: jax.Array) -> jax.Array:
        """Returns all pixels of all maps as vectors."""
        return maps.reshape(maps.shape[0], -1)


def usual_strides(model: ModelConfig) -> tuple[int, ...]:
    """Returns the strides of the pooling layers if the config names none."""
    return (2,) * len(model.widths)


def check(model: ModelConfig) -> None:
    """Raises InputError unless the network can be built."""
    if not model.widths:
        raise InputError("config.model.widths=() must name at least one stage")


def check_image_size(model: ModelConfig, height: int, width: int) -> None:
    """Raises InputError unless a pixel is left after every stage has halved the image."""
    size = min(height, width)
    if model.pooling == "strided" and not model.strides and not size >> len(model.widths):
        raise InputError(
            f"config.model.widths={model.widths} has too many stages for images of {size} pixels,"
            " which each stage halves; use fewer stages or larger images"
        )
    check_sizes(model, model.strides or usual_strides(model), (height, width))
