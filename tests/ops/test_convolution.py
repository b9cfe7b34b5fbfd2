"""Compares the gradient of a convolution's filters with an explicit sum."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcn_jax.ops import chunks, convolution, native
from mcn_jax.ops.conv_spec import PADDINGS


def written_out(features, cotangent, taps, strides, padding):
    """Computes the sum in the docstring of `filter_gradient` pixel by pixel in numpy."""
    _, height, width, channels = features.shape
    _, out_height, out_width, outputs = cotangent.shape
    low = [0, 0]
    if padding == "SAME":
        for axis, (size, out) in enumerate(((height, out_height), (width, out_width))):
            low[axis] = max((out - 1) * strides[axis] + taps - size, 0) // 2
    if padding == "CENTERED":
        low = [taps // 2, taps // 2]
    gradient = np.zeros((taps, taps, channels, outputs))
    for i in range(taps):
        for j in range(taps):
            for y in range(out_height):
                for x in range(out_width):
                    row, column = strides[0] * y + i - low[0], strides[1] * x + j - low[1]
                    if 0 <= row < height and 0 <= column < width:
                        gradient[i, j] += features[:, row, column].T @ cotangent[:, y, x]
    return gradient


@pytest.mark.parametrize("images_a_chunk", [1, 2, 100])
@pytest.mark.parametrize(
    ("shape", "taps", "strides", "padding"),
    [
        ((6, 8, 8, 4), 3, (1, 1), "SAME"),
        ((6, 8, 8, 4), 3, (2, 2), "SAME"),
        ((7, 7, 5, 3), 3, (2, 1), "SAME"),
        ((4, 7, 9, 2), 3, (2, 2), "VALID"),
        ((2, 6, 7, 3), 5, (1, 1), "VALID"),
        ((5, 4, 4, 2), 1, (1, 1), "SAME"),
        ((2, 4, 4, 128), 3, (1, 1), "SAME"),
        ((2, 8, 7, 4), 3, (2, 2), "CENTERED"),
        ((2, 8, 7, 2), 5, (3, 1), "CENTERED"),
    ],
)
def test_filter_gradient(shape, taps, strides, padding, images_a_chunk, monkeypatch):
    generator = np.random.default_rng(0)
    with jax.enable_x64():
        features = generator.normal(size=shape)
        filters = jnp.zeros((taps, taps, shape[-1], 5), jnp.float64)
        output = convolution.convolve(jnp.asarray(features), filters, strides, padding)
        cotangent = generator.normal(size=output.shape)
        image_bytes = output.shape[1] * output.shape[2] * taps**2 * shape[-1] * 8
        monkeypatch.setattr(chunks, "CHUNK_BYTES", images_a_chunk * image_bytes)
        gradient = convolution.filter_gradient(
            jnp.asarray(features), jnp.asarray(cotangent), (taps, taps), strides, padding
        )
    expected = written_out(features, cotangent, taps, strides, padding)
    np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize("channels", [1, convolution.MANY_CHANNELS])
def test_half_precision_is_summed_in_float32(channels, taps):
    # In bfloat16, a running sum of ones stops growing at 256.
    features = jnp.ones((64, 8, 8, channels), jnp.bfloat16)
    cotangent = jnp.ones((64, 9 - taps, 9 - taps, 5), jnp.bfloat16)
    gradient = convolution.filter_gradient(features, cotangent, (taps, taps), (1, 1), "VALID")
    assert gradient.dtype == jnp.bfloat16
    assert (gradient == 64 * (9 - taps) ** 2).all()


def test_other_backends_take_the_convolution():
    """The program for a GPU has no loop over chunks."""
    lowered = lowered_gradient(jnp.zeros((4, 8, 8, 4)), "cuda")
    assert "stablehlo.convolution" in lowered
    assert "while" not in lowered


@pytest.mark.parametrize(
    ("size", "channels", "patches"),
    [(8, 128, False), (16, 256, False), (8, 64, True), (16, 128, True), (4, 80, True)],
)
def test_a_cpu_takes_the_convolution_for_many_channels_of_small_images(size, channels, patches):
    lowered = lowered_gradient(jnp.zeros((4, size, size, channels)), "cpu")
    assert ("stablehlo.convolution" not in lowered) == patches


def lowered_gradient(x, platform):
    def gradient(features, cotangent):
        return convolution.filter_gradient(features, cotangent, (3, 3), (1, 1), "SAME")

    return jax.jit(gradient).trace(x, x).lower(lowering_platforms=(platform,)).as_text()


needs_kernel = pytest.mark.skipif(
    native.why_unavailable() is not None, reason=str(native.why_unavailable())
)
KERNEL, NARROW = "mcn_mcconv", "mcn_narrow"


def taken(program):
    """Returns which code of the kernel a program calls, or ""."""
    return " ".join(name for name in (KERNEL, NARROW) if name in program)


def arguments(channels, outputs, taps=(3, 3), size=(7, 6), dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0))
    features = jax.random.normal(keys[0], (3, *size, channels), dtype)
    return features, jax.random.normal(keys[1], (*taps, channels, outputs))


def output_and_gradients(function, arguments, strides=(1, 1), padding="SAME"):
    output, vjp = jax.vjp(lambda x, w: function(x, w, strides, padding), *arguments)
    return output, *vjp(jnp.cos(jnp.arange(output.size, dtype=output.dtype).reshape(output.shape)))


def programs(arguments, platform="cpu"):
    """Returns the programs that compute the output alone, and with the gradients."""

    def forward(*arguments):
        return convolution.convolve(*arguments, (1, 1), "SAME")

    def both(*arguments):
        return output_and_gradients(convolution.convolve, arguments)

    traced = (jax.jit(function).trace(*arguments) for function in (forward, both))
    return [one.lower(lowering_platforms=(platform,)).as_text() for one in traced]


@needs_kernel
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(
    ("channels", "outputs", "taps", "strides"),
    [
        (9, 5, 3, (1, 1)),
        (24, 40, 3, (2, 2)),
        # The code for few channels.
        (8, 5, 3, (1, 1)),
        (3, 32, 5, (2, 3)),
        (1, 128, 2, (1, 1)),
        (4, 1, 6, (4, 2)),
        (9, 64, 5, (1, 1)),  # forward by XLA
        (32, 16, 1, (2, 1)),
        (16, 32, 2, (1, 3)),
    ],
)
def test_the_native_kernel_computes_the_convolution_of_xla(
    channels, outputs, padding, strides, taps
):
    arrays = arguments(channels, outputs, (taps, taps))
    ours = output_and_gradients(convolution.convolve, arrays, strides, padding)
    expected = output_and_gradients(convolution.xla_convolve, arrays, strides, padding)
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == other.dtype == jnp.float32
        error = jnp.linalg.norm((one - other).ravel()) / jnp.linalg.norm(other.ravel())
        assert error < 1e-6


@needs_kernel
@pytest.mark.parametrize("channels", [8, 9])
def test_each_gradient_has_the_dtype_of_its_argument(channels):
    features, filters = arguments(channels, 8)
    with jax.enable_x64():
        arrays = features, filters.astype(jnp.float64)
        output, d_features, d_filters = output_and_gradients(convolution.convolve, arrays)
    assert (output.dtype, d_features.dtype, d_filters.dtype) == ("float32", "float32", "float64")


@needs_kernel
@pytest.mark.parametrize(
    ("images", "size", "outputs"), [(0, (7, 6), 8), (3, (2, 6), 8), (3, (1, 6), 8), (3, (7, 6), 0)]
)
@pytest.mark.parametrize("channels", [8, 9])
def test_empty_arrays_give_empty_outputs_and_gradients_of_zero(images, size, outputs, channels):
    features = jnp.ones((images, *size, channels))
    filters = jnp.ones((3, 3, channels, outputs))
    output, *gradients = output_and_gradients(
        convolution.convolve, (features, filters), padding="VALID"
    )
    assert output.size == 0
    for gradient, array in zip(gradients, (features, filters), strict=True):
        assert gradient.shape == array.shape
        assert not jnp.any(gradient)


@needs_kernel
@pytest.mark.parametrize("channels", [8, 9])
@pytest.mark.parametrize("way", ["vmap", "pmap", "checkpoint"])
def test_transformations_give_what_xla_gives(way, channels):
    transform = {
        "vmap": lambda f: jax.jit(jax.vmap(f, (0, None))),
        "pmap": lambda f: jax.pmap(f, in_axes=(0, None)),
        "checkpoint": lambda f: jax.jit(lambda x, w: jax.checkpoint(f)(x[0], w)),
    }[way]
    features, filters = arguments(channels, 8)
    stacked = jnp.stack([features] * jax.local_device_count())

    def gradients(function):
        def loss(x, w):
            return jnp.sum(jnp.sin(function(x, w, (1, 1), "SAME")))

        return transform(jax.grad(loss, (0, 1)))(stacked, filters)

    ours, expected = map(gradients, (convolution.convolve, convolution.xla_convolve))
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@needs_kernel
def test_a_cpu_takes_the_native_kernel_where_it_was_faster(monkeypatch):
    least, most = convolution.NATIVE_CHANNELS, native.NARROW_PRODUCT
    of_shapes = {
        (least + 1, least): [KERNEL, KERNEL],
        (least - 1, most // (least - 1) + 1): ["", ""],
        (least, 2 * least + 1): ["", KERNEL],
        (least, 2 * least): [NARROW, NARROW],
        (1, most): [NARROW, NARROW],
        (1, most + 1): ["", ""],
    }
    for shape, expected in of_shapes.items():
        assert [taken(text) for text in programs(arguments(*shape))] == expected, shape
    one_tap = programs(arguments(least, least, (1, 1)))
    oblong = programs(arguments(least, least, (3, 1)))
    half = arguments(least, least, dtype=jnp.bfloat16)
    on_a_gpu = programs(arguments(least, least), "cuda")
    monkeypatch.setenv(native.SWITCH, "0")
    turned_off = programs(arguments(least, least))
    monkeypatch.undo()
    for texts in (one_tap, oblong, programs(half), on_a_gpu, turned_off):
        assert [taken(text) for text in texts] == ["", ""]


@needs_kernel
@pytest.mark.parametrize("width", [31, 70])
def test_few_channels_of_wide_images(width):
    arrays = arguments(8, 7, size=(3, width))
    ours = output_and_gradients(convolution.convolve, arrays)
    expected = output_and_gradients(convolution.xla_convolve, arrays)
    for one, other in zip(ours, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-4)


@needs_kernel
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(("strides", "width"), [((1, 1), 7), ((2, 2), 8)])  # 5 and 3 columns
def test_what_is_not_finite_spreads_as_by_xla(value, strides, width):
    features, filters = arguments(3, 8, size=(7, width))
    for column in range(width):
        arrays = features.at[1, 3, column, 1].set(value), filters
        ours = output_and_gradients(convolution.convolve, arrays, strides, "VALID")
        expected = output_and_gradients(convolution.xla_convolve, arrays, strides, "VALID")
        for one, other in zip(ours, expected, strict=True):
            np.testing.assert_array_equal(jnp.isfinite(one), jnp.isfinite(other))


@needs_kernel
def test_a_filter_gradient_of_many_pixels_keeps_its_digits():
    # A long sum of equal terms loses the same part of each.
    features, filters = jnp.full((128, 32, 32, 1), 1.1), jnp.zeros((3, 3, 1, 16))
    _, vjp = jax.vjp(lambda w: convolution.convolve(features, w, (1, 1), "VALID"), filters)
    (gradient,) = vjp(jnp.ones((128, 30, 30, 16)))
    np.testing.assert_allclose(gradient, float(features[0, 0, 0, 0]) * 128 * 30 * 30, rtol=5e-5)


@needs_kernel
@pytest.mark.parametrize("needed", ["features", "filters"])
def test_a_gradient_that_nobody_needs_is_not_computed(needed):
    arrays = arguments(3, 16)

    def loss(x, w):
        return jnp.sum(jnp.sin(convolution.convolve(x, w, (1, 1), "SAME")))

    gradient = jax.jit(jax.grad(loss, ["features", "filters"].index(needed)))
    text = gradient.lower(*arrays).compile().as_text()
    assert {name for name in ("features", "filters") if f"{NARROW}_{name}_gradient" in text} == {
        needed
    }
