import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paper
from mcn_jax.ops.modulate import filter_loss, reconstructed_filters


@pytest.fixture
def layer():
    generator = np.random.default_rng(0)
    latent = generator.normal(size=(3, 3, 8, 5))
    return latent, paper.binary(latent, [-0.7, 0.6]), np.abs(generator.normal(size=(3, 3, 4)))


def test_reconstructed_filters(layer):
    _, binary, m = layer
    with jax.enable_x64(True):
        q = reconstructed_filters(jnp.asarray(binary), jnp.asarray(m))
    np.testing.assert_array_equal(q, paper.reconstruct(binary, m))


def test_filter_loss_has_the_printed_value_and_gradients(layer):
    theta = 0.3
    with jax.enable_x64(True):
        latent, binary, m = map(jnp.asarray, layer)

        def loss(latent, m):
            # C-hat depends on C, as in a layer, but must be treated as a constant.
            return theta * filter_loss(latent, binary + 0 * latent, m)

        value, (d_latent, d_m) = jax.value_and_grad(loss, argnums=(0, 1))(latent, m)
    np.testing.assert_allclose(value, paper.filter_loss(*layer, theta), rtol=1e-12)
    expected_d_latent, expected_d_m = paper.filter_loss_gradients(*layer, theta)
    np.testing.assert_allclose(d_latent, expected_d_latent, rtol=1e-12)
    np.testing.assert_allclose(d_m, expected_d_m, rtol=1e-12)


def test_plane_sum_reading(layer):
    latent, binary, m = layer
    total = 0.0
    for h in range(latent.shape[-1]):
        planes = sum(binary[..., h] * m[:, :, k, None] for k in range(m.shape[-1]))
        total += ((latent[..., h] - planes) ** 2).sum() / 2
    with jax.enable_x64(True):
        value = filter_loss(*map(jnp.asarray, layer), "plane_sum")
    np.testing.assert_allclose(value, total, rtol=1e-12)


def test_unknown_reading_is_refused(layer):
    with pytest.raises(ValueError, match=r"'planes' must be one of \['per_plane', 'plane_sum'\]"):
        filter_loss(*map(jnp.asarray, layer), "planes")
