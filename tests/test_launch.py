"""Tests launch/local.sh and launch/slurm.sh with short programs in place of training.

Also tests what launch/sweep.py says without Ray.
"""

import os
import pathlib
import re
import shutil
import signal
import stat
import subprocess
import sys
import time

import pytest

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"


def program(path, text):
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def launch(script, *arguments, cwd, **environment):
    read_by_the_scripts = ("PYTHON", "PORT", "GPUS", "MAX_FAULTS")
    inherited = {name: os.environ[name] for name in os.environ.keys() - read_by_the_scripts}
    return subprocess.run(
        [LAUNCH / script, *arguments],
        cwd=cwd, env=inherited | environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def local(tmp_path, of_process):
    """Runs launch/local.sh with processes that run the commands of a dictionary."""
    cases = "\n".join(f"*--process_id={i}) {text};;" for i, text in of_process.items())
    python = program(tmp_path / "python", f'echo "$*"\ncase "$*" in\n{cases}\nesac')
    return launch(
        "local.sh", str(len(of_process)), "--config=x", cwd=tmp_path, PYTHON=python, PORT="12345"
    )


def test_every_process_is_told_its_place(tmp_path):
    result = local(tmp_path, {0: "exit 0", 1: "exit 0"})
    assert result.returncode == 0
    assert result.stderr == ""
    assert sorted(result.stdout.splitlines()) == [
        "-m mcn_jax.main --config=x --coordinator_address=127.0.0.1:12345 --num_processes=2"
        f" --process_id={i}"
        for i in range(2)
    ]


def test_a_port_is_chosen_where_none_is_named(tmp_path):
    python = program(tmp_path / "python", 'echo "$*"')
    lines = [
        line
        for _ in range(3)
        for line in launch("local.sh", "2", cwd=tmp_path, PYTHON=python).stdout.splitlines()
    ]
    ports = [re.search(r"--coordinator_address=127\.0\.0\.1:(\d+) ", line)[1] for line in lines]
    assert all(20_000 <= int(port) < 32_000 for port in ports)
    assert ports[::2] == ports[1::2]
    assert len(set(ports)) > 1  # of three runs


def test_the_environment_of_the_checkout_is_used(tmp_path):
    (tmp_path / "launch").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(LAUNCH / "local.sh", tmp_path / "launch")
    program(tmp_path / ".venv" / "bin" / "python", "echo the one of .venv")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    output = subprocess.check_output([tmp_path / "launch" / "local.sh", "1"], env=environment)
    assert output == b"the one of .venv\n"


# Waits until the other process has ended, and then for a while. Many short sleeps are used, because
# if the machine pauses, only one of them ends early.
AFTERWARDS = "until [ -e ended ]; do sleep 0.1; done; for _ in {1..30}; do sleep 0.1; done;"


@pytest.mark.parametrize(
    ("of_process", "code", "message"),
    [
        ({0: "exit 75", 1: "exit 75"}, 75, "asked to stop and have saved"),
        (
            {0: f"{AFTERWARDS} exit 1", 1: ": > ended; kill -9 $$"},
            137,
            "process 1 was lost first (code 137)",
        ),
        (
            {0: ": > ended; exit 75", 1: f"{AFTERWARDS} exit 3"},
            3,
            "process 1 was lost first (code 3)",
        ),
        # A process is lost before the last one has started.
        (
            {0: ": > ended; kill -9 $$"} | dict.fromkeys(range(1, 20), f"{AFTERWARDS} exit 1"),
            137,
            "process 0 was lost first (code 137)",
        ),
        # All processes abort at once, as when the runtime tells them that another is lost.
        (dict.fromkeys(range(4), "kill -ABRT $$"), 134, "was lost first (code 134)"),
    ],
)
def test_the_last_line_says_how_processes_ended(tmp_path, of_process, code, message):
    start = time.monotonic()
    result = local(tmp_path, of_process)
    assert result.returncode == code
    assert message in result.stderr.splitlines()[-1]
    assert time.monotonic() - start < 45  # no process holds the output open


def test_sigterm_reaches_all_processes(tmp_path):
    python = program(
        tmp_path / "python", "trap 'exit 75' TERM\ntouch started.$$\nwhile true; do sleep 0.1; done"
    )
    launcher = subprocess.Popen(
        [LAUNCH / "local.sh", "2", "--config=x"],
        cwd=tmp_path, env={**os.environ, "PYTHON": python}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("started.*"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    launcher.send_signal(signal.SIGTERM)
    _, stderr = launcher.communicate(timeout=60)
    assert launcher.returncode == 75
    assert "asked to stop and have saved" in stderr


def test_the_number_of_processes_is_needed(tmp_path):
    result = launch("local.sh", "--config=x", cwd=tmp_path)
    assert result.returncode == 2
    assert "the first argument is the number of processes, not '--config=x'" in result.stderr


@pytest.mark.parametrize(
    ("code", "times", "requeued"),
    [(0, 1, 0), (1, 1, 0), (75, 9, 9), (137, 6, 5)],
)
def test_slurm_jobs_are_queued_again_where_that_helps(tmp_path, code, times, requeued):
    program(tmp_path / "srun", f'echo "$*" >> started\nexit {code}')
    program(tmp_path / "scontrol", 'echo "$*" >> requeued')
    path = f"{tmp_path}:{os.environ['PATH']}"
    for _ in range(times):
        result = launch("slurm.sh", "--config=x", cwd=tmp_path, PATH=path, SLURM_JOB_ID="7")
        assert result.returncode == code
    started = (tmp_path / "started").read_text().splitlines()
    assert started == ["python -m mcn_jax.main --config=x"] * times
    file = tmp_path / "requeued"
    assert (file.read_text().splitlines() if file.exists() else []) == ["requeue 7"] * requeued


def test_a_sweep_without_ray_is_one_line(tmp_path):
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError('x', name='ray')")
    result = subprocess.run(
        [sys.executable, LAUNCH / "sweep.py", "--help"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 1
    [line] = result.stderr.strip().splitlines()
    assert line == (
        "sweep: error: a sweep needs the package ray; run python -m pip install -r"
        " launch/requirements.txt"
    )
