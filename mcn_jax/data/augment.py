"""Augmentation and normalisation inside the compiled step."""

import jax
import jax.numpy as jnp
from jax import lax


def random_crop(images: jax.Array, keys: jax.Array, padding: int) -> jax.Array:
    """Zero-pads every image on all sides and crops it back at a random place: shifts of up to
    `padding` pixels, every one of the (2 * padding + 1)^2 equally likely.

    Args:
        images: [N, Y, X, C], of any dtype.
        keys: [N] random keys.
        padding: pixels.
    """
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def crop(image, key):
        y, x = jax.random.randint(key, (2,), 0, 2 * padding + 1)
        return lax.dynamic_slice(image, (y, x, 0), images.shape[1:])

    return jax.vmap(crop)(padded, keys)


def random_flip(images: jax.Array, keys: jax.Array) -> jax.Array:
    """Mirrors every image left to right with probability 1/2.

    Args:
        images: [N, Y, X, C], of any dtype.
        keys: [N] random keys.
    """
    flipped = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(flipped[:, None, None, None], images[:, :, ::-1], images)


def normalise(
    images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: jnp.dtype
) -> jax.Array:
    """uint8 pixels [N, Y, X, C] to (pixel / 255 - mean) / std, of `dtype`."""
    mean_111C, std_111C = (jnp.asarray(x, dtype).reshape(1, 1, 1, -1) for x in (mean, std))
    return (images.astype(dtype) / 255 - mean_111C) / std_111C
