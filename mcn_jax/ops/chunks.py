"""On a CPU, work on a few images of a batch at a time, so that what lies between stays in cache."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

# Of intermediates: about what a CPU keeps in cache.
CHUNK_BYTES = 2**22


def images_at_a_time(images: int, image_bytes: int, at_least: int = 0) -> int:
    """The greatest divisor of the batch whose intermediates fit; at least 1.

    Args:
        images: of the batch.
        image_bytes: of the intermediates of one image.
        at_least: bytes that they may have in any case; else it is `CHUNK_BYTES`.
    """
    return greatest_divisor(images, max(CHUNK_BYTES, at_least) // image_bytes)


def greatest_divisor(number: int, most: int) -> int:
    """Of a number, up to `most`; at least 1."""
    return max(d for d in range(1, max(1, min(number, most)) + 1) if number % d == 0)


def scan_chunks(
    function: Callable[..., tuple[Any, jax.Array]],
    sums: Any,
    arrays: Sequence[jax.Array],
    outputs: jax.Array,
    chunk: int,
) -> tuple[Any, jax.Array]:
    """Calls a function for each chunk of a batch, in turn; on other platforms than a CPU once, for
    the whole batch.

    `lax.scan` would write to a buffer of zeros. XLA makes these where it likes, for all layers of a
    network long before they are needed; so the caller gives the buffer.

    Args:
        function: (sums, chunk of each array) -> (sums, outputs of the chunk).
        sums: at the start.
        arrays: [N, ...] each.
        outputs: [N, ...], of any values, which are overwritten.
        chunk: images of a chunk on a CPU, a divisor of N.

    Returns:
        The last sums, and the outputs of all chunks.
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
