"""Kills runs at random moments and checks what they lose: `python benchmarks/faults.py`.

First, a small MCN trains on digits without interruption. Then the same run is killed many times,
with SIGKILL and with SIGTERM, and restarted each time. The kills come at seeded random moments:
while the run starts, trains or writes checkpoints. The run must end with the same bits as the first
one, in every leaf of the state and in every record except for times.

Finally, one of the two processes of a run is killed, first the one and then the other. The process
that is left must end by itself.
"""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import rich.console
import rich.table
from measure import ROOT, add_out, write

from mcn_jax.training.stopping import EXIT_CODE
from mcn_jax.workdirs.checkpoint import Checkpoints
from mcn_jax.workdirs.files import read_metrics

FLAGS = (
    "--config=configs/digits.py", "--config.model.widths=(2,4)",
    "--config.model.dense_features=32", "--config.model.dropout_rate=0.2",
    "--config.binarize.start_epoch=4", "--config.batch_size=32",
    "--config.optimizer.learning_rate=0.05", "--config.optimizer.warmup_epochs=1",
    "--config.log_every_steps=10", "--config.checkpoint_every_steps=15",
)  # fmt: skip
TIMES = ("wall_seconds", "images_per_second")
STARTING = 0.2  # share of the kills that are timed from the start of the process
PORT = 23456
MOST_SECONDS = 60  # allowed from the loss of one process to the end of the other


class Run:
    """A run of one process with one CPU device, or of two processes with two CPU devices each."""

    def __init__(self, workdir: pathlib.Path, data_dir: pathlib.Path, epochs: int, processes: int):
        self.workdir = workdir
        devices = f"--xla_force_host_platform_device_count={processes}"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": devices}
        self.processes = []
        for index in range(processes):
            place = [
                f"--coordinator_address=127.0.0.1:{PORT}", f"--num_processes={processes}",
                f"--process_id={index}",
            ]  # fmt: skip
            command = [
                sys.executable, "-m", "mcn_jax.main", *FLAGS, f"--workdir={workdir}",
                f"--config.data.data_dir={data_dir}", f"--config.num_epochs={epochs}",
                *(place if processes > 1 else []),
            ]  # fmt: skip
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            self.processes.append(process)

    def records(self) -> int:
        """Returns the number of lines of metrics.jsonl."""
        path = self.workdir / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def wait_for_training(self) -> None:
        """Waits for the next record, or for the end of the first process."""
        before = self.records()
        while self.records() <= before and self.processes[0].poll() is None:
            time.sleep(0.01)

    def ends(self) -> list[int]:
        """Waits for all processes and returns their exit codes."""
        return [process.wait(timeout=600) for process in self.processes]


def state(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns the digests of all leaves of the last state."""
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    digests = checkpoints.digests(checkpoints.steps()[-1])
    checkpoints.close()
    return digests


def records_without_times(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the records of metrics.jsonl without their times."""
    records = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def kill_again_and_again(
    number: signal.Signals, kills: int, workdir: pathlib.Path, data_dir: pathlib.Path, epochs: int
) -> dict[str, Any]:
    """Kills and restarts a run many times, lets it finish, and returns the counts."""
    generator = np.random.default_rng(0)
    codes: dict[str, int] = {}
    half_written = resumed_inside = 0
    for _ in range(kills):
        run = Run(workdir, data_dir, epochs, processes=1)
        if generator.random() < STARTING:
            time.sleep(generator.uniform(0, 10))
        else:
            run.wait_for_training()
            time.sleep(generator.uniform(0, 1))
        run.processes[0].send_signal(number)
        [code] = run.ends()
        codes[str(code)] = codes.get(str(code), 0) + 1
        places = list((workdir / "checkpoints").glob("*"))
        half_written += any(not path.name.isdigit() for path in places)
        steps = [int(path.name) for path in places if path.name.isdigit()]
        resumed_inside += bool(steps) and max(steps) % 44 != 0
    run = Run(workdir, data_dir, epochs, processes=1)
    [code] = run.ends()
    if code:
        sys.exit(f"after {kills} kills by {number.name} the run could not resume")
    return {
        "signal": number.name, "kills": kills, "exit_codes": codes,
        "left_a_checkpoint_half_written": half_written,
        "resumed_inside_an_epoch": resumed_inside,
    }  # fmt: skip


def lose_one_of_two(
    lost: int, workdir: pathlib.Path, data_dir: pathlib.Path, epochs: int
) -> dict[str, Any]:
    """Kills one of two processes and returns how the other one ends."""
    run = Run(workdir, data_dir, epochs, processes=2)
    run.wait_for_training()
    time.sleep(1)
    run.processes[lost].kill()
    start = time.perf_counter()
    codes = run.ends()
    return {"lost": lost, "code_of_the_other": codes[1 - lost],
            "seconds": time.perf_counter() - start}  # fmt: skip


def main() -> None:
    """Runs everything, prints a table and writes a record to --out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=25, help="number of kills with each signal")
    parser.add_argument("--epochs", type=int, default=25, help="length of the killed run")
    add_out(parser, "faults.json")
    options = parser.parse_args()
    console = rich.console.Console(width=120, highlight=False)
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory)
        data = root / "data"
        [code] = Run(root / "whole", data, options.epochs, processes=1).ends()
        if code:
            sys.exit("the unbroken run failed")
        expected_state = state(root / "whole")
        expected_records = records_without_times(root / "whole")
        accuracy = expected_records[-1]["test_accuracy"]
        if accuracy < 0.5:  # without learning, the comparison of the final states shows nothing
            sys.exit(f"the unbroken run reached an accuracy of only {accuracy:.2%}")
        killed = []
        for number in (signal.SIGKILL, signal.SIGTERM):
            workdir = root / number.name
            record = kill_again_and_again(number, options.kills, workdir, data, options.epochs)
            record["same_state"] = state(workdir) == expected_state
            record["same_records"] = records_without_times(workdir) == expected_records
            killed.append(record)
            console.print(record)
        two = [lose_one_of_two(i % 2, root / "two", data, 10**4) for i in range(4)]
        console.print(two)
    table = rich.table.Table("signal", "kills", "exit codes", "checkpoint half written", "same end")
    for record in killed:
        codes = ", ".join(f"{code}: {count}" for code, count in record["exit_codes"].items())
        same = record["same_state"] and record["same_records"]
        half = record["left_a_checkpoint_half_written"]
        table.add_row(record["signal"], str(record["kills"]), codes, str(half), str(same))
    console.print(table)
    write(options.out, {"accuracy": accuracy, "runs": killed, "two_processes": two})
    if any(record["code_of_the_other"] in (0, EXIT_CODE) for record in two):
        sys.exit("a process ended as if it had not lost the other")
    if max(record["seconds"] for record in two) > MOST_SECONDS:
        sys.exit(f"a process took more than {MOST_SECONDS} seconds to see that the other was lost")
    if not all(record["same_state"] and record["same_records"] for record in killed):
        sys.exit("a killed run ended with another state or other records than the unbroken run")


if __name__ == "__main__":
    main()
