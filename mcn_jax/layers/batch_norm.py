"""Batch norm as a layer family: trained with statistics, deployed as an affine map."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mcn_jax.config import Config
from mcn_jax.layers.family import OFFSETS, Family, Leaves, PlannedLayer, Tensor
from mcn_jax.layers.formats import Formats, scale_tensor, with_scales
from mcn_jax.ops.batch_norm import batch_norm_relu

MOMENTUM = 0.9  # share of the running statistics that a training step keeps
STORED = ("scale", "offset")  # leaves of a batch norm in a file


class BatchNorm(nn.BatchNorm):
    """`nn.BatchNorm`, optionally followed by ReLU.

    In training, both are one function with its own gradient; see `mcn_jax.ops.batch_norm`.

    Attributes:
        relu: whether ReLU follows.
    """

    relu: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """Normalises [..., C] per channel."""
        if not self.relu:
            return super().__call__(x)
        if self.use_running_average or self.is_initializing():
            return nn.relu(super().__call__(x))
        shape = x.shape[-1:]
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", self.scale_init, shape, self.param_dtype)
        bias = self.param("bias", self.bias_init, shape, self.param_dtype)
        dtype = jnp.dtype(self.dtype or jnp.result_type(x, scale, bias))
        y, batch_mean, batch_var = batch_norm_relu(
            x, scale, bias, self.epsilon, dtype, self.axis_name
        )
        mean.value = self.momentum * mean.value + (1 - self.momentum) * batch_mean
        var.value = self.momentum * var.value + (1 - self.momentum) * batch_var
        return y


class Affine(nn.Module):
    """Computes x * scale + offset per channel: batch norm with its statistics folded in.

    Parameters: `scale` and `offset`, [C] each; see `folded_batch_norm`.

    Attributes:
        relu: whether ReLU follows.
        dtype: dtype of the computation; None takes the dtype of the input.
        param_dtype: dtype of the parameters.
    """

    relu: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Scales and shifts [..., C] to [..., C]."""
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels, self.param_dtype)
        offset = self.param("offset", nn.initializers.zeros, channels, self.param_dtype)
        dtype = self.dtype or x.dtype
        shape = (1,) * (x.ndim - 1) + channels
        y = x * scale.astype(dtype).reshape(shape) + offset.astype(dtype).reshape(shape)
        return nn.relu(y) if self.relu else y


def folded_batch_norm(
    params: Mapping[str, Any], statistics: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """Returns the parameters of the `Affine` that equals a Flax batch norm at inference.

    Args:
        params: `scale` and `bias`, [C] each.
        statistics: `mean` and `var`, [C] each.
    """
    scale = params["scale"] / jnp.sqrt(statistics["var"] + nn.BatchNorm.epsilon)
    return {"scale": scale, "offset": params["bias"] - statistics["mean"] * scale}


def _pack(p: Leaves, s: Leaves, quantized: bool) -> dict[str, np.ndarray]:
    del quantized
    params = {name: np.asarray(leaf, np.float32) for name, leaf in p.items()}
    folded = folded_batch_norm(params, s)
    return {name: np.asarray(value, np.float32) for name, value in folded.items()}


def _unpack(stored: Mapping[str, jax.Array], layer: PlannedLayer) -> dict[str, jax.Array]:
    del layer
    return {name: stored[name].astype(jnp.float32) for name in STORED}


def _recode(stored: Mapping[str, np.ndarray], formats: Formats) -> dict[str, np.ndarray]:
    return with_scales(stored, STORED, formats, "values of a batch norm")


def _spec(
    layer: PlannedLayer, config: Config, quantized: bool, dtypes: Mapping[str, str]
) -> dict[str, Tensor]:
    del config, quantized
    (size,) = shape = layer.params["scale"]
    return {name: scale_tensor(name, dtypes, shape, "batch norm", size) for name in STORED}


BATCH_NORM = Family(
    kind="batch norm",
    module=nn.BatchNorm,
    groups={"scale": OFFSETS, "bias": OFFSETS},
    pack=_pack,
    unpack=_unpack,
    spec=_spec,
    recode=_recode,
)
