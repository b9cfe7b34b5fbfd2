"""Local binary convolution (LBCNN) as a layer family; see `mcn_jax.ops.lbc`.

The anchors are in the collection "anchors", so no update, decay or momentum ever reaches them.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mcn_jax.config import Config
from mcn_jax.errors import InputError, require
from mcn_jax.layers.family import (
    FILTERS,
    NO_VALUES,
    OFFSETS,
    WEIGHTS,
    Cell,
    Family,
    Leaves,
    Pictures,
    PlannedLayer,
    Tensor,
    View,
    float32_tensor,
)
from mcn_jax.ops import lbc, packing
from mcn_jax.ops.draws import he_normal

PART = "anchors"


class LBConv(nn.Module):
    """Local binary convolution, with a ReLU between its two convolutions.

    Parameters: `kernel` [1, 1, M, O] and `bias` [O]. The collection "anchors" has `anchors`
    [W, W, C, M], int8. No ReLU should precede the layer.

    Attributes:
        out_maps: output maps, of `planes` channels each; O = out_maps * planes.
        planes: channels per output map.
        kernel_size: W, in pixels.
        strides: step in y and x, in pixels.
        padding: a name in `mcn_jax.ops.conv_spec.PADDINGS`.
        ratio: M / O; M is rounded, and at least 1.
        density: share of anchors that are not zero, in (0, 1].
        seed: seed of the anchors.
        dtype: dtype of the computation; None takes the dtype of the input.
        param_dtype: dtype of the parameters.
    """

    out_maps: int
    planes: int = 1
    kernel_size: int = 3
    strides: int = 1
    padding: str = "SAME"
    ratio: float = 1.0
    density: float = 0.5
    seed: int = 0
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves [N, Y, X, C] to [N, Y', X', O]."""
        outputs = self.out_maps * self.planes
        middle = num_anchors(self.ratio, outputs)
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], middle)
        fixed = self.variable("anchors", "anchors", self._drawn, shape).value
        kernel = self.param("kernel", he_normal, (1, 1, middle, outputs), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (outputs,), self.param_dtype)
        dtype = x.dtype if self.dtype is None else self.dtype
        floats = fixed.astype(self.param_dtype)
        scaled = (floats * lbc.response_scales(floats)).astype(dtype)
        return lbc.local_binary_convolution(
            x.astype(dtype), scaled, kernel.astype(dtype), bias.astype(dtype),
            strides=(self.strides, self.strides), padding=self.padding,
        )  # fmt: skip

    def _drawn(self, shape: tuple[int, ...]) -> jax.Array:
        """Draws the anchors on the host, and not at all while a network is planned."""
        draw = functools.partial(lbc.anchors, shape, self.density, self.seed, "/".join(self.path))
        return jax.pure_callback(lambda: draw(), jax.ShapeDtypeStruct(shape, jnp.int8))


class DeployedLBConv(nn.Module):
    """Local binary convolution for inference from a file.

    Parameters: `anchors` [W, W, C, M], `kernel` [1, 1, M, O] with the scales of the responses, and
    `bias` [O].
    """

    out_maps: int
    planes: int = 1
    kernel_size: int = 3
    strides: int = 1
    padding: str = "SAME"
    ratio: float = 1.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves [N, Y, X, C] to [N, Y', X', O]."""
        outputs, zeros = self.out_maps * self.planes, nn.initializers.zeros
        middle = num_anchors(self.ratio, outputs)
        taps = (self.kernel_size, self.kernel_size)
        return lbc.local_binary_convolution(
            x,
            self.param("anchors", zeros, (*taps, x.shape[-1], middle)),
            self.param("kernel", zeros, (1, 1, middle, outputs)),
            self.param("bias", zeros, (outputs,)),
            strides=(self.strides, self.strides),
            padding=self.padding,
        )


def num_anchors(ratio: float, outputs: int) -> int:
    """Returns M, the number of anchor filters of a layer with a number of outputs."""
    return max(1, round(ratio * outputs))


def _make(config: Config, quantized: bool) -> Callable[..., nn.Module]:
    del quantized  # anchors are fixed, and V is float
    return functools.partial(
        LBConv,
        planes=config.model.planes,
        ratio=config.model.lbc_ratio,
        density=config.model.lbc_density,
        seed=config.seed,
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.dtype(config.param_dtype),
    )


def _deployed(config: Config, quantized: bool) -> Callable[..., nn.Module]:
    del quantized
    return functools.partial(
        DeployedLBConv, planes=config.model.planes, ratio=config.model.lbc_ratio
    )


def _anchor_shape(layer: PlannedLayer) -> tuple[int, ...]:
    """Returns [W, W, C, M]."""
    return layer.state_shapes["anchors"]


def _pack(p: Leaves, s: Leaves, quantized: bool) -> dict[str, np.ndarray]:
    """Returns the anchors as two bit planes, and V with the scales of the responses."""
    del quantized
    fixed = np.asarray(s["anchors"])
    planes = [np.packbits(plane.ravel(), bitorder="little") for plane in (fixed != 0, fixed > 0)]
    scales = np.asarray(lbc.response_scales(jnp.asarray(fixed, jnp.float32)))
    kernel = np.asarray(p["kernel"], np.float32) * scales.reshape(1, 1, -1, 1)
    return {
        "anchor_bits": np.stack(planes),
        "kernel": kernel,
        "bias": np.asarray(p["bias"], np.float32),
    }


def _unpack(stored: Mapping[str, jax.Array], layer: PlannedLayer) -> dict[str, jax.Array]:
    shape = _anchor_shape(layer)
    nonzero, positive = (
        packing.unpack_traced(stored["anchor_bits"][i : i + 1], shape).astype(jnp.float32)
        for i in range(2)
    )
    anchors = nonzero * (2 * positive - 1)
    return {"anchors": anchors, "kernel": stored["kernel"], "bias": stored["bias"]}


def _spec(
    layer: PlannedLayer, config: Config, quantized: bool, dtypes: Mapping[str, str]
) -> dict[str, Tensor]:
    del config, quantized, dtypes
    size = int(np.prod(_anchor_shape(layer), dtype=object))
    return {
        "anchor_bits": Tensor("uint8", (2, -(-size // 8)), PART, 2 * size, 0),
        "kernel": float32_tensor(layer.params["kernel"], FILTERS),
        "bias": float32_tensor(layer.params["bias"], "biases"),
    }


def _check_values(stored: Mapping[str, np.ndarray], layer: PlannedLayer) -> None:
    """Raises InputError if an anchor is both zero and positive."""
    nonzero, positive = stored["anchor_bits"]
    if np.any(positive & ~nonzero):
        raise InputError(f"its tensor {layer.name}/anchor_bits has anchors that are zero and +1")


def _multiply_adds(layer: PlannedLayer) -> dict[str, int]:
    """Counts the anchors as a dense convolution, and V."""
    weights = int(np.prod(_anchor_shape(layer), dtype=object))
    weights += int(np.prod(layer.params["kernel"], dtype=object))
    return {"direct": layer.out_pixels * weights}


def _inner_shapes(layer: PlannedLayer) -> list[tuple[int, ...]]:
    """Returns the shape of the responses of the anchors."""
    return [(*layer.out_shape[:-1], _anchor_shape(layer)[-1])]


def _check_layer(layer: PlannedLayer, config: Config) -> None:
    shape, density = _anchor_shape(layer), config.model.lbc_density
    message = f"leaves no anchor of {layer.name}, which has {math.prod(shape)} places; raise it"
    require(lbc.num_nonzero(shape, density) > 0, "model.lbc_density", density, message)


def _check(config: Config) -> None:
    ratio, density = config.model.lbc_ratio, config.model.lbc_density
    require(0 < ratio <= 1024, "model.lbc_ratio", ratio, "must lie in (0, 1024]")
    require(0 < density <= 1, "model.lbc_density", density, "must lie in (0, 1]")


def _facts(view: View) -> dict[str, Any]:
    nonzero, positive = (
        np.unpackbits(plane, count=int(np.prod(_anchor_shape(view.layer))), bitorder="little")
        for plane in view.stored["anchor_bits"]
    )
    return {
        "anchors": _anchor_shape(view.layer)[-1],
        "density": float(nonzero.mean()),
        "positive": float(positive.sum() / max(1, nonzero.sum())),
    }


def _cell_of_anchors(record: Mapping[str, Any]) -> Cell:
    return str(record["anchors"]), record["anchors"]


def _cell_of_density(record: Mapping[str, Any]) -> Cell:
    return f"{record['density']:.1%}", record["density"]


def _pictures(view: View) -> Pictures:
    """Returns V as a distribution, and the anchors as filters."""
    tensors = {name: jnp.asarray(value) for name, value in view.stored.items()}
    anchors = np.asarray(_unpack(tensors, view.layer)["anchors"])
    return Pictures(view.stored["kernel"], (), NO_VALUES, {"anchors": anchors})


LBC = Family(
    kind="local binary convolution",
    module=LBConv,
    groups={"kernel": WEIGHTS, "bias": OFFSETS},
    pack=_pack,
    unpack=_unpack,
    spec=_spec,
    make=_make,
    deployed=_deployed,
    multiply_adds=_multiply_adds,
    inner_shapes=_inner_shapes,
    filters="kernel",
    follows_relu=False,
    methods=("lbc", "lbc"),
    options=("model.lbc_ratio",),
    check=_check,
    check_layer=_check_layer,
    check_values=_check_values,
    facts=_facts,
    columns={"anchors": _cell_of_anchors, "density": _cell_of_density},
    pictures=_pictures,
)
