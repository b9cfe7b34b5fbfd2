"""Runs the processes of a stage, and stops them in time."""

import contextlib
import functools
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

import parcels
import plans
from delivery import epochs_done, has_ended, last_checkpoint, records_of
from source import ROOT

from mcn_jax.training.stopping import EXIT_CODE
from mcn_jax.workdirs.files import read_json

STOP_SECONDS = 10.0  # before the end of the budget, the runs are asked to stop
MEMORY_SHARE = 0.8  # of the device's memory that runs may take; the rest is for their contexts
KILL_SECONDS = 12.0  # after that, they are killed
REHEARSAL_SECONDS = 20.0  # a tiny run does not start with less time
FINISH_SECONDS = 15.0  # measurements begin nothing new in the last seconds before they must stop


# Returns arguments of Python, or None as long as the process must not start.
Command = Callable[[], list[str] | None]


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
        self,
        directory: pathlib.Path,
        data: pathlib.Path,
        log: IO[str],
        clock: Clock,
        plan: plans.Plan,
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

    def measure(self, measurements: Sequence[plans.Measurement], *, again: bool) -> None:
        """Runs measurements side by side; they take turns on the device.

        Args:
            measurements: those to run.
            again: whether to repeat those that have a record, which is kept.
        """
        until = time.time() + self.clock.left() - FINISH_SECONDS
        commands: dict[str, Command] = {}
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
                command = [
                    str(ROOT / "benchmarks" / "gpu.py"), *one.arguments,
                    *(one.tiny if self.plan.rehearse else ()), f"--until={until}",
                    f"--turns={turns}", f"--turn={turn}",
                    f"--out={self.directory / name}{one.suffix}",
                ]  # fmt: skip
                commands[one.name] = functools.partial(list, command)
            # A process that fails before it takes its turn must not hold up the others.
            self._run(commands, self.clock.left(), lambda name: turn_of[name].touch())

    def train(self, trainings: Sequence[Sequence[plans.Training]], at_once: int = 0) -> None:
        """Trains groups of runs, one after the other, until the time is over.

        Each group gets a share of the time. If time is left afterwards, groups that were stopped
        get it in turn.

        Args:
            trainings: the groups.
            at_once: number of runs of a group that train at the same time; 0 for all.
        """
        rounds = 2
        for again in range(rounds):
            groups = [group for group in map(self._unfinished, trainings) if group]
            while groups and not self.clock.stopped:
                estimates = [self._seconds_left(group) for group in groups]
                share = 1.0 if again else estimates[0] / sum(estimates)
                group = groups.pop(0)
                least = max(map(self._least, group))
                seconds = self.clock.left() * share
                if seconds >= least:
                    self._train(group, seconds, at_once or len(group))
                elif not again:
                    names = ", ".join(run.name for run in group)
                    self.notes.append(
                        f"{names}: {seconds:.0f} s are left, but to start takes {least:.0f} s"
                    )
        for run in (run for group in trainings for run in group):
            self._write_large_model(self.directory / run.name)

    def _unfinished(self, group: Sequence[plans.Training]) -> list[plans.Training]:
        return [
            run
            for run in group
            if run.name not in self.failures and not has_ended(self.directory / run.name)
        ]

    def _seconds_left(self, group: Sequence[plans.Training]) -> float:
        epochs = [
            max(0, self._epochs(run) - len(epochs_done(self.directory / run.name))) for run in group
        ]
        return plans.group_seconds(group, epochs)

    def _epochs(self, run: plans.Training) -> int:
        return run.epochs_of(self.plan.epochs, rehearse=self.plan.rehearse)

    def _least(self, run: plans.Training) -> float:
        """Returns the seconds without which a run is not started."""
        return REHEARSAL_SECONDS if self.plan.rehearse else run.start_seconds

    def _train(self, group: Sequence[plans.Training], seconds: float, at_once: int) -> None:
        end = time.time() + seconds
        commands = {run.name: functools.partial(self._command, run, end) for run in group}
        share = f"{MEMORY_SHARE / at_once:.3f}"
        left = self._run(commands, seconds, at_once=at_once, XLA_PYTHON_CLIENT_MEM_FRACTION=share)
        if left:
            self.notes.append(f"not started: {', '.join(left)}")

    def _command(self, run: plans.Training, end: float) -> list[str] | None:
        """Returns the command of a run, if what it needs has ended and the time is long enough."""
        trials = {name: self.directory / name for name in run.choices}
        needed = list(trials.values())
        if run.teacher:
            needed.append(self.directory / run.teacher)
            if last_checkpoint(needed[-1]) is None:
                return None
        if end - time.time() < self._least(run) or not all(map(has_ended, needed)):
            return None
        fields = run.all_fields(self.plan.epochs, rehearse=self.plan.rehearse)
        if trials:
            accuracy = {
                name: read_json(workdir / "result.json")["final_test_accuracy"]
                for name, workdir in trials.items()
            }
            fields |= run.choices[max(accuracy, key=accuracy.__getitem__)]
        if run.teacher:
            fields["loss.teacher"] = self.directory / run.teacher
        return [
            "-m", "mcn_jax.main", f"--config={ROOT / 'configs' / run.config}.py",
            f"--workdir={self.directory / run.name}", f"--config.data.data_dir={self.data}",
            *(f"--config.{name}={_flag(value)}" for name, value in fields.items()),
        ]  # fmt: skip

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
        name = f"model file of {workdir.name}"
        self._run({name: lambda: command}, self.clock.left(), JAX_PLATFORMS="cpu")

    def _run(
        self,
        commands: Mapping[str, Command],
        seconds: float,
        ended: Callable[[str], None] | None = None,
        *,
        at_once: int = 0,
        **environment: str,
    ) -> list[str]:
        """Runs processes side by side for a time; then they are asked to stop, and killed.

        Args:
            commands: {name: command}, in the order in which they start.
            seconds: the time.
            ended: called with the name of each process that has ended.
            at_once: number of processes that run at the same time; 0 for all.
            environment: variables that are added to the environment.

        Returns:
            The names of processes that were not started.
        """
        environment = {
            **os.environ,
            **environment,
            "PYTHONUNBUFFERED": "1",
            "JAX_COMPILATION_CACHE_DIR": str(self.directory.parent / "jax_cache"),
        }
        end = time.time() + seconds
        waiting = dict(commands)
        running: dict[str, subprocess.Popen[bytes]] = {}
        asked: float | None = None
        try:
            while True:
                now = time.time()
                if asked is None and (now > end or self.clock.stopped):
                    asked = now
                    print(f"{', '.join(running)}: asked to save and stop", flush=True)
                    for process in running.values():
                        process.terminate()
                if asked is not None and now > asked + KILL_SECONDS:
                    for process in running.values():
                        process.kill()
                for name in [name for name, one in running.items() if one.poll() is not None]:
                    if ended is not None:
                        ended(name)
                    self._note_end(name, running.pop(name).returncode, asked is not None)
                if asked is None:
                    self._start(waiting, running, at_once or len(commands), environment)
                if not running:
                    return list(waiting)
                time.sleep(0.1)
        finally:
            for process in running.values():
                if process.poll() is None:
                    process.kill()
                    process.wait()

    def _start(
        self,
        waiting: dict[str, Command],
        running: dict[str, subprocess.Popen[bytes]],
        at_once: int,
        environment: Mapping[str, str],
    ) -> None:
        """Moves processes from those that wait to those that run, as far as there is room."""
        for name in list(waiting):
            if len(running) == at_once:
                break
            command = waiting[name]()
            if command is None:
                continue
            del waiting[name]
            self.log.write(f"\n==== {name}: python {' '.join(command)}\n")
            self.log.flush()
            running[name] = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=environment,
                stdout=self.log, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def _note_end(self, name: str, code: int, was_asked: bool) -> None:
        """Notes how a process has ended, unless it has ended as it should."""
        # A signal to the whole group reaches the processes as well.
        was_asked = was_asked or self.clock.stopped
        if code == -signal.SIGKILL and was_asked:
            self.notes.append(f"{name} was killed, because it did not stop in time")
        elif code and not (
            was_asked and code in (EXIT_CODE, -signal.SIGTERM, -signal.SIGINT, 130, 143)
        ):
            self.failures.append(name)
            errors = [line for line in self.printed() if "rror: " in line]
            reason = f": {errors[-1]}" if errors else "; see the log"
            self.notes.append(f"{name} failed with code {code}{reason}")


def _flag(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
