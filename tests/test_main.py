"""Tests the command line as a user sees it: real processes, exit codes and the last line."""

import functools
import gzip
import importlib.util
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import processes
from mcn_jax.__main__ import COMMANDS
from mcn_jax.config import from_config_dict
from mcn_jax.data.mnist import FILES
from mcn_jax.layers import binary_filters
from mcn_jax.workdirs.checkpoint import Checkpoints, saved_steps
from small_runs import restored, step_arguments

ROOT = pathlib.Path(__file__).parents[1]


DIGITS = "--config=configs/digits.py"
SMALL = (
    DIGITS, "--config.binarize.start_epoch=1", "--config.model.widths=(2,4)",
    "--config.model.dense_features=16",
)  # fmt: skip
SHORT = (*SMALL, "--config.num_epochs=2")
KILLABLE = (*SMALL, "--config.num_epochs=8")


run = functools.partial(processes.run, "mcn_jax.main")


@pytest.fixture
def data_flag(data_dir):
    return f"--config.data.data_dir={data_dir}"


@pytest.mark.slow
def test_a_run_prints_its_accuracy_and_the_same_command_ends_at_once(data_flag, tmp_path):
    first = run(*SHORT, data_flag, f"--workdir={tmp_path}/run")
    assert first.returncode == 0, first.stderr
    assert re.search(r"^devices: \d+ cpu$", first.stdout, re.MULTILINE)
    assert re.search(r"^MCconv on this CPU: (native kernel|XLA forms)", first.stdout, re.MULTILINE)
    assert re.search(r"test accuracy +│ \d+\.\d\d%, last epoch", first.stdout)
    assert re.search(r"filters +│ 360 bits, 11,520 as float32", first.stdout)
    assert len(re.findall(r"^epoch +\d/2", first.stdout, re.MULTILINE)) == 2
    pictures = [tmp_path / "run" / name for name in ("curves.png", "health.png")]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    pictures[0].unlink()  # as if the first command had been killed before it drew
    again = run(*SHORT, data_flag, f"--workdir={tmp_path}/run")
    assert again.returncode == 0
    assert "epoch   1/2" not in again.stdout
    assert all(path.exists() for path in pictures)
    assert first.stdout.splitlines()[-6:] == again.stdout.splitlines()[-6:]


@pytest.mark.parametrize(
    ("arguments", "devices", "message"),
    [
        (
            [DIGITS, "--config.loss.tetha=1"], 1,
            "unknown field config.loss.tetha; did you mean loss.theta?",
        ),
        ([DIGITS, "-config.loss.tetha=1"], 1, "did you mean loss.theta?"),
        ([DIGITS, "--noconfig.binarize.enabeld"], 1, "did you mean binarize.enabled?"),
        ([DIGITS, "--config.seed=1", "-config.seed=2"], 1, "--config.seed is given twice"),
        ([DIGITS, "--config.num_epochs=1000000000"], 1, "the most epochs of"),
        (
            [DIGITS, "--config.optimizer.warmup_epochs=1000000000"], 1,
            "config.optimizer.warmup_epochs=1000000000 exceeds",
        ),
        ([DIGITS, "--config.loss.theta=-1"], 1, "config.loss.theta=-1.0 must not be negative"),
        (
            [DIGITS, "--config.batch_size=100"], 8,
            "config.batch_size=100 is not divisible by the 8 devices; the nearest valid sizes:"
            " 96 and 104",
        ),
        (
            ["--config=configs/mnist.py", "--config.data.archive_dir={tmp}"], 1,
            "archive directory {tmp} has no train-images-idx3-ubyte.gz",
        ),
        (["--config=configs/digts.py"], 1, "config file configs/digts.py does not exist"),
        (["--config", "configs/digts.py"], 1, "config file configs/digts.py does not exist"),
        (["--config={tmp}/../misspelt.py"], 1, "widht"),
        (["--config={tmp}/../wrong_type.py"], 1, "int"),
        ([DIGITS, "--config.model.widths=(2,4)", "--config.model.widths=(3,)"], 1, "given twice"),
        ([DIGITS, "--config.model.input_planes=rgbx"], 1, "needs 3 channels and planes=4"),
        ([DIGITS, "--config.model.widths=(2,2,2,2,2,2)"], 1, "too many layers for images of 32"),
        ([DIGITS, "--config.binarize.num_centers=200"], 1, "exceeds the 180 weights"),
        ([DIGITS, "--config.seed=4294967296"], 1, "config.seed=4294967296 must be below 2^32"),
        ([DIGITS, "--config.seed=one"], 1, "--config.seed=one"),
        ([DIGITS, "--wrkdir=x"], 1, "wrkdir"),
        ([DIGITS, "extra"], 1, "unexpected argument 'extra'"),
        ([], 1, "no config given"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_a_non_zero_exit(tmp_path, arguments, devices, message):
    for name, line in (
        ("misspelt", "config.model.widht = (1,)"),
        ("wrong_type", "config.seed = 'a'"),
    ):
        (tmp_path.parent / f"{name}.py").write_text(
            "from mcn_jax.config import default_config\n"
            f"def get_config():\n    config = default_config()\n    {line}\n    return config\n"
        )
    arguments = [a.format(tmp=tmp_path) for a in arguments]
    data_flag = [] if not arguments else [f"--config.data.data_dir={tmp_path}/data"]
    result = run(*arguments, *data_flag, f"--workdir={tmp_path}/run", devices=devices)
    assert result.returncode not in (0, -signal.SIGSEGV)
    assert "Traceback" not in result.stderr
    [line] = result.stderr.strip().splitlines()
    assert line.startswith("mcn_jax.main: error: ")
    assert message.format(tmp=tmp_path) in line
    assert not (tmp_path / "run").exists()
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_truncated_archive_is_one_line(tmp_path):
    for name, _, _ in FILES.values():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(b"x" * 1000)[:-9])
    result = run(
        "--config=configs/mnist.py", f"--config.data.archive_dir={tmp_path}",
        f"--config.data.data_dir={tmp_path}/data", f"--workdir={tmp_path}/run",
    )  # fmt: skip
    assert result.returncode == 1
    [line] = result.stderr.strip().splitlines()
    assert line.startswith(
        f"mcn_jax.main: error: {tmp_path}/train-images-idx3-ubyte.gz is truncated"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_workdir_of_another_architecture_is_one_line(data_flag, tmp_path):
    workdir = tmp_path / "run"
    assert run(*SHORT, data_flag, f"--workdir={workdir}").returncode == 0
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    result = run(*SHORT, "--config.model.planes=2", data_flag, f"--workdir={workdir}")
    assert result.returncode == 1
    [line] = result.stderr.strip().splitlines()
    assert "was written with config.model.planes=4, this run has 2; use another --workdir" in line
    assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_digits_reach_98_percent_with_four_binary_layers(data_flag, tmp_path):
    result = run(DIGITS, data_flag, f"--workdir={tmp_path}/run")
    assert result.returncode == 0, result.stderr
    accuracy = json.loads((tmp_path / "run" / "result.json").read_text())["final_test_accuracy"]
    assert accuracy >= 0.98
    config = from_config_dict(json.loads((tmp_path / "run" / "config.json").read_text())["config"])
    template, _ = step_arguments(config, quantized=True, image_size=32)
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    state = restored(checkpoints, checkpoints.steps()[-1], template)
    checkpoints.close()
    filters = binary_filters(state.params, state.layer_state["centers"])
    assert sorted(filters) == ["conv_1", "conv_2", "conv_3", "conv_4"]
    assert all(len(np.unique(values)) == 2 for values in filters.values())


def test_help_names_the_flags_and_the_commands():
    command = [sys.executable, "-m", "mcn_jax.main", "--help"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    for named in ("--config", "--workdir", "configs/digits.py"):
        assert named in text
    listed = processes.run("mcn_jax").stdout
    for name in COMMANDS:
        assert f"python -m mcn_jax.{name} " in listed
        assert importlib.util.find_spec(f"mcn_jax.{name}") is not None
    wrong = processes.run("mcn_jax", "predict")
    assert wrong.returncode == 2
    assert "run python -m mcn_jax.predict" in wrong.stderr


@pytest.mark.slow
def test_a_killed_process_ends_where_the_uninterrupted_one_ends(data_flag, tmp_path):
    whole = run(*KILLABLE, data_flag, f"--workdir={tmp_path}/whole")
    assert whole.returncode == 0, whole.stderr
    arguments = (*KILLABLE, data_flag, f"--workdir={tmp_path}/killed")
    process = subprocess.Popen(
        [sys.executable, "-m", "mcn_jax.main", *arguments],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
    )  # fmt: skip
    checkpoints, deadline = tmp_path / "killed" / "checkpoints", time.monotonic() + 300
    try:
        while not saved_steps(checkpoints):
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    resumed = run(*arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after epoch" in resumed.stdout
    last = [
        [line.rsplit("  ", 1)[0] for line in out.splitlines() if line.startswith("epoch")][-1]
        for out in (whole.stdout, resumed.stdout)
    ]
    assert last[0] == last[1]
