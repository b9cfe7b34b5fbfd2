"""Tests pooling in ceil mode and the maximum over pieces, against numpy and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcn_jax.layers.pooling import (
    average_pool_ceil,
    max_over_pieces,
    max_pool_ceil,
    windows_in_ceil_mode,
)
from numpy_layers import pooled


@pytest.mark.parametrize(
    ("size", "window", "strides", "expected"),
    # Those of Maxout on CIFAR-10 and of Network in Network, and images smaller than a window.
    [(33, 4, 2, 16), (15, 4, 2, 7), (9, 2, 2, 5), (32, 3, 2, 16), (16, 3, 2, 8), (3, 4, 2, 1)],
)
def test_number_of_windows(size, window, strides, expected):
    assert windows_in_ceil_mode(size, window, strides) == expected


@pytest.mark.parametrize("shape", [(7, 10), (6, 9), (2, 3), (1, 12)])
@pytest.mark.parametrize(("window", "strides"), [(3, 2), (4, 2), (2, 2), (3, 3)])
@pytest.mark.parametrize(
    ("pool", "reduce"), [(max_pool_ceil, np.max), (average_pool_ceil, np.mean)]
)
def test_values_are_those_of_numpy(pool, reduce, window, strides, shape):
    # All are negative, so a zero of the padding would be a maximum.
    x = -np.random.default_rng(0).uniform(1, 2, (2, *shape, 3)).astype(np.float32)
    found = pool(jnp.asarray(x), window, strides)
    np.testing.assert_allclose(found, pooled(x, window, strides, reduce), rtol=1e-6)


def test_a_maximum_sends_its_gradient_to_one_pixel():
    x = jnp.array([[1.0, 3.0, 2.0], [0.0, 3.0, 5.0], [4.0, 0.0, 0.0]]).reshape(1, 3, 3, 1)
    # Windows of 2x2 pixels with stride 2; the first holds 3 twice.
    weights = jnp.array([[1.0, 10.0], [100.0, 1000.0]]).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: jnp.sum(weights * max_pool_ceil(x, 2, 2)))(x)
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[0, 1, 0], [0, 0, 10], [100, 0, 1000]])


def test_an_average_sends_its_gradient_to_the_pixels_inside_the_image():
    x = jnp.zeros((1, 3, 3, 1))
    gradient = jax.grad(lambda x: jnp.sum(average_pool_ceil(x, 2, 2)))(x)
    expected = [[1 / 4, 1 / 4, 1 / 2], [1 / 4, 1 / 4, 1 / 2], [1 / 2, 1 / 2, 1]]
    np.testing.assert_allclose(gradient[0, :, :, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("pool", [max_pool_ceil, average_pool_ceil])
def test_half_precision_stays(pool):
    x = jnp.ones((1, 5, 5, 2), jnp.bfloat16)
    assert pool(x, 3, 2).dtype == jnp.bfloat16


def test_the_largest_piece_of_each_unit_is_taken_and_gets_the_gradient():
    x = jnp.array([[1.0, 4.0, 2.0, 9.0, 8.0, 7.0]])  # two units of three pieces
    np.testing.assert_array_equal(max_over_pieces(x, 3), [[4, 9]])
    weights = jnp.array([[10.0, 20.0]])
    gradient = jax.grad(lambda x: jnp.sum(weights * max_over_pieces(x, 3)))(x)
    np.testing.assert_array_equal(gradient, [[0, 10, 0, 20, 0, 0]])


def test_pieces_of_maps_are_compared_plane_by_plane():
    # Two maps of two pieces of two planes: [unit, piece, plane].
    x = jnp.array([[[1.0, 5.0], [3.0, 2.0]], [[7.0, 0.0], [6.0, 4.0]]]).reshape(1, 8)
    np.testing.assert_array_equal(max_over_pieces(x, 2, planes=2), [[3, 5, 7, 4]])
    gradient = jax.grad(lambda x: jnp.sum(max_over_pieces(x, 2, planes=2)))(x)
    np.testing.assert_array_equal(gradient, [[0, 1, 1, 0, 1, 0, 0, 1]])
