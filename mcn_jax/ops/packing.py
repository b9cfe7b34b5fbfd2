"""Packing of filters into bits and back: how a model file stores which center each weight has.

The code of a weight is the index of its center, 0 to U - 1, and takes B = ceil(log2 U) bits. The
codes of a layer are stored as B bit planes; plane b holds bit b of every code, lowest bit first.
Within a plane, bit i of byte j (bit 0 is the least significant) belongs to weight 8 * j + i in
row-major order. So the usual case U = 2 is a single bit plane, and any B unpacks the same way.

Files are written and inspected on the host with NumPy. `unpack_traced` does the same inside a
compiled function or an exported graph.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

MAX_CENTERS = 256


def bits_per_weight(num_centers: int) -> int:
    """Returns B = ceil(log2 U).

    Raises:
        ValueError: unless 2 <= U <= 256.
    """
    if not 2 <= num_centers <= MAX_CENTERS:
        raise ValueError(f"num_centers={num_centers} must lie in 2..{MAX_CENTERS}")
    return (num_centers - 1).bit_length()


def packed_shape(shape: tuple[int, ...], num_centers: int) -> tuple[int, int]:
    """Returns the shape of packed codes, (B, ceil(weights / 8)), for codes of a given shape."""
    return bits_per_weight(num_centers), -(-math.prod(shape) // 8)


def pack(codes: np.ndarray, num_centers: int) -> np.ndarray:
    """Packs codes into bits.

    Args:
        codes: uint8, any shape.
        num_centers: U.

    Returns:
        [B, ceil(weights / 8)] uint8; the bits after the last weight are 0.

    Raises:
        ValueError: if a code is not below U.
    """
    bits, flat = bits_per_weight(num_centers), codes.ravel()
    if flat.size and flat.max() >= num_centers:
        raise ValueError(f"code {flat.max()} is out of range for {num_centers} centers")
    # One-bit codes are already bits.
    planes = [flat] if bits == 1 else [flat & (1 << bit) for bit in range(bits)]
    return np.stack([np.packbits(plane, bitorder="little") for plane in planes])


def unpack(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Unpacks the codes that `pack` was given.

    Args:
        packed: [B, ceil(weights / 8)] uint8.
        shape: shape of the codes.

    Returns:
        uint8 codes of that shape.

    Raises:
        ValueError: if the size of `packed` does not match that shape.
    """
    weights = math.prod(shape)
    if packed.ndim != 2 or not 1 <= packed.shape[0] <= 8 or packed.shape[1] != -(-weights // 8):
        raise ValueError(f"bits of shape {packed.shape} do not hold {weights} weights")
    codes, *higher = (np.unpackbits(plane, count=weights, bitorder="little") for plane in packed)
    for bit, plane in enumerate(higher, start=1):
        codes |= plane << bit
    return codes.reshape(shape)


def unpack_traced(packed: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Unpacks bits [B, ceil(weights / 8)] uint8 to int32 codes; a traceable form of `unpack`."""
    eight = jnp.arange(8, dtype=jnp.uint8)[None, None]
    bits = jnp.bitwise_and(jnp.right_shift(packed[:, :, None], eight), jnp.uint8(1))
    planes = bits.reshape(len(packed), -1)[:, : math.prod(shape)].astype(jnp.int32)
    if len(packed) == 1:
        return planes[0].reshape(shape)
    values = jnp.left_shift(1, jnp.arange(len(packed)))[:, None]
    return jnp.sum(planes * values, axis=0).reshape(shape)
