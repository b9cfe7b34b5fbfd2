"""One-bit filters: the rules that turn float weights into a sign times a scale.

A filter is W*W*C weights that make one output channel. In training, each of its bits has a float
"latent" weight w behind it. A rule gives the filters of the convolution, `scale * sign(w)`, and the
gradient of w, from g, the gradient of the filters. In this module sign(x) is +1 for x >= 0 and -1
otherwise, never 0.

| rule | scale | gradient of w |
|---|---|---|
| `binaryconnect` | H, one constant per layer | g |
| `bnn` | n^-0.5, one constant per layer | g |
| `mcdonnell` | sqrt(2 / n), one constant per layer | g |
| `dorefa` | mean of abs(w) over the layer | g |
| `bwn` | a, the mean of abs(w) over each filter | g |
| `bwn_exact` | a | a*g where abs(w) <= 1, plus the gradient through a |
| `bwn_paper` | a | g / n, plus a*g where abs(w) < 1 |
| `bwn_released` | a | that of `bwn_paper` times n - n/C |
| `irnet`, `recu` | a power of two near the mean of abs(z) over each filter | see `irnet` |

n = W*W*C is the number of weights of a filter, and C the number of its input channels.

Sources: Courbariaux et al. 2015 (BinaryConnect), McDonnell 2018, Zhou et al. 2016 (DoReFa-Net),
Rastegari et al. 2016 (BWN, XNOR-Net), Qin et al. 2020 (IR-Net), Wu et al. 2023 (ReSTE), Xu et al.
2021 (ReCU).
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from mcn_jax.ops.convolution import convolve
from mcn_jax.ops.estimators import slope_of_sign, straight_through, with_slope

MASKS = ("inclusive", "exclusive")  # where the gradient of `sign_activations` ends: 1 included?

RECU_STD = 2 * math.sqrt(2)


def sign(x: jax.Array) -> jax.Array:
    """Returns +1 where x >= 0 and -1 elsewhere, in the dtype of x; its derivative is zero."""
    return jnp.where(x >= 0, 1, -1).astype(x.dtype)


def sign_activations(x: jax.Array, mask: str = "inclusive") -> jax.Array:
    """Returns sign(x), with the derivative 1 where abs(x) <= 1 and 0 elsewhere.

    Args:
        x: any shape.
        mask: "inclusive", or "exclusive" for abs(x) < 1 (the program of XNOR-Net).

    Raises:
        ValueError: if the mask is unknown.
    """
    if mask not in MASKS:
        raise ValueError(f"mask={mask!r} must be one of {', '.join(MASKS)}")
    size = jnp.abs(x)
    passes = size <= 1 if mask == "inclusive" else size < 1
    return with_slope(x, sign(x), passes.astype(x.dtype))


def glorot_scale(shape: tuple[int, ...]) -> float:
    """Returns H = sqrt(1.5 / (W*W*C + W*W*O)) of BinaryConnect, for filters [W, W, C, O]."""
    *taps, channels, outputs = shape
    return math.sqrt(1.5 / (math.prod(taps) * (channels + outputs)))


def he_scale(shape: tuple[int, ...]) -> float:
    """Returns sqrt(2 / n), the standard deviation of He's initial values, for [W, W, C, O]."""
    return math.sqrt(2 / math.prod(shape[:-1]))


def root_scale(shape: tuple[int, ...]) -> float:
    """Returns n^-0.5, for filters [W, W, C, O]."""
    return math.prod(shape[:-1]) ** -0.5


def _all_but_outputs(w: jax.Array) -> tuple[int, ...]:
    return tuple(range(w.ndim - 1))


def magnitude(w: jax.Array) -> jax.Array:
    """Returns the mean of abs(w) over each filter, [1, 1, 1, O]. Its derivative is sign(w) / n.

    Unlike the derivative of `jnp.abs`, this one is not 0 where w is 0.
    """
    return jnp.mean(w * lax.stop_gradient(sign(w)), axis=_all_but_outputs(w), keepdims=True)


def binaryconnect(w: jax.Array) -> jax.Array:
    """Returns H * sign(w) with H = `glorot_scale`; see the table above."""
    return straight_through(w, sign(w) * glorot_scale(w.shape))


def bnn(w: jax.Array) -> jax.Array:
    """Returns n^-0.5 * sign(w); see the table above.

    With inputs of +-1, a sum of n products then has a variance near one. Without the scale it would
    be far larger than the shortcut of a residual network that it is added to.
    """
    return straight_through(w, sign(w) * root_scale(w.shape))


def mcdonnell(w: jax.Array) -> jax.Array:
    """Returns sqrt(2 / n) * sign(w); see the table above."""
    return straight_through(w, sign(w) * he_scale(w.shape))


def dorefa(w: jax.Array) -> jax.Array:
    """Returns the mean of abs(w) over the whole layer, times sign(w); see the table above."""
    return straight_through(w, sign(w) * jnp.mean(jnp.abs(w)))


def bwn(w: jax.Array) -> jax.Array:
    """Returns a * sign(w), with the identity as its gradient; see the table above."""
    return straight_through(w, sign(w) * magnitude(w))


def bwn_exact(w: jax.Array) -> jax.Array:
    """Returns a * sign(w), with the gradient through a as well.

    The sign has the derivative 1 where abs(w) <= 1. So the gradient of w is
    a*g [abs(w) <= 1] + sign(w)/n * (sum of g*sign(w) over the filter).
    """
    return magnitude(w) * sign_activations(w)


def bwn_paper(w: jax.Array) -> jax.Array:
    """Returns a * sign(w), with the gradient g * (1/n + a [abs(w) < 1]) that the paper prints."""
    a = magnitude(w)
    slope = 1 / (w.size // w.shape[-1]) + a * (jnp.abs(w) < 1)
    return with_slope(w, sign(w) * a, slope)


def bwn_released(w: jax.Array) -> jax.Array:
    """Returns a * sign(w), with the gradient of the released program for SGD.

    The program also moves w before each step, see `centred_and_clipped`.
    """
    a, n = magnitude(w), w.size // w.shape[-1]
    slope = (1 / n + a * (jnp.abs(w) < 1)) * (1 - 1 / w.shape[-2]) * n
    return with_slope(w, sign(w) * a, slope)


def irnet(
    w: jax.Array,
    progress: jax.Array | float = 0.0,
    *,
    estimator: str = "ede",
    center: bool = True,
    clamp: bool = False,
) -> jax.Array:
    """Returns 2^round(log2 mean abs(z)) * sign(z), where z are the standardized weights.

    z = (w - mean) / std per filter, with n - 1 in the denominator of the variance. The gradient
    passes through z exactly, and the power of two is a constant. The derivative of the sign is the
    estimator's, see `mcn_jax.ops.estimators.slope_of_sign`.

    Args:
        w: latent filters [W, W, C, O].
        progress: share of the training that is done, in [0, 1].
        estimator: a name in `mcn_jax.ops.estimators.ESTIMATORS`.
        center: whether the mean of each filter is subtracted.
        clamp: whether the standardized weights are clamped as in ReCU: scaled to a standard
            deviation of 2 sqrt(2), then clamped to +-(-E ln(2 - 2 tau)), where E is the mean of
            their magnitude over the layer, and tau rises from 0.85 to 0.99.

    Raises:
        ValueError: if the estimator is unknown.
    """
    progress = jnp.asarray(progress, w.dtype)
    z = irnet_weights(w, progress, center=center, clamp=clamp)
    slope = slope_of_sign(z, progress, estimator)
    mean = jnp.mean(jnp.abs(z), axis=_all_but_outputs(z), keepdims=True)
    scale = jnp.exp2(jnp.round(jnp.log2(mean)))
    return with_slope(z, sign(z), slope) * lax.stop_gradient(scale)


def irnet_weights(
    w: jax.Array, progress: jax.Array, *, center: bool = True, clamp: bool = False
) -> jax.Array:
    """Returns z, the weights whose signs `irnet` takes; see there for the arguments."""
    z = standardized(w, center=center)
    if not clamp:
        return z
    z = z * RECU_STD
    tau = 0.85 + (0.99 - 0.85) * progress
    bound = lax.stop_gradient(-jnp.mean(jnp.abs(z)) * jnp.log(2 - 2 * tau))
    return jnp.clip(z, -bound, bound)


def standardized(w: jax.Array, *, center: bool = True) -> jax.Array:
    """Returns the weights of each filter, minus their mean if `center`, over their deviation."""
    axes = _all_but_outputs(w)
    centred = w - jnp.mean(w, axis=axes, keepdims=True)
    std = jnp.std(w, axis=axes, keepdims=True, ddof=1)
    return (centred if center else w) / std


RULES: dict[str, Callable[..., jax.Array]] = {
    "binaryconnect": binaryconnect,
    "bnn": bnn,
    "mcdonnell": mcdonnell,
    "dorefa": dorefa,
    "bwn": bwn,
    "bwn_exact": bwn_exact,
    "bwn_paper": bwn_paper,
    "bwn_released": bwn_released,
    "irnet": irnet,
    "recu": functools.partial(irnet, clamp=True, estimator="identity"),
}
# Rules that take `progress` and `estimator`, and the estimator of their authors.
STANDARDIZED = {"irnet": "ede", "recu": "identity"}


def clipped_to_scale(w: jax.Array) -> jax.Array:
    """Returns w clipped to [-H, H], as BinaryConnect does after each update."""
    scale = glorot_scale(w.shape)
    return jnp.clip(w, -scale, scale)


def clipped_to_root(w: jax.Array) -> jax.Array:
    """Returns w clipped to [-n^-0.5, n^-0.5]."""
    scale = root_scale(w.shape)
    return jnp.clip(w, -scale, scale)


def clipped_to_one(w: jax.Array) -> jax.Array:
    """Returns w clipped to [-1, 1]."""
    return jnp.clip(w, -1, 1)


def centred_and_clipped(w: jax.Array) -> jax.Array:
    """Returns w minus its mean over the input channels, clipped to [-1, 1].

    XNOR-Net's program does this before each step, for each tap and output channel.
    """
    return clipped_to_one(w - jnp.mean(w, axis=-2, keepdims=True))


def activation_scales(x: jax.Array, kernel_size: int, strides: int, padding: str) -> jax.Array:
    """Returns K of XNOR-Net, the mean magnitude of the input below each position of the kernel.

    The mean is over the channels, and over the W*W taps of the kernel. Pixels of the border count
    as zeros, and the divisor is always W*W.

    Args:
        x: [N, Y, X, C].
        kernel_size: W, in pixels.
        strides: step of the convolution in y and x.
        padding: as of the convolution.

    Returns:
        [N, Y', X', 1], the pixels of the convolution's output.
    """
    mean = jnp.mean(jnp.abs(x), axis=-1, keepdims=True)
    box = jnp.full((kernel_size, kernel_size, 1, 1), kernel_size**-2, x.dtype)
    return convolve(mean, box, (strides, strides), padding)
