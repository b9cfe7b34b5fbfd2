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
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any

import parcels
import stages
from delivery import epochs_done, has_ended, last_checkpoint, records_of
from source import ROOT

from mcn_jax.training.stopping import EXIT_CODE

STOP_SECONDS = 10.0  # before the end of the budget, the runs are asked to stop
KILL_SECONDS = 12.0  # after that, they are killed
REHEARSAL_SECONDS = 20.0  # a tiny run does not start with less time
FINISH_SECONDS = 15.0  # measurements begin nothing new in the last seconds before they must stop


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
    """Starts the processes of a stage and stops them in time.

    Attributes:
        failures: names of the processes that ended with an error.
        notes: a line for each process that did not end as it should.
    """

    def __init__(
        self, directory: pathlib.Path, data: pathlib.Path, log: IO[str], clock: Clock, plan: Plan
    ):
        self.directory = directory
        self.data = data
        self.log = log
        self.clock = clock
        self.plan = plan
        self.failures: list[str] = []
        self.notes: list[str] = []
        self._log_start = log.tell()

    def printed(self) -> list[str]:
        """Returns the lines that the processes have printed since this runner was made."""
        content = pathlib.Path(self.log.name).read_bytes()[self._log_start :]
        return content.decode(errors="replace").splitlines()

    def measure(self, measurements: Sequence[stages.Measurement], *, again: bool) -> None:
        """Runs measurements side by side; they take turns on the device.

        Args:
            measurements: those to run.
            again: whether to repeat those that have a record, which is kept.
        """
        until = time.time() + self.clock.left() - FINISH_SECONDS
        commands = {}
        with tempfile.TemporaryDirectory() as directory:
            turns = pathlib.Path(directory)
            turn_of: dict[str, pathlib.Path] = {}
            for one in measurements:
                found = records_of(one, self.directory)
                if found and not again:
                    continue
                name = f"{one.name}_again_{int(time.time())}" if found else one.name
                turn = len(commands)
                turn_of[one.name] = turns / str(turn)
                commands[one.name] = [
                    str(ROOT / "benchmarks" / "gpu.py"), *one.arguments,
                    *(one.tiny if self.plan.rehearse else ()), f"--until={until}",
                    f"--turns={turns}", f"--turn={turn}",
                    f"--out={self.directory / name}{one.suffix}",
                ]  # fmt: skip
            # A process that fails before it takes its turn must not hold up the others.
            self._run(commands, self.clock.left(), lambda name: turn_of[name].touch())

    def train(self, trainings: Sequence[Sequence[stages.Training]]) -> None:
        """Trains groups of runs, one after the other, until the time is over.

        Each group gets a share of the time. If time is left afterwards, groups that were stopped
        get it in turn.
        """
        rounds = 2
        for again in range(rounds):
            groups = [group for group in map(self._unfinished, trainings) if group]
            while groups and not self.clock.stopped:
                estimates = [self._seconds_left(group) for group in groups]
                share = 1.0 if again else estimates[0] / sum(estimates)
                group = groups.pop(0)
                least = max(run.start_seconds for run in group)
                if self.plan.rehearse:
                    least = REHEARSAL_SECONDS
                seconds = self.clock.left() * share
                if seconds >= least:
                    self._train(group, seconds)
                elif not again:
                    names = ", ".join(run.name for run in group)
                    self.notes.append(
                        f"{names}: {seconds:.0f} s are left, but to start takes {least:.0f} s"
                    )
        for run in (run for group in trainings for run in group):
            self._write_large_model(self.directory / run.name)

    def _unfinished(self, group: Sequence[stages.Training]) -> list[stages.Training]:
        return [
            run
            for run in group
            if run.name not in self.failures and not has_ended(self.directory / run.name)
        ]

    def _seconds_left(self, group: Sequence[stages.Training]) -> float:
        done = [len(epochs_done(self.directory / run.name)) for run in group]
        return stages.group_seconds(group, [self.plan.epochs - epochs for epochs in done])

    def _train(self, group: Sequence[stages.Training], seconds: float) -> None:
        commands = {}
        for run in group:
            fields = run.all_fields(self.plan.epochs, rehearse=self.plan.rehearse)
            commands[run.name] = [
                "-m", "mcn_jax.main", f"--config={ROOT / 'configs' / run.config}.py",
                f"--workdir={self.directory / run.name}", f"--config.data.data_dir={self.data}",
                *(f"--config.{name}={_flag(value)}" for name, value in fields.items()),
            ]  # fmt: skip
        share = f"{0.9 / len(group):.2f}"
        self._run(commands, seconds, XLA_PYTHON_CLIENT_MEM_FRACTION=share)

    def _write_large_model(self, workdir: pathlib.Path) -> None:
        """Writes the model file of an ended run whose checkpoint is too large to be returned."""
        checkpoint, file = last_checkpoint(workdir), workdir / "model.safetensors"
        if (
            checkpoint is None
            or not has_ended(workdir)
            or file.exists()
            or parcels.tarred_bytes(checkpoint) < parcels.PIECES * parcels.PIECE_BYTES
        ):
            return
        command = [str(ROOT / "launch" / "accelerator" / "model_file.py"), str(workdir), str(file)]
        self._run(
            {f"model file of {workdir.name}": command}, self.clock.left(), JAX_PLATFORMS="cpu"
        )

    def _run(
        self,
        commands: dict[str, list[str]],
        seconds: float,
        ended: Callable[[str], None] | None = None,
        **environment: str,
    ) -> None:
        """Runs processes side by side for a time; then they are asked to stop, and killed."""
        environment = {
            **os.environ,
            **environment,
            "PYTHONUNBUFFERED": "1",
            "JAX_COMPILATION_CACHE_DIR": str(self.directory.parent / "jax_cache"),
        }
        processes: dict[str, subprocess.Popen[bytes]] = {}
        try:
            for name, command in commands.items():
                self.log.write(f"\n==== {name}: python {' '.join(command)}\n")
                self.log.flush()
                processes[name] = subprocess.Popen(
                    [sys.executable, *command], cwd=ROOT, env=environment,
                    stdout=self.log, stderr=subprocess.STDOUT,
                )  # fmt: skip
            self._await(processes, time.time() + seconds, ended)
        finally:
            for process in processes.values():
                if process.poll() is None:
                    process.kill()
                    process.wait()

    def _await(
        self,
        processes: dict[str, subprocess.Popen[bytes]],
        end: float,
        ended: Callable[[str], None] | None,
    ) -> None:
        asked: float | None = None
        running = dict(processes)
        while running:
            now = time.time()
            if asked is None and (now > end or self.clock.stopped):
                asked = now
                print(f"{', '.join(running)}: asked to save and stop", flush=True)
                for process in running.values():
                    process.terminate()
            if asked is not None and now > asked + KILL_SECONDS:
                for process in running.values():
                    process.kill()
            for name in [name for name, process in running.items() if process.poll() is not None]:
                if ended is not None:
                    ended(name)
                code = running.pop(name).returncode
                # A signal to the whole group reaches the processes as well.
                was_asked = asked is not None or self.clock.stopped
                if code == -signal.SIGKILL and was_asked:
                    self.notes.append(f"{name} was killed, because it did not stop in time")
                elif code and not (
                    was_asked and code in (EXIT_CODE, -signal.SIGTERM, -signal.SIGINT, 130, 143)
                ):
                    self.failures.append(name)
                    errors = [line for line in self.printed() if "rror: " in line]
                    reason = f": {errors[-1]}" if errors else "; see the log"
                    self.notes.append(f"{name} failed with code {code}{reason}")
            time.sleep(0.1)


def _flag(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
