"""Compares cyclic correlations of blocks with their sums written out."""

import numpy as np
import pytest

from mcn_jax.ops import circulant


@pytest.mark.parametrize(("blocks", "expected"), [(1, 1), (2, 2), (4, 5), (8, 11), (16, 23)])
def test_a_correlation_takes_few_products(blocks, expected):
    generator = np.random.default_rng(0)
    x, f = generator.normal(size=(2, blocks, 3))
    calls = []

    def product(a, b):
        calls.append(1)
        return np.outer(a, b)

    found = circulant.cyclic(list(x), list(f), product)
    assert len(calls) == circulant.products(blocks) == expected
    written_out = [
        sum(np.outer(x[b], f[(b + k) % blocks]) for b in range(blocks)) for k in range(blocks)
    ]
    np.testing.assert_allclose(found, written_out, atol=1e-12)


def test_only_powers_of_two_are_taken():
    assert [n for n in range(17) if circulant.takes(n)] == [1, 2, 4, 8, 16]


@pytest.mark.parametrize("blocks", [1, 2, 4, 8])
def test_the_matrices_are_those_of_the_correlation(blocks):
    x, f = np.random.default_rng(1).normal(size=(2, blocks))
    take, weigh, give = circulant.matrices(blocks)
    assert take.shape == weigh.shape == give.T.shape == (circulant.products(blocks), blocks)
    expected = circulant.cyclic(list(x), list(f), lambda a, b: a * b)
    np.testing.assert_allclose(give @ ((take @ x) * (weigh @ f)), expected, rtol=1e-12)
