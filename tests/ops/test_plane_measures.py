import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcn_jax.ops.m_init import initial_m
from mcn_jax.ops.modulate import reconstructed_filters
from mcn_jax.ops.plane_measures import (
    effective_planes,
    m_spread,
    plane_correlation,
    plane_cosines,
)
from mcn_jax.ops.plane_signs import PATTERNS

PATTERNS_OF_PLANES = [
    (name, planes) for name, (_, allowed) in PATTERNS.items() for planes in allowed
]


def drawn(planes, in_maps=3, out_maps=5, seed=0):
    """Returns filters of two centers and M."""
    generator = np.random.default_rng(seed)
    filters = generator.choice([-0.4, 0.7], (3, 3, in_maps * planes, out_maps))
    m_filters = np.abs(generator.normal(size=(3, 3, planes)))
    return filters.astype(np.float32), m_filters.astype(np.float32)


def by_loops(filters, m_filters, plane_signs):
    """Returns (correlation, effective planes) from Q, with a loop over maps and pairs."""
    planes, maps = m_filters.shape[-1], filters.shape[-1]
    q = reconstructed_filters(jnp.asarray(filters), jnp.asarray(m_filters), plane_signs)
    q = np.asarray(q, np.float64)
    correlations, effective = [], []
    for h in range(maps):
        kernels = [q[..., h * planes + k].ravel() for k in range(planes)]
        kernels = [kernel / np.linalg.norm(kernel) for kernel in kernels]
        for a, b in itertools.combinations(kernels, 2):
            correlations.append(abs(a @ b))
        eigenvalues = np.linalg.eigvalsh(np.array([[a @ b for a in kernels] for b in kernels]))
        effective.append(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())
    return np.mean(correlations), np.mean(effective)


@functools.partial(jax.jit, static_argnums=2)
def measures(filters, m_filters, plane_signs):
    cosines = plane_cosines(filters, m_filters, plane_signs)
    return plane_correlation(cosines), effective_planes(cosines)


def measured(filters, m_filters, plane_signs=""):
    """Returns (correlation, effective planes)."""
    return tuple(map(float, measures(filters, m_filters, plane_signs)))


@pytest.mark.parametrize(("plane_signs", "planes"), [("", 2), ("", 3), *PATTERNS_OF_PLANES])
def test_measures_equal_a_loop_over_all_kernels(plane_signs, planes):
    filters, m_filters = drawn(planes)
    expected = by_loops(filters, m_filters, plane_signs)
    assert measured(filters, m_filters, plane_signs) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    if plane_signs:  # else the test would not notice a measure without the pattern
        assert abs(expected[0] - by_loops(filters, m_filters, "")[0]) > 0.05


def test_cosines_worked_by_hand():
    # Two taps, one input map of two planes, one output map. Squares of the filters: 5 and 4.
    filters = np.array([[1, 2], [2, 0]], np.float32).reshape(1, 2, 2, 1)
    m_filters = np.array([[1, 2], [1, 0]], np.float32).reshape(1, 2, 2)
    # Kernel 0 is 1, 2, 2, 0 and kernel 1 is 2, 4, 0, 0: cosine 10 / (3 * sqrt(20)).
    cosine = 10 / (3 * np.sqrt(20))
    cosines = plane_cosines(jnp.asarray(filters), jnp.asarray(m_filters))
    np.testing.assert_allclose(cosines, [[[1, cosine], [cosine, 1]]], rtol=1e-6)
    # Eigenvalues 1 + cosine and 1 - cosine.
    assert measured(filters, m_filters) == pytest.approx((cosine, 4 / (2 + 2 * cosine**2)))
    # With signs, kernel 1 is 2, -4, 0, 0: cosine (2 - 8) / (3 * sqrt(20)).
    signed = 6 / (3 * np.sqrt(20))
    cosines = plane_cosines(jnp.asarray(filters), jnp.asarray(m_filters), "hadamard")
    np.testing.assert_allclose(cosines[0, 0, 1], -signed, rtol=1e-6)
    expected = (signed, 4 / (2 + 2 * signed**2))
    assert measured(filters, m_filters, "hadamard") == pytest.approx(expected)


@pytest.mark.parametrize("planes", [2, 4])
def test_planes_with_proportional_m_count_as_one(planes):
    filters, m_filters = drawn(planes)
    m_filters = m_filters[..., :1] * np.arange(1, planes + 1, dtype=np.float32)
    assert measured(filters, m_filters) == pytest.approx((1, 1), rel=1e-5)


def test_planes_with_their_own_taps_all_count():
    filters, _ = drawn(4)
    own = (np.arange(9)[:, None] % 4 == np.arange(4)).reshape(3, 3, 4).astype(np.float32)
    assert measured(filters, own) == pytest.approx((0, 4))
    # The start "disjoint" leaves a tenth at the other taps, so its planes overlap a little.
    correlation, effective = measured(filters, initial_m("disjoint", 3, 4))
    assert 0.02 < correlation < 0.3
    assert 3.5 < effective < 4


def test_quaternion_planes_are_orthogonal_for_any_filters_and_m():
    # Left multiplication by a quaternion is a rotation times its length, at every tap and map.
    filters, m_filters = drawn(4)
    assert measured(filters, m_filters, "quaternion") == pytest.approx((0, 4), abs=1e-6)


@pytest.mark.parametrize("planes", [2, 4, 8])
def test_planes_with_orthogonal_signs_all_count(planes):
    # With centers of equal size, every weight has the same square, so only the signs matter.
    filters = np.where(drawn(planes)[0] > 0, 0.5, -0.5).astype(np.float32)
    ones = np.ones((3, 3, planes), np.float32)
    assert measured(filters, ones, "hadamard") == pytest.approx((0, planes), abs=1e-6)
    assert measured(filters, ones) == pytest.approx((1, 1))


def test_planes_of_zeros_do_not_count():
    filters, m_filters = drawn(4, out_maps=1)
    m_filters[..., 1:3] = 0
    c = float(plane_cosines(jnp.asarray(filters), jnp.asarray(m_filters))[0, 0, 3])
    assert 0.1 < c < 0.99
    # One of the six pairs has two kernels that are not zero.
    assert measured(filters, m_filters) == pytest.approx((c / 6, 4 / (2 + 2 * c**2)))
    assert measured(filters, np.zeros_like(m_filters)) == (0, 0)
    assert m_spread(jnp.zeros((3, 3, 4))) == 0


def test_spread_of_m_worked_by_hand():
    m_filters = np.array([[1, 3], [2, 2]], np.float32).reshape(1, 2, 2)
    # The variances over the planes are 1 and 0, and the mean is 2.
    assert m_spread(jnp.asarray(m_filters)) == pytest.approx(np.sqrt(0.5) / 2)
    # The same factor in all planes of a tap is no spread.
    taps = jnp.arange(1.0, 10.0).reshape(3, 3, 1)
    assert m_spread(jnp.broadcast_to(taps, (3, 3, 4))) == 0


@pytest.mark.parametrize("plane_signs", ["", "hadamard"])
def test_a_wide_layer_needs_less_memory_than_its_reconstructed_filters(plane_signs):
    filters = jax.ShapeDtypeStruct((3, 3, 256, 32), jnp.float32)
    m_filters = jax.ShapeDtypeStruct((3, 3, 8), jnp.float32)
    compiled = measures.lower(filters, m_filters, plane_signs).compile()
    copies = 3 if plane_signs else 1  # the product of planes transposes both of its factors
    assert compiled.memory_analysis().temp_size_in_bytes < copies * 4 * filters.size
