"""Convolutions with one-bit weights as layer families, one for each rule of `ops.one_bit`.

They are the systems that MCN is compared with: BinaryConnect, McDonnell's one-bit networks,
DoReFa-Net, BWN, IR-Net and ReCU. Their activations stay float.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mcn_jax.config import Config
from mcn_jax.errors import InputError, require, require_one_of
from mcn_jax.layers import one_bit_file
from mcn_jax.layers.conv import kernel_conv, kernel_multiply_adds
from mcn_jax.layers.family import PROGRESS, Family, Group, Leaves, PlannedLayer, Share
from mcn_jax.layers.one_bit_file import EXPONENTS, LATENT, SCALES
from mcn_jax.ops import estimators, one_bit
from mcn_jax.ops.convolution import convolve
from mcn_jax.ops.draws import drawn, he_normal

DECAY = "decay_of_latents"
LATENT_KERNELS = Group(name="latent_kernels", decay=DECAY)
CLIPPED_TO_SCALE = Group(
    name="latent_kernels_clipped_to_scale", decay=DECAY, projection=one_bit.clipped_to_scale
)
CLIPPED_TO_ONE = Group(
    name="latent_kernels_clipped_to_one", decay=DECAY, projection=one_bit.clipped_to_one
)
CENTRED = Group(
    name="latent_kernels_centred_and_clipped", decay=DECAY, projection=one_bit.centred_and_clipped
)


class OneBitConv(nn.Module):
    """Convolution whose filters are a sign times a scale, without bias.

    With `kernel_size` 1 and an input of a single pixel it is a dense layer.

    Parameter: `latent_kernel` [W, W, C, O]. The rules of IR-Net and ReCU also have `progress` in
    the collection "progress", a scalar: the share of the training that is done.

    This is the base class; each rule of `mcn_jax.ops.one_bit` has a subclass.

    Attributes:
        out_maps: output maps, of `planes` channels each.
        planes: channels per output map.
        kernel_size: W, in pixels.
        strides: step in y and x, in pixels.
        padding: a name in `mcn_jax.ops.conv_spec.PADDINGS`.
        binarized: False convolves with the latent filters themselves.
        estimator: IR-Net and ReCU: derivative of the sign, a name in
            `mcn_jax.ops.estimators.ESTIMATORS`; "" takes that of the layer's authors.
        dtype: dtype of the convolution; None takes the dtype of the input. Filters are always
            binarized in `param_dtype`.
        param_dtype: dtype of the latent filters.
    """

    out_maps: int
    planes: int = 1
    kernel_size: int = 3
    strides: int = 1
    padding: str = "SAME"
    binarized: bool = True
    estimator: str = ""
    dtype: Any = None
    param_dtype: Any = jnp.float32

    rule = ""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolves [N, Y, X, C] to [N, Y', X', out_maps * planes]."""
        taps = (self.kernel_size, self.kernel_size)
        shape = (*taps, x.shape[-1], self.out_maps * self.planes)
        latent = self.param(LATENT, _initializer(self.rule), shape, self.param_dtype)
        options: dict[str, Any] = {}
        if self.rule in one_bit.STANDARDIZED:
            progress = self.variable(PROGRESS, "progress", jnp.zeros, (), self.param_dtype)
            estimator = self.estimator or one_bit.STANDARDIZED[self.rule]
            options = {"progress": progress.value, "estimator": estimator}
        kernel = one_bit.RULES[self.rule](latent, **options) if self.binarized else latent
        dtype = x.dtype if self.dtype is None else self.dtype
        return self.convolve(x.astype(dtype), kernel.astype(dtype))

    def convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """Convolves the input with the layer's filters."""
        return convolve(x, kernel, (self.strides, self.strides), self.padding)


class BinaryConnectConv(OneBitConv):
    """BinaryConnect's convolution (Courbariaux et al. 2015), with its deterministic signs."""

    rule = "binaryconnect"


class McDonnellConv(OneBitConv):
    """Convolution of McDonnell 2018, whose scale is that of He's initial values."""

    rule = "mcdonnell"


class DoReFaConv(OneBitConv):
    """DoReFa-Net's convolution with one-bit weights (Zhou et al. 2016)."""

    rule = "dorefa"


class BWNConv(OneBitConv):
    """Convolution of a Binary-Weight-Network (Rastegari et al. 2016), identity gradient."""

    rule = "bwn"


class BWNExactConv(OneBitConv):
    """Convolution of a Binary-Weight-Network with the exact gradient of its scale."""

    rule = "bwn_exact"


class BWNPaperConv(OneBitConv):
    """Convolution of a Binary-Weight-Network with the gradient that its paper prints."""

    rule = "bwn_paper"


class BWNReleasedConv(OneBitConv):
    """Convolution of a Binary-Weight-Network as in its authors' program, with SGD."""

    rule = "bwn_released"


class IRNetConv(OneBitConv):
    """IR-Net's convolution with one-bit weights (Qin et al. 2020)."""

    rule = "irnet"


class ReCUConv(OneBitConv):
    """IR-Net's convolution with the clamped weights of ReCU (Xu et al. 2021).

    ReCU learns a scale for each output channel. Here, the scale is IR-Net's power of two.
    """

    rule = "recu"


_UNIFORM = {"binaryconnect": one_bit.glorot_scale, "bnn": one_bit.root_scale}


def _initializer(rule: str) -> Callable[..., jax.Array]:
    """Returns the initializer of the latent filters: He normal, apart from two rules."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        if rule in _UNIFORM:
            scale = _UNIFORM[rule](shape)
            return drawn(jax.random.uniform, key, shape, dtype, -scale, scale)
        latent = he_normal(key, shape, dtype)
        return one_bit.centred_and_clipped(latent) if rule == "bwn_released" else latent

    return init


def _filters(rule: str, p: Leaves, s: Leaves) -> jax.Array:
    options = {"progress": s["progress"]} if rule in one_bit.STANDARDIZED else {}
    return one_bit.RULES[rule](p[LATENT], **options)


def _health(
    rule: str, before: Leaves, p: Leaves, s: Leaves, layer: PlannedLayer
) -> dict[str, float | Share]:
    """Measures how the signs of a layer changed in an epoch.

    Returns:
        flip_ratio: share of weights whose sign has changed since `before`.
        quantization_error: ||w - filters|| / ||w||, with the standardized weights of IR-Net and
            ReCU in place of w.
        share_0, share_1: share of negative and of positive weights.
    """
    del layer
    sums = jax.device_get(_health_sums(rule, dict(before), dict(p), dict(s)))
    size = p[LATENT].size
    return {
        "flip_ratio": Share(int(sums["flips"]), size),
        "quantization_error": Share(sums["error"], sums["norm"], root=True),
        "share_0": 1 - float(sums["positive"] / size),
        "share_1": float(sums["positive"] / size),
    }


@functools.partial(jax.jit, static_argnums=0)
def _health_sums(rule: str, before: Leaves, p: Leaves, s: Leaves) -> dict[str, jax.Array]:
    filters, old = _filters(rule, p, s), _filters(rule, before, s)
    w = p[LATENT]
    if rule in one_bit.STANDARDIZED:
        w = one_bit.irnet_weights(w, s["progress"], clamp=rule == "recu")
    return {
        "flips": jnp.sum(jnp.signbit(filters) != jnp.signbit(old)),
        "positive": jnp.sum(~jnp.signbit(filters)),
        "error": jnp.sum((w - filters) ** 2),
        "norm": jnp.sum(w**2),
    }


def _multiply_adds(layer: PlannedLayer) -> dict[str, int]:
    counts = kernel_multiply_adds(layer)
    return {"dense": counts["direct"]} if one_bit_file.is_dense(layer) else counts


def _advance(s: Leaves, progress: jax.Array) -> dict[str, jax.Array]:
    del s
    return {"progress": progress}


def _check(config: Config) -> None:
    if config.binarize.estimator:
        require_one_of("binarize.estimator", config.binarize.estimator, estimators.ESTIMATORS)


def _check_channels(layer: PlannedLayer, config: Config) -> None:
    del config
    if layer.params[LATENT][-2] == 1:
        raise InputError(
            "the layer 'bwn_released' subtracts the mean over the input channels, which leaves"
            f" nothing of the single channel of {layer.name}; set config.model.stem_conv=conv"
        )


def _check_layer(layer: PlannedLayer, config: Config) -> None:
    *taps, channels, _ = layer.params[LATENT]
    message = f"leaves {layer.name} with one weight per filter, which has no standard deviation"
    require(taps[0] * taps[1] * channels > 1, "model.conv", config.model.conv, message)


def one_bit_family(
    module: type[OneBitConv],
    kind: str,
    group: Group = LATENT_KERNELS,
    *,
    per_filter: bool = False,
    scale_leaf: str = SCALES,
    options: tuple[str, ...] = (),
    **fields: Any,
) -> Family:
    """Makes the family of a module.

    Args:
        module: its module.
        kind: name in tables.
        group: group of the latent filters in the optimizer.
        per_filter: see `one_bit_file.pack`.
        scale_leaf: likewise.
        options: attributes of the module that are fields of `BinarizeConfig`.
        **fields: fields of `Family` that differ from those of one-bit weights.
    """
    rule = module.rule
    has_progress = rule in one_bit.STANDARDIZED
    options += ("estimator",) if has_progress else ()

    def make(config: Config, quantized: bool) -> Callable[..., nn.Module]:
        return functools.partial(
            module,
            planes=config.model.planes,
            binarized=quantized,
            dtype=jnp.dtype(config.dtype),
            param_dtype=jnp.dtype(config.param_dtype),
            **{name: getattr(config.binarize, name) for name in options},
        )

    if has_progress:
        fields |= {"advance": _advance, "check": _check, "check_layer": _check_layer}
    family = Family(
        kind=kind,
        module=module,
        groups={LATENT: group},
        pack=functools.partial(
            one_bit_file.pack, functools.partial(_filters, rule), scale_leaf, per_filter
        ),
        unpack=one_bit_file.unpack,
        spec=functools.partial(one_bit_file.spec, scale_leaf, per_filter),
        recode=one_bit_file.recode,
        make=make,
        deployed=kernel_conv,
        multiply_adds=_multiply_adds,
        filters=LATENT,
        quantizes=True,
        has_dense=True,
        methods=(rule, f"{rule}, float"),
        compared=(LATENT,),
        health=functools.partial(_health, rule),
        check_values=one_bit_file.check_values,
        arrays=one_bit_file.arrays,
        facts=one_bit_file.facts,
        columns=one_bit_file.COLUMNS,
        compare=one_bit_file.compare,
        pictures=one_bit_file.pictures,
        arithmetic=one_bit_file.arithmetic,
    )
    return dataclasses.replace(family, **fields)


# Names for config.model.conv.
FAMILIES: dict[str, Family] = {
    family.module.rule: family  # type: ignore[attr-defined]
    for family in (
        one_bit_family(BinaryConnectConv, "BinaryConnect", CLIPPED_TO_SCALE),
        one_bit_family(McDonnellConv, "one-bit, McDonnell"),
        one_bit_family(DoReFaConv, "one-bit, DoReFa"),
        one_bit_family(BWNConv, "BWN", per_filter=True),
        one_bit_family(BWNExactConv, "BWN, exact gradient", CLIPPED_TO_ONE, per_filter=True),
        one_bit_family(BWNPaperConv, "BWN, paper's gradient", CLIPPED_TO_ONE, per_filter=True),
        one_bit_family(
            BWNReleasedConv,
            "BWN, released program",
            CENTRED,
            per_filter=True,
            check_layer=_check_channels,
        ),
        one_bit_family(IRNetConv, "IR-Net", per_filter=True, scale_leaf=EXPONENTS),
        one_bit_family(ReCUConv, "ReCU", per_filter=True, scale_leaf=EXPONENTS),
    )
}
