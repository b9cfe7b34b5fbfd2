"""Tests spectral pooling against Fourier transforms of NumPy, and against results known by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcn_jax.ops import spectral
from mcn_jax.ops.convolution import convolve
from mcn_jax.ops.spectral import fixed_pool_size, spectral_pool

SIZES = [((16, 16), (8, 8)), ((10, 10), (4, 5)), ((9, 7), (6, 3)), ((16, 9), (16, 4)),
         ((7, 8), (6, 8)), ((6, 6), (2, 2))]  # fmt: skip


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def by_fourier_transform(images, size):
    """Returns the inverse transform of the part of the spectrum that is kept."""
    spectrum = np.fft.rfft2(images, axes=(1, 2))
    rows, height = size[0] // 2, images.shape[1]
    kept = np.concatenate([spectrum[:, :rows], spectrum[:, height - rows :]], 1)
    return np.fft.irfft2(kept[:, :, : size[1] // 2 + 1], s=size, axes=(1, 2))


def products(function, *arguments):
    """Returns the products of matrices in a function, as equations of its jaxpr."""
    found = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                found.append(equation)
            for value in equation.params.values():
                if hasattr(value, "jaxpr"):
                    visit(value.jaxpr)

    visit(jax.make_jaxpr(function)(*arguments).jaxpr)
    return found


# Test 1
@pytest.mark.parametrize(("size", "pooled"), SIZES)
def test_a_constant_grows_by_the_lost_pixels_unless_the_gain_is_one(size, pooled):
    images = jnp.full((1, *size, 1), 3.0)
    ratio = math.prod(size) / math.prod(pooled)
    np.testing.assert_allclose(spectral_pool(images, pooled), np.full((1, *pooled, 1), 3 * ratio))
    unit = spectral_pool(images, pooled, gain="unit")
    np.testing.assert_allclose(unit, np.full((1, *pooled, 1), 3.0))


@pytest.mark.parametrize(("size", "pooled"), SIZES)
def test_the_gain_is_a_factor(size, pooled):
    images = random(2, *size, 3)
    ratio = math.prod(pooled) / math.prod(size)
    expected = ratio * spectral_pool(images, pooled)
    np.testing.assert_allclose(spectral_pool(images, pooled, gain="unit"), expected, atol=1e-14)


# Test 2
def test_a_stride_of_one_returns_images_of_an_even_height_as_they_are():
    images = random(2, 8, 6, 3)
    size = fixed_pool_size((8, 6), (1, 1))
    assert spectral_pool(images, size) is images
    for waves in (spectral.row_waves, spectral.column_waves):
        own = waves(8, 8, "authors", is_real=True).matrices()
        np.testing.assert_allclose(own, np.eye(8)[None], atol=1e-15)


def wave(frequency, axis, phase=0.0):
    angles = 2 * np.pi * frequency * np.arange(16) / 16 + phase
    shape = [1, 1, 1, 1]
    shape[axis] = 16
    return jnp.asarray(np.broadcast_to(np.cos(angles).reshape(shape), (1, 16, 16, 1)))


# Test 3
def test_waves_along_the_width():
    q = np.arange(8)
    known = {3: 4 * np.cos(2 * np.pi * 3 * q / 8), 4: 2.0 * (-1) ** q, 5: np.zeros(8)}
    for frequency, expected in known.items():
        found = spectral_pool(wave(frequency, axis=2), (8, 8))
        np.testing.assert_allclose(found[0, :, :, 0], np.tile(expected, (8, 1)), atol=1e-14)


# Test 4
@pytest.mark.parametrize("phase", [0.0, 0.7, 2.5])
def test_the_highest_wave_along_the_height_keeps_the_cosine_of_its_phase(phase):
    found = spectral_pool(wave(4, axis=1, phase=phase), (8, 8))
    expected = 2 * np.cos(phase) * (-1.0) ** np.arange(8)
    np.testing.assert_allclose(found[0, :, :, 0], np.tile(expected[:, None], (1, 8)), atol=1e-14)


# Test 5
@pytest.mark.parametrize(
    ("size", "strides", "expected"),
    [
        ((32, 32), (3, 3), (10, 10)),
        ((10, 10), (2, 2), (4, 5)),
        ((10, 10), (3, 3), (2, 3)),
        ((4, 5), (3, 3), (2, 2)),
        ((9, 9), (1, 1), (8, 9)),
        ((2, 3), (1, 7.5), (2, 2)),
        ((32, 24), (2.5, 1.5), (12, 16)),
        ((32, 32), (2, 4), (16, 8)),
        # 32 over these strides is slightly less than 6 and 7.
        ((32, 32), (float(np.float32(32 / 6)), float(np.float32(32 / 7))), (6, 7)),
    ],
)
def test_sizes(size, strides, expected):
    assert fixed_pool_size(size, strides) == expected


@pytest.mark.parametrize(
    ("size", "strides", "named"),
    [
        ((1, 8), (2, 2), "1x8 pixels"), ((8, 1), (2, 2), "8x1 pixels"),
        ((8, 8), (0.5, 2), "0.5 and 2"), ((8, 8), (2, math.nan), "2 and nan"),
    ],
)  # fmt: skip
def test_sizes_and_strides_that_are_too_small_are_refused(size, strides, named):
    with pytest.raises(ValueError, match=named) as caught:
        fixed_pool_size(size, strides)
    assert "\n" not in str(caught.value)


# Test 6
@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(2, 20), st.integers(2, 20)),
    strides=st.tuples(st.floats(1, 6), st.floats(1, 6)),
    seed=st.integers(0, 99),
)
def test_products_equal_the_inverse_transform_of_the_crop(size, strides, seed):
    images = random(2, *size, 3, seed=seed)
    pooled = fixed_pool_size(size, strides)
    found = spectral_pool(images, pooled)
    np.testing.assert_allclose(found, by_fourier_transform(images, pooled), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size", "pooled"), SIZES)
def test_products_equal_the_inverse_transform_of_the_crop_in_float32(size, pooled):
    images = random(2, *size, 3)
    found = spectral_pool(images.astype(jnp.float32), pooled)
    assert found.dtype == jnp.float32
    expected = by_fourier_transform(images, pooled)
    assert np.linalg.norm(found - expected) < 1e-6 * np.linalg.norm(expected)


# Test 7
@pytest.mark.parametrize(("size", "pooled"), SIZES)
def test_the_gradient_is_the_transposed_map(size, pooled):
    images, cotangent = random(2, *size, 3), random(2, *pooled, 3, seed=1)
    _, vjp = jax.vjp(lambda x: spectral_pool(x, pooled), images)
    (gradient,) = vjp(cotangent)
    other = random(2, *size, 3, seed=2)
    expected = np.sum(by_fourier_transform(other, pooled) * cotangent)
    assert float(jnp.sum(other * gradient)) == pytest.approx(float(expected), rel=1e-12)


# Test 8
def test_it_is_linear():
    a, b = random(2, 9, 8, 3), random(2, 9, 8, 3, seed=1)
    found = spectral_pool(2 * a - 3 * b, (4, 5))
    expected = 2 * spectral_pool(a, (4, 5)) - 3 * spectral_pool(b, (4, 5))
    np.testing.assert_allclose(found, expected, atol=1e-13)


# Test 8
def test_images_and_channels_do_not_touch_each_other():
    images = random(3, 9, 8, 4)
    whole = spectral_pool(images, (4, 5))
    for image in range(3):
        for channel in range(4):
            alone = spectral_pool(images[image, :, :, channel][None, :, :, None], (4, 5))
            np.testing.assert_allclose(whole[image, :, :, channel], alone[0, :, :, 0], atol=1e-14)


# Test 24
def test_a_convolution_of_one_pixel_commutes_with_it():
    images, kernel = random(2, 12, 10, 3), random(1, 1, 3, 5, seed=1)

    def convolved(images):
        return convolve(images, kernel, (1, 1), "SAME")

    found = convolved(spectral_pool(images, (6, 5)))
    np.testing.assert_allclose(found, spectral_pool(convolved(images), (6, 5)), atol=1e-13)


@pytest.mark.parametrize(("dtype", "error"), [(jnp.bfloat16, 5e-3), (jnp.float16, 7e-4)])
def test_half_precision_adds_in_float32(dtype, error):
    images, cotangent = random(4, 32, 32, 8), random(4, 16, 16, 8, seed=1)

    def forward_and_backward(images, cotangent):
        pooled, vjp = jax.vjp(lambda x: spectral_pool(x, (16, 16)), images)
        return pooled, *vjp(cotangent)

    halves = [array.astype(dtype) for array in (images, cotangent)]
    found = forward_and_backward(*halves)
    for array, exact in zip(found, forward_and_backward(images, cotangent), strict=True):
        assert array.dtype == dtype
        difference = jnp.linalg.norm(array.astype(jnp.float64) - exact)
        assert 0 < float(difference / jnp.linalg.norm(exact)) < error
    sums = products(forward_and_backward, *halves)
    assert len(sums) >= 4
    assert {(str(s.invars[0].aval.dtype), str(s.outvars[0].aval.dtype)) for s in sums} == {
        (np.dtype(dtype).name, "float32")
    }


@pytest.mark.parametrize("pooled", [(8, 5), (12, 5)])
def test_multiply_adds_are_those_of_the_products(pooled):
    size = (12, 10)
    (first, second) = products(lambda x: spectral_pool(x, pooled), random(2, *size, 3))
    counted = 0
    for product in (first, second):
        (contracted, _), _ = product.params["dimension_numbers"]
        shape = product.invars[0].aval.shape
        terms = math.prod(shape[axis] for axis in contracted)
        counted += terms * math.prod(product.outvars[0].aval.shape)
    expected = spectral.multiply_adds(size, pooled, is_real=pooled[0] == size[0])
    assert counted == 2 * 3 * expected


def test_multiply_adds_worked_by_hand():
    # 32 x 48 x 32 for the columns, 24 x 64 x 24 for the rows
    assert spectral.multiply_adds((32, 32), (24, 24), is_real=False) == 49_152 + 36_864
    assert spectral.multiply_adds((32, 32), (24, 24), is_real=True) == 43_008


@pytest.mark.parametrize("pooled", [(5, 4), (0, 4), (10, 4), (4, 1), (4, 9)])
def test_a_size_that_does_not_fit_is_refused(pooled):
    with pytest.raises(ValueError, match=f"8x8 pixels .* not {pooled[0]}x{pooled[1]}$"):
        spectral_pool(random(1, 8, 8, 1), pooled)


@pytest.mark.parametrize("pooled", [(8, 8), (4, 4)])
def test_an_unknown_gain_is_refused(pooled):
    with pytest.raises(ValueError, match="gain='none' must be one of authors, unit"):
        spectral_pool(random(1, 8, 8, 1), pooled, gain="none")


def test_images_of_whole_numbers_are_refused():
    with pytest.raises(ValueError, match="not uint8"):
        spectral_pool(jnp.zeros((1, 8, 8, 1), jnp.uint8), (4, 4))
