"""Random choices of a run as functions of seed, purpose, step and position in the batch.

Checkpoints store no random state, and nothing depends on how many devices share a batch.
"""

import enum

import jax
import numpy as np


class Purpose(enum.IntEnum):
    """What a random choice is for; every purpose has its own random stream."""

    PARAMETERS = 0
    ORDER = 1
    CROP = 2
    DROPOUT = 3
    FLIP = 4
    COLOR = 5
    CUTOUT = 6
    MIXUP = 7
    RANDOM_CROP = 8


def run_key(seed: int, purpose: Purpose) -> jax.Array:
    """Returns the key of one purpose in a run."""
    return jax.random.fold_in(jax.random.key(seed), int(purpose))


def example_keys(seed: int, purpose: Purpose, step: jax.Array, positions: jax.Array) -> jax.Array:
    """Returns [N] keys for the examples at `positions` [N] of a step's global batch."""
    step_key = jax.random.fold_in(run_key(seed, purpose), step)
    return jax.vmap(lambda position: jax.random.fold_in(step_key, position))(positions)


def example_generators(
    seed: int, purpose: Purpose, step: int, positions: np.ndarray
) -> list[np.random.Generator]:
    """Returns NumPy generators, one per position, for work on the host; see `example_keys`."""
    return [np.random.default_rng([seed, purpose, step, position]) for position in positions]


def epoch_order(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """Returns the order of the training split in an epoch, [num_examples] int32."""
    generator = np.random.default_rng([seed, Purpose.ORDER, epoch])
    return generator.permutation(num_examples).astype(np.int32)
