"""Tests learned strides against Fourier transforms of NumPy, and against results known by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcn_jax.ops import diffstride, spectral
from mcn_jax.ops.convolution import convolve
from mcn_jax.ops.diffstride import (
    READINGS,
    diffstride_pool,
    effective_strides,
    pool_size,
    smallest_stride,
    stride_cost,
)

R = 4.0


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def pair(vertical, horizontal=None):
    return jnp.asarray([vertical, vertical if horizontal is None else horizontal], jnp.float64)


def distances(size, reading):
    """Returns the distances of all rows and columns of a spectrum, in the order of transforms."""
    f = np.rint(np.fft.fftfreq(size[0]) * size[0]).astype(int)
    rows = np.abs(f) if reading == "paper" else np.where(f >= 0, f, -1 - f)
    return rows, np.arange(size[1] // 2 + 1)


def masks(strides, size, smoothness, reading):
    """Returns the masks of all rows and columns, in the order of transforms."""
    found = []
    for pixels, stride, extra, d in zip(
        size, strides, (0, 1), distances(size, reading), strict=True
    ):
        threshold = max(pixels / stride, 2) / 2 + extra
        found.append(np.clip((smoothness + threshold - d) / smoothness, 0, 1))
    return found


def back(spectrum, pooled):
    """Transforms a whole spectrum back after the crop to a size."""
    high = pooled[0] // 2
    kept = np.concatenate([spectrum[:, : pooled[0] - high], spectrum[:, -high:]], 1)
    return np.fft.irfft2(kept[:, :, : pooled[1] // 2 + 1], s=pooled, axes=(1, 2))


def masked(spectrum, rows, columns):
    return spectrum * rows[None, :, None, None] * columns[None, None, :, None]


def by_fourier_transform(images, strides, pooled, smoothness=R, reading="code"):
    spectrum = np.fft.rfft2(images, axes=(1, 2))
    kept = masks(np.asarray(strides), images.shape[1:3], smoothness, reading)
    return back(masked(spectrum, *kept), pooled)


def size_by_counting(strides, size, smoothness, reading):
    rows, columns = masks(strides, size, smoothness, reading)
    return np.sum(rows > 0), 2 * (np.sum(columns > 0) - 1)


def value(images, cotangent, **options):
    """Returns a function of strides: the inner product of the output and a cotangent."""
    pooled = cotangent.shape[1:3]

    def of(strides):
        return jnp.sum(cotangent * diffstride_pool(images, strides, size=pooled, **options))

    return of


def central_difference(function, strides, axis, step=1e-5):
    offset = jnp.zeros(2).at[axis].set(step)
    return float(function(strides + offset) - function(strides - offset)) / (2 * step)


# Test 9
@pytest.mark.parametrize(
    ("size", "strides", "reading", "expected"),
    [
        (64, (2, 4), "code", (40, 24)),
        (32, (1, 1), "code", (32, 32)), (32, (2, 2), "code", (24, 24)),
        (24, (2, 2), "code", (20, 20)), (20, (2, 2), "code", (18, 18)),
        (32, (3, 3), "code", (20, 20)),
        (18, (3, 3), "code", (14, 14)), (32, (99, 99), "code", (10, 10)),
        (32, (2, 2), "paper", (23, 24)), (32, (1, 2), "paper", (32, 24)),
        (9, (2, 2), "paper", (9, 8)), (31, (4, 4), "paper", (15, 16)),
    ],
)  # fmt: skip
def test_sizes(size, strides, reading, expected):
    lifted = effective_strides(np.asarray(strides, np.float32), (size, size), R)
    assert pool_size(lifted, (size, size), R, reading) == expected


@settings(max_examples=100)
@given(
    size=st.tuples(st.integers(3, 24).map(lambda half: 2 * half), st.integers(5, 48)),
    strides=st.tuples(st.floats(1, 9, width=32), st.floats(1, 9, width=32)),
    smoothness=st.sampled_from([0.5, 2.0, 4.0]),
)
def test_the_host_and_the_device_keep_the_same_rows_and_columns(size, strides, smoothness):
    on_host = effective_strides(np.asarray(strides, np.float32), size, smoothness)
    on_device = effective_strides(jnp.asarray(strides, jnp.float32), size, smoothness)
    np.testing.assert_array_equal(on_host, on_device)
    for reading in READINGS:
        pooled = pool_size(on_host, size, smoothness, reading)
        rows, columns = diffstride.masks(on_device, size, size, smoothness, reading)
        assert pooled == (int(jnp.sum(rows > 0)), 2 * (int(jnp.sum(columns > 0)) - 1))
        assert pooled == size_by_counting(on_host, size, smoothness, reading)


# Test 10
def test_the_smallest_stride_puts_the_outermost_mask_on_the_ramp():
    assert smallest_stride(32, R) == pytest.approx(8 / 7)
    rows, columns = diffstride.masks(pair(8 / 7), (32, 32), (32, 32))
    # Rows are f = -16 .. 15.
    np.testing.assert_allclose(rows, [0.75, *[1] * 30, 0.75], rtol=1e-14)
    np.testing.assert_allclose(columns, [*[1] * 16, 0.75], rtol=1e-14)


# Test 11
def test_distances_of_rows():
    frequencies = np.array([0, 1, 2, -3, -2, -1])
    assert diffstride.row_distances(frequencies, "code").tolist() == [0, 1, 2, 2, 1, 0]
    assert diffstride.row_distances(frequencies, "paper").tolist() == [0, 1, 2, 3, 2, 1]
    assert spectral.row_frequencies(6).tolist() == [-3, -2, -1, 0, 1, 2]
    assert spectral.row_frequencies(5).tolist() == [-2, -1, 0, 1, 2]


@settings(max_examples=60)
@given(
    size=st.tuples(st.integers(5, 20), st.integers(5, 20)),
    strides=st.tuples(st.floats(1, 6), st.floats(1, 6)),
    smoothness=st.sampled_from([0.5, 1.7, 4.0]),
    reading=st.sampled_from(READINGS),
    lag=st.integers(-1, 1),
)
def test_products_equal_the_inverse_transform_also_for_the_size_of_other_strides(
    size, strides, smoothness, reading, lag
):
    if reading == "code":
        size = (size[0] // 2 * 2 + 2, size[1])
    images = random(2, *size, 3)
    pooled = pool_size(np.maximum(np.asarray(strides) + lag, 1), size, smoothness, reading)
    found = diffstride_pool(
        images, pair(*strides), size=pooled, smoothness=smoothness, reading=reading
    )
    assert found.shape == (2, *pooled, 3)
    expected = by_fourier_transform(images, strides, pooled, smoothness, reading)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reading", READINGS)
def test_a_size_that_lags_behind_adds_zeros_or_loses_frequencies(reading):
    images, strides = random(2, 32, 32, 3), pair(2.3, 2.1)
    own = pool_size(np.asarray(strides), (32, 32), R, reading)
    spectra = {}
    for lag in (-2, 0, 2):
        pooled = (own[0] + lag, own[1] + lag)
        found = diffstride_pool(images, strides, size=pooled, reading=reading)
        spectra[lag] = np.fft.fftshift(np.fft.fft2(found, axes=(1, 2)), axes=(1, 2))
    # Where all of them keep both f and -f, they have the same spectrum.
    middle = {}
    for lag, spectrum in spectra.items():
        cut = slice(3 + lag // 2, -3 - lag // 2)
        middle[lag] = spectrum[:, cut, cut]
    np.testing.assert_allclose(middle[2], middle[0], atol=1e-11)
    np.testing.assert_allclose(middle[-2], middle[0], atol=1e-11)
    # Of the two rows more, +oh/2 of the reading "code" has the values of its partner -oh/2.
    empty = np.sum(np.abs(spectra[2]).max((0, 2, 3)) < 1e-10)
    assert empty == {"paper": 2, "code": 1}[reading]


@pytest.mark.parametrize("reading", READINGS)
def test_the_gain_is_that_of_the_mean(reading):
    images = jnp.full((1, 32, 24, 1), 3.0)
    pooled = pool_size(np.array([2.0, 2.0]), (32, 24), R, reading)
    ratio = 32 * 24 / math.prod(pooled)
    for gain, expected in (("authors", 3 * ratio), ("unit", 3.0)):
        found = diffstride_pool(images, pair(2), size=pooled, reading=reading, gain=gain)
        np.testing.assert_allclose(found, np.full((1, *pooled, 1), expected))


def output_of_rows(images, strides, pooled, reading, rows, columns):
    """Returns the output if the masks of rows or columns were 1 at some places and 0 elsewhere."""
    own_rows, own_columns = masks(np.asarray(strides), images.shape[1:3], R, reading)
    spectrum = np.fft.rfft2(images, axes=(1, 2))
    rows = own_rows if rows is None else rows.astype(float)
    columns = own_columns if columns is None else columns.astype(float)
    return back(masked(spectrum, rows, columns), pooled)


# Test 12
@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("gain", spectral.GAINS)
def test_the_gradient_of_strides(reading, gain):
    images, strides, size = random(2, 32, 28, 3), pair(2.1, 1.7), (32, 28)
    pooled = pool_size(np.asarray(strides), size, R, reading)
    cotangent = random(2, *pooled, 3, seed=1)
    function = value(images, cotangent, reading=reading, gain=gain)
    gradient = jax.grad(function)(strides)
    factor = 1 if gain == "authors" else math.prod(pooled) / math.prod(size)
    for axis in range(2):
        expected = central_difference(function, strides, axis)
        assert float(gradient[axis]) == pytest.approx(expected, rel=1e-7)
        mask = masks(np.asarray(strides), size, R, reading)[axis]
        on_ramp = (mask > 0) & (mask < 1)
        selected = (on_ramp, None) if axis == 0 else (None, on_ramp)
        part = output_of_rows(images, strides, pooled, reading, *selected)
        slope = -size[axis] / (2 * R * float(strides[axis]) ** 2)
        expected = factor * slope * float(np.sum(cotangent * part))
        assert float(gradient[axis]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("reading", READINGS)
def test_the_gradient_of_images(reading):
    images, strides = random(2, 16, 14, 3), pair(2.1, 1.7)
    pooled = pool_size(np.asarray(strides), (16, 14), R, reading)
    cotangent, direction = random(2, *pooled, 3, seed=1), random(2, 16, 14, 3, seed=2)
    gradient = jax.grad(lambda x: value(x, cotangent, reading=reading)(strides))(images)
    expected = np.sum(by_fourier_transform(direction, strides, pooled, reading=reading) * cotangent)
    assert float(jnp.sum(gradient * direction)) == pytest.approx(float(expected), rel=1e-11)


# Test 13
def test_a_tie_counts_in_full_and_in_half_for_central_differences():
    images, strides, size = random(2, 32, 32, 3), pair(2.0), (32, 32)
    pooled = pool_size(np.asarray(strides), size)
    cotangent = random(2, *pooled, 3, seed=1)
    function = value(images, cotangent)
    gradient = jax.grad(function)(strides)
    for axis, tie in ((0, 8), (1, 9)):
        mask, d = masks(np.asarray(strides), size, R, "code")[axis], distances(size, "code")[axis]
        assert set(mask[d == tie]) == {1.0}
        parts = []
        for kept in ((mask > 0) & (d >= tie), d == tie):
            selected = (kept, None) if axis == 0 else (None, kept)
            part = output_of_rows(images, strides, pooled, "code", *selected)
            parts.append(-32 / (2 * R * 4) * float(np.sum(cotangent * part)))
        assert abs(parts[1]) > 1e-2 * abs(parts[0]) > 0
        assert float(gradient[axis]) == pytest.approx(parts[0], rel=1e-9)
        difference = central_difference(function, strides, axis, step=1e-7)
        assert difference == pytest.approx(parts[0] - parts[1] / 2, rel=1e-5)


# Test 14
@pytest.mark.parametrize("shape", [(2,), (1,)])
def test_strides_below_the_smallest_act_as_the_smallest_and_still_learn(shape):
    images, size = random(2, 32, 32, 3), (32, 32)
    cotangent = random(2, 32, 32, 3, seed=1)
    function = value(images, cotangent)

    def lifted(strides):
        return function(effective_strides(strides, size, R))

    strides = jnp.full(shape, 1.0)
    pooled = diffstride_pool(images, effective_strides(strides, size, R), size=size)
    smallest = diffstride_pool(images, pair(8 / 7), size=size)
    np.testing.assert_allclose(pooled, smallest, atol=1e-13)
    gradient = jax.grad(lifted)(strides)
    expected = jax.grad(function)(pair(8 / 7))
    if shape == (1,):
        expected = jnp.sum(expected, keepdims=True)
    np.testing.assert_allclose(gradient, expected, rtol=1e-10)
    assert np.all(np.abs(gradient) > 1e-3)
    moved = strides - 0.1 * gradient
    assert np.all(moved != strides)


def test_the_smallest_stride_of_each_axis_or_the_larger_of_both():
    strides = np.array([1.0, 1.5], np.float32)
    expected = np.array([32 / 28, 1.5], np.float32)
    np.testing.assert_array_equal(effective_strides(strides, (32, 18), R), expected)
    shared = effective_strides(jnp.ones(1), (32, 18), R)
    np.testing.assert_allclose(shared, [18 / 14, 18 / 14])


def test_limits_hold_and_do_not_stop_the_gradient():
    strides = pair(1.2, 7.0)
    for limited in (
        lambda s: effective_strides(s, (32, 32), R, 1.5, 3.0),
        lambda s: effective_strides(np.asarray(s), (32, 32), R, 1.5, 3.0),
    ):
        np.testing.assert_allclose(limited(strides), [1.5, 3.0])
    np.testing.assert_allclose(effective_strides(strides, (32, 32), R, 1.0, 1.0), [1.0, 1.0])
    weights = jnp.asarray([2.0, 5.0])
    gradient = jax.grad(lambda s: jnp.sum(weights * effective_strides(s, (32, 32), R, 1.5, 3.0)))
    np.testing.assert_array_equal(gradient(strides), weights)


# Test 15
def test_strides_that_leave_less_than_two_pixels_have_no_gradient():
    def gradient(strides):
        pooled = pool_size(np.asarray(strides), (32, 32))
        function = value(random(2, 32, 32, 3), random(2, *pooled, 3, seed=1))
        return np.abs(jax.grad(function)(strides))

    for axis, strides in enumerate((pair(17.0, 3.0), pair(3.0, 17.0))):
        found = gradient(strides)
        assert found[axis] == 0
        assert found[1 - axis] > 1e-3
    # Exactly two pixels are a tie.
    assert np.all(gradient(pair(16.0)) > 1e-3)


# Test 16
@pytest.mark.parametrize("reading", READINGS)
def test_an_image_without_high_frequencies_gives_no_gradient_of_strides(reading):
    size, strides = (32, 32), pair(2.1)
    rows, columns = masks(np.asarray(strides), size, R, reading)
    spectrum = np.fft.rfft2(random(2, *size, 3), axes=(1, 2))
    # The reading "code" also has rows without a partner of the opposite frequency.
    low = np.minimum(rows, np.roll(rows[::-1], 1)) == 1
    images = np.fft.irfft2(masked(spectrum, low, columns == 1), s=size, axes=(1, 2))
    pooled = pool_size(np.asarray(strides), size, R, reading)
    function = value(jnp.asarray(images), random(2, *pooled, 3, seed=1), reading=reading)
    assert abs(float(function(strides))) > 1
    np.testing.assert_allclose(jax.grad(function)(strides), [0, 0], atol=1e-11)


# Test 17
@pytest.mark.parametrize("pooled", [(16, 16), (10, 6), (4, 8)])
def test_a_steep_mask_is_fixed_spectral_pooling(pooled):
    images, steep = random(2, 32, 24, 3), 1e-6
    strides = pair(32 / (pooled[0] - 0.5), 24 / (pooled[1] - 0.5))
    assert pool_size(np.asarray(strides), (32, 24), steep) == pooled
    found = diffstride_pool(images, strides, size=pooled, smoothness=steep)
    np.testing.assert_allclose(found, spectral.spectral_pool(images, pooled), atol=1e-13)


# Test 17
def test_a_steep_mask_keeps_two_pixels_more_at_a_tie():
    assert pool_size(np.array([2.0, 2.0]), (32, 32), 1e-6) == (18, 18)
    assert pool_size(np.array([32 / 15.5, 32 / 15.5]), (32, 32), 1e-6) == (16, 16)


def flipped(images, axis):
    """Mirrors images at their first row or column."""
    return jnp.roll(jnp.flip(images, axis), 1, axis)


# Test 18
def test_the_reading_of_the_paper_commutes_with_flips_and_that_of_the_code_does_not():
    images, strides = random(2, 32, 32, 3), pair(2.1)
    errors = {}
    for reading in READINGS:
        pooled = pool_size(np.asarray(strides), (32, 32), R, reading)

        def pool(x, size=pooled, reading=reading):
            return diffstride_pool(x, strides, size=size, reading=reading)

        difference = pool(flipped(images, 1)) - flipped(pool(images), 1)
        errors[reading] = float(jnp.linalg.norm(difference) / jnp.linalg.norm(pool(images)))
    assert errors["paper"] < 1e-13
    assert errors["code"] > 1e-2


# Test 20
def test_the_gradient_of_shared_strides_is_the_sum_over_both_branches():
    block, shortcut = random(2, 32, 32, 5), random(2, 32, 32, 3, seed=1)
    strides = pair(2.1)
    pooled = pool_size(np.asarray(strides), (32, 32))
    cotangents = random(2, *pooled, 5, seed=2), random(2, *pooled, 3, seed=3)
    # Pooling both at once is the same as pooling each.
    both = value(jnp.concatenate([block, shortcut], -1), jnp.concatenate(cotangents, -1))
    gradient = jax.grad(both)(strides)
    parts = [
        jax.grad(value(images, cotangent))(strides)
        for images, cotangent in zip((block, shortcut), cotangents, strict=True)
    ]
    np.testing.assert_allclose(gradient, parts[0] + parts[1], rtol=1e-10)
    expected = [central_difference(both, strides, axis) for axis in range(2)]
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


# Test 24
@pytest.mark.parametrize("reading", READINGS)
def test_a_convolution_of_one_pixel_commutes_with_it(reading):
    images, kernel = random(2, 16, 14, 3), random(1, 1, 3, 5, seed=1)
    pooled = pool_size(np.array([2.0, 2.0]), (16, 14), 2.0, reading)

    def pool(images):
        return diffstride_pool(images, pair(2.1), size=pooled, smoothness=2.0, reading=reading)

    found = convolve(pool(images), kernel, (1, 1), "SAME")
    expected = pool(convolve(images, kernel, (1, 1), "SAME"))
    np.testing.assert_allclose(found, expected, atol=1e-13)


def test_the_cost_of_strides_and_its_gradient():
    strides = [pair(2.0, 2.0), pair(2.0, 3.0), pair(1.5, 1.0)]
    terms = [1 / 4, 1 / 24, 1 / 36]
    assert float(stride_cost(strides)) == pytest.approx(sum(terms))
    gradients = jax.grad(stride_cost)(strides)
    for layer, own in enumerate(strides):
        np.testing.assert_allclose(gradients[layer], -sum(terms[layer:]) / own, rtol=1e-12)
    assert float(stride_cost([])) == 0


@pytest.mark.parametrize("reading", READINGS)
def test_half_precision_and_the_gradient_of_float32_strides(reading):
    images, strides = random(4, 32, 32, 8), pair(2.1)
    pooled = pool_size(np.asarray(strides), (32, 32), R, reading)
    cotangent = random(4, *pooled, 8, seed=1)

    def forward_and_backward(images, cotangent, strides):
        def pool(x, strides):
            return diffstride_pool(x, strides, size=pooled, reading=reading)

        output, vjp = jax.vjp(pool, images, strides)
        return output, *vjp(cotangent)

    halves = (images.astype(jnp.bfloat16), cotangent.astype(jnp.bfloat16))
    found = forward_and_backward(*halves, strides.astype(jnp.float32))
    assert [str(array.dtype) for array in found] == ["bfloat16", "bfloat16", "float32"]
    for array, exact in zip(found, forward_and_backward(images, cotangent, strides), strict=True):
        error = jnp.linalg.norm(array.astype(jnp.float64) - exact) / jnp.linalg.norm(exact)
        assert 0 < float(error) < 1e-2


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: smallest_stride(4, 4.0), "above 0 and below the 4 pixels"),
        (lambda: smallest_stride(8, 0.0), "smoothness of 0.0"),
        (lambda: effective_strides(np.ones(3), (8, 8)), r"not \(3,\)"),
        (lambda: effective_strides(np.ones(2), (8, 8), R, 0.5), "not 0.5 and inf"),
        (lambda: effective_strides(np.ones(2), (8, 8), R, 2.0, 1.5), "not 2.0 and 1.5"),
        (lambda: pool_size(np.ones(2), (9, 8)), "even height, not 9x8"),
        (lambda: pool_size(np.ones(2), (8, 4)), "below the 4 pixels"),
        (lambda: pool_size(np.ones(2), (1, 8), 0.5, "paper"), "not 1x8"),
        (lambda: pool_size(np.ones(2), (8, 8), R, "slides"), "must be one of code, paper"),
        (lambda: pool_size(np.array([2, np.nan]), (8, 8)), "at least 1, not .*nan"),
        (lambda: pool_size(np.array([2, 0.5]), (8, 8)), "at least 1, not .*0.5"),
        (lambda: pool_size(np.array([np.inf, 2]), (8, 8)), "finite"),
        (lambda: pool_size(np.ones(1), (8, 8)), "two finite numbers"),
    ],
)
def test_what_cannot_be_pooled_is_refused_in_one_line(call, named):
    with pytest.raises(ValueError, match=named) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("height", "pooled", "options", "named"),
    [
        (9, (8, 8), {}, "even height, not 9x12"),
        (12, (7, 8), {}, "12x12 pixels to 7x8 in the reading 'code'"),
        (12, (8, 8), {"reading": "paper"}, "12x12 pixels to 8x8 in the reading 'paper'"),
        (12, (8, 7), {}, "to 8x7"),
        (12, (14, 8), {}, "to 14x8"),
        (12, (8, 14), {}, "to 8x14"),
        (12, (0, 8), {}, "to 0x8"),
        (12, (8, 8), {"smoothness": 12.0}, "below the 12 pixels"),
        (12, (8, 8), {"gain": "none"}, "must be one of authors, unit"),
        (12, (8, 8), {"reading": "slides"}, "must be one of code, paper"),
    ],
)
def test_sizes_and_names_that_do_not_fit_are_refused(height, pooled, options, named):
    with pytest.raises(ValueError, match=named):
        diffstride_pool(random(1, height, 12, 1), pair(2.0), size=pooled, **options)
