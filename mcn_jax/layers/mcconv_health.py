"""Measures the binary filters and the planes of an MCconv layer after an epoch."""

import functools

import jax
import jax.numpy as jnp

from mcn_jax import ops
from mcn_jax.layers.family import Leaves, PlannedLayer, Share
from mcn_jax.ops import plane_measures

OF_PLANES = ("plane_correlation", "effective_planes", "m_spread")


def health(before: Leaves, p: Leaves, s: Leaves, layer: PlannedLayer) -> dict[str, float | Share]:
    """Measures how the binary filters of a layer changed in an epoch, and how its planes differ.

    `m_spread` does not compare M with its start, because a run does not keep that start. Drawing
    it again would initialise the whole network, and the M of a warm start is in another run.

    Args:
        before: latent filters from the start of the epoch.
        p: the current parameters.
        s: the centers.
        layer: the layer's settings.

    Returns:
        flip_ratio: share of filter weights whose nearest center has changed since `before`.
        quantization_error: ||C - C-hat * M|| / ||C||, the root mean square over the planes.
        share_0 ... share_{U-1}: share of weights at each center, in ascending order.
        m_min, m_max: range of M.
        plane_correlation, effective_planes, m_spread: how the K planes of a map differ, with the
            binary filters, see `mcn_jax.ops.plane_measures`. They are absent if K is one.
    """
    latent = p["latent_filters"]
    sums = jax.device_get(
        _sums(
            before["latent_filters"],
            latent,
            p["m_filters"],
            s["centers"],
            layer.settings["plane_signs"],
        )
    )
    return {
        "flip_ratio": Share(int(sums["flips"]), latent.size),
        "quantization_error": Share(sums["error"], sums["norm"], root=True),
        **{f"share_{u}": float(count / latent.size) for u, count in enumerate(sums["counts"])},
        "m_min": float(sums["m_min"]),
        "m_max": float(sums["m_max"]),
        **{name: float(sums[name]) for name in OF_PLANES if name in sums},
    }


@functools.partial(jax.jit, static_argnames="plane_signs")
def _sums(
    latent_before: jax.Array,
    latent_filters: jax.Array,
    m_filters: jax.Array,
    centers: jax.Array,
    plane_signs: str,
) -> dict[str, jax.Array]:
    nearest = ops.nearest_index(latent_filters, centers)
    binary = ops.nearest_center(latent_filters, centers)
    planes = m_filters.shape[-1]
    # The per-plane filter loss is half the sum over the planes.
    loss = ops.filter_loss(latent_filters, binary, m_filters)
    return {
        "flips": jnp.sum(nearest != ops.nearest_index(latent_before, centers)),
        "counts": jnp.bincount(nearest.ravel(), length=centers.size),
        "error": 2 * loss / planes,
        "norm": jnp.sum(latent_filters**2),
        "m_min": jnp.min(m_filters),
        "m_max": jnp.max(m_filters),
        **(_of_planes(binary, m_filters, plane_signs) if planes > 1 else {}),
    }


def _of_planes(filters: jax.Array, m_filters: jax.Array, plane_signs: str) -> dict[str, jax.Array]:
    cosines = plane_measures.plane_cosines(filters, m_filters, plane_signs)
    return {
        "plane_correlation": plane_measures.plane_correlation(cosines),
        "effective_planes": plane_measures.effective_planes(cosines),
        "m_spread": plane_measures.m_spread(m_filters),
    }
