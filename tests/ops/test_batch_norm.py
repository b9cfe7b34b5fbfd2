"""Compares batch norm with ReLU to Flax's batch norm, differentiated by JAX."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from mcn_jax.layers.batch_norm import BatchNorm


def results(module, x, cotangent, axis_name=None):
    """Returns the output, the new statistics and the gradients of x, scale and bias."""
    params = {"scale": jnp.linspace(0.5, 1.5, 6), "bias": jnp.linspace(-1.0, 1.0, 6)}
    stats = {"mean": jnp.full(6, 0.3), "var": jnp.full(6, 0.7)}

    def apply(params, x):
        y, updated = module.apply(
            {"params": params, "batch_stats": stats}, x, mutable=["batch_stats"]
        )
        return (y if module.relu else nn.relu(y)), updated

    y, vjp, updated = jax.vjp(apply, params, x, has_aux=True)
    d_params, d_x = vjp(cotangent.astype(y.dtype))
    return y, updated, d_params, d_x


def arrays(offset=0.0):
    generator = np.random.default_rng(0)
    x, cotangent = generator.normal(size=(2, 8, 5, 4, 6))
    return x + offset, cotangent


def module(relu, **fields):
    return BatchNorm(
        use_running_average=False, momentum=0.9, use_fast_variance=False, relu=relu, **fields
    )


def test_output_statistics_and_gradients_equal_those_of_flax():
    with jax.enable_x64(True):
        x, cotangent = map(jnp.asarray, arrays())
        found, expected = (results(module(relu), x, cotangent) for relu in (True, False))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13), found, expected
        )


def test_devices_that_share_a_batch_find_the_same_as_one():
    with jax.enable_x64(True):
        x, cotangent = map(jnp.asarray, arrays())
        y, updated, d_params, d_x = results(module(True), x, cotangent)
        split = PartitionSpec("devices")

        def shared(x, cotangent):
            y, updated, d_params, d_x = results(module(True, axis_name="devices"), x, cotangent)
            return y, updated, jax.tree.map(lambda g: jax.lax.psum(g, "devices"), d_params), d_x

        found = jax.shard_map(
            shared,
            mesh=Mesh(np.array(jax.devices()[:4]), ("devices",)),
            in_specs=(split, split),
            out_specs=(split, PartitionSpec(), PartitionSpec(), split),
            check_vma=False,
        )(x, cotangent)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13),
            found,
            (y, updated, d_params, d_x),
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_variance_survives_a_mean_far_larger_than_it(dtype):
    x, cotangent = (jnp.asarray(a, jnp.float32) for a in arrays(offset=1000.0))
    _, updated, _, _ = results(module(True, dtype=jnp.dtype(dtype)), x, cotangent)
    variance = np.var(np.asarray(x, np.float64), axis=(0, 1, 2))
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 * 0.7 + 0.1 * variance, rtol=1e-4)
