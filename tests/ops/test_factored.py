import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcn_jax.ops import chunks, factored
from mcn_jax.ops.conv_spec import PADDINGS
from mcn_jax.ops.mcconv import mcconv

CENTERS = np.array([-0.4, 0.7])


def output_and_gradients(arrays, cotangent_seed=9, **options):
    """Returns output, d_features, d_latent and d_m of one form."""
    dtype = arrays[0].dtype
    centers = jnp.asarray(CENTERS, dtype)

    @jax.jit
    def computed(*arrays):
        output, vjp = jax.vjp(lambda f, c, m: mcconv(f, c, centers, m, **options), *arrays)
        cotangent = np.random.default_rng(cotangent_seed).normal(size=output.shape)
        return output, *vjp(jnp.asarray(cotangent, dtype))

    return computed(*arrays)


def random_arrays(seed, images, size, in_maps, out_maps, planes, taps, dtype=np.float64):
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(images, *size, in_maps * planes))
    latent = generator.normal(size=(taps, taps, in_maps * planes, out_maps))
    m = np.abs(generator.normal(size=(taps, taps, planes)))
    return tuple(jnp.asarray(a, dtype) for a in (features, latent, m))


def distance(a, b):
    """Returns ||a - b|| / ||b||; if b is zero, the result is 0 only for a = 0."""
    return jnp.linalg.norm(a - b) / jnp.maximum(jnp.linalg.norm(b), 1e-30)


# With one tap and one plane, dM is a single sum, which may cancel to less than its rounding error.
@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**31),
    images=st.integers(1, 5),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    in_maps=st.integers(1, 3),
    out_maps=st.integers(1, 4),
    planes=st.sampled_from([1, 2, 4, 8]),
    taps=st.sampled_from([1, 3, 5]),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.sampled_from(PADDINGS),
    m_gradient=st.sampled_from(["binary", "latent"]),
    images_a_chunk=st.integers(1, 5),
)
def test_it_is_the_direct_form_for_any_shape(
    seed, images, size, in_maps, out_maps, planes, taps, strides, padding, m_gradient,
    images_a_chunk,
):  # fmt: skip
    if padding == "VALID":
        size = tuple(max(pixels, taps) for pixels in size)
    options = {"strides": strides, "padding": padding, "m_gradient": m_gradient}
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        arrays = random_arrays(seed, images, size, in_maps, out_maps, planes, taps)
        cut_batches(images_a_chunk, patch)
        ours = output_and_gradients(arrays, form="factored", **options)
        expected = output_and_gradients(arrays, form="direct", **options)
        for a, b in zip(ours, expected, strict=True):
            assert a.shape == b.shape
            assert a.dtype == b.dtype
            assert distance(a, b) <= 1e-12


def cut_batches(most, patch):
    """Limits the number of images that the factored form computes at a time."""

    def chunk(features, filters, m_TK, taps):
        return chunks.greatest_divisor(len(features), most)

    patch.setattr(factored, "_chunk", chunk)


def every_kind(test):
    """Parametrizes a test over K, stride and padding."""
    test = pytest.mark.parametrize("padding", PADDINGS)(test)
    test = pytest.mark.parametrize("strides", [(1, 1), (2, 2)])(test)
    return pytest.mark.parametrize("planes", [1, 2, 4, 8])(test)


@every_kind
def test_it_is_the_direct_form_in_float64(planes, strides, padding):
    options = {"strides": strides, "padding": padding}
    with jax.enable_x64(True):
        arrays = random_arrays(2, 3, (9, 7), 2, 3, planes, 3)
        ours = output_and_gradients(arrays, form="factored", **options)
        expected = output_and_gradients(arrays, form="direct", **options)
        for a, b in zip(ours, expected, strict=True):
            assert distance(a, b) <= 1e-12


def agree_in_float32(arrays, **options):
    ours = output_and_gradients(arrays, form="factored", **options)
    expected = output_and_gradients(arrays, form="direct", **options)
    for a, b, limit in zip(ours, expected, (1e-5, 1e-5, 1e-5, 1e-4), strict=True):
        assert a.dtype == b.dtype == jnp.float32
        assert distance(a, b) <= limit


@every_kind
def test_it_is_the_direct_form_in_float32(planes, strides, padding):
    arrays = random_arrays(3, 8, (15, 13), 16 // planes, 12, planes, 3, np.float32)
    agree_in_float32(arrays, strides=strides, padding=padding)


# Smaller shapes would be too small: a single sum may cancel to less than its rounding error.
@settings(max_examples=5)
@given(
    seed=st.integers(0, 2**31),
    images=st.integers(2, 5),
    size=st.tuples(st.integers(5, 11), st.integers(5, 11)),
    in_maps=st.integers(1, 3),
    out_maps=st.integers(2, 4),
    planes=st.sampled_from([1, 2, 4, 8]),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.sampled_from(PADDINGS),
)
def test_it_is_the_direct_form_in_float32_for_any_shape(
    seed, images, size, in_maps, out_maps, planes, strides, padding
):
    arrays = random_arrays(seed, images, size, in_maps, out_maps, planes, 3, np.float32)
    agree_in_float32(arrays, strides=strides, padding=padding)


def test_the_whole_batch_at_once_is_the_same(monkeypatch):
    """Runs the code of other platforms on a CPU."""
    calls = []

    def default(*arrays, cpu, default):
        calls.append(cpu)
        return default(*arrays)

    cut_batches(1, monkeypatch)
    with jax.enable_x64(True):
        arrays = random_arrays(6, 6, (9, 8), 2, 3, 4, 3)
        expected = output_and_gradients(arrays, form="factored", strides=(2, 2))
        monkeypatch.setattr(chunks.lax, "platform_dependent", default)
        ours = output_and_gradients(arrays, form="factored", strides=(2, 2))
        for a, b in zip(ours, expected, strict=True):
            assert distance(a, b) <= 1e-12
    assert len(calls) == 2


@pytest.mark.parametrize(("platform", "loops"), [("cpu", True), ("cuda", False), ("tpu", False)])
def test_only_a_cpu_works_in_chunks(platform, loops):
    def gradients(*arrays):
        return output_and_gradients(arrays, form="factored")

    traced = jax.jit(gradients).trace(*random_arrays(7, 64, (32, 32), 4, 4, 4, 3, np.float32))
    lowered = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("stablehlo.while" in lowered) == loops


@pytest.mark.parametrize("plane_signs", ["", "hadamard"])
def test_half_precision_loses_no_more_than_its_rounding(plane_signs, monkeypatch):
    exact = random_arrays(4, 64, (6, 6), 4, 8, 4, 3, np.float32)
    features, latent, m = exact
    cut_batches(1, monkeypatch)  # sums over 64 chunks
    half = output_and_gradients(
        (features.astype(jnp.bfloat16), latent, m), form="factored", plane_signs=plane_signs
    )
    expected = output_and_gradients(exact, form="direct", plane_signs=plane_signs)
    for a, b in zip(half, expected, strict=True):
        assert distance(a.astype(jnp.float32), b) <= 0.005


@pytest.mark.parametrize(
    ("images", "image_bytes", "at_least", "expected"),
    [
        (128, 2**20, 0, 4),
        (126, 2**20, 0, 3),
        (127, 2**20, 0, 1),
        (8, 2**10, 0, 8),
        (8, 2**30, 0, 1),
        (64, 2**20, 2**25, 32),
    ],
)
def test_chunks_divide_the_batch_and_fit(images, image_bytes, at_least, expected):
    assert chunks.images_at_a_time(images, image_bytes, at_least=at_least) == expected


@pytest.mark.parametrize(("images", "expected"), [(19, 19), (20, 10)])
def test_a_batch_is_cut_only_if_it_needs_more_than_three_times_q(images, expected):
    features, filters, m_TK = (jnp.zeros(s) for s in ((images, 8, 8, 256), (3, 3, 256, 64), (9, 4)))
    taps = factored._taps((8, 8), (3, 3), (1, 1), "SAME")
    assert factored._chunk(features, filters, m_TK, taps) == expected


@pytest.mark.parametrize(
    ("maps", "size", "images"), [(4, 32, 64), (16, 32, 16), (64, 8, 64), (64, 8, 16)]
)
def test_it_needs_little_more_memory_than_the_direct_form(maps, size, images):
    """The products for a whole large batch would take 9/4 of the memory of the output."""
    arrays = random_arrays(5, images, (size, size), maps, maps, 4, 3, np.float32)

    def temporary_bytes(form):
        def value_and_gradients(cotangent, *arrays):
            output, vjp = jax.vjp(lambda f, c, m: mcconv(f, c, None, m, form=form), *arrays)
            return output, vjp(cotangent)

        compiled = jax.jit(value_and_gradients).lower(arrays[0], *arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary_bytes("factored") <= 1.1 * temporary_bytes("direct")
