"""Tests the rules of one-bit filters against hand-worked numbers and finite differences.

Gradients are compared with finite differences of the function whose derivative a rule defines as
its own: the forward pass with the sign replaced by a linear surrogate.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcn_jax.ops import estimators, one_bit
from mcn_jax.ops.convolution import convolve
from mcn_jax.training.optim import projected


def one_filter(values):
    """Returns weights [1, 1, C, 1] of one filter."""
    return jnp.asarray(values, jnp.float32).reshape(1, 1, -1, 1)


def filters_and_gradient(rule, w, g, **options):
    filters, pullback = jax.vjp(lambda w: one_bit.RULES[rule](w, **options), w)
    (gradient,) = pullback(jnp.asarray(g, w.dtype).reshape(w.shape))
    return np.asarray(filters), np.asarray(gradient)


def random_filters(seed=0, shape=(3, 3, 4, 5), scale=0.7):
    return scale * np.random.default_rng(seed).normal(size=shape)


def test_binaryconnect_by_hand():
    w = one_filter([0.3, -0.7, 0, 1])
    filters, gradient = filters_and_gradient("binaryconnect", w, [0.1, 0.2, -0.3, 0.4])
    scale = (1.5 / 5) ** 0.5
    np.testing.assert_allclose(filters.ravel(), scale * np.array([1, -1, 1, 1]), rtol=1e-6)
    np.testing.assert_allclose(gradient.ravel(), [0.1, 0.2, -0.3, 0.4], rtol=1e-6)
    assert one_bit.glorot_scale((3, 3, 64, 64)) == pytest.approx((1.5 / 1152) ** 0.5)


def test_a_step_of_binaryconnect_ends_clipped():
    w, update = jnp.array([0.3, -0.7, 0, 1.0]), -4 * jnp.array([0.1, 0.2, -0.3, 0.4])
    transformation = projected(one_bit.clipped_to_one)
    updates, _ = transformation.update(update, transformation.init(w), w)
    np.testing.assert_allclose(optax.apply_updates(w, updates), [-0.1, -1, 1, -0.6], rtol=1e-6)
    latent = jnp.asarray(random_filters(shape=(3, 3, 64, 64)))
    scale = (1.5 / 1152) ** 0.5
    np.testing.assert_allclose(
        one_bit.clipped_to_scale(latent), np.clip(latent, -scale, scale), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("rule", "gradient"),
    [
        ("bwn", [1, 2, -1, 0]),
        ("bwn_exact", [0.25, 0.5, -1.25, 0.5]),
        ("bwn_paper", [1, 0.5, -1, 0]),
        ("bwn_released", [3, 1.5, -3, 0]),
    ],
)
def test_bwn_by_hand(rule, gradient):
    w = one_filter([0.5, -1.5, 0.25, -0.75])
    filters, found = filters_and_gradient(rule, w, [1, 2, -1, 0])
    np.testing.assert_allclose(filters.ravel(), [0.75, -0.75, 0.75, -0.75], rtol=1e-6)
    np.testing.assert_allclose(found.ravel(), gradient, rtol=1e-6)


def test_the_released_program_centres_and_clips_latent_filters():
    moved = one_bit.centred_and_clipped(one_filter([0.5, -1.5, 0.25, -0.75]))
    np.testing.assert_allclose(moved.ravel(), [0.875, -1, 0.625, -0.375])
    # Each tap and each output channel has a mean of its own.
    w = jnp.asarray(random_filters(scale=0.1))
    np.testing.assert_allclose(np.mean(one_bit.centred_and_clipped(w), axis=2), 0, atol=1e-7)


def test_dorefa_has_one_scale_per_layer_and_bwn_one_per_filter():
    w = jnp.array([[1, -3], [-2, 2.0]]).reshape(1, 1, 2, 2)  # filters (1, -2) and (-3, 2)
    dorefa, gradient = filters_and_gradient("dorefa", w, [1, 2, 3, 4])
    np.testing.assert_allclose(dorefa[0, 0].T, [[2, -2], [-2, 2]])
    np.testing.assert_allclose(gradient.ravel(), [1, 2, 3, 4])
    np.testing.assert_allclose(one_bit.bwn(w)[0, 0].T, [[1.5, -1.5], [-2.5, 2.5]])


@pytest.mark.parametrize(("channels", "scale"), [(2, 1 / 3), (8, 1 / 6)])
def test_mcdonnell_by_hand(channels, scale):
    w, g = random_filters(shape=(3, 3, channels, 2)), random_filters(1, (3, 3, channels, 2))
    filters, gradient = filters_and_gradient("mcdonnell", jnp.asarray(w, jnp.float32), g)
    np.testing.assert_allclose(filters, scale * np.where(w >= 0, 1, -1), rtol=1e-6)
    np.testing.assert_allclose(gradient, g, rtol=1e-6)


def test_signs_and_masks_by_hand():
    x = jnp.array([-1.5, -1, -0.2, 0, 0.5, 1, 1.2])
    for mask, passes in (
        ("inclusive", [0, 1, 1, 1, 1, 1, 0]),
        ("exclusive", [0, 0, 1, 1, 1, 0, 0]),
    ):
        signs, pullback = jax.vjp(lambda x, mask=mask: one_bit.sign_activations(x, mask), x)
        np.testing.assert_array_equal(signs, [-1, -1, -1, 1, 1, 1, 1])
        np.testing.assert_array_equal(pullback(jnp.ones(7))[0], passes)
    with pytest.raises(ValueError, match="mask='none' must be one of inclusive, exclusive"):
        one_bit.sign_activations(x, "none")


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_zero_of_either_sign_is_positive(dtype):
    signs = one_bit.sign(jnp.array([0.0, -0.0, 1e-30, -1e-30], dtype))
    assert signs.dtype == dtype
    np.testing.assert_array_equal(signs, jnp.array([1, 1, 1, -1], dtype))


def test_activation_scales_by_hand():
    channels = [[[1, -3], [2, 6]], [[-1, 1], [-4, 6]]]
    x = jnp.moveaxis(jnp.array(channels, jnp.float32), 0, -1)[None]
    scales = one_bit.activation_scales
    np.testing.assert_allclose(scales(x, 1, 1, "SAME")[0, :, :, 0], [[1, 2], [3, 6]])
    np.testing.assert_allclose(scales(x, 3, 1, "SAME")[0, :, :, 0], np.full((2, 2), 4 / 3))
    np.testing.assert_allclose(scales(x, 2, 1, "VALID")[0, :, :, 0], [[3]])
    # The pixels are those of a convolution with these strides and padding.
    assert scales(jnp.ones((1, 7, 8, 2)), 3, 2, "SAME").shape == (1, 4, 4, 1)
    signs = convolve(
        one_bit.sign_activations(x), one_bit.bwn(one_filter([0.5, -1.5])), (1, 1), "SAME"
    )
    product = signs * scales(x, 1, 1, "SAME")
    np.testing.assert_allclose(product[0, :, :, 0], [[2, -4], [6, 0]])


def test_signs_of_activations_in_a_convolution_by_hand():
    x = jnp.array([[0.2, -3], [0, 1]]).reshape(1, 2, 2, 1)
    w = jnp.ones((3, 3, 1, 1))

    def output(x, w):
        return convolve(one_bit.sign_activations(x), w, (1, 1), "SAME")

    y, pullback = jax.vjp(output, x, w)
    np.testing.assert_allclose(y.ravel(), [2, 2, 2, 2])
    dx, dw = pullback(jnp.ones_like(y))
    np.testing.assert_allclose(dx[0, :, :, 0], [[4, 0], [4, 4]])
    np.testing.assert_allclose(dw[:, :, 0, 0], [[1, 0, -1], [2, 2, 0], [1, 2, 1]])


def test_irnet_by_hand():
    w = one_filter([1, 3, 5, 7])
    filters, gradient = filters_and_gradient("irnet", w, [1, 2, -1, 0], progress=0.5)
    np.testing.assert_allclose(filters.ravel(), [-1, -1, 1, 1])
    z = np.array([-3, -1, 1, 3]) / (20 / 3) ** 0.5
    np.testing.assert_allclose(one_bit.standardized(w).ravel(), z, rtol=1e-6)
    # The output does not change if w is shifted or scaled.
    assert np.sum(gradient) == pytest.approx(0, abs=1e-6)
    assert np.sum(gradient.ravel() * z) == pytest.approx(0, abs=1e-6)
    assert np.abs(gradient).max() > 0.1


def test_irnet_without_centring_keeps_the_signs_of_the_weights():
    w = one_filter([1, 3, 5, 7])
    np.testing.assert_array_equal(np.sign(one_bit.irnet(w)).ravel(), [-1, -1, 1, 1])
    np.testing.assert_array_equal(np.sign(one_bit.irnet(w, center=False)).ravel(), [1, 1, 1, 1])


def test_recu_clamps_and_keeps_the_signs():
    w = jnp.asarray(random_filters(), jnp.float32)
    irnet, recu = one_bit.RULES["irnet"](w), one_bit.RULES["recu"](w)
    np.testing.assert_array_equal(jnp.sign(irnet), jnp.sign(recu))
    # The gradient ends at the bound of the clamp: 1.2 times the mean magnitude at the start.
    gradient = jax.grad(lambda w: jnp.sum(one_bit.RULES["recu"](w)))
    outside = jnp.abs(one_bit.standardized(w)) > 1.21 * jnp.mean(jnp.abs(one_bit.standardized(w)))
    assert 0.2 < jnp.mean(outside) < 0.5
    assert float(jnp.abs(gradient(w)).max()) > 0
    with pytest.raises(ValueError, match="estimator='sharp' must be one of identity, ede, reste"):
        one_bit.irnet(w, estimator="sharp")


def numeric_gradient(function, w, step=1e-6):
    """Central differences of a scalar function of an array, in float64."""
    gradient = np.zeros_like(w)
    for index in np.ndindex(w.shape):
        moved = [w.copy() for _ in range(2)]
        moved[0][index] += step
        moved[1][index] -= step
        gradient[index] = (function(moved[0]) - function(moved[1])) / (2 * step)
    return gradient


def surrogate_bwn_exact(w, at):
    """a(w) * sign(w) near `at`, with the sign replaced by its line of slope 1 inside [-1, 1]."""
    signs = np.where(at >= 0, 1.0, -1.0)
    line = signs + (w - at) * (np.abs(at) <= 1)
    return np.mean(w * signs, axis=(0, 1, 2)) * line


def surrogate_irnet(w, at, progress, estimator, clamp):
    def standardized(w):
        return (w - w.mean((0, 1, 2))) / w.std((0, 1, 2), ddof=1) * (8**0.5 if clamp else 1)

    z, z_at = standardized(w), standardized(at)
    bound = np.inf
    if clamp:
        bound = -np.mean(np.abs(z_at)) * np.log(2 - 2 * (0.85 + 0.14 * progress))
        z, z_at = np.clip(z, -bound, bound), np.clip(z_at, -bound, bound)
    slope = {
        "identity": lambda: 1.0,
        "ede": lambda: max(10 / 100**progress, 1) * 0.1 * 100**progress
        * (1 - np.tanh(0.1 * 100**progress * z_at) ** 2),
    }[estimator]()  # fmt: skip
    scale = 2 ** np.round(np.log2(np.mean(np.abs(z_at), axis=(0, 1, 2))))
    return scale * (np.where(z_at >= 0, 1, -1) + slope * (z - z_at))


@pytest.mark.parametrize(
    ("rule", "options", "surrogate"),
    [
        ("bwn_exact", {}, surrogate_bwn_exact),
        *(
            (
                rule,
                {"progress": progress, "estimator": estimator},
                lambda w, at, p=progress, e=estimator, c=rule == "recu": surrogate_irnet(
                    w, at, p, e, c
                ),
            )
            for rule in ("irnet", "recu")
            for progress, estimator in ((0.0, "ede"), (0.6, "ede"), (0.3, "identity"))
        ),
    ],
)
def test_gradients_are_those_of_the_linear_surrogate(rule, options, surrogate):
    w, g = random_filters(shape=(3, 3, 2, 3)), random_filters(1, (3, 3, 2, 3))
    expected = numeric_gradient(lambda moved: np.sum(g * surrogate(moved, w)), w)
    with jax.enable_x64(True):
        filters, gradient = filters_and_gradient(rule, jnp.asarray(w), g, **options)
    np.testing.assert_allclose(filters, surrogate(w, w), rtol=1e-12)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8)


@settings(max_examples=30)
@given(
    st.sampled_from(sorted(one_bit.RULES)),
    st.integers(0, 2**32 - 1),
    st.sampled_from([(1, 1, 2, 1), (3, 3, 1, 4), (3, 3, 5, 2), (5, 5, 2, 3)]),
)
def test_filters_are_a_sign_times_a_scale_per_filter(rule, seed, shape):
    w = jnp.asarray(random_filters(seed, shape), jnp.float32)
    filters = np.asarray(one_bit.RULES[rule](w))
    magnitudes = np.abs(filters).reshape(-1, shape[-1])
    assert np.all(magnitudes == magnitudes[0])
    assert np.all(magnitudes > 0)
    if rule in ("binaryconnect", "mcdonnell", "dorefa"):
        assert len(np.unique(magnitudes)) == 1
    if rule in one_bit.STANDARDIZED:
        assert np.all(np.log2(magnitudes) % 1 == 0)


def test_binaryconnect_with_scale_h_is_binaryconnect_with_scale_one():
    """Latents of H*w with rate r make the steps of w with rate r / H^2, if the loss ignores scale.

    Batch norm makes the loss ignore the scale of filters. Here it is a normalised product.
    """
    rate, shape = 0.05, (1, 1, 6, 1)
    scale = one_bit.glorot_scale(shape)
    direction = jnp.asarray(random_filters(3, shape))

    def loss(filters):
        return jnp.sum(filters * direction) / jnp.linalg.norm(filters)

    def unscaled(w):
        return estimators.straight_through(w, one_bit.sign(w))

    small = jnp.asarray(scale * np.clip(random_filters(4, shape), -1, 1), jnp.float32)
    large = small / scale
    for _ in range(20):
        small -= rate * jax.grad(lambda w: loss(one_bit.binaryconnect(w)))(small)
        large -= rate / scale**2 * jax.grad(lambda w: loss(unscaled(w)))(large)
        small, large = one_bit.clipped_to_scale(small), one_bit.clipped_to_one(large)
        np.testing.assert_allclose(small, scale * large, rtol=1e-4, atol=1e-6)
