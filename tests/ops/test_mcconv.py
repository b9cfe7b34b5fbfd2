import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import paper
from mcn_jax.ops.binarize import nearest_center
from mcn_jax.ops.mcconv import mcconv
from mcn_jax.ops.modulate import reconstructed_filters

CENTERS = np.array([-0.4, 0.7])


def arrays(taps=3, in_maps=2, out_maps=3, planes=4, size=(6, 5), seed=0):
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(2, *size, in_maps * planes))
    latent = generator.normal(size=(taps, taps, in_maps * planes, out_maps))
    latent[0, 0, 0, 0] = CENTERS.mean()  # an exact tie
    m = np.abs(generator.normal(size=(taps, taps, planes)))
    return features, latent, m


def value_and_gradients(features, latent, m, centers, **options):
    """Returns the output, a fixed cotangent, and the three gradients, in float64."""
    with jax.enable_x64(True):
        centers = None if centers is None else jnp.asarray(centers)

        @jax.jit
        def computed(*arrays):
            output, vjp = jax.vjp(lambda f, c, m: mcconv(f, c, centers, m, **options), *arrays)
            return output, vjp(jnp.asarray(cotangent_of(output)))

        output, gradients = computed(*map(jnp.asarray, (features, latent, m)))
        return output, cotangent_of(output), gradients


def cotangent_of(output):
    return np.random.default_rng(9).normal(size=output.shape)


@pytest.mark.parametrize("form", ["direct", "factored"])
@pytest.mark.parametrize("m_gradient", ["binary", "latent"])
@pytest.mark.parametrize("binarized", [True, False])
@pytest.mark.parametrize(
    ("taps", "stride", "padding", "planes"),
    [
        (3, 1, "SAME", 4),
        (3, 2, "SAME", 4),
        (3, 2, "CENTERED", 4),
        (3, 1, "VALID", 2),
        (1, 1, "SAME", 4),
        (5, 2, "VALID", 1),
        (3, 1, "SAME", 8),
    ],
)
def test_forward_and_gradients_are_those_of_the_paper(
    taps, stride, padding, planes, binarized, m_gradient, form
):
    features, latent, m = arrays(taps=taps, planes=planes)
    centers = CENTERS if binarized else None
    output, cotangent, gradients = value_and_gradients(
        features, latent, m, centers,
        strides=(stride, stride), padding=padding, m_gradient=m_gradient, form=form,
    )  # fmt: skip

    filters = paper.binary(latent, CENTERS) if binarized else latent
    q = paper.reconstruct(filters, m)
    d_features, dq = paper.correlate_gradients(features, q, cotangent, stride, padding)
    d_latent = paper.latent_gradient(dq, m, latent.shape[-1])
    d_m = paper.m_gradient(dq, latent if m_gradient == "latent" else filters, planes)

    np.testing.assert_allclose(output, paper.correlate(features, q, stride, padding), rtol=1e-10)
    for ours, expected in zip(gradients, (d_features, d_latent, d_m), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-10)


def test_custom_gradient_agrees_with_the_stop_gradient_form():
    features, latent, m = arrays()
    with jax.enable_x64(True):
        centers = jnp.asarray(CENTERS)

        def plain(f, c, m):
            binary = c + lax.stop_gradient(nearest_center(c, centers) - c)
            return lax.conv_general_dilated(
                f, reconstructed_filters(binary, m), (1, 1), "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )  # fmt: skip

        output, cotangent, ours = value_and_gradients(features, latent, m, centers)
        expected_output, vjp = jax.vjp(plain, *map(jnp.asarray, (features, latent, m)))
        np.testing.assert_allclose(output, expected_output, rtol=1e-12, atol=1e-12)
        for a, b in zip(ours, vjp(jnp.asarray(cotangent)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


def test_filters_that_are_their_own_centers_give_the_exact_derivative():
    """If C = C-hat, both readings of Eq. 16 and finite differences of M must agree."""
    features, latent, m = arrays()
    latent = paper.binary(latent, CENTERS)
    _, _, binary_reading = value_and_gradients(features, latent, m, CENTERS)
    _, cotangent, latent_reading = value_and_gradients(
        features, latent, m, CENTERS, m_gradient="latent"
    )
    np.testing.assert_array_equal(binary_reading[2], latent_reading[2])
    step = np.zeros_like(m)
    step[1, 2, 3] = 1e-6
    with jax.enable_x64(True):
        centers = jnp.asarray(CENTERS)
        above, below = (
            np.sum(np.asarray(mcconv(features, latent, centers, m + sign * step)) * cotangent)
            for sign in (1, -1)
        )
    np.testing.assert_allclose(binary_reading[2][1, 2, 3], (above - below) / 2e-6, rtol=1e-6)


def test_centers_receive_no_gradient():
    features, latent, m = (jnp.asarray(x, jnp.float32) for x in arrays())
    gradient = jax.grad(lambda a: jnp.sum(mcconv(features, latent, a, m) ** 2))(
        jnp.asarray(CENTERS, jnp.float32)
    )
    np.testing.assert_array_equal(gradient, [0, 0])


def test_bfloat16_features_with_float32_filters():
    features, latent, m = (jnp.asarray(x, jnp.float32) for x in arrays())
    centers = jnp.asarray(CENTERS, jnp.float32)

    def loss(latent, m, dtype):
        return jnp.sum(mcconv(features.astype(dtype), latent, centers, m).astype(jnp.float32) ** 2)

    output = mcconv(features.astype(jnp.bfloat16), latent, centers, m)
    assert output.dtype == jnp.bfloat16
    half, full = (jax.grad(loss, argnums=(0, 1))(latent, m, d) for d in (jnp.bfloat16, jnp.float32))
    for a, b in zip(half, full, strict=True):
        assert a.dtype == jnp.float32
        assert jnp.linalg.norm(a - b) <= 0.02 * jnp.linalg.norm(b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"padding": "FULL"}, "padding='FULL' must be one of SAME, VALID, CENTERED"),
        ({"m_gradient": "exact"}, "m_gradient='exact' must be one of binary, latent"),
        ({"form": "fast"}, "form='fast' must be one of auto, direct, factored, native, pallas"),
        ({"taps": 2}, "filters of 2x2 taps must be square, .*odd"),
        ({"drop_channel": True}, "features have 7 channels, the filters 8"),
        ({"planes_of_m": 3}, "8 channels are not divisible by the 3 planes"),
        ({"images": 0}, r"features of shape \(0, .*empty output with 3x3 taps"),
        ({"pixels": 2, "padding": "VALID"}, r"shape \(.*, 2, .*empty output .* padding VALID"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    features, latent, m = arrays(taps=change.pop("taps", 3))
    if change.pop("drop_channel", False):
        features = features[..., 1:]
    if planes := change.pop("planes_of_m", None):
        m = m[..., :planes]
    features = features[: change.pop("images", None), :, : change.pop("pixels", None)]
    with pytest.raises(ValueError, match=message):
        mcconv(features, latent, None, m, **change)
