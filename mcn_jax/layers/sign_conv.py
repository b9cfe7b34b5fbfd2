"""Convolutions with one-bit weights and one-bit activations: BNN and XNOR-Net.

The layer takes the signs of its input itself, so a network leaves out the ReLU before it. A ReLU
would make all signs positive. The first convolution of a network takes the image as it is.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mcn_jax.config import Config
from mcn_jax.layers import one_bit_file
from mcn_jax.layers.arithmetic import Arithmetic
from mcn_jax.layers.conv import KernelConv
from mcn_jax.layers.family import Family, Group, PlannedLayer
from mcn_jax.layers.one_bit import DECAY, OneBitConv, one_bit_family
from mcn_jax.ops import one_bit
from mcn_jax.ops.convolution import convolve

CLIPPED_TO_ROOT = Group(
    name="latent_kernels_clipped_to_root", decay=DECAY, projection=one_bit.clipped_to_root
)


class SignConv(OneBitConv):
    """Convolution of the signs of its input with one-bit filters.

    This is the base class; `BNNConv` and the classes of XNOR-Net follow from it. Without
    `binarized`, the input is clipped to [-1, 1] instead, the function whose derivative the signs
    have.

    Attributes:
        signs_input: False takes the input as it is, for the first convolution of a network.
        k_gradient: whether K gets a gradient.

    For the other attributes see `OneBitConv`.
    """

    signs_input: bool = True
    k_gradient: bool = False

    mask = "inclusive"
    has_k = False  # whether the output is multiplied by K, the scales of the activations

    def convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Convolves the signs of the input with the layer's filters."""
        if not self.signs_input:
            return super().convolve(x, kernel)
        if not self.binarized:
            return super().convolve(jnp.clip(x, -1, 1), kernel)
        output = super().convolve(one_bit.sign_activations(x, self.mask), kernel)
        if self.has_k:
            source = x if self.k_gradient else lax.stop_gradient(x)
            window = (self.kernel_size, self.strides, self.padding)
            output = output * one_bit.activation_scales(source, *window)
        return output


class BNNConv(SignConv):
    """Convolution of a binarized neural network (Hubara et al. 2016), with scaled filters."""

    rule = "bnn"


class XNORConv(SignConv):
    """XNOR-Net's convolution (Rastegari et al. 2016), with the scales K of the activations."""

    rule = "bwn"
    mask = "exclusive"
    has_k = True


class XNORWithoutKConv(SignConv):
    """XNOR-Net's convolution without K, as in the program of its authors."""

    rule = "bwn"
    mask = "exclusive"


class SignKernelConv(KernelConv):
    """Convolution of signs, for inference from a file; see `KernelConv`.

    Attributes:
        signs_input: see `SignConv`.
        quantized: whether signs are taken; otherwise the input is clipped to [-1, 1].
        has_k: whether the output is multiplied by K.
    """

    signs_input: bool = True
    quantized: bool = True
    has_k: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves [N, Y, X, C] to [N, Y', X', out_maps * planes]."""
        taps = (self.kernel_size, self.kernel_size)
        shape = (*taps, x.shape[-1], self.out_maps * self.planes)
        kernel = self.param("kernel", nn.initializers.zeros, shape)
        taken = x
        if self.signs_input:
            taken = one_bit.sign(x) if self.quantized else jnp.clip(x, -1, 1)
        output = convolve(taken, kernel, (self.strides, self.strides), self.padding)
        if self.signs_input and self.quantized and self.has_k:
            window = (self.kernel_size, self.strides, self.padding)
            output = output * one_bit.activation_scales(x, *window)
        return output


def _arithmetic(stored: Mapping[str, np.ndarray], layer: PlannedLayer, module: Any) -> Arithmetic:
    found = one_bit_file.arithmetic(stored, layer, module)
    if not module.signs_input:
        return found
    if not module.quantized:
        return dataclasses.replace(found, taken="clipped")
    return dataclasses.replace(found, taken="signs", scales_activations=module.has_k)


def _family(module: type[SignConv], kind: str, **fields: Any) -> Family:
    def deployed(config: Config, quantized: bool) -> Callable[..., nn.Module]:
        return functools.partial(
            SignKernelConv, planes=config.model.planes, quantized=quantized, has_k=module.has_k
        )

    fields |= {"deployed": deployed, "follows_relu": False, "takes_signs": True, "pointwise": False}
    fields["arithmetic"] = _arithmetic
    return one_bit_family(module, kind, options=("k_gradient",), **fields)


# Names for config.model.conv.
FAMILIES: dict[str, Family] = {
    "bnn": _family(BNNConv, "BNN", group=CLIPPED_TO_ROOT, methods=("bnn", "bnn, float")),
    "xnor": _family(XNORConv, "XNOR-Net", per_filter=True, methods=("xnor", "xnor, float")),
    "xnor_without_k": _family(
        XNORWithoutKConv,
        "XNOR-Net without K",
        per_filter=True,
        methods=("xnor_without_k", "xnor_without_k, float"),
    ),
}
