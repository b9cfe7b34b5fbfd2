"""Measures how much the K planes of an output map differ.

Kernel k of map h is Q[:, :, :, h*K + k], see `mcn_jax.ops.modulate.reconstructed_filters`. If all
kernels of a map are proportional, its planes respond alike, and K planes say no more than one.

The measures take the cosine between kernels and do not subtract their means. For inputs that are
uncorrelated, with mean zero and equal variance, this cosine is the correlation of the planes'
responses.
"""

import jax
import jax.numpy as jnp

from mcn_jax.ops.plane_signs import of_plane

_EXACT = jax.lax.Precision.HIGHEST  # a GPU's default would change cosines in the fourth digit


def plane_cosines(filters: jax.Array, m_filters: jax.Array, plane_signs: str = "") -> jax.Array:
    """Computes the cosine between each two kernels of a map.

    Q is not formed. The products of the filters' planes are summed over the maps G first, which
    leaves one sum per tap and pair of planes; M multiplies these sums.

    Args:
        filters: [W, W, G*K, H], as the forward pass uses them.
        m_filters: [W, W, K].
        plane_signs: a name in `mcn_jax.ops.plane_signs.PATTERNS`, or "".

    Returns:
        [H, K, K], symmetric. The diagonal is one. A kernel of zeros has the cosine zero with every
        kernel, and with itself.
    """
    planes, maps = m_filters.shape[-1], filters.shape[-1]
    m_TK = m_filters.reshape(-1, planes)
    if plane_signs:
        f_TGKH = filters.reshape(len(m_TK), -1, planes, maps)
        products_TKKH = jnp.einsum("tgah,tgbh->tabh", f_TGKH, f_TGKH, precision=_EXACT)
        # reads[k, i, a]: the factor with which output plane k applies plane a to input plane i.
        one = jnp.eye(planes, dtype=filters.dtype)[None, None]
        reads = jnp.stack([of_plane(one, k, planes, plane_signs)[0, 0] for k in range(planes)])
        pairs = jnp.einsum("kia,lib->klab", reads, reads, precision=_EXACT)
        sums_TKKH = jnp.einsum("klab,tabh->tklh", pairs, products_TKKH, precision=_EXACT)
        gram = jnp.einsum("tk,tl,tklh->hkl", m_TK, m_TK, sums_TKKH, precision=_EXACT)
    else:
        squares_TH = jnp.sum(filters**2, axis=2).reshape(-1, maps)
        gram = jnp.einsum("tk,tl,th->hkl", m_TK, m_TK, squares_TH, precision=_EXACT)
    norms_HK = jnp.sqrt(jnp.diagonal(gram, axis1=1, axis2=2))
    norms_HK = jnp.where(norms_HK > 0, norms_HK, 1)
    return gram / (norms_HK[:, :, None] * norms_HK[:, None, :])


def plane_correlation(cosines: jax.Array) -> jax.Array:
    """Computes the mean absolute cosine over all maps and pairs of planes.

    It is one if all kernels of every map are proportional, and zero if all are orthogonal.

    Args:
        cosines: [H, K, K] with K > 1, from `plane_cosines`.

    Returns:
        A scalar in [0, 1].
    """
    planes = cosines.shape[-1]
    others = 1 - jnp.eye(planes, dtype=cosines.dtype)
    total = jnp.sum(jnp.abs(cosines) * others[None])
    return total / (len(cosines) * planes * (planes - 1))


def effective_planes(cosines: jax.Array) -> jax.Array:
    """Computes the effective number of planes of a map, as the mean over maps.

    It is the participation ratio of the eigenvalues of a map's K x K matrix of cosines:

        (sum of eigenvalues)^2 / (sum of squared eigenvalues)

    K orthogonal kernels give K, proportional kernels give one. Gao et al. 2017 (A theory of
    multineuronal dimensionality, dynamics and measurement) measure the dimension of responses in
    this way. Kernels are normalised here, so planes with a large M do not count more.

    Args:
        cosines: [H, K, K], from `plane_cosines`.

    Returns:
        A scalar in [1, K]. Kernels of zeros do not count, so a layer of zeros has zero planes.
    """
    traces = jnp.trace(cosines, axis1=1, axis2=2)  # the sum of eigenvalues
    squares = jnp.sum(cosines**2, axis=(1, 2))  # the sum of squared eigenvalues
    return jnp.mean(traces**2 / jnp.where(squares > 0, squares, 1))


def m_spread(m_filters: jax.Array) -> jax.Array:
    """Computes sqrt(mean over taps of the variance of M over planes) / mean of M.

    It is zero if M has the same values in all planes.

    Args:
        m_filters: [W, W, K], not negative.

    Returns:
        A scalar; zero for an M of zeros.
    """
    mean = jnp.mean(m_filters)
    deviation = jnp.sqrt(jnp.mean(jnp.var(m_filters, axis=-1)))
    return deviation / jnp.where(mean > 0, mean, 1)
