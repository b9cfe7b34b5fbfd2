"""Modulation of filters by an M-filter, and the filter loss that ties the two together."""

import jax
import jax.numpy as jnp

from mcn_jax.ops.plane_signs import of_plane


def reconstructed_filters(
    filters: jax.Array, m_filters: jax.Array, plane_signs: str = ""
) -> jax.Array:
    """Computes Q[.., c, h*K + k] = filters[.., c, h] * M[.., k] (Eqs. 3 to 5).

    Args:
        filters: [W, W, G*K, H], binary filters (or latent ones, in a U-MCN).
        m_filters: [W, W, K].
        plane_signs: a name in `mcn_jax.ops.plane_signs.PATTERNS`, or "". With a pattern, plane k of
            Q has the filters as `of_plane` returns them for k, instead of the filters themselves.

    Returns:
        [W, W, G*K, H*K].
    """
    if plane_signs:
        planes = m_filters.shape[-1]
        read = [of_plane(filters, k, planes, plane_signs) for k in range(planes)]
        filters_WWCHK = jnp.stack(read, axis=-1)
    else:
        filters_WWCHK = filters[..., None]
    q_WWCHK = filters_WWCHK * m_filters[:, :, None, None, :]
    return q_WWCHK.reshape(*filters.shape[:3], -1)


def _per_plane(
    latent_filters: jax.Array, binary_filters: jax.Array, m_filters: jax.Array
) -> jax.Array:
    # One sum per plane: a single sum over all planes needs an array K times the filters' size.
    distances = [
        jnp.sum((latent_filters - binary_filters * m_filters[:, :, None, None, k]) ** 2)
        for k in range(m_filters.shape[-1])
    ]
    return sum(distances, start=jnp.zeros((), distances[0].dtype))


def _plane_sum(
    latent_filters: jax.Array, binary_filters: jax.Array, m_filters: jax.Array
) -> jax.Array:
    modulated_WWCH = binary_filters * jnp.sum(m_filters, axis=-1)[:, :, None, None]
    return jnp.sum((latent_filters - modulated_WWCH) ** 2)


FILTER_LOSSES = {"per_plane": _per_plane, "plane_sum": _plane_sum}


def filter_loss(
    latent_filters: jax.Array,
    binary_filters: jax.Array,
    m_filters: jax.Array,
    reading: str = "per_plane",
) -> jax.Array:
    """Computes half the squared distance between latent and modulated binary filters (Eq. 1).

    Forward, "per_plane":  1/2 * sum over filters and planes k of ||C - C-hat * M_k||^2
    Forward, "plane_sum":  1/2 * sum over filters of ||C - sum_k C-hat * M_k||^2
    Backward, "per_plane": dC = sum_k (C - C-hat * M_k)                        (Eq. 13)
                           dM_k = -sum over c, h of (C - C-hat * M_k) * C-hat  (Eq. 17)

    "plane_sum" takes Eq. 3 literally.

    C-hat is held constant. The caller multiplies the loss by theta.

    Args:
        latent_filters: C, [W, W, G*K, H], of one layer.
        binary_filters: C-hat, same shape.
        m_filters: M, [W, W, K].
        reading: a name in `FILTER_LOSSES`; only "per_plane" has the gradients the paper prints.

    Returns:
        A scalar.

    Raises:
        ValueError: if `reading` is unknown.
    """
    if reading not in FILTER_LOSSES:
        raise ValueError(f"filter loss {reading!r} must be one of {sorted(FILTER_LOSSES)}")
    binary_filters = jax.lax.stop_gradient(binary_filters)
    return 0.5 * FILTER_LOSSES[reading](latent_filters, binary_filters, m_filters)
