import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from mcn_jax.layers import MCConv
from mcn_jax.ops import fused, fused_kernels
from mcn_jax.ops.mcconv import FORMS, Form, mcconv

# Exact in bfloat16.
CENTERS = np.array([-0.5, 0.75])
# Taps, planes, input and output maps, images, size, and the options of mcconv.
CASES = {
    "3x3": (3, 4, 5, 20, 2, (7, 5), {}),
    "stride 2": (3, 3, 6, 17, 2, (7, 6), {"strides": (2, 2), "m_gradient": "latent"}),
    "unequal strides": (3, 4, 5, 3, 3, (4, 11), {"strides": (1, 2)}),
    "5x5": (5, 1, 18, 2, 1, (6, 8), {"strides": (2, 1), "padding": "VALID"}),
    "centered": (3, 4, 5, 3, 2, (6, 8), {"strides": (2, 2), "padding": "CENTERED"}),
    "1x1": (1, 4, 1, 18, 3, (5, 7), {"strides": (3, 2), "m_gradient": "latent"}),
}


@pytest.fixture
def small_tiles(monkeypatch):
    """Makes tiles of 16 pixels and maps, so small arrays have several tiles along each axis."""
    monkeypatch.setattr(fused, "MOST_PIXELS", 16)
    monkeypatch.setattr(fused, "MOST_MAPS", 16)
    monkeypatch.setattr(fused, "MOST_CHANNELS", 16)
    monkeypatch.setattr(fused, "CHANNEL_BYTES", 64)
    monkeypatch.setattr(fused, "ENOUGH_PROGRAMS", 100)


@pytest.fixture
def strict_memory(monkeypatch):
    """Makes a block NaN if a part of it that is not masked lies outside of its array.

    The interpreter would move such a read inside and drop such a write. A GPU would not.
    """
    load, store = fused_kernels._load, fused_kernels._store

    def is_inside(ref, axes, first):
        scalars = [fused_kernels._Axis(index, jnp.array(True)) for index in first]
        checks = [
            jnp.all(~inside | ((indices >= 0) & (indices < size)))
            for (indices, inside), size in zip((*scalars, *axes), ref.shape, strict=True)
        ]
        return jnp.all(jnp.stack(checks))

    def strict_load(ref, *axes, first=()):
        return jnp.where(is_inside(ref, axes, first), load(ref, *axes, first=first), jnp.nan)

    def strict_store(ref, block, *axes, first=()):
        block = jnp.where(is_inside(ref, axes, first), block, jnp.nan)
        store(ref, block, *axes, first=first)

    monkeypatch.setattr(fused_kernels, "_load", strict_load)
    monkeypatch.setattr(fused_kernels, "_store", strict_store)


def output_and_gradients(arrays, centers=CENTERS, **options):
    """Returns output, d_features, d_latent and d_m of one form."""
    features, latent, _ = arrays
    centers = None if centers is None else jnp.asarray(centers, latent.dtype)

    @jax.jit
    def computed(*arrays):
        output, vjp = jax.vjp(lambda f, c, m: mcconv(f, c, centers, m, **options), *arrays)
        cotangent = jnp.asarray(np.random.default_rng(9).normal(size=output.shape), jnp.bfloat16)
        return output, *vjp(cotangent.astype(features.dtype))

    return computed(*arrays)


def random_arrays(taps, planes, in_maps, out_maps, images, size, dtype=np.float64):
    generator = np.random.default_rng(taps * planes)
    features = generator.normal(size=(images, *size, in_maps * planes))
    latent = generator.normal(size=(taps, taps, in_maps * planes, out_maps))
    m = np.abs(generator.normal(size=(taps, taps, planes)))
    return tuple(jnp.asarray(a, dtype) for a in (features, latent, m))


def agree(ours, expected, limits):
    for a, b, limit in zip(ours, expected, limits, strict=True):
        assert a.shape == b.shape
        assert jnp.linalg.norm(a.astype(b.dtype) - b) <= limit * jnp.linalg.norm(b)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("small_tiles", "strict_memory")
def test_it_is_the_direct_form_in_float64(case):
    *shape, options = CASES[case]
    centers = None if case in ("unequal strides", "1x1") else CENTERS
    with jax.enable_x64(True):
        arrays = random_arrays(*shape)
        ours = output_and_gradients(arrays, centers, form="pallas", **options)
        expected = output_and_gradients(arrays, centers, form="direct", **options)
        assert {a.dtype.name for a in ours} == {"float64"}
        agree(ours, expected, [1e-12] * 4)


def test_it_is_the_direct_form_in_float32_with_the_tiles_of_a_gpu():
    arrays = random_arrays(3, 4, 9, 70, 3, (9, 7), np.float32)  # 189 pixels, 36 channels
    ours = output_and_gradients(arrays, form="pallas")
    assert {a.dtype.name for a in ours} == {"float32"}
    agree(ours, output_and_gradients(arrays, form="direct"), [1e-5] * 4)


@pytest.mark.usefixtures("small_tiles")
def test_half_precision_rounds_only_the_results_and_the_mixed_cotangent():
    """Features, cotangent and binary filters are exact here, and a rounding is at most 2^-9.

    The output is rounded once and d_features twice. The mix that d_filters sums is rounded once,
    and nothing that d_m sums is rounded. Sums in bfloat16 would exceed these limits.
    """
    features, latent, m = random_arrays(3, 4, 10, 20, 4, (8, 8), np.float32)
    half = features.astype(jnp.bfloat16), latent, m
    ours = output_and_gradients(half, form="pallas")
    assert [a.dtype.name for a in ours] == ["bfloat16", "bfloat16", "float32", "float32"]
    exact = half[0].astype(jnp.float32), latent, m
    expected = output_and_gradients(exact, form="direct")
    agree(ours, expected, [2**-9, 2**-8, 2**-9, 1e-5])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("case", ["3x3", "stride 2", "5x5"])
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
def test_it_is_three_kernels_that_triton_accepts(case, dtype):
    """Lowers the kernels for a GPU, which this machine need not have."""
    *shape, options = CASES[case]
    features, latent, m = random_arrays(*shape, np.float32)

    def computed(*arrays):
        return output_and_gradients(arrays, form="pallas", **options)

    # jax 0.11 and later ask for the kind of GPU.
    gpu = AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=gpu)):
        traced = jax.jit(computed).trace(features.astype(dtype), latent, m)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @__gpu$xla.gpu.triton") == 3
    # Everything else is free of products, so none of them is an array in memory.
    assert "stablehlo.dot_general" not in text
    assert "stablehlo.convolution" not in text


def test_another_platform_is_refused():
    traced = jax.jit(lambda *arrays: output_and_gradients(arrays, form="pallas")).trace(
        *random_arrays(3, 4, 1, 2, 1, (4, 4), np.float32)
    )
    with pytest.raises(NotImplementedError, match=r"cpu.*cuda.*not found for platform tpu"):
        traced.lower(lowering_platforms=("tpu",))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("maps", [1, 64])
@pytest.mark.parametrize("size", [8, 32])
def test_auto_never_takes_it(dtype, maps, size, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("auto took the form pallas")

    monkeypatch.setitem(FORMS, "pallas", Form(refuse, refuse))
    features, latent, m = random_arrays(3, 4, maps, maps, 1, (size, size), np.float32)

    def computed(*arrays):
        return output_and_gradients(arrays, form="auto")

    # The trace contains the forms of all platforms.
    jax.eval_shape(computed, features.astype(dtype), latent, m)
    with pytest.raises(AssertionError, match="auto took"):
        output_and_gradients((features, latent, m), form="pallas")


def test_a_layer_can_use_it():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 8)), jnp.float32)
    variables = MCConv(3, form="direct").init(jax.random.key(0), x)
    ours, expected = (MCConv(3, form=form).apply(variables, x) for form in ("pallas", "direct"))
    agree([ours], [expected], [1e-5])
