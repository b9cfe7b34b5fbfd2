import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcn_jax.ops import m_init
from mcn_jax.ops.m_init import LEAST_SHARE, M_INITS, draw_m


def initial_m(*arguments):
    with jax.enable_x64(True):
        return np.asarray(m_init.initial_m(*arguments))


def test_noise_is_bit_for_bit_what_it_was():
    def before(key):
        return jnp.abs(1 + 0.3 * jax.random.normal(key, (3, 3, 4), jnp.float32))

    def now(key):
        return draw_m(key, (3, 3, 4), jnp.float32, "noise", 0.3)

    key = jax.random.key(7)
    np.testing.assert_array_equal(now(key), before(key))
    np.testing.assert_array_equal(jax.jit(now)(key), jax.jit(before)(key))


def test_disjoint_planes_by_hand():
    """Of the nine taps, plane 1 of four has the second and the sixth."""
    m = initial_m("disjoint", 3, 4)
    large = 1 / np.sqrt((2 + 7 * LEAST_SHARE**2) / 9)
    s = large * LEAST_SHARE
    np.testing.assert_allclose(m[..., 1], [[s, large, s], [s, s, large], [s, s, s]], rtol=1e-12)
    largest = (m > 1).reshape(9, 4)
    np.testing.assert_array_equal(largest.sum(axis=1), np.ones(9))
    np.testing.assert_array_equal(largest.sum(axis=0), [3, 2, 2, 2])


def test_orientations_by_hand():
    m = initial_m("orientations", 3, 4)
    ramp = np.array([2 / 11, 1.0, 20 / 11])
    ramp = ramp / np.sqrt(np.mean(ramp**2))
    np.testing.assert_allclose(m[..., 0], np.tile(ramp, (3, 1)), rtol=1e-12)
    np.testing.assert_allclose(m[..., 1], np.tile(ramp[:, None], (1, 3)), rtol=1e-12)
    np.testing.assert_allclose(m[..., 2], m[:, ::-1, 0], rtol=1e-12)
    diagonal = initial_m("orientations", 3, 8)[..., 1]
    assert diagonal[2, 2] == pytest.approx(10 * diagonal[0, 0])
    np.testing.assert_allclose(np.diag(diagonal[:, ::-1]), np.full(3, diagonal[1, 1]), rtol=1e-12)


@pytest.mark.parametrize("start", M_INITS)
@pytest.mark.parametrize(("taps", "planes"), [(3, 1), (3, 4), (3, 8), (5, 2)])
def test_each_plane_has_the_mean_square_one_and_is_positive(start, taps, planes):
    m = initial_m(start, taps, planes)
    assert m.shape == (taps, taps, planes)
    assert m.min() > 0
    np.testing.assert_allclose(np.mean(m**2, axis=(0, 1)), np.ones(planes), rtol=1e-12)


def test_a_drawn_m_is_the_start_plus_noise():
    key = jax.random.key(0)
    drawn = draw_m(key, (3, 3, 4), jnp.float32, "disjoint", 0.5)
    noise = 0.5 * np.asarray(jax.random.normal(key, (3, 3, 4), jnp.float32))
    np.testing.assert_allclose(drawn, np.abs(initial_m("disjoint", 3, 4) + noise), rtol=1e-5)


@pytest.mark.parametrize(
    ("start", "taps", "planes", "message"),
    [
        ("random", 3, 4, "'random' must be one of noise, disjoint, orientations"),
        ("disjoint", 3, 10, "each plane its own taps, but 10 planes share 3x3 taps"),
        ("orientations", 1, 2, "needs more than one tap"),
    ],
)
def test_a_start_that_cannot_be_is_refused(start, taps, planes, message):
    with pytest.raises(ValueError, match=message):
        initial_m(start, taps, planes)
