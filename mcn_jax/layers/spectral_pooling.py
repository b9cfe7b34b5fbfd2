"""Spectral pooling and DiffStride as layer families: linen modules, model files and inspection."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mcn_jax.config import Config
from mcn_jax.errors import InputError
from mcn_jax.layers.family import (
    NO_VALUES,
    Cell,
    Family,
    Group,
    Leaves,
    Pictures,
    PlannedLayer,
    Tensor,
    View,
    float32_tensor,
)
from mcn_jax.ops import diffstride
from mcn_jax.ops.spectral import fixed_pool_size, multiply, multiply_adds, spectral_pool


def _at_least_one(strides: jax.Array) -> jax.Array:
    return jnp.maximum(strides, 1)


STRIDES = Group(name="strides", decay=None, projection=_at_least_one, limit="stride_limit")


class SpectralPool(nn.Module):
    """Crops the spectrum of images at a fixed stride; see `mcn_jax.ops.spectral`.

    Attributes:
        stride: by which height and width are divided.
        gain: "authors" or "unit".
    """

    stride: int
    gain: str = "authors"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, Y, X, C] to [N, Y', X', C]."""
        in_size = (x.shape[1], x.shape[2])
        size = fixed_pool_size(in_size, (float(self.stride), float(self.stride)))
        return spectral_pool(x, size, gain=self.gain)


class DiffStride(nn.Module):
    """Crops the spectrum of images at learned strides; see `mcn_jax.ops.diffstride`.

    The parameter `strides` has the shape [2], for y and x, or [1] with `shares_stride`.

    Attributes:
        stride: the initial value of the strides.
        size: (Y', X') of the output; None takes the one of the initial strides. It is static,
            because other layers depend on it.
        gain: "authors" or "unit".
        reading: "code" or "paper".
        smoothness: width of the mask's ramp, in pixels.
        shares_stride: whether there is one stride for both axes.
        deployed: whether the parameters are the matrices `rows` and `columns` for these strides, as
            in a network for inference.
        param_dtype: dtype of the strides.
    """

    stride: int
    size: tuple[int, int] | None = None
    gain: str = "authors"
    reading: str = "code"
    smoothness: float = 4.0
    shares_stride: bool = False
    deployed: bool = False
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, Y, X, C] to [N, Y', X', C]."""
        in_size = (x.shape[1], x.shape[2])
        count = 1 if self.shares_stride else 2
        size = self.size or initial_size(
            in_size, self.stride, self.smoothness, self.reading, count=count
        )
        if self.deployed:
            parts = 1 if self.reading == "paper" else 2
            shapes = {"rows": (parts, size[0], in_size[0]), "columns": (parts, size[1], in_size[1])}
            zeros = nn.initializers.zeros
            rows, columns = (self.param(n, zeros, s, self.param_dtype) for n, s in shapes.items())
            return multiply(x, rows, columns)
        initial = nn.initializers.constant(float(self.stride))
        strides = self.param("strides", initial, (count,), self.param_dtype)
        return diffstride.diffstride_pool(
            x,
            diffstride.effective_strides(strides, in_size, self.smoothness),
            size=size,
            smoothness=self.smoothness,
            reading=self.reading,
            gain=self.gain,
        )


def initial_size(
    in_size: tuple[int, int], stride: int, smoothness: float, reading: str, *, count: int
) -> tuple[int, int]:
    """Returns (Y', X') of a DiffStride layer before training; `count` is its number of strides."""
    strides = np.full(count, stride, np.float32)
    effective = diffstride.effective_strides(strides, in_size, smoothness)
    return diffstride.pool_size(effective, in_size, smoothness, reading)


def _no_leaves(p: Leaves, s: Leaves, quantized: bool) -> dict[str, np.ndarray]:
    del p, s, quantized
    return {}


def _nothing(stored: Mapping[str, jax.Array], layer: PlannedLayer) -> dict[str, jax.Array]:
    del stored, layer
    return {}


def _no_tensors(
    layer: PlannedLayer, config: Config, quantized: bool, dtypes: Mapping[str, str]
) -> dict[str, Tensor]:
    del layer, config, quantized, dtypes
    return {}


def _unpack(stored: Mapping[str, jax.Array], layer: PlannedLayer) -> dict[str, jax.Array]:
    """Builds the matrices `rows` and `columns`."""
    settings, size = layer.settings, (layer.in_shape[0], layer.in_shape[1])
    rows, columns = diffstride.matrices(
        diffstride.effective_strides(stored["strides"], size, settings["smoothness"]),
        size,
        (layer.out_shape[0], layer.out_shape[1]),
        settings["smoothness"],
        settings["reading"],
        settings["gain"],
    )
    return {"rows": rows, "columns": columns}


def _pack(p: Leaves, s: Leaves, quantized: bool) -> dict[str, np.ndarray]:
    del s, quantized
    return {"strides": np.asarray(p["strides"], np.float32)}


def _spec(
    layer: PlannedLayer, config: Config, quantized: bool, dtypes: Mapping[str, str]
) -> dict[str, Tensor]:
    del config, quantized, dtypes
    return {"strides": float32_tensor(layer.params["strides"], "strides")}


def _check_values(stored: Mapping[str, np.ndarray], layer: PlannedLayer) -> None:
    if not (stored["strides"] >= 1).all():
        values = ", ".join(map(str, stored["strides"]))
        raise InputError(f"its tensor {layer.name}/strides has the values {values}, not all >= 1")


def _multiply_adds(layer: PlannedLayer) -> dict[str, int]:
    """Counts the products with real matrices: over x, then over y, in all calls of the layer."""
    (height, width, _), (rows, columns, _) = layer.in_shape, layer.out_shape
    channels = sum(shape[-1] for shape in (layer.in_shape, *layer.later_inputs))
    is_fixed = layer.family is SPECTRAL
    if is_fixed and (height, width) == (rows, columns):
        return {"direct": 0}  # the identity
    is_real = rows == height if is_fixed else layer.settings["reading"] == "paper"
    adds = multiply_adds((height, width), (rows, columns), is_real=is_real)
    return {"direct": channels * adds}


def pooled_size(
    strides: np.ndarray, in_size: tuple[int, int], layer: PlannedLayer
) -> tuple[int, int]:
    """Returns (Y', X') of a DiffStride layer for its strides and an input of this size."""
    smoothness, reading = layer.settings["smoothness"], layer.settings["reading"]
    effective = diffstride.effective_strides(strides, in_size, smoothness)
    return diffstride.pool_size(effective, in_size, smoothness, reading)


def effective_strides(p: Leaves, layer: PlannedLayer) -> jax.Array:
    """Returns the strides [2] that a DiffStride layer pools with."""
    size = (layer.in_shape[0], layer.in_shape[1])
    return diffstride.effective_strides(p["strides"], size, layer.settings["smoothness"])


def _facts(view: View) -> dict[str, Any]:
    return {"strides": [float(value) for value in view.stored["strides"]]} | _sizes(view)


def _sizes(view: View) -> dict[str, Any]:
    return {
        "in_size": list(view.layer.in_shape[:2]),
        "out_size": list(view.layer.out_shape[:2]),
    }


def _cell_of_strides(record: Mapping[str, Any]) -> Cell:
    strides = record["strides"]
    return " ".join(f"{value:.2f}" for value in strides), math.prod(strides)


def _cell_of_size(record: Mapping[str, Any]) -> Cell:
    before, after = ("x".join(map(str, record[name])) for name in ("in_size", "out_size"))
    return f"{before} to {after}", math.prod(record["out_size"])


def _pictures(view: View) -> Pictures:
    """Draws the mask of the spectrum: rows by frequency in y, columns by frequency in x."""
    layer = view.layer
    size = (layer.in_shape[0], layer.in_shape[1])
    smoothness, reading = layer.settings["smoothness"], layer.settings["reading"]
    stored = jnp.asarray(view.stored["strides"])
    strides = diffstride.effective_strides(stored, size, smoothness)
    mask = np.outer(*diffstride.masks(strides, size, size, smoothness, reading))
    return Pictures(NO_VALUES, (), NO_VALUES, {"mask": mask[:, :, None, None]})


SPECTRAL = Family(
    kind="spectral pooling",
    module=SpectralPool,
    groups={},
    pack=_no_leaves,
    unpack=_nothing,
    spec=_no_tensors,
    multiply_adds=_multiply_adds,
    facts=_sizes,
    columns={"pixels": _cell_of_size},
)

DIFFSTRIDE = Family(
    kind="DiffStride",
    module=DiffStride,
    groups={"strides": STRIDES},
    settings=("smoothness", "reading", "gain"),
    pack=_pack,
    unpack=_unpack,
    unpacks_early=True,
    spec=_spec,
    multiply_adds=_multiply_adds,
    check_values=_check_values,
    pooled_size=pooled_size,
    effective_strides=effective_strides,
    watched={"strides": "stride"},
    facts=_facts,
    columns={"pixels": _cell_of_size, "strides": _cell_of_strides},
    pictures=_pictures,
)
