"""Traces of training steps for TensorBoard and Perfetto."""

import pathlib
from typing import Any, Self

import jax

# Dispatches that are traced; those before compile and warm up. Of fewer, the last one is traced.
FIRST, LAST = 2, 4


class StepTrace:
    """Writes what the devices do during a few dispatches of an epoch, once.

    Call `before` and `after` around every dispatch, inside `with`, whose end ends the trace if it
    is still running.
    """

    def __init__(self, directory: pathlib.Path | None):
        """Args:
        directory: gets the trace: for TensorBoard's profile plugin, and as
            `perfetto_trace.json.gz`, which ui.perfetto.dev opens. None writes nothing.
        """
        self._directory = directory
        self._running = False

    def before(self, dispatch: int, dispatches: int, state: Any) -> None:
        """Starts the trace where it is time, of so many dispatches. `state` is waited for, so that
        nothing of the dispatches before is seen."""
        if self._directory is not None and dispatch == min(FIRST, dispatches - 1):
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._directory), create_perfetto_trace=True)
            self._running = True

    def after(self, dispatch: int, values: Any) -> None:
        """Ends the trace where it is time; `values` are those of the dispatch."""
        if self._running and dispatch == LAST:
            jax.block_until_ready(values)
            self._end()

    def _end(self) -> None:
        if self._running:
            self._running = False
            jax.profiler.stop_trace()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()
