"""Compares filter maps with their definition written as loops, and both forms with each other."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mcn_jax.ops import filter_map as fm
from mcn_jax.ops import native, one_bit
from mcn_jax.ops.binarize import nearest_center
from mcn_jax.ops.conv_spec import PADDINGS
from mcn_jax.ops.convolution import convolve

SQUARE = fm.Geometry((4, 4, 4), (3, 3), 64)  # of 64 filters and 64 channels


def places(geometry):
    """Yields (place in the filters, place in the map), as the definition says."""
    (k1s, k2s, k3s), (height, width), channels, (x, y) = geometry
    for k3, k1, k2 in itertools.product(range(k3s), range(k1s), range(k2s)):
        k = (k3 * k1s + k1) * k2s + k2
        for i, j, c in itertools.product(range(height), range(width), range(channels)):
            row, column = (k1 * x + i) % (k1s * x), (k2 * y + j) % (k2s * y)
            yield (i, j, c, k), (row, column, (k3 * (channels // k3s) + c) % channels)


def counting_map(geometry):
    return np.arange(np.prod(geometry.map_shape)).reshape(geometry.map_shape)


def random_map(geometry, seed=0):
    return np.random.default_rng(seed).normal(size=geometry.map_shape)


@pytest.mark.parametrize(
    ("samples", "kernel", "channels", "steps"),
    [
        ((4, 2, 2), (3, 3), 6, (2, 2)),
        ((2, 3, 2), (3, 3), 8, (2, 2)),
        ((4, 4, 1), (5, 5), 3, (2, 2)),
        ((4, 4, 3), (8, 3), 6, (2, 1)),
        ((3, 2, 8), (2, 3), 8, (1, 2)),
        ((2, 2, 2), (2, 2), 2, (2, 2)),
    ],
)
def test_filters_are_windows_of_the_map(samples, kernel, channels, steps):
    geometry = fm.Geometry(samples, kernel, channels, steps)
    counted = counting_map(geometry)
    expected = np.zeros(geometry.filter_shape)
    occurring = np.zeros(geometry.map_shape)
    for in_filters, in_map in places(geometry):
        expected[in_filters] = counted[in_map]
        occurring[in_map] += 1
    found = fm.cut_filters(jnp.asarray(counted, jnp.float32), geometry)
    np.testing.assert_array_equal(found, expected)
    occurrences = np.broadcast_to(fm.occurrences(geometry), geometry.map_shape)
    np.testing.assert_array_equal(occurrences, occurring)


def test_known_weights_of_filters():
    filters = np.asarray(fm.cut_filters(jnp.asarray(counting_map(SQUARE)), SQUARE))
    assert (filters[2, 2, 50, 31], filters[0, 0, 0, 16], filters[1, 0, 63, 63]) == (2, 16, 4015)


@pytest.mark.parametrize(
    ("samples", "channels", "expected"),
    [
        ((4, 4, 4), 64, 297_943), ((4, 4, 2), 128, 66_456), ((8, 8, 1), 3, 255_821),
        ((2, 3, 2), 48, 566_914),
    ],
)  # fmt: skip
def test_a_sum_over_all_filters(samples, channels, expected):
    """The weights of the sum are not linear in c, so a roll in the other direction is noticed."""
    geometry = fm.Geometry(samples, (3, 3), channels)
    filters = np.asarray(fm.cut_filters(jnp.asarray(counting_map(geometry)), geometry), np.int64)
    i, j, c, k = np.indices(filters.shape)
    total = np.sum((i + 1) * (j + 2) * (c * c + 3) * (k + 1) * filters)
    assert total % 1_000_003 == expected


def test_occurrences_of_64_filters():
    occurrences = np.broadcast_to(fm.occurrences(SQUARE), SQUARE.map_shape)
    values, counts = np.unique(occurrences, return_counts=True)
    assert dict(zip(values, counts, strict=True)) == {4: 1024, 8: 2048, 16: 1024}
    assert occurrences.sum() == 36_864


@pytest.mark.parametrize(
    ("outputs", "channels", "kernel", "expected"),
    [
        (12, 48, 3, (3, 2, 2)), (16, 16, 3, (4, 2, 2)), (32, 128, 3, (4, 4, 2)),
        (64, 64, 3, (4, 4, 4)), (128, 64, 3, (8, 4, 4)), (256, 256, 3, (8, 8, 4)),
        (512, 256, 3, (8, 8, 8)), (1024, 512, 3, (16, 8, 8)), (64, 3, 3, (8, 8, 1)),
        (64, 6, 3, (8, 4, 2)), (36, 64, 3, (3, 3, 4)), (9, 64, 3, (3, 3, 1)),
        (32, 128, 8, (4, 4, 2)),
    ],
)  # fmt: skip
def test_samples(outputs, channels, kernel, expected):
    assert fm.samples_for(outputs, channels, (kernel, kernel)) == expected
    geometry = fm.geometry_for(outputs, channels, (kernel, kernel))
    assert geometry == fm.Geometry(expected, (kernel, kernel), channels, (2, 2))


@pytest.mark.parametrize(
    ("outputs", "channels", "kernel", "samples", "message"),
    [
        (10, 64, 3, None, r"10 filters and 64 .* have 10x2 pixels, .*; take 9 or 12 filters$"),
        (2, 64, 3, None, r"would have 2x2 pixels, fewer than the 3x3 .*; take 8 filters$"),
        (16, 16, 8, None, r"would have 8x4 pixels, fewer than the 8x8 .*; take 25 filters$"),
        (64, 64, 1, None, "kernels of 1x1 pixels do not overlap in a filter map; use an ordinary"),
        (64, 64, 3, (4, 4, 2), r"samples=\(4, 4, 2\) must be three .* product is the 64 filters"),
        (64, 64, 3, (8, 8), "must be three numbers"),
        (48, 64, 3, (4, 4, 3), "do not fit: 3 does not divide the 64 input channels"),
        (64, 64, 3, (16, 1, 4), "give a filter map of 32x2 pixels, smaller than the 3x3 pixels"),
    ],
)
def test_what_fits_no_map_is_refused(outputs, channels, kernel, samples, message):
    with pytest.raises(ValueError, match=message):
        fm.geometry_for(outputs, channels, (kernel, kernel), samples)


def test_maps_of_several_filters_are_suggested_whole():
    with pytest.raises(ValueError, match=r"10x2 pixels, .*; take 4 or 6 maps of 2 filters each$"):
        fm.geometry_for(10, 10, (3, 3), planes=2)


@pytest.mark.parametrize("samples", [(2, 3, 2), (8, 8, 1)])
def test_samples_may_be_chosen(samples):
    geometry = fm.geometry_for(np.prod(samples), 48, (3, 3), samples)
    assert geometry.samples == samples


def gradient_of_map(geometry, gradient, weights, point=None):
    """Returns the gradient of sum(weights * filters) by the map."""

    def loss(filter_map):
        if gradient == "mean":
            filter_map = fm.averaged(filter_map, geometry)
        return jnp.sum(weights * fm.cut_filters(filter_map, geometry))

    point = jnp.zeros(geometry.map_shape) if point is None else point
    return np.asarray(jax.grad(loss)(point))


def test_the_gradient_is_the_mean_over_occurrences():
    geometry = fm.Geometry((3, 2, 2), (3, 3), 4)
    weights = np.random.default_rng(0).normal(size=geometry.filter_shape)
    found = {}
    for in_filters, in_map in places(geometry):
        found.setdefault(in_map, []).append(weights[in_filters])
    mean, total = np.zeros((2, *geometry.map_shape))
    for place, values in found.items():
        mean[place], total[place] = np.mean(values), np.sum(values)
    with jax.enable_x64():
        np.testing.assert_allclose(gradient_of_map(geometry, "mean", weights), mean, rtol=1e-12)
        np.testing.assert_allclose(gradient_of_map(geometry, "sum", weights), total, rtol=1e-12)


def test_known_means():
    weights = np.broadcast_to(np.arange(64.0), SQUARE.filter_shape)
    mean = gradient_of_map(SQUARE, "mean", weights)
    assert (mean[0, 0, 0], mean[1, 1, 0], mean[2, 3, 5]) == (31.5, 24, 27)


def convolution(gradient, form="direct"):
    return functools.partial(
        fm.filter_map_convolution, strides=(2, 2), gradient=gradient, form=form
    )


@pytest.mark.parametrize("form", ["direct", "circulant"])
def test_the_sum_is_a_derivative_and_the_mean_is_not(form):
    geometry = fm.Geometry((4, 2, 2), (3, 3), 6)
    generator = np.random.default_rng(1)
    with jax.enable_x64():
        x = jnp.asarray(generator.normal(size=(2, 5, 6, 6)))
        point, direction = jnp.asarray(random_map(geometry)), random_map(geometry, 1)

        def loss(gradient, filter_map):
            return jnp.sum(jnp.sin(convolution(gradient, form)(x, filter_map, geometry)))

        step = 1e-5
        above, below = (float(loss("sum", point + sign * step * direction)) for sign in (1, -1))
        total, mean = (
            np.asarray(jax.grad(functools.partial(loss, gradient))(point))
            for gradient in ("sum", "mean")
        )
    numeric = (above - below) / (2 * step)
    assert np.sum(total * direction) == pytest.approx(numeric, rel=1e-7)
    assert np.sum(mean * direction) != pytest.approx(numeric, rel=0.1)
    np.testing.assert_allclose(total, mean * fm.occurrences(geometry), rtol=1e-12)


@pytest.mark.parametrize("samples", [(4, 4, 4), (8, 8, 1), (2, 3, 8)])
def test_the_step_of_the_filters_is_a_projection(samples):
    """What the filters of the mean leave of a gradient is orthogonal to all filters of maps."""
    geometry = fm.Geometry(samples, (3, 3), 8)
    with jax.enable_x64():
        gradient = np.random.default_rng(2).normal(size=geometry.filter_shape)
        step = fm.cut_filters(jnp.asarray(gradient_of_map(geometry, "mean", gradient)), geometry)
        rest = gradient_of_map(geometry, "sum", gradient - step)
        np.testing.assert_allclose(rest, 0, atol=1e-11)
        assert 0.1 < np.linalg.norm(step) / np.linalg.norm(gradient) < 0.9
        # Of a gradient that a map can have, nothing is left.
        again = gradient_of_map(geometry, "mean", step)
        np.testing.assert_allclose(fm.cut_filters(jnp.asarray(again), geometry), step, atol=1e-12)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("shifts", [1, 2, 4, 8])
def test_the_circulant_form_computes_the_same(shifts, strides, padding):
    geometry = fm.Geometry((3, 2, shifts), (3, 3), 16)
    generator = np.random.default_rng(3)
    results = []
    with jax.enable_x64():
        x = jnp.asarray(generator.normal(size=(2, 7, 8, 16)))
        filter_map = jnp.asarray(random_map(geometry))
        filters = fm.cut_filters(filter_map, geometry)
        expected = convolve(x, filters, strides, padding)
        cotangent = generator.normal(size=expected.shape)
        for form in ("direct", "circulant", "auto"):
            output, vjp = jax.vjp(
                lambda x, m, form=form: fm.filter_map_convolution(
                    x, m, geometry, strides=strides, padding=padding, form=form
                ),
                x, filter_map,
            )  # fmt: skip
            results.append((output, *vjp(cotangent)))
        np.testing.assert_array_equal(results[0][0], expected)
        for other in results[1:]:
            for found, known in zip(other, results[0], strict=True):
                np.testing.assert_allclose(found, known, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("geometry", "expected"),
    [
        (fm.Geometry((8, 8, 1), (3, 3), 3), {"direct": 1_728, "factored": 1_728}),
        (fm.Geometry((4, 4, 2), (3, 3), 128), {"direct": 36_864, "factored": 18_432}),
        (SQUARE, {"direct": 36_864, "factored": 11_520}),
        (fm.Geometry((8, 8, 8), (3, 3), 512), {"direct": 2_359_296, "factored": 405_504}),
        (fm.Geometry((4, 4, 3), (3, 3), 6), {"direct": 2_592}),
    ],
)
def test_multiply_adds(geometry, expected):
    assert fm.multiply_adds(geometry) == expected


@pytest.mark.parametrize(
    ("outputs", "channels", "dtype", "expected"),
    [
        (128, 128, "float32", "circulant"), (512, 256, "float32", "circulant"),
        (32, 128, "float32", "circulant"), (128, 64, "float32", "circulant"),
        (64, 32, "float32", "direct"),
        (16, 128, "float32", "direct"),
        (128, 129, "float32", "direct"), (128, 128, "bfloat16", "direct"),
        (128, 128, "float64", "direct"),
    ],
)  # fmt: skip
def test_auto_takes_the_circulant_form_of_wide_layers_on_a_cpu(
    outputs, channels, dtype, expected, monkeypatch
):
    monkeypatch.setenv(native.SWITCH, "0")  # the kernel is a choice by platform, too
    geometry = fm.geometry_for(outputs, channels, (3, 3))
    assert fm.cpu_form(geometry, dtype) == expected
    with jax.enable_x64(dtype == "float64"):
        traced = jax.make_jaxpr(functools.partial(fm.filter_map_convolution, geometry=geometry))(
            jnp.zeros((1, 4, 4, channels), dtype), jnp.zeros(geometry.map_shape)
        )
    assert ("platform_index" in str(traced)) == (expected == "circulant")


@pytest.mark.skipif(native.why_unavailable() is not None, reason="needs the native kernel")
@pytest.mark.parametrize(
    ("outputs", "channels", "expected"),
    [
        (32, 16, "direct"), (32, 32, "circulant"),
        (512, 32, "direct"), (512, 64, "circulant"),  # of 8 blocks, the kernel takes 8 channels
    ],
)  # fmt: skip
def test_auto_takes_it_of_narrower_layers_with_the_kernel(outputs, channels, expected):
    assert fm.cpu_form(fm.geometry_for(outputs, channels, (3, 3)), "float32") == expected


def test_auto_in_float32_agrees_with_direct():
    geometry = fm.geometry_for(128, 128, (3, 3))
    x = np.random.default_rng(4).normal(size=(2, 5, 5, 128)).astype(np.float32)
    filter_map = random_map(geometry).astype(np.float32)

    def loss(form, x, filter_map):
        return jnp.sum(jnp.cos(fm.filter_map_convolution(x, filter_map, geometry, form=form)))

    auto, direct = (
        jax.jit(jax.value_and_grad(functools.partial(loss, form), (0, 1)))(x, filter_map)
        for form in ("auto", "direct")
    )
    for found, known in zip(jax.tree.leaves(auto), jax.tree.leaves(direct), strict=True):
        np.testing.assert_allclose(found, known, rtol=2e-3, atol=2e-3 * np.abs(known).max())


def test_half_precision_sums_the_gradient_of_the_map_in_float32():
    """Each element has up to 32 terms, whose sum in bfloat16 would lose digits."""
    geometry = fm.Geometry((8, 8, 8), (3, 3), 8)
    generator = np.random.default_rng(5)
    x = jnp.asarray(generator.normal(size=(2, 4, 4, 8)), jnp.bfloat16)
    filter_map = jnp.asarray(random_map(geometry), jnp.float32)
    output, vjp = jax.vjp(lambda m: fm.filter_map_convolution(x, m, geometry), filter_map)
    assert output.dtype == jnp.bfloat16
    cotangent = jnp.asarray(generator.normal(size=output.shape), jnp.bfloat16)
    (found,) = vjp(cotangent)
    filters = fm.cut_filters(filter_map, geometry)
    _, of_filters = jax.vjp(lambda f: convolve(x, f, (1, 1), "SAME"), filters)
    expected = gradient_of_map(geometry, "mean", np.asarray(of_filters(cotangent)[0], np.float64))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_adam_does_not_see_the_difference_of_sum_and_mean():
    geometry = fm.Geometry((4, 2, 4), (3, 3), 8)
    weights = np.random.default_rng(6).normal(size=geometry.filter_shape)
    maps = []
    for gradient in ("sum", "mean"):
        optimizer = optax.adam(0.01, eps=0.0)
        filter_map = jnp.asarray(random_map(geometry), jnp.float32)
        state = optimizer.init(filter_map)
        for step in range(50):
            slope = gradient_of_map(geometry, gradient, np.cos(weights + step), filter_map)
            updates, state = optimizer.update(jnp.asarray(slope), state)
            filter_map = filter_map + updates
        maps.append(np.asarray(filter_map))
    # The occurrences are powers of two, so not even rounding differs.
    np.testing.assert_array_equal(*maps)
    assert np.abs(maps[0] - random_map(geometry)).max() > 0.01


@pytest.mark.parametrize(
    "quantize", [one_bit.sign, lambda x: nearest_center(x, jnp.array([-0.4, 0.1, 0.7]))]
)
def test_quantizing_commutes_with_cutting(quantize):
    filter_map = jnp.asarray(random_map(SQUARE))
    np.testing.assert_array_equal(
        fm.cut_filters(quantize(filter_map), SQUARE), quantize(fm.cut_filters(filter_map, SQUARE))
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gradient": "median"}, "gradient='median' must be one of mean, sum"),
        ({"form": "gather"}, "form='gather' must be one of auto, direct, circulant"),
        ({"x": jnp.zeros((1, 4, 4, 5))}, r"the input have 6 channels"),
        ({"filter_map": jnp.zeros((8, 7, 6))}, r"but the map must be \(8, 8, 6\)"),
        ({"form": "circulant"}, "form='circulant' takes no 3 shifts; use 'direct'"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    geometry = fm.Geometry((4, 4, 3), (3, 3), 6)
    arguments = {
        "x": jnp.zeros((1, 4, 4, 6)), "filter_map": jnp.zeros((8, 8, 6)), "geometry": geometry,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        fm.filter_map_convolution(**(arguments | changes))


def test_cutting_and_its_gradient_use_neither_gather_nor_scatter():
    traced = jax.make_jaxpr(
        lambda m: jax.vjp(lambda m: fm.cut_filters(m, SQUARE), m)[1](jnp.ones(SQUARE.filter_shape))
    )(jnp.zeros(SQUARE.map_shape))
    assert "concatenate" in str(traced)
    assert "gather" not in str(traced)
    assert "scatter" not in str(traced)
