"""The four-layer network of the paper's Fig. 8."""

from collections.abc import Callable

import flax.linen as nn
import jax

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
