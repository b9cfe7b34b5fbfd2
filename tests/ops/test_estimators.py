import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcn_jax.ops import estimators
from mcn_jax.ops.mcconv import mcconv


@pytest.mark.parametrize(("progress", "t", "k"), [(0, 0.1, 10), (0.5, 1, 1), (1, 10, 1)])
def test_the_sharpness_of_ede(progress, t, k):
    found = estimators.ede(jnp.asarray(float(progress)))
    np.testing.assert_allclose(found, (t, k), rtol=1e-5)


def test_the_slope_of_reste():
    z = jnp.array([0.05, 0.1, 0.4, -0.4, 1.5, 1.6])
    found = estimators.slope_of_sign(z, 1.0, "reste")  # o = 3
    curve = np.array([0.1, 0.4, 0.4, 1.5]) ** (-2 / 3) / 3
    np.testing.assert_allclose(found, [0.1 ** (1 / 3) / 0.1, *curve, 0], rtol=1e-5)
    at_first = estimators.slope_of_sign(z, 0.0, "reste")
    np.testing.assert_allclose(at_first, [1, 1, 1, 1, 1, 0])


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="estimator='sharp' must be one of identity, ede, reste"):
        estimators.slope_of_sign(jnp.zeros(3), 0.0, "sharp")


POWER = 3 - 2 * np.cos(np.pi / 4)  # of ReSTE, halfway


@pytest.mark.parametrize(
    ("estimator", "slopes"),
    [
        ("identity", [1, 1, 1, 1]),
        ("ede", 1 - np.tanh([0, -1, 0.5, 1.75]) ** 2),  # t = k = 1
        ("reste", [0.1 ** (1 / POWER) / 0.1, 1 / POWER, 0.5 ** (1 / POWER - 1) / POWER, 0]),
    ],
)
def test_the_slope_of_two_centers_by_hand(estimator, slopes):
    # The midpoint is 1, and the centers are two away from it: z is 0, -1, 0.5 and 1.75.
    values, centers = jnp.array([1.0, -1.0, 2.0, 4.5]), jnp.array([-1.0, 3.0])

    def unchanged(values):
        return estimators.with_slope_of_two_centers(values, centers, 0.5, estimator)

    found, vjp = jax.vjp(unchanged, values)
    np.testing.assert_array_equal(found, values)
    np.testing.assert_allclose(vjp(jnp.full(4, 2.0))[0], 2 * np.array(slopes), rtol=1e-5)


def test_an_mcconv_takes_the_slope_in_place_of_one():
    generator = np.random.default_rng(0)
    x, latent, m, g = (
        jnp.asarray(generator.normal(size=shape), jnp.float32)
        for shape in ((2, 6, 6, 8), (3, 3, 8, 3), (3, 3, 4), (2, 6, 6, 12))
    )
    centers = jnp.array([-0.5, 1.5])

    def gradients(estimator):
        def layer(latent, m):
            sloped = estimators.with_slope_of_two_centers(latent, centers, 0.5, estimator)
            return jnp.sum(g * mcconv(x, sloped, centers, jnp.abs(m)))

        return jax.value_and_grad(layer, argnums=(0, 1))(latent, m)

    value, (d_latent, d_m) = gradients("ede")
    same_value, (straight, same_d_m) = gradients("identity")
    assert value == same_value
    np.testing.assert_array_equal(d_m, same_d_m)
    slope = 1 - np.tanh(np.asarray(latent) - 0.5) ** 2
    np.testing.assert_allclose(d_latent, straight * slope, rtol=1e-4, atol=1e-5)
