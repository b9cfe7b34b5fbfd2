"""Expansion of image channels to feature maps of K planes."""

import jax
import jax.numpy as jnp

from mcn_jax.errors import InputError


def _copy(images: jax.Array, planes: int) -> jax.Array:
    return jnp.repeat(images, planes, axis=-1)


def _first(images: jax.Array, planes: int) -> jax.Array:
    return jnp.repeat(images[..., :1], planes, axis=-1)


def _rgbx(images: jax.Array, planes: int) -> jax.Array:
    if images.shape[-1] != 3 or planes != 4:
        raise ValueError(
            "input_planes='rgbx' needs 3 channels and planes=4, not"
            f" {images.shape[-1]} and {planes}"
        )
    return jnp.concatenate([images, jnp.mean(images, axis=-1, keepdims=True)], axis=-1)


INPUT_PLANES = {"copy": _copy, "first": _first, "rgbx": _rgbx}


def expand_input(images: jax.Array, input_planes: str, planes: int) -> jax.Array:
    """Expands image channels to feature maps of K planes.

    - "copy" repeats every channel K times, one map each (Wang et al. 2018: "each channel of the
      image is copied").
    - "first" repeats the first channel K times, one map (the paper's footnote).
    - "rgbx" makes one map of four planes: RGB and their mean. (The book appends a channel and does
      not say which.)

    Args:
        images: [N, Y, X, C].
        input_planes: a name in `INPUT_PLANES`.
        planes: K.

    Returns:
        [N, Y, X, G*K].

    Raises:
        ValueError: if the name is unknown, or for "rgbx" unless C = 3 and K = 4.
    """
    if input_planes not in INPUT_PLANES:
        raise ValueError(f"input_planes={input_planes!r} must be one of {sorted(INPUT_PLANES)}")
    return INPUT_PLANES[input_planes](images, planes)


def check_input(input_planes: str, channels: int, planes: int, data: str) -> None:
    """Raises InputError unless images with this number of channels can be expanded.

    Args:
        input_planes: a name in `INPUT_PLANES`.
        channels: channels of the images.
        planes: K.
        data: what the images belong to, for the error.
    """
    if input_planes == "rgbx" and (channels != 3 or planes != 4):
        raise InputError(
            f"config.model.input_planes='rgbx' needs 3 channels and planes=4, not the {channels} of"
            f" {data} and {planes}"
        )
