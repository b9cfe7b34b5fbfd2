"""Traces of training steps for TensorBoard and Perfetto."""

import pathlib
from typing import Any

import jax

FIRST, LAST = 2, 4  # dispatches that are traced; those before compile and warm up


class StepTrace:
    """Writes what the devices do during a few dispatches of an epoch, once.

    Call `before` and `after` around every dispatch, and `close` when there are no more.
    """

    def __init__(self, directory: pathlib.Path | None):
        """Args:
        directory: gets the trace: for TensorBoard's profile plugin, and as
            `perfetto_trace.json.gz`, which ui.perfetto.dev opens. None writes nothing.
        """
        self._directory = directory
        self._running = False

    def before(self, dispatch: int, state: Any) -> None:
        """Starts the trace where it is time. `state` is waited for, so that nothing of the
        dispatches before is seen."""
        if self._directory is not None and dispatch == FIRST:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._directory), create_perfetto_trace=True)
            self._running = True

    def after(self, dispatch: int, values: Any) -> None:
        """Ends the trace where it is time; `values` are those of the dispatch."""
        if self._running and dispatch == LAST:
            jax.block_until_ready(values)
            self.close()

    def close(self) -> None:
        """Ends the trace if it is still running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
