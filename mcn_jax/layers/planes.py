"""From image channels to feature maps of K planes."""

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
    """Makes feature maps of K planes out of image channels.

    "copy": every channel K times, one map each (Wang et al. 2018: "each channel of the image is
    copied"). "first": the first channel K times, one map (the paper's footnote). "rgbx": RGB and
    their mean as the four planes of one map (the book appends a channel and does not say which).

    Args:
        images: [N, Y, X, C].
        input_planes: a name in `INPUT_PLANES`.
        planes: K.

    Returns:
        [N, Y, X, G*K].

    Raises:
        ValueError: for an unknown name, and for "rgbx" unless C = 3 and K = 4.
    """
    if input_planes not in INPUT_PLANES:
        raise ValueError(f"input_planes={input_planes!r} must be one of {sorted(INPUT_PLANES)}")
    return INPUT_PLANES[input_planes](images, planes)


def check_input(input_planes: str, channels: int, planes: int, data: str) -> None:
    """Raises InputError unless images of so many channels can be expanded.

    Args:
        input_planes: a name in `INPUT_PLANES`.
        channels: of the images.
        planes: K.
        data: what has these images, for the message.
    """
    if input_planes == "rgbx" and (channels != 3 or planes != 4):
        raise InputError(
            f"config.model.input_planes='rgbx' needs 3 channels and planes=4, not the {channels} of"
            f" {data} and {planes}"
        )
