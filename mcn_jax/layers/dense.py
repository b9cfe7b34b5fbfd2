"""The dense layer as a layer family; a file may hold its kernel in fewer bits."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mcn_jax.config import Config
from mcn_jax.errors import InputError
from mcn_jax.layers.arithmetic import Arithmetic
from mcn_jax.layers.family import (
    DENSE_LAYERS,
    OFFSETS,
    WEIGHTS,
    Family,
    Leaves,
    PlannedLayer,
    Tensor,
    float32_tensor,
)
from mcn_jax.layers.formats import DENSE_FORMATS, Formats, rounded


def recode(stored: Mapping[str, np.ndarray], formats: Formats) -> dict[str, np.ndarray]:
    """Returns the tensors of a layer with the kernel [inputs, outputs] in another format.

    Args:
        stored: float32 tensors from `_pack`.
        formats: from the export.

    Raises:
        InputError: if a weight exceeds the range of float16.
    """
    return dict(stored) | _recoded(stored["kernel"], formats.dense)


def _recoded(kernel: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    if dtype != "int8":
        remedy = "--dense=float32 or int8"
        return {"kernel": rounded(kernel, dtype, "weights of a dense layer", remedy)}
    scale = np.maximum(np.abs(kernel).max(axis=0), np.finfo(np.float32).tiny) / 127
    codes = np.round(kernel / scale[None]).astype(np.int8)
    return {"kernel": codes, "kernel_scale": scale.astype(np.float32)}


def _pack(p: Leaves, s: Leaves, quantized: bool) -> dict[str, np.ndarray]:
    del s, quantized
    return {name: np.asarray(leaf, np.float32) for name, leaf in p.items()}


def _unpack(stored: Mapping[str, jax.Array], layer: PlannedLayer) -> dict[str, jax.Array]:
    del layer
    kernel = stored["kernel"].astype(jnp.float32)
    if "kernel_scale" in stored:
        kernel = kernel * stored["kernel_scale"][None]
    return {"kernel": kernel} | {name: stored[name] for name in ("bias",) if name in stored}


def _spec(
    layer: PlannedLayer, config: Config, quantized: bool, dtypes: Mapping[str, str]
) -> dict[str, Tensor]:
    del config, quantized
    shape = layer.params["kernel"]
    dtype = dtypes.get("kernel", "float32")
    if dtype not in DENSE_FORMATS:
        raise InputError(
            f"its tensor {layer.name}/kernel is {dtype}, not one of {', '.join(DENSE_FORMATS)}"
        )
    weights = int(np.prod(shape, dtype=object))
    bits = weights * 8 * np.dtype(dtype).itemsize
    tensors = {"kernel": Tensor(dtype, shape, DENSE_LAYERS, bits, weights)}
    if "bias" in layer.params:
        tensors["bias"] = float32_tensor(layer.params["bias"], DENSE_LAYERS)
    if dtype == "int8":
        tensors["kernel_scale"] = Tensor("float32", shape[1:], DENSE_LAYERS, 32 * shape[1], 0)
    return tensors


def _check_values(stored: Mapping[str, np.ndarray], layer: PlannedLayer) -> None:
    if "kernel_scale" not in stored:
        return
    with np.errstate(over="ignore"):
        kernel = stored["kernel"].astype(np.float32) * stored["kernel_scale"][None]
    if not np.isfinite(kernel).all():
        raise InputError(f"its tensor {layer.name}/kernel_scale is too large for float32")


def _arithmetic(stored: Mapping[str, np.ndarray], layer: PlannedLayer, module: Any) -> Arithmetic:
    del layer, module
    scales, offsets = stored.get("kernel_scale"), stored.get("bias")
    return Arithmetic(weights=stored["kernel"][None, None], scales=scales, offsets=offsets)


DENSE = Family(
    kind="dense",
    module=nn.Dense,
    groups={"kernel": WEIGHTS, "bias": OFFSETS},
    pack=_pack,
    unpack=_unpack,
    spec=_spec,
    recode=recode,
    check_values=_check_values,
    arithmetic=_arithmetic,
)
