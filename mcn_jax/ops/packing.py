"""Filters as bits, and bits as filters: how a model file stores which center each weight has.

A code is the index of a weight's center, 0 to U - 1, and takes B = ceil(log2 U) bits. The codes of
a layer are stored as B planes of bits, the lowest bit of every code first; within a plane, bit i
(the least significant is bit 0) of byte j belongs to weight 8 * j + i in row-major order. So the
usual case U = 2 is one plain string of bits, and any number of bits is as easily unpacked.

Files are written and inspected on the host, with NumPy. `unpack_traced` does the same inside a
compiled function, and inside an exported graph.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

MAX_CENTERS = 256


def bits_per_weight(num_centers: int) -> int:
    """B = ceil(log2 U).

    Raises:
        ValueError: unless 2 <= U <= 256.
    """
    if not 2 <= num_centers <= MAX_CENTERS:
        raise ValueError(f"num_centers={num_centers} must lie in 2..{MAX_CENTERS}")
    return (num_centers - 1).bit_length()


def packed_shape(shape: tuple[int, ...], num_centers: int) -> tuple[int, int]:
    """The shape of what `pack` makes of codes of this shape: (B, ceil(weights / 8))."""
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
        raise ValueError(f"a code of {flat.max()} for {num_centers} centers")
    # Of one bit, the codes themselves are the bits.
    planes = [flat] if bits == 1 else [flat & (1 << bit) for bit in range(bits)]
    return np.stack([np.packbits(plane, bitorder="little") for plane in planes])


def unpack(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The codes that `pack` was given.

    Args:
        packed: [B, ceil(weights / 8)] uint8.
        shape: of the codes.

    Returns:
        uint8, of that shape.

    Raises:
        ValueError: if `packed` has not the bytes of so many weights.
    """
    weights = math.prod(shape)
    if packed.ndim != 2 or not 1 <= packed.shape[0] <= 8 or packed.shape[1] != -(-weights // 8):
        raise ValueError(f"bits of shape {packed.shape} do not hold {weights} weights")
    codes, *higher = (np.unpackbits(plane, count=weights, bitorder="little") for plane in packed)
    for bit, plane in enumerate(higher, start=1):
        codes |= plane << bit
    return codes.reshape(shape)


def unpack_traced(packed: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """As `unpack`, traceable: int32 codes of packed bits [B, ceil(weights / 8)] uint8."""
    eight = jnp.arange(8, dtype=jnp.uint8)[None, None]
    bits = jnp.bitwise_and(jnp.right_shift(packed[:, :, None], eight), jnp.uint8(1))
    planes = bits.reshape(len(packed), -1)[:, : math.prod(shape)].astype(jnp.int32)
    if len(packed) == 1:
        return planes[0].reshape(shape)
    values = jnp.left_shift(1, jnp.arange(len(packed)))[:, None]
    return jnp.sum(planes * values, axis=0).reshape(shape)
