"""Parameterized hypercomplex convolution as a layer family; see `mcn_jax.ops.phc`."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mcn_jax.config import Config
from mcn_jax.errors import InputError, require, require_one_of
from mcn_jax.layers.conv import kernel_conv
from mcn_jax.layers.family import (
    FILTERS,
    WEIGHTS,
    Cell,
    Family,
    Group,
    Leaves,
    PlannedLayer,
    Tensor,
    View,
    float32_tensor,
)
from mcn_jax.ops import phc
from mcn_jax.ops.convolution import convolve

MAX_N = 64
RULES = Group(name="phc_rules", decay=None)


class PHConv(nn.Module):
    """Convolution whose kernel is built from n rules and n small filters, without bias.

    Parameters: `rules` [n, n, n] and `filters` [n, W, W, I/n, O/n]. I is the number of input
    channels, and O = out_maps * planes. There are n^3 + W*W*I*O/n weights instead of W*W*I*O. The
    convolution takes as much time and memory as an ordinary one.

    Attributes:
        out_maps: output maps, of `planes` channels each.
        planes: channels per output map.
        kernel_size: W, in pixels.
        strides: step in y and x, in pixels.
        padding: a name in `mcn_jax.ops.conv_spec.PADDINGS`.
        n: number of rules and filters; it must divide the channels of input and output.
        filter_init: how filters are drawn, a name in `mcn_jax.ops.phc.INITS`.
        pads_input: True takes an input of any number of channels, for the first convolution of a
            network. Channels of zeros come before it, up to the next multiple of n.
        dtype: dtype of the convolution; None takes the dtype of the input. The kernel is always
            built in `param_dtype`.
        param_dtype: dtype of rules and filters.
    """

    out_maps: int
    planes: int = 1
    kernel_size: int = 3
    strides: int = 1
    padding: str = "SAME"
    n: int = 2
    filter_init: str = "he"
    pads_input: bool = False
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves [N, Y, X, C] to [N, Y', X', O].

        Raises:
            InputError: if n does not divide the channels of input or output.
        """
        n, channels, outputs = self.n, x.shape[-1], self.out_maps * self.planes
        if not self.pads_input:
            self._check_divisible(channels, "input")
        self._check_divisible(outputs, "output")
        taps = (self.kernel_size, self.kernel_size)
        shape = (n, *taps, -(-channels // n), outputs // n)
        rules = self.param("rules", phc.draw_rules, (n, n, n), self.param_dtype)
        draw = phc.INITS[self.filter_init]
        filters = self.param("filters", draw, shape, channels, self.param_dtype)
        kernel = phc.kernel_of_last_inputs(rules, filters, channels)
        dtype = x.dtype if self.dtype is None else self.dtype
        strides = (self.strides, self.strides)
        return convolve(x.astype(dtype), kernel.astype(dtype), strides, self.padding)

    def _check_divisible(self, channels: int, of: str) -> None:
        if channels % self.n == 0:
            return
        step = self.n // math.gcd(self.n, self.planes)
        below = channels // self.planes // step * step
        nearest = " and ".join(str(maps) for maps in (below, below + step) if maps)
        raise InputError(
            f"config.model.phc_n={self.n} does not divide the {channels} {of} channels of"
            f" {'/'.join(self.path) or 'a layer'}, with config.model.planes={self.planes} per map;"
            f" the nearest valid numbers of maps: {nearest}"
        )


def _make(config: Config, quantized: bool) -> Callable[..., nn.Module]:
    del quantized  # rules and filters are float
    return functools.partial(
        PHConv,
        planes=config.model.planes,
        n=config.model.phc_n,
        filter_init=config.model.phc_init,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
    )


def _pack(p: Leaves, s: Leaves, quantized: bool) -> dict[str, np.ndarray]:
    del s, quantized
    return {name: np.asarray(p[name], np.float32) for name in ("rules", "filters")}


def _unpack(stored: Mapping[str, jax.Array], layer: PlannedLayer) -> dict[str, jax.Array]:
    """Builds `kernel`, for `KernelConv`."""
    channels = layer.in_shape[-1]
    kernel = phc.kernel_of_last_inputs(stored["rules"], stored["filters"], channels)
    return {"kernel": kernel}


def _spec(
    layer: PlannedLayer, config: Config, quantized: bool, dtypes: Mapping[str, str]
) -> dict[str, Tensor]:
    del config, quantized, dtypes
    return {name: float32_tensor(layer.params[name], FILTERS) for name in ("rules", "filters")}


def _kernel_shape(layer: PlannedLayer) -> tuple[int, ...]:
    """Returns the shape [W, W, C, O] of the kernel that convolves with the input."""
    _, *taps, _, _ = layer.params["filters"]
    return (*taps, layer.in_shape[-1], layer.out_shape[-1])


def _multiply_adds(layer: PlannedLayer) -> dict[str, int]:
    """Counts the convolution. The kernel is built once, and not for each image."""
    return {"direct": layer.out_pixels * math.prod(_kernel_shape(layer))}


def _check(config: Config) -> None:
    n = config.model.phc_n
    require(1 <= n <= MAX_N, "model.phc_n", n, f"must lie in 1..{MAX_N}")
    require_one_of("model.phc_init", config.model.phc_init, phc.INITS)


def _facts(view: View) -> dict[str, Any]:
    """Returns the shape of the kernel, and the rules as nested lists."""
    return {
        "kernel_shape": list(_kernel_shape(view.layer)),
        "rules": view.stored["rules"].tolist(),
    }


def _cell_of_n(record: Mapping[str, Any]) -> Cell:
    n = len(record["rules"])
    return str(n), n


def _cell_of_kernel(record: Mapping[str, Any]) -> Cell:
    shape = record["kernel_shape"]
    return "x".join(map(str, shape)), math.prod(shape)


PHC = Family(
    kind="parameterized hypercomplex convolution",
    module=PHConv,
    groups={"rules": RULES, "filters": WEIGHTS},
    pack=_pack,
    unpack=_unpack,
    spec=_spec,
    make=_make,
    deployed=kernel_conv,
    multiply_adds=_multiply_adds,
    filters="filters",
    pads_image=True,
    methods=("phc", "phc"),
    options=("model.phc_n",),
    check=_check,
    facts=_facts,
    columns={"n": _cell_of_n, "kernel": _cell_of_kernel},
)
