"""The sizes of images in a network that learns strides, and how a run reports them."""

from typing import Any

import numpy as np
from flax import traverse_util

from mcn_jax import parallel
from mcn_jax.models.plan import Plan, pooled_sizes
from mcn_jax.training.state import TrainState


def sizes_for(state: TrainState, plan: Plan) -> tuple[int, ...]:
    """Returns `ModelConfig.pooled_sizes` for the strides of a replicated state."""
    params: dict[tuple[str, ...], Any] = {}
    for layer in plan:
        if layer.family.pooled_size is not None:
            for leaf, value in layer.params_in(state.params).items():
                params[*layer.path, *leaf.split("/")] = value
    return pooled_sizes(plan, parallel.unreplicate(traverse_util.unflatten_dict(params)))


def described(sizes: tuple[int, ...]) -> str:
    """Returns sizes, as in `ModelConfig.pooled_sizes`, as a line for the terminal."""
    pairs = zip(sizes[::2], sizes[1::2], strict=True)
    shown = ", ".join(f"{height}x{width}" for height, width in pairs)
    return f"images of {shown} pixels after the pooling layers"


def named(sizes: tuple[int, ...]) -> dict[str, int]:
    """Returns {"pooling_1/y": ..., "pooling_1/x": ...}; the argument is as in `ModelConfig`."""
    return {f"pooling_{index // 2 + 1}/{'yx'[index % 2]}": size for index, size in enumerate(sizes)}


def strides_of(plan: Plan, params: Any) -> dict[str, float]:
    """Returns {"pooling_1/y": ..., "pooling_1/x": ...} for all layers with learned strides."""
    found: dict[str, float] = {}
    for layer in plan:
        if layer.family.pooled_size is not None:
            strides = np.broadcast_to(layer.params_in(params)["strides"], 2)
            found |= {f"{layer.name}/{axis}": float(strides[i]) for i, axis in enumerate("yx")}
    return found
