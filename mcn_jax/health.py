"""How the filters of an MCN fare: measures of every MCconv layer, taken once an epoch.

A binary network can stand still or collapse while its loss looks ordinary: no bit flips any more,
nearly all weights sit at one center, or an M-filter has run to zero.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from mcn_jax import ops
from mcn_jax.layers import modulated_layers


def latent_filters_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the "params" collection that `filter_health` compares."""
    return traverse_util.unflatten_dict(
        {
            (*path, "latent_filters"): layer["latent_filters"]
            for path, layer in modulated_layers(params).items()
        }
    )


def filter_health(
    before: Mapping[str, Any], params: Mapping[str, Any], centers: Mapping[str, Any]
) -> tuple[dict[str, float], dict[str, float]]:
    """The measures of one epoch with binary filters.

    Args:
        before: `latent_filters_of` the parameters when the epoch began.
        params: the same now.
        centers: the "centers" collection of the epoch.

    Returns:
        Two dictionaries. Of every layer, in the order of the network, "path/of/layer/" and
            flip_ratio: share of filter weights whose nearest center changed since `before`.
            quantization_error: ||C - C-hat * M|| / ||C||, the root mean square over the planes.
            share_0 ... share_{U-1}: share of weights at each center, in ascending order.
            m_min, m_max: range of M.
        Of all layers together, flip_ratio and quantization_error.
    """
    flat_centers = traverse_util.flatten_dict(centers)
    flat_before = traverse_util.flatten_dict(before)
    by_layer: dict[str, float] = {}
    flips = weights = error = norm = 0.0
    for path, layer in modulated_layers(params).items():
        sums = jax.device_get(
            _sums(
                flat_before[*path, "latent_filters"],
                layer["latent_filters"],
                layer["m_filters"],
                flat_centers[*path, "centers"],
            )
        )
        size = layer["latent_filters"].size
        measures = {
            "flip_ratio": sums["flips"] / size,
            "quantization_error": (sums["error"] / sums["norm"]) ** 0.5,
            **{f"share_{u}": count / size for u, count in enumerate(sums["counts"])},
            "m_min": sums["m_min"],
            "m_max": sums["m_max"],
        }
        by_layer |= {f"{'/'.join(path)}/{name}": float(value) for name, value in measures.items()}
        flips, weights = flips + sums["flips"], weights + size
        error, norm = error + sums["error"], norm + sums["norm"]
    together = {"flip_ratio": flips / weights, "quantization_error": (error / norm) ** 0.5}
    return by_layer, {name: float(value) for name, value in together.items()}


@jax.jit
def _sums(latent_before, latent_filters, m_filters, centers):
    nearest = ops.nearest_index(latent_filters, centers)
    planes = m_filters.shape[-1]
    # The per-plane filter loss is half the sum over the planes.
    loss = ops.filter_loss(latent_filters, ops.nearest_center(latent_filters, centers), m_filters)
    return {
        "flips": jnp.sum(nearest != ops.nearest_index(latent_before, centers)),
        "counts": jnp.bincount(nearest.ravel(), length=centers.size),
        "error": 2 * loss / planes,
        "norm": jnp.sum(latent_filters**2),
        "m_min": jnp.min(m_filters),
        "m_max": jnp.max(m_filters),
    }
