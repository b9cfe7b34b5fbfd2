"""Kills runs at random moments and counts what they lose: `python benchmarks/faults.py`.

A small MCN on digits trains once without a break. Then the same run is killed again and again, at
seeded random moments (starting, training, writing checkpoints), and started again each time, with
SIGKILL and with SIGTERM. It must end bit for bit where the unbroken run ends: every leaf of the
state, every record but its times. Then each of two processes of one run is killed in turn: the
other must end by itself.
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
STARTING = 0.2  # share of the moments that are counted from the start of the process
PORT = 23456
MOST_SECONDS = 60  # from the loss of one of two processes to the end of the other


class Run:
    """A run of one or two processes, with two CPU devices each if there are two."""

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
        """Lines of metrics.jsonl."""
        path = self.workdir / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def wait_for_training(self) -> None:
        """Returns after the next record."""
        before = self.records()
        while self.records() <= before and self.processes[0].poll() is None:
            time.sleep(0.01)

    def ends(self) -> list[int]:
        """Exit codes of all processes."""
        return [process.wait(timeout=600) for process in self.processes]


def state(workdir: pathlib.Path) -> dict[str, Any]:
    """Digests of every leaf of the last state."""
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    digests = checkpoints.digests(checkpoints.steps()[-1])
    checkpoints.close()
    return digests


def records_without_times(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says."""
    records = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def kill_again_and_again(
    number: signal.Signals, kills: int, workdir: pathlib.Path, data_dir: pathlib.Path, epochs: int
) -> dict[str, Any]:
    """Kills and restarts a run, lets it end, and counts."""
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
        sys.exit(f"after {kills} kills by {number.name} the run could not go on")
    return {
        "signal": number.name, "kills": kills, "exit_codes": codes,
        "left_a_checkpoint_half_written": half_written,
        "resumed_inside_an_epoch": resumed_inside,
    }  # fmt: skip


def lose_one_of_two(
    lost: int, workdir: pathlib.Path, data_dir: pathlib.Path, epochs: int
) -> dict[str, Any]:
    """Kills one of two processes; how the other one ends."""
    run = Run(workdir, data_dir, epochs, processes=2)
    run.wait_for_training()
    time.sleep(1)
    run.processes[lost].kill()
    start = time.perf_counter()
    codes = run.ends()
    return {"lost": lost, "code_of_the_other": codes[1 - lost],
            "seconds": time.perf_counter() - start}  # fmt: skip


def main() -> None:
    """Runs everything, prints a table and writes results/benchmarks/faults.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=25, help="with each signal")
    parser.add_argument("--epochs", type=int, default=25, help="of the run that is killed")
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
        if accuracy < 0.5:  # a network that has stopped to learn would end anywhere the same
            sys.exit(f"the unbroken run reached only {accuracy:.2%}")
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
        sys.exit("something was lost")


if __name__ == "__main__":
    main()
