"""Plans the arena: where the arrays of a program lie in one static array, by their lifetimes."""

import dataclasses
from collections.abc import Sequence

ALIGNMENT = 16  # floats; so every array begins at a multiple of 64 bytes from the arena's start


@dataclasses.dataclass(eq=False)
class Buffer:
    """An array of float32 numbers that a step writes.

    Attributes:
        name: of its pointer in C.
        size: number of floats.
        place: the buffer whose memory it shares, or itself.
        offset: position in the arena, in floats.
    """

    name: str
    size: int
    place: "Buffer" = dataclasses.field(init=False)
    offset: int = 0

    def __post_init__(self) -> None:
        self.place = self


@dataclasses.dataclass(kw_only=True)
class Step:
    """A piece of the program.

    Attributes:
        code: lines of C that use the names of the buffers.
        reads: buffers that it reads.
        writes: buffers that it writes, including those that it needs for itself.
        over: a buffer that it may write its result over, because it reads each element just before
            it writes the same one; or None.
        accumulating: code that adds to the result instead of writing it; empty if there is none.
        adds: the two buffers whose sum is the result, element by element; None for other steps.
    """

    code: str
    reads: set[Buffer]
    writes: list[Buffer]
    over: Buffer | None = None
    accumulating: str = ""
    adds: tuple[Buffer, Buffer] | None = None


def plan_arena(steps: Sequence[Step]) -> int:
    """Gives every buffer its offset, and returns the size of the arena in floats.

    A buffer lives from the step that writes it to the last step that reads it. Large buffers are
    placed first, each at the lowest offset where it meets no other that lives at the same time.
    """
    last = {buffer: number for number, step in enumerate(steps) for buffer in step.reads}
    for number, step in enumerate(steps):
        result, over = step.writes[0], step.over
        if over is not None and over.size == result.size and last[over] == number:
            result.place = over.place
    lives: dict[Buffer, tuple[int, int]] = {}
    for number, step in enumerate(steps):
        for buffer in step.writes:
            end = last.get(buffer, number)
            first, until = lives.get(buffer.place, (number, end))
            lives[buffer.place] = first, max(until, end)
    placed: list[Buffer] = []
    for buffer in sorted(lives, key=lambda buffer: -buffer.size):
        first, until = lives[buffer]
        taken = sorted(
            (other.offset, other.offset + _rounded(other.size))
            for other in placed
            if lives[other][0] <= until and first <= lives[other][1]
        )
        offset = 0
        for start, end in taken:
            if offset + buffer.size <= start:
                break
            offset = max(offset, end)
        buffer.offset = offset
        placed.append(buffer)
    for step in steps:
        for buffer in step.writes:
            buffer.offset = buffer.place.offset
    return max((buffer.offset + buffer.size for buffer in placed), default=1)


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
