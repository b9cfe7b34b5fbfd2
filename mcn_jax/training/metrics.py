"""Writes what a run reports: metrics.jsonl, TensorBoard events and terminal output."""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any, Self

import rich.console
import rich.markup
import rich.progress
import rich.table
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mcn_jax import parallel
from mcn_jax.errors import InputError, first_line
from mcn_jax.escapes import shown
from mcn_jax.workdirs.files import cut_metrics, of_kind


class NoWriter:
    """Discards records, in the processes of a run that do not write."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def write(self, record: dict[str, Any]) -> None:
        """Discards a record; see `MetricsWriter.write`."""

    def seconds_at(self, step: int) -> float:
        """Returns 0.0: this process does not know the time, and writes no record of it."""
        del step
        return 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


class MetricsWriter:
    """Appends records to metrics.jsonl and writes their numbers as TensorBoard events.

    When a run resumes, the records after the resumed step are dropped, so no step appears twice.
    """

    def __init__(self, workdir: pathlib.Path, step: int):
        """Opens the files in a work directory.

        Args:
            workdir: the run's work directory.
            step: the step from which the run starts or resumes.
        """
        path = workdir / "metrics.jsonl"
        self._path = path
        self.records = cut_metrics(path, step)
        self._file = path.open("a")
        (workdir / "tensorboard").mkdir(exist_ok=True)
        # Not a SummaryWriter: on a full disk its thread dies, and its callers wait forever.
        self._events = EventsWriter(str(workdir / "tensorboard" / "events"))
        start = SessionLog(status=SessionLog.START)  # viewers drop older events from here on
        self._events.write_event(Event(wall_time=time.time(), step=step + 1, session_log=start))

    def write(self, record: dict[str, Any]) -> None:
        """Writes one record and flushes it to disk.

        Args:
            record: "kind", "step" and the values to write.

        Raises:
            OSError: if the record cannot be written.
        """
        self.records.append(record)
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            for name, value in record.items():
                if name not in ("kind", "step"):
                    scalar = summary.scalar(f"{record['kind']}/{name}", value)
                    event = Event(wall_time=time.time(), step=record["step"], summary=scalar)
                    self._events.write_event(event)
            self._events.flush()
        except OSError as error:
            raise OSError(
                f"{self._path} or the events in tensorboard/ cannot be written:"
                f" {first_line(error)}; make room, then the same command resumes from the last"
                " checkpoint"
            ) from error

    def seconds_at(self, step: int) -> float:
        """Returns the seconds that the run had taken when the epoch up to `step` ended.

        Raises:
            InputError: if metrics.jsonl does not have the record of that epoch.
        """
        epochs = of_kind(self.records, "epoch")
        if not epochs or epochs[-1]["step"] != step:
            raise InputError(
                f"{self._path} has no record of the epoch that ended at step {step}, which resuming"
                " needs; restore the file, or use another --workdir"
            )
        return epochs[-1]["wall_seconds"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):  # `write` has raised it
            self._file.close()
        with contextlib.suppress(OSError):
            self._events.close()


def make_writer(workdir: pathlib.Path, step: int) -> MetricsWriter | NoWriter:
    """Returns the writer of this process; only one process of a run writes.

    Args:
        workdir: the run's work directory.
        step: the step from which the run starts or resumes.
    """
    return MetricsWriter(workdir, step) if parallel.is_primary() else NoWriter()


class ProgressBar:
    """Shows progress: a bar on a terminal, elsewhere one plain line per epoch."""

    def __init__(self, num_epochs: int, steps_per_epoch: int, steps_done: int, *, quiet: bool):
        """Creates a bar; entering it as a context shows it.

        Args:
            num_epochs: epochs of the whole run.
            steps_per_epoch: training steps per epoch.
            steps_done: steps done before this process began.
            quiet: print nothing.
        """
        self._num_epochs = num_epochs
        self._console = rich.console.Console(
            highlight=False, soft_wrap=True, emoji=False, quiet=quiet
        )
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._bar.add_task(
            "training",
            total=num_epochs * steps_per_epoch,
            completed=steps_done,
        )

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        self._console.print(line, markup=False)

    def step(self, epoch: int, loss: float) -> None:
        """Advances the bar by one training step."""
        self._bar.update(
            self._task,
            advance=1,
            description=f"epoch {epoch + 1}/{self._num_epochs}  loss {loss:.4f}",
        )

    def epoch(self, record: dict[str, Any]) -> None:
        """Prints the record of an epoch as one line."""
        flips = f"  flips {record['flip_ratio']:6.2%}" if "flip_ratio" in record else ""
        self.say(
            f"epoch {record['epoch'] + 1:3d}/{self._num_epochs}"
            f"  {'binary' if record['binarized'] else 'float '}"
            f"  train loss {record['train_loss']:.4f} accuracy {record['train_accuracy']:7.2%}"
            f"  test loss {record['test_loss']:.4f} accuracy {record['test_accuracy']:7.2%}"
            f"{flips}"
            f"  {record['images_per_second']:,.0f} images/s"
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()


def print_result(result: dict[str, Any], workdir: pathlib.Path) -> None:
    """Prints the result of a run as a small table.

    Raises:
        InputError: if a value is absent or of another type, as in a damaged result.json.
    """
    title = rich.markup.escape(f"result of {workdir}")
    table = rich.table.Table(show_header=False, title=title, title_justify="left")
    try:
        for name, value in _result_rows(result):
            table.add_row(name, value)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise InputError(
            f"{workdir / 'result.json'} is damaged ({reason}); remove it, and the same command"
            " writes it again"
        ) from error
    rich.console.Console(highlight=False, emoji=False).print(table)


def _result_rows(result: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "test accuracy", f"{result['final_test_accuracy']:.2%}, last epoch"
    yield "", f"{result['best_test_accuracy']:.2%}, best epoch"
    yield "test images", f"{result['test_examples']:,}"
    names = result["class_names"]
    first = rich.markup.escape(", ".join(map(shown, names[:10])))
    yield "classes", f"{len(names)}: {first}{', ...' if len(names) > 10 else ''}"
    bits, float32_bits = result["filter_bits"], result["float32_filter_bits"]
    yield "filters", f"{bits:,} bits, {float32_bits:,} as float32"
    yield "time", f"{result['wall_seconds']:,.0f} s"
