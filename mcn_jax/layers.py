"""Flax linen modules: they declare parameters and call `mcn_jax.ops`."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from mcn_jax import ops


class MCConv(nn.Module):
    """Modulated convolution, usable in place of `nn.Conv` in any linen model.

    Parameters: `latent_filters` [W, W, G*K, H] and `m_filters` [W, W, K]. Collection "centers":
    `centers` [U], the k-means centers of the latent filters; fixed until `updated_centers` is
    called. The number of input maps G follows from the input. See `mcn_jax.ops.mcconv` for the
    forward and backward equations. There is no bias: normalise the output.

    Attributes:
        out_maps: H, feature maps of the output; it has H * planes channels.
        planes: K, channels of a feature map.
        kernel_size: W, odd, in pixels.
        strides: step in y and x, in pixels.
        padding: "SAME" or "VALID".
        binarized: False convolves with the latent filters themselves (U-MCN).
        num_centers: U; a filter costs ceil(log2 U) bits a weight.
        m_gradient: "binary" or "latent", the two readings of Eq. 16.
        m_noise: standard deviation of M around one at the start.
        form: how it is computed, "auto" for the fastest; see `mcn_jax.ops.mcconv`.
        dtype: of the computation; None is that of the input.
        param_dtype: of the parameters.
    """

    out_maps: int
    planes: int = 4
    kernel_size: int = 3
    strides: int = 1
    padding: str = "SAME"
    binarized: bool = True
    num_centers: int = 2
    m_gradient: str = "binary"
    m_noise: float = 0.1
    form: str = "auto"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, Y, X, G*K] -> [N, Y', X', H*K]."""
        taps = (self.kernel_size, self.kernel_size)
        latent_filters = self.param(
            "latent_filters",
            nn.initializers.he_normal(),
            (*taps, x.shape[-1], self.out_maps),
            self.param_dtype,
        )
        m_filters = self.param(
            "m_filters", _around_one(self.m_noise), (*taps, self.planes), self.param_dtype
        )
        centers = self.variable(
            "centers", "centers", lambda: ops.kmeans_centers(latent_filters, self.num_centers)
        )
        return ops.mcconv(
            x if self.dtype is None else x.astype(self.dtype),
            latent_filters,
            centers.value if self.binarized else None,
            m_filters,
            strides=(self.strides, self.strides),
            padding=self.padding,
            m_gradient=self.m_gradient,
            form=self.form,
        )


class Conv(nn.Module):
    """Ordinary convolution with the signature of `MCConv`: out_maps * planes channels, no bias."""

    out_maps: int
    planes: int = 4
    kernel_size: int = 3
    strides: int = 1
    padding: str = "SAME"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, Y, X, C] -> [N, Y', X', out_maps * planes]."""
        return nn.Conv(
            features=self.out_maps * self.planes,
            kernel_size=(self.kernel_size, self.kernel_size),
            strides=self.strides,
            padding=self.padding,
            use_bias=False,
            kernel_init=nn.initializers.he_normal(),
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="conv",
        )(x)


class Affine(nn.Module):
    """x * scale + offset, channel by channel: batch norm with its statistics folded in.

    Parameters: `scale` and `offset`, [C] each; see `folded_batch_norm`.
    """

    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> [..., C]."""
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels, self.param_dtype)
        offset = self.param("offset", nn.initializers.zeros, channels, self.param_dtype)
        dtype = self.dtype or x.dtype
        shape = (1,) * (x.ndim - 1) + channels
        return x * scale.astype(dtype).reshape(shape) + offset.astype(dtype).reshape(shape)


def folded_batch_norm(
    params: Mapping[str, Any], statistics: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """The parameters of the `Affine` that a batch norm of Flax is in inference.

    Args:
        params: `scale` and `bias`, [C].
        statistics: `mean` and `var`, [C].
    """
    scale = params["scale"] / jnp.sqrt(statistics["var"] + nn.BatchNorm.epsilon)
    return {"scale": scale, "offset": params["bias"] - statistics["mean"] * scale}


def _around_one(noise: float) -> Callable[..., jax.Array]:
    """Initialiser: |1 + noise * N(0, 1)|, so that M starts non-negative and its planes differ."""

    def init(key, shape, dtype):
        return jnp.abs(1 + noise * jax.random.normal(key, shape, dtype))

    return init


def _copy(images, planes):
    return jnp.repeat(images, planes, axis=-1)


def _first(images, planes):
    return jnp.repeat(images[..., :1], planes, axis=-1)


def _rgbx(images, planes):
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


def example_dropout(x: jax.Array, keys: jax.Array, rate: float) -> jax.Array:
    """Inverted dropout with one key an example, so that no mask depends on the device it falls on.

    Args:
        x: [N, ...].
        keys: [N] random keys.
        rate: share of elements set to zero, in [0, 1).
    """
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0)


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """2x2 max-pooling with stride 2; an odd last row or column is dropped.

    A maximum over a reshaped array, because XLA is slow at the gradient of a windowed maximum on
    CPU. Where several pixels share the maximum, they share the gradient.
    """
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return jnp.max(x.reshape(n, height // 2, 2, width // 2, 2, channels), axis=(2, 4))


def average_pool(x: jax.Array, window: int) -> jax.Array:
    """Means over windows of [N, Y, X, C] that do not overlap, `window` pixels in y and x.

    Raises:
        ValueError: where windows do not fill the image.
    """
    n, height, width, channels = x.shape
    if height % window or width % window:
        raise ValueError(f"{height}x{width} pixels are not divisible by a window of {window}")
    shape = (n, height // window, window, width // window, window, channels)
    return jnp.mean(x.reshape(shape), axis=(2, 4))


def modulated_layers(params: Mapping[str, Any]) -> dict[tuple[str, ...], dict[str, jax.Array]]:
    """The MCconv layers of a parameter tree: path -> {"latent_filters": ..., "m_filters": ...}.

    They come in the order of the network, as far as names tell it: "stem" first, 2 before 10.
    """

    def place(path: tuple[str, ...]) -> tuple[bool, list[str | int]]:
        words = re.split(r"(\d+)", "/".join(path))  # text and number in turn
        return path[0] != "stem", [int(w) if i % 2 else w for i, w in enumerate(words)]

    flat = traverse_util.flatten_dict(params)
    paths = sorted((path[:-1] for path in flat if path[-1] == "latent_filters"), key=place)
    return {
        path: {name: flat[*path, name] for name in ("latent_filters", "m_filters")}
        for path in paths
    }


def binary_filters(params: Mapping[str, Any], centers: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The binary filters of every MCconv layer, what an exported model stores one bit a weight of.

    During training a float32 latent weight stands behind each bit, because the small gradient
    steps would be lost on a bit; only the values returned here enter the convolutions.

    Args:
        params: the "params" collection of a model.
        centers: its "centers" collection.

    Returns:
        "path/of/layer" -> C-hat, [W, W, G*K, H], every element one of the layer's centers.
    """
    flat_centers = traverse_util.flatten_dict(centers)
    return {
        "/".join(path): ops.nearest_center(layer["latent_filters"], flat_centers[*path, "centers"])
        for path, layer in modulated_layers(params).items()
    }


def updated_centers(params: Mapping[str, Any], num_centers: int) -> dict[str, Any]:
    """The "centers" collection computed anew: exact k-means of each layer's latent filters."""
    return traverse_util.unflatten_dict(
        {
            (*path, "centers"): ops.kmeans_centers(layer["latent_filters"], num_centers)
            for path, layer in modulated_layers(params).items()
        }
    )


def filter_bits(params: Mapping[str, Any], num_centers: int | None) -> tuple[int, int]:
    """Bits that the convolution filters of a model need, and those of the same filters in float32.

    M-filters, centers, batch norm and dense layers are not counted.

    Args:
        params: the "params" collection of a model.
        num_centers: U of its MCconv layers, or None where they are not binarized.

    Returns:
        (bits, float32 bits), ceil(log2 U) or 32 a latent weight and 32 a weight of an ordinary
        convolution.
    """
    flat = traverse_util.flatten_dict(params)
    latent = sum(leaf.size for path, leaf in flat.items() if path[-1] == "latent_filters")
    ordinary = sum(
        leaf.size for path, leaf in flat.items() if path[-1] == "kernel" and leaf.ndim == 4
    )
    bits_per_weight = 32 if num_centers is None else (num_centers - 1).bit_length()
    return latent * bits_per_weight + ordinary * 32, (latent + ordinary) * 32
