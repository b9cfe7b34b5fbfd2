"""Processing a batch in chunks of images on a CPU, so the intermediate arrays stay in cache."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

# Bytes of intermediate arrays per chunk: about what a CPU keeps in cache.
CHUNK_BYTES = 2**22


def images_at_a_time(images: int, image_bytes: int, at_least: int = 0) -> int:
    """Returns the greatest divisor of the batch size whose intermediates fit in cache; at least 1.

    Args:
        images: number of images in the batch.
        image_bytes: bytes of the intermediate arrays of one image.
        at_least: bytes that a chunk may take even if they exceed `CHUNK_BYTES`.
    """
    return greatest_divisor(images, max(CHUNK_BYTES, at_least) // image_bytes)


def greatest_divisor(number: int, most: int) -> int:
    """Returns the greatest divisor of `number` that is at most `most`; at least 1."""
    return max(d for d in range(1, max(1, min(number, most)) + 1) if number % d == 0)


def scan_chunks(
    function: Callable[..., tuple[Any, jax.Array]],
    sums: Any,
    arrays: Sequence[jax.Array],
    outputs: jax.Array,
    chunk: int,
) -> tuple[Any, jax.Array]:
    """Calls a function chunk by chunk on a CPU, and once for the whole batch elsewhere.

    The caller passes the buffer for the outputs. `lax.scan` would create one from zeros, and XLA
    may allocate the zeros of all layers of a network long before they are needed.

    Args:
        function: (sums, chunk of each array) -> (sums, outputs of the chunk).
        sums: initial values.
        arrays: [N, ...] each.
        outputs: [N, ...], the buffer; its values are overwritten.
        chunk: images per chunk on a CPU, a divisor of N.

    Returns:
        The final sums, and the outputs of all chunks.
    """

    def in_turn(sums: Any, outputs: jax.Array, *arrays: jax.Array) -> tuple[Any, jax.Array]:
        def step(index: jax.Array, carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
            sums, outputs = carry
            start = index * chunk
            chunks = [lax.dynamic_slice_in_dim(array, start, chunk) for array in arrays]
            sums, output = function(sums, *chunks)
            return sums, lax.dynamic_update_slice_in_dim(outputs, output, start, axis=0)

        return lax.fori_loop(0, len(outputs) // chunk, step, (sums, outputs))

    def at_once(sums: Any, outputs: jax.Array, *arrays: jax.Array) -> tuple[Any, jax.Array]:
        del outputs
        return function(sums, *arrays)

    return lax.platform_dependent(sums, outputs, *arrays, cpu=in_turn, default=at_once)
