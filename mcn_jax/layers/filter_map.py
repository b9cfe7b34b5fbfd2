"""Convolutions with filter maps as layer families: float, and quantized by sign or k-means.

The parameter of a layer is a small map, out of which all of its filters are cut; see
`mcn_jax.ops.filter_map`. Source: the paper on 3D-FilterMap networks, whose maps are float.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcn_jax.config import BinarizeConfig, Config
from mcn_jax.errors import InputError, require, require_one_of
from mcn_jax.layers import filter_map_file
from mcn_jax.layers.conv import kernel_conv
from mcn_jax.layers.family import Family, Group, Leaves, PlannedLayer, Share
from mcn_jax.layers.filter_map_file import MAP, Quantizer
from mcn_jax.ops import filter_map as ops
from mcn_jax.ops import one_bit
from mcn_jax.ops.binarize import CENTERS, kmeans_centers, nearest_center, nearest_index
from mcn_jax.ops.draws import drawn
from mcn_jax.ops.estimators import straight_through

FILTER_MAPS = Group(name="filter_maps", rate="filter_map_rate")
LATENT_MAPS = Group(name="latent_filter_maps", rate="filter_map_rate", decay="decay_of_latents")


class FilterMapConv(nn.Module):
    """Convolution whose filters are overlapping windows of one map, without bias.

    Parameter: `filter_map` [2*K1, 2*K2, C]. The layer has K1 * K2 * K3 = out_maps * planes filters
    of C input channels.

    Attributes:
        out_maps: output maps, of `planes` channels each.
        planes: channels per output map.
        kernel_size: W, in pixels; at least 2.
        strides: step in y and x, in pixels.
        padding: a name in `mcn_jax.ops.conv_spec.PADDINGS`.
        samples: (K1, K2, K3); None takes those of `mcn_jax.ops.filter_map.samples_for`.
        gradient: "mean" or "sum" over the occurrences of an element in the filters.
        form: how the convolution is computed, "direct", "circulant" or "auto"; see
            `mcn_jax.ops.filter_map.filter_map_convolution`.
        dtype: dtype of the convolution; None takes the dtype of the input.
        param_dtype: dtype of the map.
    """

    out_maps: int
    planes: int = 1
    kernel_size: int = 3
    strides: int = 1
    padding: str = "SAME"
    samples: tuple[int, int, int] | None = None
    gradient: str = "mean"
    form: str = "auto"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves [N, Y, X, C] to [N, Y', X', out_maps * planes].

        Raises:
            InputError: if the layer cannot have a filter map, naming the layer and a remedy.
        """
        kernel, outputs = (self.kernel_size, self.kernel_size), self.out_maps * self.planes
        try:
            geometry = ops.geometry_for(outputs, x.shape[-1], kernel, self.samples, self.planes)
        except ValueError as error:
            raise InputError(f"the layer {'/'.join(self.path)}: {error}") from error
        latent = self.param(MAP, _he_normal(geometry), geometry.map_shape, self.param_dtype)
        return ops.filter_map_convolution(
            x if self.dtype is None else x.astype(self.dtype),
            self.used(latent),
            geometry,
            strides=(self.strides, self.strides),
            padding=self.padding,
            gradient=self.gradient,
            form=self.form,
        )

    def used(self, latent: jax.Array) -> jax.Array:
        """Returns the map that filters are cut out of."""
        return latent


class FilterMapSignConv(FilterMapConv):
    """Convolution with a map of one bit per element, its sign, and one scale per layer.

    The scale is the mean magnitude of the map. The gradient passes straight through.

    Attributes:
        binarized: False cuts filters out of the latent map itself.

    For the other attributes see `FilterMapConv`.
    """

    binarized: bool = True

    def used(self, latent: jax.Array) -> jax.Array:
        """Returns signs times the scale."""
        return one_bit.dorefa(latent) if self.binarized else latent


class FilterMapKMeansConv(FilterMapConv):
    """Convolution with a map whose elements are k-means centers of the latent map.

    The collection "centers" holds `centers` [U]. They stay fixed until they are refreshed, as those
    of an MCconv. The gradient passes straight through.

    Attributes:
        binarized: False cuts filters out of the latent map itself.
        num_centers: U; an element takes ceil(log2 U) bits.

    For the other attributes see `FilterMapConv`.
    """

    binarized: bool = True
    num_centers: int = 2

    def used(self, latent: jax.Array) -> jax.Array:
        """Returns the nearest center of each element."""
        centers = self.variable(
            "centers", "centers", lambda: kmeans_centers(latent, self.num_centers)
        )
        if not self.binarized:
            return latent
        return straight_through(latent, nearest_center(latent, centers.value))


def _he_normal(geometry: ops.Geometry) -> Callable[..., jax.Array]:
    """Returns an initializer with the variance 2 / (W*W*C) of He, by the fan-in of a filter."""
    scale = math.sqrt(2 / math.prod(geometry.filter_shape[:-1]))
    return functools.partial(drawn, nn.initializers.normal(scale))


def _sign_codes(p: Leaves, s: Leaves) -> tuple[jax.Array, jax.Array]:
    del s
    scale = jnp.mean(jnp.abs(p[MAP]))
    return p[MAP] >= 0, jnp.stack([-scale, scale])


def _kmeans_codes(p: Leaves, s: Leaves) -> tuple[jax.Array, jax.Array]:
    return nearest_index(p[MAP], s["centers"]), s["centers"]


def _refresh(p: Leaves, s: Leaves, config: BinarizeConfig) -> dict[str, jax.Array]:
    return {"centers": CENTERS[config.centers](p[MAP], s["centers"].size)}


def _health(
    quantizer: Quantizer, before: Leaves, p: Leaves, s: Leaves, layer: PlannedLayer
) -> dict[str, float | Share]:
    """Measures how the elements of a map changed in an epoch.

    Returns:
        flip_ratio: share of elements whose center has changed since `before`.
        quantization_error: ||map - quantized map|| / ||map||.
        share_0 ... share_{U-1}: share of elements at each center, in ascending order.
    """
    del layer
    sums = jax.device_get(_health_sums(quantizer, dict(before), dict(p), dict(s)))
    size = p[MAP].size
    return {
        "flip_ratio": Share(int(sums["flips"]), size),
        "quantization_error": Share(sums["error"], sums["norm"], root=True),
        **{f"share_{u}": float(count / size) for u, count in enumerate(sums["counts"])},
    }


@functools.partial(jax.jit, static_argnums=0)
def _health_sums(
    quantizer: Quantizer, before: Leaves, p: Leaves, s: Leaves
) -> dict[str, jax.Array]:
    (codes, centers), (old, _) = (quantizer(leaves, s) for leaves in (p, before))
    return {
        "flips": jnp.sum(codes != old),
        "counts": jnp.bincount(codes.ravel(), length=centers.size),
        "error": jnp.sum((p[MAP] - centers[codes.astype(jnp.int32)]) ** 2),
        "norm": jnp.sum(p[MAP] ** 2),
    }


def _multiply_adds(layer: PlannedLayer) -> dict[str, int]:
    of_pixel = ops.multiply_adds(filter_map_file.geometry_of(layer))
    return {form: layer.out_pixels * adds for form, adds in of_pixel.items()}


def _check(config: Config) -> None:
    gradient = config.model.filter_map_gradient
    require_one_of("model.filter_map_gradient", gradient, ops.GRADIENTS)


def _check_layer(layer: PlannedLayer, config: Config) -> None:
    weights, num_centers = math.prod(layer.params[MAP]), config.binarize.num_centers
    message = f"exceeds the {weights} weights of {layer.name}, the smallest layer"
    require(num_centers <= weights, "binarize.num_centers", num_centers, message)


def _two_centers(config: Config) -> int:
    del config
    return 2


def _num_centers(config: Config) -> int:
    return config.binarize.num_centers


def _family(
    name: str,
    module: type[FilterMapConv],
    kind: str,
    quantizer: Quantizer | None = None,
    centers_of: Callable[[Config], int] | None = None,
    **fields: Any,
) -> Family:
    """Makes the family of a module; see `filter_map_file.pack` and `spec` for the arguments."""

    def make(config: Config, quantized: bool) -> Callable[..., nn.Module]:
        options: dict[str, Any] = {} if quantizer is None else {"binarized": quantized}
        if module is FilterMapKMeansConv:
            options["num_centers"] = config.binarize.num_centers
        return functools.partial(
            module,
            planes=config.model.planes,
            gradient=config.model.filter_map_gradient,
            dtype=jnp.dtype(config.dtype),
            param_dtype=jnp.dtype(config.param_dtype),
            **options,
        )

    if quantizer is not None:
        fields |= {
            "quantizes": True,
            "compared": (MAP,),
            "health": functools.partial(_health, quantizer),
            "compare": filter_map_file.compare,
        }
    return Family(
        kind=kind,
        module=module,
        groups={MAP: FILTER_MAPS if quantizer is None else LATENT_MAPS},
        pack=functools.partial(filter_map_file.pack, quantizer),
        unpack=filter_map_file.unpack,
        spec=functools.partial(filter_map_file.spec, centers_of),
        make=make,
        deployed=kernel_conv,
        multiply_adds=_multiply_adds,
        filters=MAP,
        pointwise=False,
        methods=(name, name if quantizer is None else f"{name}, float"),
        check=_check,
        check_values=filter_map_file.check_values,
        arrays=filter_map_file.arrays,
        facts=filter_map_file.facts,
        columns=filter_map_file.COLUMNS,
        pictures=filter_map_file.pictures,
        **fields,
    )


# Names for config.model.conv.
FAMILIES: dict[str, Family] = {
    "filter_map": _family("filter_map", FilterMapConv, "filter map"),
    "filter_map_sign": _family(
        "filter_map_sign", FilterMapSignConv, "filter map, signs", _sign_codes, _two_centers
    ),
    "filter_map_kmeans": _family(
        "filter_map_kmeans",
        FilterMapKMeansConv,
        "filter map, k-means",
        _kmeans_codes,
        _num_centers,
        options=("binarize.num_centers",),
        check_layer=_check_layer,
        refresh=_refresh,
    ),
}
