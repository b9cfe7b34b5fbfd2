"""Compares the native kernel with the direct form, and runs it under sanitizers."""

import importlib
import pathlib
import subprocess
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_factored import CENTERS, distance, output_and_gradients, random_arrays

from mcn_jax.ops import mcconv, native, native_build
from mcn_jax.ops.conv_spec import PADDINGS

MCCONV = importlib.import_module("mcn_jax.ops.mcconv")  # the package has a function of this name
HERE = pathlib.Path(__file__).parent
SANITIZE = ("-g1", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
needs_kernel = pytest.mark.skipif(
    native.why_unavailable() is not None, reason=str(native.why_unavailable())
)


# Smaller shapes would be too small: with few terms, a sum may cancel to less than its rounding
# error.
@needs_kernel
@settings(max_examples=12)
@given(
    seed=st.integers(0, 2**31),
    images=st.integers(2, 5),
    size=st.tuples(st.integers(5, 17), st.integers(5, 17)),
    in_maps=st.integers(1, 5),
    out_maps=st.sampled_from([2, 3, 4, 8, 16, 20, 32]),
    planes=st.sampled_from([1, 2, 4, 8]),
    plane_signs=st.sampled_from(["", "hadamard"]),
    taps=st.sampled_from([1, 3, 5]),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.sampled_from(PADDINGS),
    m_gradient=st.sampled_from(["binary", "latent"]),
    saves=st.booleans(),
)
def test_it_is_the_direct_form(
    seed, images, size, in_maps, out_maps, planes, plane_signs, taps, strides, padding,
    m_gradient, saves,
):  # fmt: skip
    arrays = random_arrays(seed, images, size, in_maps, out_maps, planes, taps, np.float32)
    options = {"strides": strides, "padding": padding, "m_gradient": m_gradient}
    options["plane_signs"] = plane_signs if planes > 1 else ""
    with mock.patch.object(MCCONV, "CHANNELS_TO_SAVE", 1 if saves else np.inf):
        ours = output_and_gradients(arrays, form="native", **options)
    expected = output_and_gradients(arrays, form="direct", **options)
    for a, b, limit in zip(ours, expected, (1e-5, 1e-5, 1e-5, 1e-4), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype == jnp.float32
        assert distance(a, b) <= limit


@needs_kernel
@pytest.mark.parametrize(
    ("channels", "options", "saves"),
    [
        (256, {}, True),
        (252, {}, False),
        (256, {"m_gradient": "latent"}, False),  # dM needs the products of other filters
        (256, {"form": "direct"}, False),
    ],
)
def test_wide_layers_save_their_products(channels, options, saves):
    """A pixel of a layer of 3x3 taps and 32 maps has 288 products."""
    arrays = random_arrays(0, 2, (6, 6), channels // 4, 32, 4, 3, np.float32)
    options = {"form": "native"} | options
    jaxpr = jax.make_jaxpr(lambda *a: output_and_gradients(a, **options))(*arrays)
    assert (f"f32[{2 * 6 * 6 * 288}]" in str(jaxpr)) == saves


@needs_kernel
def test_wide_layers_take_parameters_in_float64():
    """With JAX's 64-bit mode, a run may compute in float32 and keep its parameters in float64."""

    @jax.jit
    def gradients(features, latent, m, centers):
        def loss(*arrays):
            return jnp.sum(mcconv(*arrays[:2], centers, arrays[2]) ** 2)

        return jax.grad(loss, argnums=(0, 1, 2))(features, latent, m)

    arrays = random_arrays(0, 2, (6, 6), 64, 32, 4, 3, np.float32)
    expected = gradients(*arrays, jnp.float32(CENTERS))
    with jax.enable_x64(True):
        features, *parameters = *arrays, jnp.float32(CENTERS)
        found = gradients(features, *(p.astype("float64") for p in parameters))
    assert [a.dtype for a in found] == ["float32", "float64", "float64"]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@needs_kernel
def test_two_threads_give_the_same_bits_each_time():
    # Wide enough to be split by maps, and large enough to be split by images.
    for images, size, maps in ((2, 8, 160), (8, 32, 4)):
        arrays = random_arrays(0, images, (size, size), maps, maps, 4, 3, np.float32)
        first = output_and_gradients(arrays, form="native")
        for _ in range(5):
            again = output_and_gradients(arrays, form="native")
            for a, b in zip(first, again, strict=True):
                np.testing.assert_array_equal(a, b)


@needs_kernel
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("plane_signs", ["", "hadamard"])
def test_what_is_not_finite_spreads_as_in_the_direct_form(value, strides, plane_signs):
    features, latent, m = random_arrays(0, 2, (9, 7), 2, 4, 4, 3, np.float32)
    arrays = features.at[1, 4, 3, 5].set(value), latent, m
    options = {"strides": strides, "plane_signs": plane_signs}
    ours = output_and_gradients(arrays, form="native", **options)
    expected = output_and_gradients(arrays, form="direct", **options)
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(jnp.isfinite(a), jnp.isfinite(b))
    assert not jnp.all(jnp.isfinite(ours[0]))
    assert jnp.all(jnp.isfinite(ours[0][0]))


@pytest.fixture(scope="session")
def compiler():
    try:
        return native_build.find_compiler()
    except native_build.NotBuiltError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_no_sanitizer_complains_and_all_instruction_sets_agree(compiler, tmp_path):
    """Address and undefined-behaviour sanitizers, at random shapes."""
    is_x86, sets = native_build.instruction_sets()
    command = [*compiler, "-std=c++17", "-Wall", "-Wextra", "-Werror", *SANITIZE]
    command += ["-DMCN_X86"] * is_x86
    objects = []
    for name, flags in sets.items():
        for kernel in native_build.KERNELS:
            objects.append(str(tmp_path / f"{kernel}_{name}.o"))
            source = str(native_build.SOURCES / f"{kernel}.cc")
            subprocess.run(
                [*command, *flags, f"-DMCN_ISA={name}", "-c", source, "-o", objects[-1]],
                check=True,
            )
    program = str(tmp_path / "native_shapes")
    include = f"-I{native_build.SOURCES}"
    source = str(HERE / "native_shapes.cc")
    subprocess.run([*command, include, source, *objects, "-o", program], check=True)
    for seed in range(3):
        result = subprocess.run([program, str(seed), "60"], capture_output=True, text=True)
        assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@needs_kernel
def test_it_computes_on_any_number_of_devices():
    """The kernel waits for its own work only, also if all threads of the pool are in it."""
    arrays = random_arrays(0, 8, (8, 8), 4, 4, 4, 3, np.float32)
    features, latent, m = arrays

    def output(images):
        return output_and_gradients((images, latent, m), form="native")[0]

    parts = jax.pmap(output)(features.reshape(jax.local_device_count(), -1, *features.shape[1:]))
    whole = output(features)
    np.testing.assert_allclose(parts.reshape(whole.shape), whole, rtol=1e-5, atol=1e-5)
