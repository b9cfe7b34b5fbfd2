"""Tests that draws along fewer axes give the numbers of draws along all of them."""

import jax
import numpy as np
import pytest

from mcn_jax.models.heads import example_dropout
from mcn_jax.ops.draws import drawn, he_normal

SHAPES = [(3, 3, 8, 5), (1, 1, 7, 2), (2, 3, 3, 4, 5), (11, 6), (3, 3, 4)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_are_those_of_jax(shape, dtype):
    key = jax.random.key(4)
    with jax.enable_x64(dtype == "float64"):
        for draw, arguments in (
            (jax.random.normal, (dtype,)),
            (jax.random.uniform, (dtype, -0.5, 0.25)),
            (jax.nn.initializers.normal(0.3), (dtype,)),
        ):
            found = drawn(draw, key, shape, *arguments)
            np.testing.assert_array_equal(found, draw(key, shape, *arguments))
            assert found.dtype == dtype
        found, expected = he_normal(key, shape, dtype), jax.nn.initializers.he_normal()
        np.testing.assert_array_equal(found, expected(key, shape, dtype))


def test_masks_of_dropout_are_those_of_each_example():
    keys = jax.random.split(jax.random.key(1), 5)
    found = example_dropout(np.ones((5, 4, 3, 2), np.float32), keys, 0.25)
    for key, masked in zip(keys, found, strict=True):
        kept = jax.random.bernoulli(key, 0.75, (4, 3, 2))
        np.testing.assert_allclose(masked, kept / 0.75, rtol=1e-6)
