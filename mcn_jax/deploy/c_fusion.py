"""Joins layers with the operations before and after them, which saves arrays and passes.

A layer may apply a batch norm and a ReLU to its input while it reads it, and may add its output to
a shortcut. So a block of a Wide-ResNet needs two arrays instead of four.
"""

import re
from typing import NamedTuple

import numpy as np

from mcn_jax.deploy.c_expressions import Affine, Applied, Constant, Expression, Stored
from mcn_jax.deploy.c_memory import Buffer, Step


class LayerInput(NamedTuple):
    """What a layer reads: an array in memory, of which it may compute something else.

    Attributes:
        source: the array.
        factors: [C] float32, by which channels are multiplied, or None for no batch norm.
        offsets: [C] float32, which are then added, or None.
        relu: whether a ReLU follows.
    """

    source: Stored
    factors: np.ndarray | None = None
    offsets: np.ndarray | None = None
    relu: bool = False


def fused_input(value: Expression) -> LayerInput | None:
    """Returns an expression as a batch norm, perhaps with ReLU, of an array; None if it is not."""
    relu = False
    if isinstance(value, Applied) and value.helper == "larger":
        first, second = value.operands
        relu = isinstance(second, Constant) and not np.any(second.array)
        value = first if relu else value
    if not isinstance(value, Affine) or not isinstance(value.source, Stored):
        return None
    if value.source.buffer is None:
        return None
    # Constants of other axes are not of a batch norm, such as the pixels of a pooling's windows.
    if any(values.size not in (1, values.shape[-1]) for values in (value.factor, value.offset)):
        return None
    with np.errstate(over="ignore"):  # what is not finite is refused when it is written
        factors, offsets = (
            np.resize(values.astype(np.float32), value.shape[-1])
            for values in (value.factor, value.offset)
        )
    return LayerInput(value.source, factors, offsets, relu)


def fuse_additions(steps: list[Step]) -> list[Step]:
    """Returns the steps with layers that add to a shortcut instead of an addition after them.

    The layer writes over the shortcut. So nothing else may read the shortcut from then on, and
    nothing but the addition may read the layer's own output.
    """
    steps = list(steps)
    readers: dict[Buffer, list[int]] = {}
    written: dict[Buffer, int] = {}
    for number, step in enumerate(steps):
        for buffer in step.reads:
            readers.setdefault(buffer, []).append(number)
        for buffer in step.writes:
            written[buffer] = number
    removed = set()
    for number, step in enumerate(steps):
        for output, shortcut in (step.adds, step.adds[::-1]) if step.adds else ():
            producer = written[output]
            layer = steps[producer]
            if (
                layer.accumulating
                and readers[output] == [number]
                and written[shortcut] < producer
                and not any(reader >= producer for reader in readers[shortcut] if reader != number)
            ):
                result = step.writes[0]
                code = re.sub(rf"\b{output.name}\b", result.name, layer.accumulating)
                writes = [result, *layer.writes[1:]]
                reads = layer.reads | {shortcut}
                steps[producer] = Step(code=code, reads=reads, writes=writes, over=shortcut)
                written[result] = producer
                readers[shortcut] = [r for r in readers[shortcut] if r != number] + [producer]
                removed.add(number)
                break
    return [step for number, step in enumerate(steps) if number not in removed]
