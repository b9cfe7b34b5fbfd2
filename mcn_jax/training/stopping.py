"""Signals that ask a training run to save its state and end."""

import signal
import threading
from types import FrameType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: the same command resumes


class Stopped(Exception):  # noqa: N818  not an error
    """A run was asked to end and has saved its state."""


class StopRequests:
    """Notes SIGTERM, which clusters send before they take a machine away, and SIGINT.

    The second SIGINT raises KeyboardInterrupt. In a run of several processes JAX's runtime notes
    SIGTERM, and all processes agree on where to stop; SIGINT keeps its meaning there.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._before: dict[int, Any] = {}
        self._calls = 0
        self._agreed = False

    def __enter__(self) -> Self:
        # Python lets only the main thread set handlers.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number

    def pending(self) -> bool:
        """Whether to stop now. Every process of a run asks equally often; once true, it stays."""
        if jax.process_count() == 1:
            return self._signal is not None
        self._calls += 1
        # The runtime counts on consecutive numbers, and says yes at one of them.
        self._agreed |= multihost_utils.reached_preemption_sync_point(self._calls)
        return self._agreed

    def reason(self) -> str:
        """The name of the signal."""
        return signal.Signals(self._signal or signal.SIGTERM).name
