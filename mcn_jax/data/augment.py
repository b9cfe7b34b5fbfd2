"""Augmentation and normalisation inside the compiled step."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mcn_jax.config import DataConfig
from mcn_jax.data.batches import Batch, Split
from mcn_jax.seeds import Purpose

Keys = Callable[[Purpose], jax.Array]  # purpose -> one random key per example


class Inputs(NamedTuple):
    """What a training step computes its loss from.

    Attributes:
        images: [N, Y, X, C], normalised.
        labels: [N].
        other_labels: [N], labels of the mixed-in images; None without mixup.
        shares: [N] in [0, 1], share of `labels` in each mixed image; None without mixup.
    """

    images: jax.Array
    labels: jax.Array
    other_labels: jax.Array | None = None
    shares: jax.Array | None = None


def training_inputs(
    split: Split,
    batch: Batch,
    keys: Keys,
    config: DataConfig,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    dtype: jnp.dtype,
) -> Inputs:
    """Applies the config's augmentations to a training batch.

    Their order is shift, flip, colours, normalisation, cutout, mixup.

    Args:
        split: split on the device.
        batch: this device's part of the batch.
        keys: purpose -> random keys of the batch's examples.
        config: config of the data.
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel, for pixels in [0, 1].
        dtype: dtype of the result.
    """
    images, labels = split.images[batch.indices], split.labels[batch.indices]
    if config.crop_padding:
        images = random_crop(images, keys(Purpose.CROP), config.crop_padding)
    if config.flip:
        images = random_flip(images, keys(Purpose.FLIP))
    if config.color_jitter:
        exact = jnp.promote_types(dtype, jnp.float32)
        images = color_jitter(images.astype(exact), keys(Purpose.COLOR), config.color_jitter)
    images = normalise(images, mean, std, dtype)
    if config.cutout:
        images = cutout(images, keys(Purpose.CUTOUT), config.cutout)
    if config.mixup:
        mixed = mixup(images, labels, keys(Purpose.MIXUP), config.mixup)
        return jax.tree.map(lambda x: x[::2], mixed) if config.mixup_pairs else mixed
    return Inputs(images, labels)


def random_crop(images: jax.Array, keys: jax.Array, padding: int) -> jax.Array:
    """Zero-pads every image on all sides and crops it back at a random position.

    So images are shifted by up to `padding` pixels; all (2 * padding + 1)^2 shifts are equally
    likely.

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


def color_jitter(images: jax.Array, keys: jax.Array, strength: float) -> jax.Array:
    """Changes brightness and contrast, and the saturation of colour images, in this order.

    Each change mixes an image with another one: f * image + (1 - f) * other. The factor f is
    uniform in [1 - strength, 1 + strength]. The other image is black for brightness, the image's
    mean gray level for contrast, and the gray image (0.299 R + 0.587 G + 0.114 B) for saturation.
    Values are clipped to [0, 255] after each change.

    Args:
        images: [N, Y, X, C], 0 to 255, floating point.
        keys: [N] random keys.
        strength: in [0, 1].
    """
    factors_N3 = jax.vmap(
        lambda key: jax.random.uniform(
            key, (3,), jnp.float32, minval=1 - strength, maxval=1 + strength
        )
    )(keys)
    brightness, contrast, saturation = factors_N3.T.astype(images.dtype)[..., None, None, None]
    images = _mixed(images, jnp.zeros_like(images), brightness)
    images = _mixed(images, jnp.mean(_gray(images), (1, 2, 3), keepdims=True), contrast)
    if images.shape[-1] == 3:
        images = _mixed(images, _gray(images), saturation)
    return images


def _mixed(images: jax.Array, other: jax.Array, factor: jax.Array) -> jax.Array:
    return jnp.clip(factor * images + (1 - factor) * other, 0, 255)


def _gray(images: jax.Array) -> jax.Array:
    """Returns the gray images, [N, Y, X, 1]."""
    if images.shape[-1] == 1:
        return images
    weights = jnp.array([0.299, 0.587, 0.114], images.dtype)
    return jnp.sum(images * weights[None, None, None, :], axis=-1, keepdims=True)


def normalise(
    images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: jnp.dtype
) -> jax.Array:
    """Computes (pixel / 255 - mean) / std in `dtype` for pixels 0 to 255, [N, Y, X, C]."""
    mean_111C, std_111C = (jnp.asarray(x, dtype).reshape(1, 1, 1, -1) for x in (mean, std))
    return (images.astype(dtype) / 255 - mean_111C) / std_111C


def cutout(images: jax.Array, keys: jax.Array, size: int) -> jax.Array:
    """Sets a square of every image to zero, which is the mean of normalised images.

    The square's center is any pixel, so part of it may lie outside (DeVries and Taylor 2017).

    Args:
        images: [N, Y, X, C].
        keys: [N] random keys.
        size: side of the square, pixels.
    """
    height, width = images.shape[1:3]

    def inside(key):
        y, x = jax.random.randint(key, (2,), 0, jnp.array([height, width]))
        rows, columns = jnp.arange(height), jnp.arange(width)
        in_rows = (rows >= y - size // 2) & (rows < y - size // 2 + size)
        in_columns = (columns >= x - size // 2) & (columns < x - size // 2 + size)
        return in_rows[:, None] & in_columns[None, :]

    return jnp.where(jax.vmap(inside)(keys)[..., None], 0, images)


def mixup(images: jax.Array, labels: jax.Array, keys: jax.Array, alpha: float) -> Inputs:
    """Mixes every image with its neighbour: share * image + (1 - share) * neighbour.

    The shares are drawn from Beta(alpha, alpha) (Zhang et al. 2018). Neighbours are the examples 2i
    and 2i + 1 of the batch, whose order is random. So they are on the same device for any number of
    devices.

    Args:
        images: [N, Y, X, C], N even.
        labels: [N].
        keys: [N] random keys.
        alpha: parameter of the Beta distribution, > 0.
    """
    shares = jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys).astype(images.dtype)

    def neighbours(x):
        return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)

    shares_N111 = shares[:, None, None, None]
    mixed = shares_N111 * images + (1 - shares_N111) * neighbours(images)
    return Inputs(mixed, labels, neighbours(labels), shares)
