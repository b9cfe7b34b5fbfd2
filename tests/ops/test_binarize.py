import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

import paper
from mcn_jax.ops.binarize import (
    kmeans_centers,
    nearest_center,
    nearest_index,
    symmetric_centers,
)

# Compiled: run one by one, its many small operations would be compiled for every shape.
compiled_kmeans = jax.jit(kmeans_centers, static_argnums=1)


def random_values(seed, shape):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("num_centers", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(5))
def test_kmeans_reaches_the_brute_force_optimum(seed, num_centers):
    values = random_values(seed, 11)
    with jax.enable_x64(True):
        centers = compiled_kmeans(jnp.asarray(values), num_centers)
    best = paper.brute_force_kmeans(values, num_centers)
    np.testing.assert_allclose(paper.quantization_cost(values, centers), best, rtol=1e-12)


@pytest.mark.parametrize("num_centers", [2, 3, 4, 8])
def test_kmeans_is_no_worse_than_the_best_of_many_starts(num_centers):
    values = np.random.default_rng(0).normal(size=3000) ** 3
    with jax.enable_x64(True):
        ours = paper.quantization_cost(values, compiled_kmeans(jnp.asarray(values), num_centers))
    lloyd = KMeans(num_centers, n_init=50, random_state=0, tol=0).fit(values[:, None])
    assert ours <= lloyd.inertia_ * (1 + 1e-9)
    assert ours >= lloyd.inertia_ * 0.98  # 50 starts come close to the optimum


@settings(max_examples=60)
@given(
    st.integers(4, 9).flatmap(
        lambda size: st.lists(st.integers(-5, 5), min_size=size, max_size=size)
    ),
    st.integers(2, 4),
)
def test_kmeans_with_many_equal_values(values, num_centers):
    with jax.enable_x64(True):
        centers = np.asarray(compiled_kmeans(jnp.asarray(values, float), num_centers))
    assert np.all(np.diff(centers) >= 0)
    cost = paper.quantization_cost(np.array(values, float), centers)
    best = paper.brute_force_kmeans(np.array(values, float), num_centers)
    np.testing.assert_allclose(cost, best, atol=1e-12)


def test_symmetric_centers_are_the_best_pair_about_zero():
    values = random_values(3, (3, 3, 8, 16)) + 0.3
    with jax.enable_x64(True):
        low, high = np.asarray(symmetric_centers(jnp.asarray(values)))
    assert low == -high
    others = (0.99 * high, 1.01 * high)
    costs = [paper.quantization_cost(values, np.array([-a, a])) for a in (high, *others)]
    assert min(costs) == costs[0]
    with pytest.raises(ValueError, match="num_centers=3 must be 2"):
        symmetric_centers(jnp.asarray(values), 3)


@pytest.mark.parametrize("num_centers", [2, 4])
def test_kmeans_under_jit_in_float32(num_centers):
    values = jnp.asarray(random_values(1, (3, 3, 8, 16)), jnp.float32)
    centers = jax.jit(functools.partial(kmeans_centers, num_centers=num_centers))(values)
    assert centers.dtype == jnp.float32
    with jax.enable_x64(True):
        exact = kmeans_centers(jnp.asarray(np.asarray(values, np.float64)), num_centers)
    np.testing.assert_allclose(centers, exact, rtol=2e-5)


def test_kmeans_keeps_its_digits_far_from_zero():
    values = jnp.asarray(1000 + np.repeat([0.0, 0.25], [40, 60]), jnp.float32)
    np.testing.assert_array_equal(kmeans_centers(values, 2), [1000.0, 1000.25])


@pytest.mark.parametrize("num_centers", [0, 4])
def test_kmeans_refuses_impossible_numbers_of_centers(num_centers):
    with pytest.raises(ValueError, match=rf"num_centers={num_centers} must lie in 1..3"):
        kmeans_centers(jnp.arange(3.0), num_centers)


def test_the_index_is_that_of_the_nearest_center_ties_included():
    centers = np.array([-1.0, 0.0, 0.5, 2.0], np.float32)
    values = np.array([[-9, -0.5, -0.51, 0.25], [0.24, 1.25, 1.2, 9]], np.float32)
    index = np.asarray(nearest_index(values, centers))
    np.testing.assert_array_equal(index, [[0, 1, 0, 2], [1, 3, 2, 3]])
    np.testing.assert_array_equal(nearest_center(values, centers), centers[index])


def test_nearest_center_at_ties_and_bounds():
    centers = jnp.array([-1.0, 1.0])
    values = jnp.array([-3.0, -1.0, -0.5, -1e-7, 0.0, 1e-7, 1.0, 2.0])
    expected = [-1, -1, -1, -1, 1, 1, 1, 1]  # the tie at zero goes to the higher center
    np.testing.assert_array_equal(nearest_center(values, centers), expected)


@pytest.mark.parametrize("num_centers", [2, 3, 5])
def test_nearest_center_is_that_of_the_paper(num_centers):
    values = random_values(2, (3, 3, 4, 5)).astype(np.float32)
    centers = np.sort(random_values(3, num_centers)).astype(np.float32)
    result = np.asarray(nearest_center(jnp.asarray(values), jnp.asarray(centers)))
    np.testing.assert_array_equal(result, paper.binary(values, centers))
    assert set(result.ravel()) <= set(centers)
    np.testing.assert_array_equal(nearest_center(result, jnp.asarray(centers)), result)
