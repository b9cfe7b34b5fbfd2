"""Evaluation that counts every example exactly once."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from mcn_jax import parallel
from mcn_jax.steps import EvalBatch


def eval_batches(num_examples: int, batch_size: int, num_devices: int) -> Iterator[EvalBatch]:
    """Batches in order, all of one size: the last is padded with row 0 and a mask of False.

    Args:
        num_examples: of the split, at least 1.
        batch_size: any; rounded up to a multiple of the devices.
        num_devices: that share a batch.

    Yields:
        Global batches, whose length the devices divide.
    """
    batch_size = -(-min(batch_size, num_examples) // num_devices) * num_devices
    for start in range(0, num_examples, batch_size):
        indices = np.arange(start, start + batch_size, dtype=np.int32)
        mask = indices < num_examples
        yield EvalBatch(np.where(mask, indices, 0).astype(np.int32), mask)


def evaluate(
    step: Callable[..., dict[str, jax.Array]],
    state: Any,
    split: Any,
    num_examples: int,
    batch_size: int,
) -> dict[str, float]:
    """Loss and accuracy over a whole split.

    Args:
        step: `parallel(eval_step)`.
        state: replicated.
        split: replicated.
        num_examples: of the split.
        batch_size: over all devices.

    Returns:
        "test_loss" in nats, "test_accuracy" from 0 to 1, "test_examples".
    """
    sums = {"loss": 0.0, "correct": 0, "examples": 0}
    for batch in eval_batches(num_examples, batch_size, len(parallel.local_devices())):
        for name, value in parallel.unreplicate(step(state, split, parallel.shard(batch))).items():
            sums[name] += value.item()
    return {
        "test_loss": sums["loss"] / sums["examples"],
        "test_accuracy": sums["correct"] / sums["examples"],
        "test_examples": sums["examples"],
    }
