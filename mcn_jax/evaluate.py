"""Evaluation that counts every example exactly once."""

from collections.abc import Callable, Iterable
from typing import Any

import jax

from mcn_jax import parallel
from mcn_jax.data.batches import EvalBatch, Split


def evaluate(
    step: Callable[..., dict[str, jax.Array]],
    state: Any,
    batches: Iterable[tuple[Split, EvalBatch]],
) -> dict[str, float]:
    """Loss and accuracy over a whole split.

    Args:
        step: `parallel(eval_step)`.
        state: replicated.
        batches: of a source, from `test_batches`.

    Returns:
        "test_loss" in nats, "test_accuracy" from 0 to 1, "test_examples".
    """
    sums = {"loss": 0.0, "correct": 0, "examples": 0}
    for split, batch in batches:
        for name, value in parallel.unreplicate(step(state, split, batch)).items():
            sums[name] += value.item()
    return {
        "test_loss": sums["loss"] / sums["examples"],
        "test_accuracy": sums["correct"] / sums["examples"],
        "test_examples": sums["examples"],
    }
