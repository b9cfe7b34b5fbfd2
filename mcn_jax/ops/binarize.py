"""Binarization of filters: k-means centers, and the nearest center of each weight.

"Binary" is the paper's word for its main case, U = 2 centers. Every function takes any U.
"""

import itertools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np


def kmeans_centers(values: jax.Array, num_centers: int) -> jax.Array:
    """Computes the optimal k-means centers of scalars (Wang et al. 2018, Eq. 6, "offline k-means").

    In one dimension, the clusters of an optimal solution are intervals of the sorted values. So the
    global optimum is a choice of U - 1 cuts and needs no starting point. For U = 2, all cuts are
    compared at once on the device. For any other U, a dynamic program runs in float64 on the host
    (Wu 1991); under `jax.jit` it is called through a callback.

    Args:
        values: any shape, at least U elements; the latent filters of one layer.
        num_centers: U >= 1.

    Returns:
        [U], sorted, in the dtype of `values`. Some centers are equal if `values` has fewer than U
        distinct elements.

    Raises:
        ValueError: if U < 1 or U exceeds the number of values.
    """
    if not 1 <= num_centers <= values.size:
        raise ValueError(
            f"num_centers={num_centers} must lie in 1..{values.size}, the number of values"
        )
    if num_centers == 2:
        return _two_means(values.ravel())
    return jax.pure_callback(
        lambda x: _kmeans_dynamic_program(np.asarray(x), num_centers),
        jax.ShapeDtypeStruct((num_centers,), values.dtype),
        values.ravel(),
        vmap_method="sequential",
    )


def symmetric_centers(values: jax.Array, num_centers: int = 2) -> jax.Array:
    """Computes the best two centers of scalars that are symmetric about zero: -a and a.

    With them each value's nearest center is a times its sign, so the sum of squared distances is
    least at a = the mean of the absolute values (Rastegari et al. 2016, Eq. 6).

    Args:
        values: any shape, at least one element; the latent filters of one layer.
        num_centers: must be 2.

    Returns:
        [2], sorted, in the dtype of `values`.

    Raises:
        ValueError: if num_centers is not 2.
    """
    if num_centers != 2:
        raise ValueError(f"num_centers={num_centers} must be 2 for symmetric centers")
    a = jnp.mean(jnp.abs(values))
    return jnp.stack([-a, a])


@jax.jit  # op by op, each of some twenty programs would be compiled for each shape
def _two_means(values: jax.Array) -> jax.Array:
    """Returns the two means for the cut with the greatest between-cluster sum of squares."""
    n = values.size
    sorted_values = jnp.sort(values)
    mean = jnp.mean(sorted_values)
    # After subtracting the mean, the two cluster sums are S and -S. The criterion
    # n1*m1^2 + n2*m2^2 then equals S^2 (1/n1 + 1/n2) and loses no digits to a common offset.
    sums = jnp.cumsum(sorted_values - mean)[:-1]
    left_counts = jnp.arange(1, n, dtype=values.dtype)
    cut = jnp.argmax(sums**2 * (1 / left_counts + 1 / (n - left_counts))) + 1
    on_left = jnp.arange(n) < cut
    left = jnp.sum(jnp.where(on_left, sorted_values - mean, 0)) / cut
    right = jnp.sum(jnp.where(on_left, 0, sorted_values - mean)) / (n - cut)
    return mean + jnp.stack([left, right]).astype(values.dtype)


# {name for config.binarize.centers: (values, U) -> centers [U]}
CENTERS: Mapping[str, Callable[[jax.Array, int], jax.Array]] = {
    "kmeans": kmeans_centers,
    "symmetric": symmetric_centers,
}


def _kmeans_dynamic_program(values: np.ndarray, num_centers: int) -> np.ndarray:
    """Finds optimal cuts for U clusters in O(U n log n).

    Each cluster takes one pass over the sorted values.

    score[j] is the greatest sum of n_u * mean_u^2 over clusters of the first j values. The best
    last cut of j never decreases as j grows. So the cuts for every second j bound the cuts between
    them.
    """
    sorted_values = np.sort(values.astype(np.float64))
    n = sorted_values.size
    mean = sorted_values.mean()
    prefix = np.concatenate([[0.0], np.cumsum(sorted_values - mean)])
    score = prefix**2 / np.maximum(np.arange(n + 1), 1)
    cuts_by_cluster = []
    for _ in range(1, num_centers):
        score, cuts = _add_cluster(score, prefix)
        cuts_by_cluster.append(cuts)

    bounds = [n]
    for cuts in reversed(cuts_by_cluster):
        bounds.append(cuts[bounds[-1]])
    bounds = [0, *reversed(bounds)]
    centers = [
        # An interval is empty only if there are fewer distinct values than centers.
        sorted_values[start:stop].mean() if stop > start else sorted_values[min(start, n - 1)]
        for start, stop in itertools.pairwise(bounds)
    ]
    return np.asarray(centers, dtype=values.dtype)


def _add_cluster(score: np.ndarray, prefix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns score and last cut of the first j values with one more cluster, for every j."""
    n = prefix.size - 1
    new_score = np.zeros(n + 1)
    cuts = np.zeros(n + 1, np.int64)
    stride = 1 << max(n.bit_length() - 1, 0)
    while stride:
        ends = np.arange(stride, n + 1, 2 * stride)
        lowest = cuts[ends - stride]
        after = ends + stride
        highest = np.minimum(np.where(after <= n, cuts[np.minimum(after, n)], n), ends)
        lengths = highest - lowest + 1
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        cut = np.arange(lengths.sum()) + np.repeat(lowest - starts, lengths)
        end = np.repeat(ends, lengths)
        candidates = score[cut] + (prefix[end] - prefix[cut]) ** 2 / np.maximum(end - cut, 1)
        new_score[ends] = np.maximum.reduceat(candidates, starts)
        best = np.flatnonzero(candidates == np.repeat(new_score[ends], lengths))
        cuts[ends] = cut[best[np.searchsorted(best, starts)]]
        stride //= 2
    return new_score, cuts


def centered(latent_filters: jax.Array) -> jax.Array:
    """Subtracts from each filter its mean over taps and channels.

    Args:
        latent_filters: [W, W, G*K, H], of one layer.

    Returns:
        The same shape; each of the H filters has the mean zero, up to rounding.
    """
    return latent_filters - jnp.mean(latent_filters, axis=(0, 1, 2), keepdims=True)


def nearest_center(values: jax.Array, centers: jax.Array) -> jax.Array:
    """Replaces each value by the nearest of the sorted centers (Eq. 6).

    A value halfway between two centers takes the higher one, because the paper's `<` is strict.

    Args:
        values: any shape.
        centers: [U], sorted in ascending order.

    Returns:
        Shape and dtype of `values`; every element equals one of `centers` bit for bit.
    """
    nearest = jnp.broadcast_to(centers[0], values.shape)
    for lower, higher in itertools.pairwise(centers):
        nearest = jnp.where(jnp.abs(values - lower) < jnp.abs(values - higher), nearest, higher)
    return nearest


def nearest_index(values: jax.Array, centers: jax.Array) -> jax.Array:
    """Returns the index of each value's `nearest_center`: 0 to U - 1, int32, shape of `values`."""
    index = jnp.zeros(values.shape, jnp.int32)
    for higher_index, (lower, higher) in enumerate(itertools.pairwise(centers), start=1):
        is_lower = jnp.abs(values - lower) < jnp.abs(values - higher)
        index = jnp.where(is_lower, index, higher_index)
    return index
