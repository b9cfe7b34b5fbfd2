"""Evaluates a split, counting each example once, and computes measures from logits."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from mcn_jax import parallel
from mcn_jax.data.batches import EvalBatch, Split

CALIBRATION_BINS = 15


def evaluate(
    step: Callable[..., dict[str, jax.Array]],
    state: Any,
    batches: Iterable[tuple[Split, EvalBatch]],
) -> dict[str, float]:
    """Computes loss and accuracy over a whole split.

    Args:
        step: `eval_step`, mapped over the devices by `parallel`.
        state: the replicated state.
        batches: splits and batches from a source's `test_batches`.

    Returns:
        "test_loss" (in nats, with the loss "softmax"), "test_accuracy" from 0 to 1,
        "test_examples": number of images.
    """
    sums = {"loss": 0.0, "correct": 0, "examples": 0}

    def account(values: dict[str, jax.Array]) -> None:
        for name, value in parallel.unreplicate(values).items():
            sums[name] += value.item()

    # Sums are read one batch late, so the device never waits for the host.
    pending: Any = None
    for split, batch in batches:
        values = step(state, split, batch)
        if parallel.must_await_steps():
            jax.block_until_ready(values)
        if pending is not None:
            account(pending)
        pending = values
    account(pending)
    return {
        "test_loss": sums["loss"] / sums["examples"],
        "test_accuracy": sums["correct"] / sums["examples"],
        "test_examples": sums["examples"],
    }


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Computes the softmax of logits [N, classes], in float64."""
    exact = logits.astype(np.float64)
    weights = np.exp(exact - exact.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def measures(logits: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Computes accuracy, calibration error and confusion matrix from logits.

    Args:
        logits: [N, classes].
        labels: [N].
        class_names: names of the classes, in the order of the logits.

    Returns:
        "examples": number of examples.
        "accuracy": from 0 to 1.
        "calibration_error": the expected calibration error (Guo et al. 2017). Examples are
            sorted into 15 bins of equal width by the probability of their likeliest class. The
            error is the mean over the bins of |accuracy - mean probability|, weighted by the
            number of examples.
        "classes": one record per class with "class", "examples" and "accuracy", which is None for
            a class without examples.
        "confusion": counts [classes, classes] by label (rows) and prediction (columns).
    """
    confidence = probabilities(logits).max(axis=1)
    predicted = logits.argmax(axis=1)
    right = predicted == labels
    confusion = np.zeros((len(class_names), len(class_names)), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = [abs(np.sum(right[bins == b] - confidence[bins == b])) for b in range(CALIBRATION_BINS)]
    counts = confusion.sum(axis=1)
    return {
        "examples": len(labels),
        "accuracy": float(np.mean(right)),
        "calibration_error": float(np.sum(gaps) / len(labels)),
        "classes": [
            {
                "class": name,
                "examples": int(count),
                "accuracy": float(confusion[index, index] / count) if count else None,
            }
            for index, (name, count) in enumerate(zip(class_names, counts, strict=True))
        ],
        "confusion": confusion,
    }
