"""Runs one trial of a sweep as a training process, and reports its epochs to Ray Tune."""

import contextlib
import ctypes
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from typing import Any

from ray import tune

from mcn_jax.errors import InputError
from mcn_jax.workdirs.files import of_kind, read_metrics, read_result

METRIC = "test_accuracy"
POLL_SECONDS = 0.5
RESTARTS = 5  # of one trial, before the sweep gives up on it


class Training(tune.Trainable):
    """One trial: a training process whose epochs are reported to Tune.

    `config` holds "fields" {FIELD: value}, "seed" and the values that all trials of a stage share.
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Starts the process, which resumes where an earlier one stopped."""
        self.workdir = pathlib.Path(config["out"]) / trial_name(config)
        self.workdir.parent.mkdir(parents=True, exist_ok=True)
        self.told = 0
        self.failed = False
        command = command_line(config)
        self.log = self.workdir.with_suffix(self.workdir.suffix + ".log")
        # Without these variables a trial is a separate run, even if srun or a TPU pod started Ray.
        environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("SLURM_STEP_NUM_TASKS", "TPU_WORKER_HOSTNAMES")
        }
        with self.log.open("a") as file:
            self.process = subprocess.Popen(
                command, cwd=config["cwd"], env=environment, stdout=file, stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL, preexec_fn=_end_with_parent,
            )  # fmt: skip

    def step(self) -> dict[str, Any]:
        """Waits for the next epoch; raises RuntimeError if the process fails."""
        while True:
            code = self.process.poll()
            epochs = self._epochs()
            if len(epochs) > self.told:
                self.told += 1
                return _report(epochs[self.told - 1])
            if code == 0 and epochs:
                return _report(epochs[-1]) | {"done": True}
            if code == 1 and not self.failed:
                self.failed = True
                return {METRIC: 0.0, "epoch": self.told, "failed": True}  # for NoRestart
            if code == 1:
                said = self.log.read_text(errors="replace").strip().splitlines()
                raise RuntimeError(said[-1] if said else "the training process ended with code 1")
            if code is not None:
                raise RuntimeError(f"the training process ended with code {code}; see its log")
            time.sleep(POLL_SECONDS)

    def _epochs(self) -> list[dict[str, Any]]:
        with contextlib.suppress(InputError):  # the process may be writing the file
            return of_kind(read_metrics(self.workdir / "metrics.jsonl"), "epoch")
        return []

    def cleanup(self) -> None:
        """Asks the process to save and end; kills it after 60 seconds."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                self.process.kill()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Does nothing, because the training process writes its own checkpoints."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Does nothing, because the training process resumes by itself."""


class NoRestart(tune.Callback):
    """Ends a trial after an error of its training process, which a restart would only repeat.

    Tune restarts trials after any error. So this callback uses up the restarts of a trial before
    the trial raises such an error.
    """

    def on_trial_result(self, *, trial: Any, result: dict[str, Any], **_: Any) -> None:
        """Uses up the restarts; Tune calls it between the "failed" result and the error."""
        if result.get("failed"):
            trial.run_metadata.num_failures = RESTARTS


def _report(epoch: dict[str, Any]) -> dict[str, Any]:
    return {METRIC: epoch[METRIC], "epoch": epoch["epoch"] + 1}


def _end_with_parent() -> None:
    """Runs in the child: makes it end when its trial is killed (Linux only)."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def trial_name(config: dict[str, Any]) -> str:
    """Returns the name of a trial's directory, such as "theta=1e-4,seed=0"."""
    parts = [f"{name.split('.')[-1]}={value}" for name, value in config["fields"].items()]
    parts.append(f"seed={config['seed']}")
    return config["stage"] + re.sub(r"[^\w.=,+-]", "_", ",".join(parts))


def command_line(config: dict[str, Any]) -> list[str]:
    """Returns the command of a trial."""
    fields = {**config["fields"], "seed": config["seed"]}
    start = config["starts"].get(str(config["seed"]))
    return [
        sys.executable, "-m", "mcn_jax.main", f"--config={config['config']}",
        f"--workdir={pathlib.Path(config['out']) / trial_name(config)}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
        *([f"--config.init_from={start}"] if start else []),
        *config["flags"],
    ]  # fmt: skip


def describe(config: dict[str, Any], *, failed: bool) -> dict[str, Any]:
    """Returns what is known about a trial; sweep.csv has most of it."""
    workdir = pathlib.Path(config["out"]) / trial_name(config)
    result = read_result(workdir)
    state = "failed" if failed else "ended" if result else "stopped early"
    fields = config["fields"]
    return {
        "fields": fields,
        "setting": " ".join(f"{name}={value}" for name, value in fields.items()),
        "seed": config["seed"],
        "state": state,
        "accuracy": result["final_test_accuracy"] if result else None,
        "workdir": str(workdir),
        "command": command_line(config),
    }
