"""Compares convolutions of blocks of channels with their sums written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcn_jax.ops import block_convolution, circulant, native
from mcn_jax.ops.block_convolution import convolve_blocks
from mcn_jax.ops.conv_spec import PADDINGS
from mcn_jax.ops.convolution import xla_convolve
from small_runs import relative_distance

needs_kernel = pytest.mark.skipif(
    native.why_unavailable() is not None, reason=str(native.why_unavailable())
)


def random_arrays(blocks, images, size, channels, maps, taps=3, dtype=np.float32):
    """Returns features, n sets of filters, and the sums of filters that are given."""
    generator = np.random.default_rng(blocks)
    features = generator.normal(size=(images, *size, blocks * channels)).astype(dtype)
    sets = generator.normal(size=(blocks, taps, taps, channels, maps)).astype(dtype)
    sums = np.tensordot(circulant.matrices(blocks).weigh, sets, axes=1).astype(dtype)
    return features, sets, sums


def written_out(features, sets, strides, padding):
    """Returns y[k] = sum over b of conv(x[b], f[(b + k) mod n]), with n^2 convolutions."""
    n = len(sets)
    x = jnp.split(features, n, axis=-1)
    return jnp.concatenate(
        [
            sum(xla_convolve(x[b], sets[(b + k) % n], strides, padding) for b in range(n))
            for k in range(n)
        ],
        axis=-1,
    )


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
@pytest.mark.parametrize("blocks", [1, 2, 4, 8])
def test_it_is_the_sum_over_all_pairs_of_blocks(blocks, strides, padding):
    with jax.enable_x64():
        features, sets, sums = map(
            jnp.asarray, random_arrays(blocks, 2, (6, 7), 3, 2, dtype=np.float64)
        )
        expected = written_out(features, sets, strides, padding)
        found = convolve_blocks(features, sums, blocks, strides, padding)
        np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@needs_kernel
@pytest.mark.parametrize(
    ("blocks", "images", "size", "channels", "maps", "taps", "strides", "padding"),
    [
        (2, 1, (9, 8), 8, 8, 3, (1, 1), "SAME"),
        (4, 5, (16, 16), 32, 20, 3, (1, 1), "SAME"),
        (4, 3, (15, 17), 16, 40, 3, (2, 2), "SAME"),
        (8, 3, (8, 8), 24, 8, 5, (1, 2), "VALID"),
    ],
)
def test_the_kernel_computes_the_same(blocks, images, size, channels, maps, taps, strides, padding):
    features, _, sums = random_arrays(blocks, images, size, channels, maps, taps)
    run = functools.partial(convolve_blocks, blocks=blocks, strides=strides, padding=padding)
    by_xla = functools.partial(
        block_convolution._by_xla, blocks=blocks, strides=strides, padding=padding
    )
    assert "mcn_blocks_forward" in str(jax.make_jaxpr(run)(features, sums))
    output = by_xla(features, sums)
    cotangent = np.random.default_rng(1).normal(size=output.shape).astype(np.float32)
    results = []
    for function in (run, by_xla):
        value, vjp = jax.vjp(function, jnp.asarray(features), jnp.asarray(sums))
        results.append((value, *vjp(cotangent)))
    for ours, theirs in zip(*results, strict=True):
        assert ours.dtype == jnp.float32
        assert relative_distance(ours, theirs) <= 2e-6


@needs_kernel
def test_blocks_of_few_channels_are_ordinary_convolutions():
    features, _, sums = random_arrays(2, 3, (9, 8), 4, 8)
    run = functools.partial(convolve_blocks, blocks=2, strides=(1, 1), padding="SAME")
    program = str(jax.make_jaxpr(run)(features, sums))
    assert "mcn_narrow_forward" in program
    assert "mcn_blocks_forward" not in program


@needs_kernel
def test_two_calls_give_the_same_bits():
    features, _, sums = random_arrays(4, 6, (12, 12), 16, 16)
    run = functools.partial(convolve_blocks, blocks=4, strides=(1, 1), padding="SAME")

    @jax.jit
    def gradients(features, sums):
        return jax.grad(lambda *a: jnp.sum(run(*a) ** 2), argnums=(0, 1))(features, sums)

    first, second = gradients(features, sums), gradients(features, sums)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("shape", "filters"),
    [((0, 8, 8, 32), (5, 3, 3, 8, 8)), ((2, 2, 2, 32), (5, 3, 3, 8, 8))],
)
def test_an_empty_output_has_zero_gradients(shape, filters):
    run = functools.partial(convolve_blocks, blocks=4, strides=(1, 1), padding="VALID")
    output, vjp = jax.vjp(run, jnp.ones(shape), jnp.ones(filters))
    assert output.size == 0
    d_features, d_filters = vjp(output)
    np.testing.assert_array_equal(d_features, np.zeros(shape))
    np.testing.assert_array_equal(d_filters, np.zeros(filters))
