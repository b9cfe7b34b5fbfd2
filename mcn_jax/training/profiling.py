"""Records traces of training steps for TensorBoard and Perfetto."""

import pathlib
from typing import Any, Self

import jax

# First and last dispatch of an epoch to trace, from 0. Earlier ones compile and warm up. If an
# epoch is too short, its last dispatch is traced.
FIRST, LAST = 2, 4


class StepTrace:
    """Records what the devices do during a few dispatches of an epoch.

    Use it as a context manager, and call `before` and `after` around every dispatch. Leaving the
    context ends a trace that is still running.
    """

    def __init__(self, directory: pathlib.Path | None):
        """Prepares a trace.

        Args:
            directory: where the trace is written, for TensorBoard's profile plugin and as
                `perfetto_trace.json.gz` for ui.perfetto.dev. None writes nothing.
        """
        self._directory = directory
        self._running = False

    def before(self, dispatch: int, dispatches: int, state: Any) -> None:
        """Starts the trace if this dispatch is the first to be traced.

        Args:
            dispatch: number of this dispatch in the epoch, from 0.
            dispatches: number of dispatches in the epoch.
            state: result of the dispatch before. It is awaited, so the trace shows nothing older.
        """
        if self._directory is not None and dispatch == min(FIRST, dispatches - 1):
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._directory), create_perfetto_trace=True)
            self._running = True

    def after(self, dispatch: int, values: Any) -> None:
        """Ends the trace if this dispatch is the last to be traced.

        Args:
            dispatch: number of this dispatch in the epoch, from 0.
            values: results of this dispatch, which are awaited before the trace ends.
        """
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
