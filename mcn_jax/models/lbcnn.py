"""The residual network of LBCNN (Juefei-Xu et al. 2017), which keeps the image at its full size.

The authors' networks, with `planes` 1, layer family "lbc", `stem_conv` "conv" and the head "dense":

    data      depth  widths  lbc_ratio  lbc_density  dense_features
    MNIST     75     (16,)   32         0.5          128
    SVHN      40     (16,)   32         0.9          512
    CIFAR-10  50     (384,)  704/384    0.001        512

They count each module as two layers. Their first convolution has a bias, which the batch norm after
it makes useless; ours has none. Their images have 32x32 pixels.
"""

from collections.abc import Callable

import flax.linen as nn
import jax

from mcn_jax.config import ModelConfig
from mcn_jax.errors import InputError
from mcn_jax.layers.pooling import average_pool
from mcn_jax.models.classifier import Classifier

WINDOW = 5  # of the average pooling, in pixels


class LBCNN(Classifier):
    """Convolution, batch norm, ReLU, `depth` modules, average pooling and the head.

    A module adds to its input: batch norm, then a convolution of the chosen layer family, without a
    ReLU before it. Average pooling takes windows of 5x5 pixels with stride 5 and drops the rows and
    columns that are left. Dropout follows it.

    Attributes:
        widths: output maps of all convolutions, a single number.
        depth: number of modules.

    For the other attributes see `Classifier`.
    """

    dense_features: int = 512
    depth: int = 20

    def convolutions(
        self,
        x: jax.Array,
        batch_norm: Callable[..., nn.Module],
        dropout: Callable[..., jax.Array],
    ) -> tuple[jax.Array, jax.Array]:
        """Computes everything before the head; see `Classifier`."""
        (width,) = self.widths
        x = self.stem_conv(width, name="stem")(x)
        x = batch_norm(name="batch_norm_stem", relu=True)(x)
        for module in range(1, self.depth + 1):
            y = batch_norm(name=f"batch_norm_{module}", relu=self.relu)(x)
            x = x + self.conv(width, name=f"conv_{module}")(y)
        return x, dropout(average_pool(x, WINDOW), place=1)

    def vector(self, maps: jax.Array) -> jax.Array:
        """Returns all pixels of all maps as vectors."""
        return maps.reshape(maps.shape[0], -1)


def check(model: ModelConfig) -> None:
    """Raises InputError unless the network can be built."""
    if len(model.widths) != 1:
        raise InputError(
            f"config.model.widths={model.widths} must be the single width of an lbcnn, such as 16"
        )
    if model.depth < 1:
        raise InputError(f"config.model.depth={model.depth} must be at least 1 module of an lbcnn")


def check_image_size(model: ModelConfig, height: int, width: int) -> None:
    """Raises InputError unless a window of the average pooling fits into the image."""
    del model
    if min(height, width) < WINDOW:
        raise InputError(
            f"images of {height}x{width} pixels are too small for an lbcnn, which averages windows"
            f" of {WINDOW}x{WINDOW}; set config.data.image_size={WINDOW} or more"
        )
