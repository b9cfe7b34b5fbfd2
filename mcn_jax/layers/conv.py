"""The ordinary convolution as a layer family, and a convolution with a kernel from a file."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mcn_jax.config import Config
from mcn_jax.layers.arithmetic import Arithmetic
from mcn_jax.layers.family import (
    FILTERS,
    WEIGHTS,
    Family,
    Leaves,
    PlannedLayer,
    Tensor,
    float32_tensor,
)
from mcn_jax.ops.convolution import convolve
from mcn_jax.ops.draws import he_normal


class Conv(nn.Module):
    """Ordinary convolution to `out_maps` feature maps of `planes` channels each, without bias."""

    out_maps: int
    planes: int = 4
    kernel_size: int = 3
    strides: int = 1
    padding: str = "SAME"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves [N, Y, X, C] to [N, Y', X', out_maps * planes]."""
        return nn.Conv(
            features=self.out_maps * self.planes,
            kernel_size=(self.kernel_size, self.kernel_size),
            strides=self.strides,
            padding=self.padding,
            use_bias=False,
            kernel_init=he_normal,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            conv_general_dilated=_convolve,
            name="conv",
        )(x)


def _convolve(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: str, **defaults: Any
) -> jax.Array:
    """Replaces `lax.conv_general_dilated` in `nn.Conv`, whose other options keep their defaults."""
    del defaults
    return convolve(x, kernel, strides, padding)


class KernelConv(nn.Module):
    """Convolution whose parameter `kernel` [W, W, C, out_maps * planes] was read from a file.

    It is the deployed form of every family whose weights unpack to a plain kernel.
    """

    out_maps: int
    planes: int = 4
    kernel_size: int = 3
    strides: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves [N, Y, X, C] to [N, Y', X', out_maps * planes]."""
        taps = (self.kernel_size, self.kernel_size)
        shape = (*taps, x.shape[-1], self.out_maps * self.planes)
        kernel = self.param("kernel", nn.initializers.zeros, shape)
        return convolve(x, kernel, (self.strides, self.strides), self.padding)


def kernel_conv(config: Config, quantized: bool) -> Callable[..., nn.Module]:
    """Implements `Family.deployed` for families whose `unpack` returns {"kernel": ...}."""
    del quantized
    return functools.partial(KernelConv, planes=config.model.planes)


def ordinary_conv(*, deployed: bool, dtype: Any, param_dtype: Any) -> Callable[..., nn.Module]:
    """Returns what makes the ordinary convolutions of a network of another family.

    Args:
        deployed: whether the network is for inference from a file.
        dtype: dtype of the computation.
        param_dtype: dtype of the kernel.
    """
    if deployed:
        return KernelConv
    return functools.partial(Conv, dtype=dtype, param_dtype=param_dtype)


def kernel_multiply_adds(layer: PlannedLayer) -> dict[str, int]:
    """Returns the multiply-adds of a convolution whose filters are [W, W, C, O]."""
    assert layer.family.filters is not None
    weights = int(np.prod(layer.params[layer.family.filters], dtype=object))
    return {"direct": layer.out_pixels * weights}


def _make(config: Config, quantized: bool) -> Callable[..., nn.Module]:
    del quantized  # an ordinary convolution has nothing to quantize
    return functools.partial(
        Conv,
        planes=config.model.planes,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
    )


def _pack(p: Leaves, s: Leaves, quantized: bool) -> dict[str, np.ndarray]:
    del s, quantized
    return {"conv/kernel": np.asarray(p["conv/kernel"], np.float32)}


def _unpack(stored: Mapping[str, jax.Array], layer: PlannedLayer) -> dict[str, jax.Array]:
    del layer
    return {"kernel": stored["conv/kernel"]}


def _spec(
    layer: PlannedLayer, config: Config, quantized: bool, dtypes: Mapping[str, str]
) -> dict[str, Tensor]:
    del config, quantized, dtypes
    (shape,) = layer.params.values()
    return {"conv/kernel": float32_tensor(shape, FILTERS)}


def _arithmetic(stored: Mapping[str, np.ndarray], layer: PlannedLayer, module: Any) -> Arithmetic:
    del layer
    kernel = stored["conv/kernel"]
    return Arithmetic(weights=kernel, strides=module.strides, padding=module.padding)


CONV = Family(
    kind="convolution",
    module=Conv,
    groups={"conv/kernel": WEIGHTS},
    pack=_pack,
    unpack=_unpack,
    spec=_spec,
    make=_make,
    deployed=kernel_conv,
    filters="conv/kernel",
    multiply_adds=kernel_multiply_adds,
    arithmetic=_arithmetic,
)
