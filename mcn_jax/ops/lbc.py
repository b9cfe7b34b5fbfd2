"""Local binary convolution: fixed sparse ternary filters, mixed by learned weights.

Source: Juefei-Xu et al. 2017 (LBCNN) and its program. The fixed filters, called anchors, are -1, 0
or +1. They never change, so a layer learns only the 1x1 convolution that mixes their responses.
"""

import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from mcn_jax.ops.convolution import convolve


def num_nonzero(shape: tuple[int, ...], density: float) -> int:
    """Returns floor(density * size), the number of anchors that are not zero."""
    return math.floor(density * math.prod(shape) + 1e-9)  # 0.29 * 100 is a little below 29


def anchors(shape: tuple[int, ...], density: float, seed: int, name: str) -> np.ndarray:
    """Draws anchors with NumPy's Philox generator, so they do not depend on the version of JAX.

    NumPy may change the draws of a later version. Checkpoints and model files store the anchors, so
    this concerns new runs only.

    The program draws floor(s * size) positions with replacement, so fewer weights than the share s
    differ from zero. Here, exactly floor(s * size) do. Signs are fair coins.

    Args:
        shape: [W, W, C, M].
        density: s, share of weights that are not zero, in (0, 1].
        seed: the run's seed, below 2^32.
        name: name of the layer; each layer has other anchors.

    Returns:
        int8 array of -1, 0 and 1.
    """
    size = math.prod(shape)
    key = np.array([seed, zlib.crc32(name.encode())], np.uint64)
    generator = np.random.Generator(np.random.Philox(key=key))
    flat = np.zeros(size, np.int8)
    places = generator.choice(size, num_nonzero(shape, density), replace=False)
    flat[places] = 2 * generator.integers(0, 2, len(places), np.int8) - 1
    return flat.reshape(shape)


def response_scales(fixed: jax.Array) -> jax.Array:
    """Returns 1 / sqrt(n) of each anchor filter, where n is its number of weights that are not 0.

    It is 1 for a filter of zeros. The program has no such scale. With it, responses have a variance
    near one, so that usual learning rates work.

    Args:
        fixed: anchors [W, W, C, M], of a float dtype.

    Returns:
        [1, 1, 1, M].
    """
    count = jnp.sum(jnp.abs(fixed), axis=(0, 1, 2), keepdims=True)
    return 1 / jnp.sqrt(jnp.maximum(count, 1))


def local_binary_convolution(
    x: jax.Array,
    fixed: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    *,
    strides: tuple[int, int] = (1, 1),
    padding: str = "SAME",
) -> jax.Array:
    """Computes relu(x * anchors) * kernel + bias, where * is convolution.

    Args:
        x: [N, Y, X, C].
        fixed: anchors [W, W, C, M] in the dtype of x, scaled or not.
        kernel: [1, 1, M, O].
        bias: [O].
        strides: strides of the convolution with the anchors, in y and x.
        padding: as given to `convolve`.

    Returns:
        [N, Y', X', O].
    """
    responses = jax.nn.relu(convolve(x, fixed, strides, padding))
    return convolve(responses, kernel, (1, 1), "SAME") + bias.reshape(1, 1, 1, -1)
