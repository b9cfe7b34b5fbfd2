"""What a run tells: metrics.jsonl, TensorBoard events and the terminal."""

import contextlib
import json
import os
import pathlib
import time
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
from mcn_jax.workdirs.files import cut_metrics


class NoWriter:
    """Takes records and forgets them: of the processes of a run that do not write."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def write(self, record: dict[str, Any]) -> None:
        """See `MetricsWriter`."""

    def seconds_at(self, step: int) -> float:
        """Unknown here, and in no record."""
        del step
        return 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


class MetricsWriter:
    """Appends records to metrics.jsonl and writes their numbers as TensorBoard events.

    Records after the step that a run resumes from are dropped first, so that no step stands twice.
    """

    def __init__(self, workdir: pathlib.Path, step: int):
        """Args:
        workdir: of the run.
        step: that the run starts or resumes from.
        """
        path = workdir / "metrics.jsonl"
        self._path = path
        self.records = cut_metrics(path, step)
        self._file = path.open("a")
        (workdir / "tensorboard").mkdir(exist_ok=True)
        # Not by a SummaryWriter, whose thread dies of a full disk and leaves its callers waiting.
        self._events = EventsWriter(str(workdir / "tensorboard" / "events"))
        start = SessionLog(status=SessionLog.START)  # of which viewers drop what came after it
        self._events.write_event(Event(wall_time=time.time(), step=step + 1, session_log=start))

    def write(self, record: dict[str, Any]) -> None:
        """Writes one record through to the disk. It has "kind" and "step" besides its values.

        Raises:
            OSError: if it cannot be written.
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
                f"{self._path} and its events in tensorboard/ cannot be written:"
                f" {first_line(error)}; make room, then the same command resumes from the last"
                " checkpoint"
            ) from error

    def seconds_at(self, step: int) -> float:
        """How long the run had taken at the end of the epoch that ended at a step.

        Raises:
            InputError: if metrics.jsonl has lost it.
        """
        epochs = epochs_of(self.records)
        if not epochs or epochs[-1]["step"] != step:
            raise InputError(
                f"{self._path} has no record of the epoch that ended at step {step}, which the last"
                " checkpoint stands after; restore the file, or use another --workdir"
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
    """Of this process: one of the processes of a run writes.

    Args:
        workdir: of the run.
        step: that the run starts or resumes from.
    """
    return MetricsWriter(workdir, step) if parallel.is_primary() else NoWriter()


def epochs_of(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of whole epochs."""
    return [record for record in records if record["kind"] == "epoch"]


class ProgressBar:
    """A bar on a terminal; elsewhere one plain line an epoch."""

    def __init__(self, num_epochs: int, steps_per_epoch: int, steps_done: int, *, quiet: bool):
        """Args:
        num_epochs: of the whole run.
        steps_per_epoch: training steps.
        steps_done: before this process began.
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
        """One training step is done."""
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
    """The end of a run as a small table."""
    title = rich.markup.escape(f"result of {workdir}")
    table = rich.table.Table(show_header=False, title=title, title_justify="left")
    table.add_row("test accuracy", f"{result['final_test_accuracy']:.2%}, last epoch")
    table.add_row("", f"{result['best_test_accuracy']:.2%}, best epoch")
    table.add_row("test images", f"{result['test_examples']:,}")
    names = result["class_names"]
    shown = rich.markup.escape(", ".join(names[:10])) + (", ..." if len(names) > 10 else "")
    table.add_row("classes", f"{len(names)}: {shown}")
    table.add_row(
        "filters",
        f"{result['filter_bits']:,} bits, {result['float32_filter_bits']:,} as float32",
    )
    table.add_row("time", f"{result['wall_seconds']:,.0f} s")
    rich.console.Console(highlight=False, emoji=False).print(table)
