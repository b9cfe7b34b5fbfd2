"""The command line as a user sees it: real processes, exit codes and the last line."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[1]


DIGITS = "--config=configs/digits.py"
SHORT = (
    DIGITS, "--config.num_epochs=2", "--config.binarize.start_epoch=1",
    "--config.model.widths=(2,4)", "--config.model.dense_features=16",
)  # fmt: skip
KILLABLE = (*SHORT, "--config.num_epochs=8")


def command(*arguments):
    return [sys.executable, "-m", "mcn_jax.main", *arguments]


def environment(devices=1):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "COLUMNS": "100"}


def run(*arguments, devices=1):
    return subprocess.run(
        command(*arguments),
        cwd=ROOT, env=environment(devices), capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def data_flag(data_dir):
    return f"--config.data.data_dir={data_dir}"


def test_a_run_prints_its_accuracy_and_the_same_command_ends_at_once(data_flag, tmp_path):
    first = run(*SHORT, data_flag, f"--workdir={tmp_path}/run")
    assert first.returncode == 0, first.stderr
    assert re.search(r"test accuracy +│ \d+\.\d\d%, last epoch", first.stdout)
    assert re.search(r"filters +│ 360 bits, 11,520 as float32", first.stdout)
    assert len(re.findall(r"^epoch +\d/2", first.stdout, re.MULTILINE)) == 2
    again = run(*SHORT, data_flag, f"--workdir={tmp_path}/run")
    assert again.returncode == 0
    assert "epoch   1/2" not in again.stdout
    assert first.stdout.splitlines()[-6:] == again.stdout.splitlines()[-6:]


@pytest.mark.parametrize(
    ("arguments", "devices", "message"),
    [
        (
            [DIGITS, "--config.loss.tetha=1"], 1,
            "unknown field config.loss.tetha; did you mean loss.theta?",
        ),
        ([DIGITS, "--config.loss.theta=-1"], 1, "config.loss.theta=-1.0 must not be negative"),
        (
            [DIGITS, "--config.batch_size=100"], 8,
            "config.batch_size=100 is not divisible by the 8 devices; the nearest sizes that are:"
            " 96 and 104",
        ),
        (
            ["--config=configs/mnist.py", "--config.data.archive_dir={tmp}"], 1,
            "archive directory {tmp} has no train-images-idx3-ubyte.gz",
        ),
        (["--config=configs/digts.py"], 1, "config file configs/digts.py does not exist"),
        (["--config={tmp}/../misspelt.py"], 1, "widht"),
        ([DIGITS, "--config.seed=one"], 1, "--config.seed=one"),
        ([DIGITS, "--wrkdir=x"], 1, "wrkdir"),
        ([DIGITS, "extra"], 1, "unexpected argument 'extra'"),
        ([], 1, "no config given"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_a_non_zero_exit(tmp_path, arguments, devices, message):
    (tmp_path.parent / "misspelt.py").write_text(
        "from mcn_jax.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.model.widht = (1,)\n"
        "    return config\n"
    )
    arguments = [a.format(tmp=tmp_path) for a in arguments]
    data_flag = [] if not arguments else [f"--config.data.data_dir={tmp_path}/data"]
    result = run(*arguments, *data_flag, f"--workdir={tmp_path}/run", devices=devices)
    assert result.returncode not in (0, -signal.SIGSEGV)
    assert "Traceback" not in result.stderr
    last_line = result.stderr.strip().splitlines()[-1]
    assert last_line.startswith("mcn_jax: error: ")
    assert message.format(tmp=tmp_path) in last_line
    assert not (tmp_path / "run").exists()
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_help_names_the_flags():
    result = run("--help")
    assert "--config" in result.stdout
    assert "--workdir" in result.stdout
    assert "configs/digits.py" in result.stdout


@pytest.mark.slow
def test_a_killed_process_ends_where_the_uninterrupted_one_ends(data_flag, tmp_path):
    whole = run(*KILLABLE, data_flag, f"--workdir={tmp_path}/whole")
    assert whole.returncode == 0, whole.stderr
    arguments = (*KILLABLE, data_flag, f"--workdir={tmp_path}/killed")
    process = subprocess.Popen(
        command(*arguments),
        cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    metrics = tmp_path / "killed" / "metrics.jsonl"
    while not metrics.exists() or metrics.read_text().count('"epoch"') < 4:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
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
