"""Tests kernels of parameterized hypercomplex convolutions against products known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcn_jax.ops import phc
from mcn_jax.ops.convolution import convolve

# Left multiplication by 1 and i; by 1, i, j and k: row u, column s.
COMPLEX = [np.eye(2), [[0, -1], [1, 0]]]
QUATERNION = [
    np.eye(4),
    [[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, -1], [0, 0, 1, 0]],
    [[0, 0, -1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, -1, 0, 0]],
    [[0, 0, 0, -1], [0, 0, -1, 0], [0, 1, 0, 0], [1, 0, 0, 0]],
]


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def rules_and_filters(n, size=3, inputs=2, outputs=5):
    return random(n, n, n, seed=1), random(n, size, size, inputs, outputs, seed=2)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def test_one_rule_of_one_is_an_ordinary_convolution():
    filters = random(1, 3, 3, 4, 6)
    np.testing.assert_array_equal(phc.kernel(jnp.ones((1, 1, 1)), jnp.asarray(filters)), filters[0])


def test_complex_rules_give_the_complex_product():
    weights, x = random(2, 1, 1, 3, 4), random(2, 1, 5, 2, 3, seed=3)  # x: [N, Y, X, part, C]
    kernel = phc.kernel(jnp.asarray(COMPLEX), jnp.asarray(weights))
    images = x.reshape(2, 1, 5, 6)  # real channels, then imaginary ones
    found = np.asarray(convolve(jnp.asarray(images), kernel, (1, 1), "SAME"))
    product = (x[..., 0, :] + 1j * x[..., 1, :]) @ (weights[0, 0, 0] + 1j * weights[1, 0, 0])
    np.testing.assert_allclose(found, np.concatenate([product.real, product.imag], -1), rtol=1e-12)


def hamilton(p, q):
    """Returns the product of two quaternions (w, x, y, z), as Hamilton defined it."""
    a, b = p[0], np.asarray(p[1:])
    c, d = q[0], np.asarray(q[1:])
    return np.array([a * c - b @ d, *(a * d + c * b + np.cross(b, d))])


def test_hamiltons_rules_give_the_product_of_quaternions():
    weights, x = random(4, 1, 1, 3, 2), random(4, 3, seed=3)
    kernel = phc.kernel(jnp.asarray(QUATERNION), jnp.asarray(weights))
    found = np.asarray(x.reshape(-1) @ kernel[0, 0]).reshape(4, 2)
    for out in range(2):
        terms = [hamilton(weights[:, 0, 0, channel, out], x[:, channel]) for channel in range(3)]
        np.testing.assert_allclose(found[:, out], sum(terms), rtol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_each_tap_is_a_sum_of_kronecker_products(n):
    rules, filters = rules_and_filters(n)
    kernel = np.asarray(phc.kernel(jnp.asarray(rules), jnp.asarray(filters)))
    assert kernel.shape == (3, 3, 2 * n, 5 * n)
    for y in range(3):
        for x in range(3):
            # Rows of np.kron are output channels.
            expected = sum(np.kron(rules[i], filters[i, y, x].T) for i in range(n))
            np.testing.assert_allclose(kernel[y, x].T, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("n", "strides", "padding"), [(2, 1, "SAME"), (3, 2, "VALID")])
def test_it_mixes_blocks_by_the_rules_and_convolves_them_with_the_filters(n, strides, padding):
    rules, filters = rules_and_filters(n)
    images = random(2, 7, 8, 2 * n, seed=3)
    kernel = phc.kernel(jnp.asarray(rules), jnp.asarray(filters))
    found = convolve(jnp.asarray(images), kernel, (strides, strides), padding)
    blocks = images.reshape(2, 7, 8, n, 2)
    outputs = []
    for u in range(n):
        terms = []
        for i in range(n):
            mixed = np.einsum("s,byxst->byxt", rules[i, u], blocks)
            own = jnp.asarray(filters[i])
            terms.append(convolve(jnp.asarray(mixed), own, (strides, strides), padding))
        outputs.append(np.sum(terms, axis=0))
    np.testing.assert_allclose(found, np.concatenate(outputs, -1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("n", "channels"), [(2, 1), (2, 3), (3, 3), (4, 1), (4, 3), (5, 6)])
def test_an_input_that_lacks_channels_counts_as_zeros_before_it(n, channels):
    inputs = -(-channels // n)
    rules, filters = map(jnp.asarray, rules_and_filters(n, inputs=inputs))
    images = random(2, 6, 5, channels, seed=3)
    lacking = n * inputs - channels
    padded = np.concatenate([np.zeros((2, 6, 5, lacking)), images], -1)
    kernel = phc.kernel_of_last_inputs(rules, filters, channels)
    assert kernel.shape == (3, 3, channels, 5 * n)
    np.testing.assert_allclose(
        convolve(jnp.asarray(images), kernel, (1, 1), "SAME"),
        convolve(jnp.asarray(padded), phc.kernel(rules, filters), (1, 1), "SAME"),
        rtol=1e-12, atol=1e-12,
    )  # fmt: skip


@pytest.mark.parametrize(("n", "channels"), [(2, 4), (3, 6), (4, 3)])
def test_gradients_equal_finite_differences(n, channels):
    inputs = -(-channels // n)
    rules, filters = rules_and_filters(n, inputs=inputs, outputs=2)
    images, cotangent = random(2, 5, 4, channels, seed=3), random(2, 5, 4, 2 * n, seed=4)

    def value(x, rules, filters):
        kernel = phc.kernel_of_last_inputs(rules, filters, channels)
        return jnp.sum(convolve(x, kernel, (1, 1), "SAME") * cotangent)

    places = [jnp.asarray(array) for array in (images, rules, filters)]
    gradients = jax.grad(value, argnums=(0, 1, 2))(*places)
    for which, gradient in enumerate(gradients):
        direction = jnp.asarray(random(*gradient.shape, seed=5))
        ends = []
        for step in (1e-4, -1e-4):
            moved = list(places)
            moved[which] = places[which] + step * direction
            ends.append(float(value(*moved)))
        expected = (ends[0] - ends[1]) / 2e-4
        assert float(jnp.sum(gradient * direction)) == pytest.approx(expected, rel=1e-7)


def test_the_kernel_of_float32_weights_is_exact_in_float32():
    rules, filters = (array.astype(np.float32) for array in rules_and_filters(4))
    kernel = phc.kernel(jnp.asarray(rules), jnp.asarray(filters))
    assert kernel.dtype == jnp.float32
    expected = phc.kernel(*(jnp.asarray(array, jnp.float64) for array in (rules, filters)))
    scale = phc.kernel(*(jnp.abs(jnp.asarray(a, jnp.float64)) for a in (rules, filters)))
    assert float(jnp.max(jnp.abs(kernel - expected) / scale)) < 4 * 2.0**-24


@pytest.mark.parametrize("n", [2, 3, 4])
def test_a_new_kernel_has_the_variance_of_its_rule(n):
    channels, shape = 96, (n, 3, 3, 96 // n, 96 // n)
    variances = {name: [] for name in phc.INITS}
    own = []
    for seed in range(100):
        keys = jax.random.split(jax.random.key(seed))
        rules = phc.draw_rules(keys[0], (n, n, n), jnp.float32)
        own.append(float(jnp.mean(rules**2)))
        for name, draw in phc.INITS.items():
            filters = draw(keys[1], shape, channels, jnp.float32)
            variances[name].append(float(jnp.mean(phc.kernel(rules, filters) ** 2)))
    he = 2 / (96 * 9)
    # The 100 n^3 rules alone scatter by 3 % for n = 2.
    assert np.mean(own) == pytest.approx(1 / n**2, rel=0.09)
    assert np.mean(variances["he"]) == pytest.approx(he, rel=0.05)
    reference = he / (n * (1 + 96 / n**2))
    assert np.mean(variances["reference"]) == pytest.approx(reference, rel=0.05)


def test_filters_for_an_image_have_the_variance_of_its_channels():
    filters = phc.draw_he_filters(jax.random.key(0), (4, 3, 3, 1, 4096), 3, jnp.float32)
    assert float(jnp.var(filters)) == pytest.approx(2 * 4 / (3 * 9), rel=0.02)
