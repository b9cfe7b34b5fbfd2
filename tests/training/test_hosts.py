"""Tests runs of several real processes on the loopback network."""

import contextlib
import faulthandler
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from mcn_jax.config import from_config_dict
from mcn_jax.errors import InputError
from mcn_jax.training import hosts
from mcn_jax.training.stopping import EXIT_CODE, INTERRUPT_SECONDS, StopRequests
from mcn_jax.workdirs.checkpoint import Checkpoints, named_leaves, saved_steps
from mcn_jax.workdirs.files import read_metrics
from small_runs import relative_distance, restored, step_arguments

ROOT = pathlib.Path(__file__).parents[2]
FLAGS = (
    "--config=configs/digits.py", "--config.model.widths=(2,4)",
    "--config.model.dense_features=16",
    "--config.optimizer.warmup_epochs=1", "--config.optimizer.learning_rate=0.05",
)  # fmt: skip
TIMES = ("wall_seconds", "images_per_second")


def free_port():
    """Returns a free port below those for outgoing connections, so no connection can take it."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


STARTED = []


@pytest.fixture(autouse=True)
def leaves_no_process():
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.communicate()


def start(*flags, devices, processes=1, of_process=lambda index: ()):
    """Starts the processes of a run, with `devices` CPU devices each and their own flags."""
    count = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": count, "COLUMNS": "100"}
    address = f"--coordinator_address=127.0.0.1:{free_port()}"
    started = []
    for index in range(processes):
        place = (address, f"--num_processes={processes}", f"--process_id={index}")
        command = [sys.executable, "-m", "mcn_jax.main", *FLAGS, *flags, *of_process(index)]
        process = subprocess.Popen(
            command if processes == 1 else [*command, *place],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        STARTED.append(process)
    return started


def ends(processes):
    """Returns (exit code, standard error) of each process; waits at most fifteen minutes."""
    found = []
    for process in processes:
        _, stderr = process.communicate(timeout=900)
        found.append((process.returncode, stderr))
    return found


def run(*flags, devices, processes=1):
    for code, stderr in ends(start(*flags, devices=devices, processes=processes)):
        assert code == 0, stderr


def last_leaves(workdir):
    config = from_config_dict(json.loads((workdir / "config.json").read_text())["config"])
    with jax.enable_x64("float64" in config.param_dtype):
        template, _ = step_arguments(config, quantized=True, image_size=32)
        checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
        state = restored(checkpoints, checkpoints.steps()[-1], template)
        checkpoints.close()
    return named_leaves(state)


def without_times(workdir):
    records = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def wait_for(condition, process):
    deadline = time.monotonic() + 600
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_two_processes_of_two_devices_equal_one_of_four(data_dir, tmp_path):
    flags = (
        f"--config.data.data_dir={data_dir}", "--config.dtype=float64",
        "--config.param_dtype=float64", "--config.batch_size=140",  # ten steps per epoch
        "--config.num_epochs=1", "--config.binarize.start_epoch=0",
    )  # fmt: skip
    run(*flags, f"--workdir={tmp_path}/two", devices=2, processes=2)
    run(*flags, f"--workdir={tmp_path}/one", devices=4)
    two, one = last_leaves(tmp_path / "two"), last_leaves(tmp_path / "one")
    assert two.keys() == one.keys()
    assert one["step"] == 10
    distances = {name: relative_distance(two[name], one[name]) for name in one}
    assert max(distances.values()) <= 1e-9, distances
    records = [without_times(tmp_path / name)[-1] for name in ("two", "one")]
    assert records[0]["test_examples"] == records[1]["test_examples"] == 360
    assert records[0]["test_loss"] == pytest.approx(records[1]["test_loss"], rel=1e-9)
    assert records[0]["train_loss"] == pytest.approx(records[1]["train_loss"], rel=1e-9)


@pytest.mark.slow
def test_two_processes_take_the_sizes_of_one(data_dir, tmp_path):
    flags = (
        f"--config.data.data_dir={data_dir}", "--config.dtype=float64",
        "--config.param_dtype=float64", "--config.batch_size=140", "--config.num_epochs=1",
        "--config.binarize.start_epoch=0", "--config.model.conv=conv", "--config.model.planes=1",
        "--config.model.head=conv", "--config.model.pooling=diffstride",
        "--config.model.smoothness=2.0", "--config.loss.stride_cost=10.0",
        "--config.stride_update_steps=2",
    )  # fmt: skip
    run(*flags, f"--workdir={tmp_path}/two", devices=1, processes=2)
    run(*flags, f"--workdir={tmp_path}/one", devices=2)
    two, one = without_times(tmp_path / "two"), without_times(tmp_path / "one")
    sizes = [[r for r in records if r["kind"] == "sizes"] for records in (two, one)]
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) >= 2  # they change
    assert two[-1]["train_loss"] == pytest.approx(one[-1]["train_loss"], rel=1e-6)
    assert two[-1]["test_loss"] == pytest.approx(one[-1]["test_loss"], rel=1e-6)


def test_processes_that_would_start_from_different_states_are_refused(data_dir, tmp_path):
    flags = (
        f"--config.data.data_dir={data_dir}", "--config.num_epochs=1",
        "--config.binarize.start_epoch=0",
    )  # fmt: skip
    processes = start(
        *flags, f"--workdir={tmp_path}/run", devices=1, processes=2,
        of_process=lambda index: (f"--config.seed={index}",),
    )  # fmt: skip
    found = ends(processes)
    assert all(code not in (0, EXIT_CODE) for code, _ in found), found
    assert "the processes of this run start from different states" in "".join(e for _, e in found)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_processes_that_are_stopped_or_lost_go_on_where_they_stood(data_dir, tmp_path):
    flags = (
        f"--config.data.data_dir={data_dir}", "--config.batch_size=32", "--config.num_epochs=8",
        "--config.checkpoint_every_steps=20", "--config.log_every_steps=5",
        "--config.binarize.start_epoch=1",
    )  # fmt: skip
    run(*flags, f"--workdir={tmp_path}/whole", devices=2, processes=2)
    workdir = tmp_path / "stopped"
    metrics = workdir / "metrics.jsonl"

    def records():
        return metrics.read_text().count("\n") if metrics.exists() else 0

    for index, number in ((1, signal.SIGTERM), (0, signal.SIGTERM), (1, signal.SIGKILL), (0, 9)):
        processes = start(*flags, f"--workdir={workdir}", devices=2, processes=2)
        seen = records()
        wait_for(lambda seen=seen: records() > seen + 3, processes[0])
        processes[index].send_signal(number)
        sent = time.monotonic()
        found = ends(processes)
        if number == signal.SIGTERM:
            assert [code for code, _ in found] == [EXIT_CODE] * 2, found
            assert all("stopped by SIGTERM after step" in stderr for _, stderr in found)
        else:
            assert found[index][0] == -signal.SIGKILL
            assert found[1 - index][0] not in (0, EXIT_CODE)
            assert time.monotonic() - sent < 60
    last = workdir / "checkpoints" / str(saved_steps(workdir / "checkpoints")[-1])
    digests = last / "digests" / "metadata"
    digests.write_bytes(digests.read_bytes()[:-20])
    run(*flags, f"--workdir={workdir}", devices=2, processes=2)
    assert (workdir / "damaged_checkpoints" / last.name).exists()
    expected = last_leaves(tmp_path / "whole")
    for name, leaf in last_leaves(workdir).items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)
    assert without_times(workdir) == without_times(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_processes_of_one_device_each_end_soon_after_one_of_them(number, data_dir, tmp_path):
    flags = (f"--config.data.data_dir={data_dir}", "--config.num_epochs=1000")
    processes = start(*flags, f"--workdir={tmp_path}/run", devices=1, processes=2)
    wait_for(lambda: saved_steps(tmp_path / "run" / "checkpoints"), processes[0])
    processes[1].send_signal(number)
    sent = time.monotonic()
    (code, stderr), (ended, message) = ends(processes)
    assert time.monotonic() - sent < 60
    assert code not in (0, EXIT_CODE)
    assert "another process is lost" in stderr or code == -signal.SIGABRT, (code, stderr)
    if number == signal.SIGINT:
        assert ended == 1
        late = f"Timeout (0:00:{INTERRUPT_SECONDS})!"  # it waited for the other process
        assert late in message or message.endswith(
            "process 1 ends with the KeyboardInterrupt above\n"
        )
    else:
        assert ended == -signal.SIGKILL


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_drops_ends_one_of_several_processes(monkeypatch):
    class Interrupts:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with StopRequests() as stop:
        thing = Interrupts()
        del thing  # Python drops exceptions of `__del__`
        faulthandler.cancel_dump_traceback_later()
        with pytest.raises(KeyboardInterrupt):
            stop.pending()


def test_an_interrupted_process_that_waits_for_another_one_ends():
    command = [sys.executable, "-c", WAITS_AFTER_AN_INTERRUPT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "waits for its peer" in done.stderr


WAITS_AFTER_AN_INTERRUPT = """
import signal, sys, threading
import jax
from mcn_jax.training import stopping
jax.process_count = lambda: 2
stopping.INTERRUPT_SECONDS = 0.5
try:
    with stopping.StopRequests():
        signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("waits for its peer", file=sys.stderr)
    threading.Event().wait()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second"), [((2, 2), (1, 1)), ((1, 1), (2, 2))])
def test_a_run_goes_on_with_other_processes_and_devices(first, second, data_dir, tmp_path):
    """`first` and `second` are the (devices, processes) of each part of the run."""
    flags = (
        f"--config.data.data_dir={data_dir}", "--config.dtype=float64",
        "--config.param_dtype=float64", "--config.batch_size=140", "--config.num_epochs=2",
        "--config.binarize.start_epoch=1",
    )  # fmt: skip
    changed = f"--workdir={tmp_path}/changed"
    run(*flags, f"--workdir={tmp_path}/whole", devices=first[0], processes=first[1])
    processes = start(*flags, changed, devices=first[0], processes=first[1])
    wait_for((tmp_path / "changed" / "metrics.jsonl").exists, processes[0])  # before the first step
    for process in processes:
        process.send_signal(signal.SIGTERM)
    assert [code for code, _ in ends(processes)] == [EXIT_CODE] * first[1]
    run(*flags, changed, devices=second[0], processes=second[1])
    expected = last_leaves(tmp_path / "whole")
    found = last_leaves(tmp_path / "changed")
    distances = {name: relative_distance(found[name], expected[name]) for name in expected}
    assert max(distances.values()) <= 1e-9, distances


def test_a_port_that_another_run_listens_on_is_refused():
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as JAX does
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(InputError, match=f"{address}: this process cannot listen there"):
            hosts.initialize(address, 2, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("127.0.0.1:1", None, 0), "--num_processes missing; give all of"),
        ((None, 2, None), "--coordinator_address and --process_id missing"),
        (("127.0.0.1:1", 2, 2), "--process_id=2 must be .* below --num_processes=2"),
    ],
)
def test_flags_that_do_not_fit(arguments, message):
    with pytest.raises(InputError, match=message):
        hosts.initialize(*arguments)


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2"}, False),  # inside the batch script itself
        ({"SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"SLURM_JOB_ID": "1", "SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ],
)
def test_what_tells_that_there_are_others(environment, several):
    assert hosts.belongs_to_several(environment) == several
