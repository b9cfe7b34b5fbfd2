"""Runs the processes of a stage, and stops them in time."""

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import IO, Any

import parcels
import stages
from delivery import epochs_of, last_checkpoint

from mcn_jax.training.stopping import EXIT_CODE

ROOT = pathlib.Path(__file__).parents[2]
STOP_SECONDS = 10.0  # before the end of the budget, the runs are asked to stop
KILL_SECONDS = 12.0  # after that, they are killed
LEAST_SECONDS = 20.0  # a run does not start with less time
EXPORT_SECONDS = 60.0  # a network is not exported with less time
FINISH_SECONDS = 15.0  # measurements begin nothing new so long before they are stopped


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What a stage keeps when it is resumed.

    Attributes:
        stage: name of the stage.
        epochs: epochs of every run.
        rehearse: whether networks and data are tiny.
    """

    stage: str
    epochs: int
    rehearse: bool


class Clock:
    """The end of the budget, and signals that ask to end before."""

    def __init__(self, end: float):
        self.end = end  # seconds since 1970
        self.stopped = False

    def left(self) -> float:
        """Returns the seconds until the runs must stop."""
        return 0.0 if self.stopped else max(0.0, self.end - STOP_SECONDS - time.time())

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Ends the time at SIGTERM or SIGINT."""
        before = {n: signal.signal(n, self._stop) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, *_: object) -> None:
        self.stopped = True


class Runner:
    """Starts the processes of a stage and stops them in time."""

    def __init__(
        self, directory: pathlib.Path, data: pathlib.Path, log: IO[str], clock: Clock, plan: Plan
    ):
        self.directory = directory
        self.data = data
        self.log = log
        self.clock = clock
        self.plan = plan
        self.failures: dict[str, int] = {}

    def measure(self, measurements: Sequence[stages.Measurement]) -> None:
        """Runs measurements side by side; they take turns on the device."""
        commands = {}
        until = time.time() + self.clock.left() - FINISH_SECONDS
        with tempfile.TemporaryDirectory() as turns:
            for turn, one in enumerate(measurements):
                name = one.name if one.arguments[0] == "layers" else f"{one.name}.json"
                commands[one.name] = [
                    str(ROOT / "benchmarks" / "gpu.py"), *one.arguments,
                    *(one.tiny if self.plan.rehearse else ()), f"--until={until}",
                    f"--turns={turns}", f"--turn={turn}", f"--out={self.directory / name}",
                ]  # fmt: skip
            self._run(commands, self.clock.left())

    def unfinished(self, group: Sequence[stages.Training]) -> list[stages.Training]:
        """Returns the runs of a group that have not ended."""
        return [run for run in group if not (self.directory / run.name / "result.json").exists()]

    def seconds_left(self, group: Sequence[stages.Training]) -> float:
        """Returns the time that the rest of a group's runs should take on an H100."""
        done = (epochs_of(self.directory / run.name) for run in group)
        return sum(
            run.seconds(self.plan.epochs - len(epochs))
            for run, epochs in zip(group, done, strict=True)
        )

    def train(self, group: Sequence[stages.Training], seconds: float) -> None:
        """Trains runs that share the device for a time; their state is saved at its end."""
        if seconds < LEAST_SECONDS:
            return
        commands = {}
        for member in group:
            workdir = self.directory / member.name
            fields = {**member.fields, **stages.schedule_fields(self.plan.epochs)}
            if self.plan.rehearse:
                fields |= stages.TINY
            commands[member.name] = [
                "-m", "mcn_jax.main", f"--config={ROOT / 'configs' / member.config}.py",
                f"--workdir={workdir}", f"--config.data.data_dir={self.data}",
                *(f"--config.{name}={_flag(value)}" for name, value in fields.items()),
            ]  # fmt: skip
        share = f"{0.9 / len(group):.2f}"
        self._run(commands, seconds, XLA_PYTHON_CLIENT_MEM_FRACTION=share)
        for member in group:
            self._export_large(self.directory / member.name)

    def _export_large(self, workdir: pathlib.Path) -> None:
        """Exports a finished network if its checkpoint is too large to be packed."""
        checkpoint = last_checkpoint(workdir)
        if (
            checkpoint is None
            or not (workdir / "result.json").exists()
            or parcels.tarred_bytes(checkpoint) < parcels.PIECES * parcels.PIECE_BYTES
            or self.clock.left() < EXPORT_SECONDS
        ):
            return
        out = workdir.with_name(f"{workdir.name}_export")
        command = ["-m", "mcn_jax.export", str(workdir), str(out), f"--data_dir={self.data}"]
        self._run({f"export of {workdir.name}": command}, self.clock.left())

    def _run(self, commands: dict[str, list[str]], seconds: float, **environment: str) -> None:
        """Runs processes side by side for a time; then they are asked to stop, and killed."""
        environment = {
            **os.environ,
            **environment,
            "PYTHONUNBUFFERED": "1",
            "JAX_COMPILATION_CACHE_DIR": str(self.directory.parent / "jax_cache"),
        }
        processes = {}
        for name, command in commands.items():
            self.log.write(f"\n==== {name}: python {' '.join(command)}\n")
            self.log.flush()
            processes[name] = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=environment,
                stdout=self.log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        end = time.time() + seconds
        asked: float | None = None
        while any(process.poll() is None for process in processes.values()):
            now = time.time()
            if asked is None and (now > end or self.clock.stopped):
                asked = now
                for process in processes.values():
                    process.terminate()
            if asked is not None and now > asked + KILL_SECONDS:
                for process in processes.values():
                    process.kill()
            time.sleep(0.1)
        for name, process in processes.items():
            stopped = asked is not None and process.returncode in (EXIT_CODE, -15, -9, 143, 137)
            if process.returncode and not stopped:
                self.failures[name] = process.returncode


def _flag(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
