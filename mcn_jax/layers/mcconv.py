"""MCconv as a layer family: binary filters by k-means, modulated by one M-filter per layer."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from mcn_jax import ops
from mcn_jax.config import BinarizeConfig, Config, LossConfig
from mcn_jax.errors import require, require_one_of
from mcn_jax.layers import mcconv_file
from mcn_jax.layers.family import PROGRESS, Family, Group, Leaves, PlannedLayer
from mcn_jax.layers.mcconv_health import health
from mcn_jax.ops import convolution, native, packing, plane_signs
from mcn_jax.ops.binarize import CENTERS
from mcn_jax.ops.costs import multiply_adds
from mcn_jax.ops.draws import he_normal
from mcn_jax.ops.estimators import ESTIMATORS, IDENTITY, with_slope_of_two_centers
from mcn_jax.ops.fastest import Shape
from mcn_jax.ops.m_init import M_INITS, draw_m, why_unsuitable
from mcn_jax.ops.mcconv import M_GRADIENTS, takes_native
from mcn_jax.ops.modulate import FILTER_LOSSES

LATENT_FILTERS = Group(name="latent_filters", decay="decay_of_latents", centered="center_latents")
M_FILTERS = Group(
    name="m_filters",
    rate="m_learning_rate",
    decay=None,
    projection=jnp.abs,
    momentum="momentum_of_m",
    pull=("m_decay", "m_decay_target"),
)


class MCConv(nn.Module):
    """Modulated convolution, usable in place of `nn.Conv` in any linen model.

    Parameters: `latent_filters` [W, W, G*K, H] and `m_filters` [W, W, K]. The number of input maps
    G follows from the input. The collection "centers" holds `centers` [U], the k-means centers of
    the latent filters. They stay fixed until you replace them with those of `updated_centers`. With
    an estimator that changes during training, the collection "progress" holds `progress`, a scalar:
    the share of the training that is done.

    The layer has no bias, so normalise its output. See `mcn_jax.ops.mcconv` for the forward and
    backward equations.

    Attributes:
        out_maps: H, feature maps of the output, which has H * planes channels.
        planes: K, channels per feature map.
        kernel_size: W, odd, in pixels.
        strides: step in y and x, in pixels.
        padding: a name in `mcn_jax.ops.conv_spec.PADDINGS`.
        binarized: False convolves with the latent filters themselves (U-MCN).
        num_centers: U; a filter takes ceil(log2 U) bits per weight.
        m_gradient: "binary" or "latent", the two readings of Eq. 16.
        estimator: derivative of the nearest center, a name in `mcn_jax.ops.estimators.ESTIMATORS`;
            all but "identity" need two centers. "" is "identity", the paper's.
        m_init: what M starts as, a name in `mcn_jax.ops.m_init.M_INITS`.
        m_noise: standard deviation of M around that start.
        plane_signs: how output planes read the filters, a name in
            `mcn_jax.ops.plane_signs.PATTERNS`; "" is no pattern.
        form: how the convolution is computed; "auto" takes the fastest form, see
            `mcn_jax.ops.mcconv`.
        dtype: dtype of the computation; None takes the dtype of the input.
        param_dtype: dtype of the parameters.
    """

    out_maps: int
    planes: int = 4
    kernel_size: int = 3
    strides: int = 1
    padding: str = "SAME"
    binarized: bool = True
    num_centers: int = 2
    m_gradient: str = "binary"
    estimator: str = ""
    m_init: str = "noise"
    m_noise: float = 0.1
    plane_signs: str = ""
    form: str = "auto"
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves [N, Y, X, G*K] to [N, Y', X', H*K]."""
        taps = (self.kernel_size, self.kernel_size)
        latent_filters = self.param(
            "latent_filters",
            he_normal,
            (*taps, x.shape[-1], self.out_maps),
            self.param_dtype,
        )
        m_filters = self.param(
            "m_filters", draw_m, (*taps, self.planes), self.param_dtype, self.m_init, self.m_noise
        )
        centers = self.variable(
            "centers", "centers", lambda: ops.kmeans_centers(latent_filters, self.num_centers)
        )
        if _changes(self.estimator):
            progress = self.variable(PROGRESS, "progress", jnp.zeros, (), self.param_dtype)
            if self.binarized:
                latent_filters = with_slope_of_two_centers(
                    latent_filters, centers.value, progress.value, self.estimator
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
            plane_signs=self.plane_signs,
        )


class ModulatedConv(nn.Module):
    """MCconv for inference from a model file.

    Parameters: the unpacked `filters` [W, W, G*K, H] and `m_filters` [W, W, K].
    """

    out_maps: int
    planes: int = 4
    kernel_size: int = 3
    strides: int = 1
    padding: str = "SAME"
    plane_signs: str = ""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves [N, Y, X, G*K] to [N, Y', X', H*K]."""
        taps, zeros = (self.kernel_size, self.kernel_size), nn.initializers.zeros
        filters = self.param("filters", zeros, (*taps, x.shape[-1], self.out_maps))
        m_filters = self.param("m_filters", zeros, (*taps, self.planes))
        return ops.mcconv(
            x,
            filters,
            None,
            m_filters,
            strides=(self.strides, self.strides),
            padding=self.padding,
            plane_signs=self.plane_signs,
        )


def binary_filters(params: Mapping[str, Any], centers: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Returns the binary filters of every MCconv layer, which an exported model stores as bits.

    During training, each bit has a float32 latent weight, because a bit cannot accumulate small
    gradient steps. Only the values returned here enter the convolutions.

    Args:
        params: the "params" collection of a model.
        centers: its "centers" collection.

    Returns:
        "path/of/layer" -> C-hat, [W, W, G*K, H], every element one of the layer's centers.
    """
    flat_centers = traverse_util.flatten_dict(centers)
    return {
        "/".join(path): ops.nearest_center(latent, flat_centers[*path, "centers"])
        for path, latent in _latent_filters(params).items()
    }


def updated_centers(params: Mapping[str, Any], num_centers: int) -> dict[str, Any]:
    """Computes a new "centers" collection by exact k-means of each layer's latent filters.

    Args:
        params: the "params" collection of a model.
        num_centers: U.
    """
    return traverse_util.unflatten_dict(
        {
            (*path, "centers"): ops.kmeans_centers(latent, num_centers)
            for path, latent in _latent_filters(params).items()
        }
    )


def _latent_filters(params: Mapping[str, Any]) -> dict[tuple[str, ...], jax.Array]:
    """Returns {path of the layer: C} for any model with MCConv layers."""
    flat = traverse_util.flatten_dict(params)
    return {path[:-1]: leaf for path, leaf in flat.items() if path[-1] == "latent_filters"}


def _make(config: Config, quantized: bool) -> Callable[..., nn.Module]:
    return functools.partial(
        MCConv,
        planes=config.model.planes,
        binarized=quantized,
        num_centers=config.binarize.num_centers,
        m_gradient=config.binarize.m_gradient,
        estimator=config.binarize.estimator,
        m_init=config.model.m_init,
        m_noise=config.model.m_noise,
        plane_signs=config.model.plane_signs,
        param_dtype=jnp.dtype(config.param_dtype),
    )


def _deployed(config: Config, quantized: bool) -> Callable[..., nn.Module]:
    del quantized
    model = config.model
    return functools.partial(ModulatedConv, planes=model.planes, plane_signs=model.plane_signs)


def _check(config: Config) -> None:
    require_one_of("model.m_init", config.model.m_init, M_INITS)
    if signs := config.model.plane_signs:
        require_one_of("model.plane_signs", signs, plane_signs.PATTERNS)
        reason = plane_signs.why_unsuitable(signs, config.model.planes)
        require(reason is None, "model.plane_signs", signs, f"{reason}")
    require_one_of("binarize.m_gradient", config.binarize.m_gradient, M_GRADIENTS)
    require_one_of("loss.filter_loss", config.loss.filter_loss, FILTER_LOSSES)
    num_centers, most = config.binarize.num_centers, packing.MAX_CENTERS
    holds = 2 <= num_centers <= most
    require(holds, "binarize.num_centers", num_centers, f"must lie in 2..{most}")
    if estimator := config.binarize.estimator:
        require_one_of("binarize.estimator", estimator, ESTIMATORS)


def _check_layer(layer: PlannedLayer, config: Config) -> None:
    taps, _, planes = layer.params["m_filters"]
    reason = why_unsuitable(config.model.m_init, taps, planes)
    require(reason is None, "model.m_init", config.model.m_init, f"{reason} in {layer.name}")
    weights, num_centers = int(np.prod(layer.params["latent_filters"])), config.binarize.num_centers
    message = f"exceeds the {weights} weights of {layer.name}, the smallest layer"
    require(num_centers <= weights, "binarize.num_centers", num_centers, message)
    estimator = config.binarize.estimator
    message = f"needs config.binarize.num_centers=2, not {num_centers}"
    require(num_centers == 2 or not _changes(estimator), "binarize.estimator", estimator, message)


def _changes(estimator: str) -> bool:
    """Returns whether an estimator depends on the share of the training that is done."""
    return estimator not in ("", IDENTITY)


def _advances(config: Config) -> bool:
    return _changes(config.binarize.estimator)


def _advance(s: Leaves, progress: jax.Array) -> dict[str, jax.Array]:
    return {"progress": progress} if "progress" in s else {}


def _refresh(p: Leaves, s: Leaves, config: BinarizeConfig) -> dict[str, jax.Array]:
    return {"centers": CENTERS[config.centers](p["latent_filters"], s["centers"].size)}


def _penalty(
    p: Leaves,
    s: Leaves,
    gradients: Leaves,
    loss: LossConfig,
    theta: float | jax.Array,
    learning_rate: jax.Array,
) -> tuple[jax.Array, dict[str, Any]]:
    """Computes the filter loss (Eq. 1 without theta) and the gradients plus theta times two terms.

    The first term is the gradient of the filter loss.

    The second term is used if `loss.projection_penalty` is set. It is the third term of Eq. 10:

        C - C-hat + eta1 * dL_S/dC

    This is the gradient of 1/2 * ||C-hat - eta1 * dL_S/dC-hat - C||^2 with the first two terms held
    constant, as the authors' book prints it (its Eq. 3.19). The sign in the paper would push C away
    from its center. Straight through, dL_S/dC-hat equals dL_S/dC, so no second backward pass is
    needed. With another estimator, the term has that estimator's dL_S/dC.
    """
    centers = s["centers"]

    def filter_loss(p: Leaves) -> jax.Array:
        binary = ops.nearest_center(p["latent_filters"], centers)
        return ops.filter_loss(p["latent_filters"], binary, p["m_filters"], loss.filter_loss)

    value, terms = jax.value_and_grad(filter_loss)(dict(p))
    if loss.projection_penalty:
        latent = p["latent_filters"]
        binary = ops.nearest_center(latent, centers)
        penalty = latent - binary + learning_rate * gradients["latent_filters"]
        terms["latent_filters"] = terms["latent_filters"] + penalty
    return value, {name: g + theta * terms[name] for name, g in gradients.items()}


def _multiply_adds(layer: PlannedLayer) -> dict[str, int]:
    height, width, channels, maps = layer.params["latent_filters"]
    planes = layer.params["m_filters"][-1]
    one_pixel = Shape(channels // planes, maps, planes, size=1, stride=1)
    signs = layer.settings["plane_signs"]
    slices = plane_signs.has_slices(signs)
    forms = ("direct", "factored") if slices or not signs else ("direct",)
    return {
        form: layer.out_pixels
        * multiply_adds(one_pixel, form, has_slices=slices, taps=height * width)
        for form in forms
    }


def _computed_by(layers: Sequence[PlannedLayer], dtype: str) -> str:
    counted = sum(_takes_native(layer) for layer in layers) if dtype == "float32" else 0
    if counted:
        code = f"native kernel ({native.instruction_set()})"
        if counted < len(layers):
            code += f" in {counted} of {len(layers)} layers, XLA forms in the others"
    else:
        reason = native.why_unavailable()
        if reason is None and dtype != "float32":
            reason = f"the native kernel does not compute {dtype}"
        reason = reason or "no measurement at similar shapes says that the native kernel is faster"
        code = f"XLA forms; {reason}"
    return f"MCconv on this CPU: {code}"


def _takes_native(layer: PlannedLayer) -> bool:
    signs = layer.settings["plane_signs"]
    if takes_native(_shape(layer), signs):
        return True
    # Without a native form, a pattern is computed as an ordinary convolution.
    *taps_and_channels, maps = layer.params["latent_filters"]
    shape = (*taps_and_channels, maps * layer.params["m_filters"][-1])
    return bool(signs) and convolution.takes_native("float32", shape)


def _shape(layer: PlannedLayer) -> Shape:
    """Returns the shape of a layer with SAME padding."""
    planes, out_maps = layer.params["m_filters"][-1], layer.params["latent_filters"][-1]
    size, out_size = layer.in_shape[0], layer.out_shape[0]
    return Shape(layer.in_shape[-1] // planes, out_maps, planes, size, -(-size // out_size))


MCCONV = Family(
    kind="MCconv",
    module=MCConv,
    groups={"latent_filters": LATENT_FILTERS, "m_filters": M_FILTERS},
    pack=mcconv_file.pack,
    unpack=mcconv_file.unpack,
    spec=mcconv_file.spec,
    recode=mcconv_file.recode,
    make=_make,
    deployed=_deployed,
    filters="latent_filters",
    multiply_adds=_multiply_adds,
    quantizes=True,
    takes_planes=True,
    pointwise=False,
    methods=("MCN", "U-MCN"),
    settings=("plane_signs",),
    options=("model.input_planes", "binarize.num_centers"),
    options_if_set=("plane_signs",),
    check=_check,
    check_layer=_check_layer,
    advance=_advance,
    advances=_advances,
    refresh=_refresh,
    penalty=_penalty,
    watched={"m_filters": "m"},
    compared=("latent_filters",),
    health=health,
    check_values=mcconv_file.check_values,
    arithmetic=mcconv_file.arithmetic,
    arrays=mcconv_file.arrays,
    facts=mcconv_file.facts,
    columns=mcconv_file.COLUMNS,
    compare=mcconv_file.compare,
    pictures=mcconv_file.pictures,
    computed_by=_computed_by,
)
