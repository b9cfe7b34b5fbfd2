"""Handles the signals that ask a training run to save its state and end."""

import signal
import threading
from types import FrameType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: the same command resumes


class Stopped(Exception):  # noqa: N818  not an error
    """A signal asked the run to end, and the run has saved its state."""


class StopRequests:
    """Records SIGTERM, which clusters send before they take a machine away, and SIGINT.

    A second SIGINT raises KeyboardInterrupt. In a run of several processes, JAX's runtime records
    SIGTERM, and all processes agree on the step to stop after. SIGINT keeps Python's handler there.
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
        """Returns whether to stop now; once true, it stays true.

        All processes of a run must call it equally often.
        """
        if jax.process_count() == 1:
            return self._signal is not None
        self._calls += 1
        # The runtime expects consecutive numbers, and returns true for only one of them.
        self._agreed |= multihost_utils.reached_preemption_sync_point(self._calls)
        return self._agreed

    def reason(self) -> str:
        """Returns the name of the signal."""
        return signal.Signals(self._signal or signal.SIGTERM).name
