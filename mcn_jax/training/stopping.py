"""Handles the signals that ask a training run to save its state and end."""

import faulthandler
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

import jax
from jax.experimental import multihost_utils

from mcn_jax.terminal import lost_output

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: the same command resumes
INTERRUPT_SECONDS = 15  # an interrupted process of several ends in this time


class Stopped(Exception):  # noqa: N818  not an error
    """The run was asked to end, and has saved its state."""


class StopRequests:
    """Records the signals that ask a run to stop, and the loss of its output.

    The signals are SIGTERM, which clusters send before they take a machine away, SIGINT, and
    SIGHUP, which a terminal sends when it is closed. SIGHUP stays ignored if it was, as under
    nohup. A second SIGINT raises KeyboardInterrupt.

    In a run of several processes, JAX's runtime records SIGTERM, and all processes agree on the
    step to stop after. SIGHUP and the loss of the output become SIGTERM there. SIGINT raises
    KeyboardInterrupt in the process that gets it, unless it was ignored, as in a background job.
    If that process has not ended after `INTERRUPT_SECONDS`, for example because it waits for
    another one, it exits with code 1 and prints where each thread was.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._before: dict[int, Any] = {}
        self._calls = 0
        self._agreed = False
        self._passed_on = False

    def __enter__(self) -> Self:
        # Python lets only the main thread set handlers.
        if threading.current_thread() is threading.main_thread():
            if jax.process_count() == 1:
                self._handle(signal.SIGTERM, self._note)
                self._handle(signal.SIGINT, self._note)
                hang_up = self._note
            else:
                if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
                    self._handle(signal.SIGINT, self._interrupt)
                hang_up = self._pass_on
            if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
                self._handle(signal.SIGHUP, hang_up)
        return self

    def _handle(self, number: int, handler: Callable[[int, FrameType | None], None]) -> None:
        self._before[number] = signal.signal(number, handler)

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._signal = number
        faulthandler.dump_traceback_later(INTERRUPT_SECONDS, exit=True, file=2)
        raise KeyboardInterrupt  # Python drops it in callbacks of libraries; `pending` repeats it

    def _pass_on(self, number: int = signal.SIGHUP, frame: FrameType | None = None) -> None:
        """Asks JAX's runtime to stop all processes of the run."""
        del number, frame
        if not self._passed_on:
            self._passed_on = True
            os.kill(os.getpid(), signal.SIGTERM)

    def pending(self) -> bool:
        """Returns whether to stop now; once true, it stays true.

        All processes of a run must call it equally often.

        Raises:
            KeyboardInterrupt: if this process of several got SIGINT, and has not ended since.
        """
        if jax.process_count() == 1:
            return self._signal is not None or lost_output() is not None
        if self._signal == signal.SIGINT:
            raise KeyboardInterrupt
        if lost_output() is not None:
            self._pass_on()
        self._calls += 1
        # The runtime expects consecutive numbers, and returns true for only one of them.
        self._agreed |= multihost_utils.reached_preemption_sync_point(self._calls)
        return self._agreed

    def reason(self) -> str:
        """Returns the name of the signal, or how the output was lost."""
        error = lost_output()
        if self._signal is None and error is not None:
            return f"the loss of its output ({error.strerror})"
        return signal.Signals(self._signal or signal.SIGTERM).name
