"""launch/sweep.py: what its arguments mean, and a real sweep on Ray Tune whose parts are killed."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from mcn_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[1]

pytest.importorskip("ray", reason="pip install -r launch/requirements.txt")
sys.path.insert(0, str(ROOT / "launch"))
import sweep  # noqa: E402


def test_settings_are_every_point_with_every_draw():
    grids = ["loss.theta=0,1e-4", "model.widths=2,4;4,8"]
    points = sweep.settings(grids, [], samples=1)
    assert points == [
        {"loss.theta": theta, "model.widths": widths}
        for theta in ("0", "1e-4")
        for widths in ("2,4", "4,8")
    ]
    assert sweep.settings([], [], samples=3) == [{}]
    drawn = sweep.settings(grids[:1], ["optimizer.learning_rate=1e-3:1"], samples=20)
    assert len(drawn) == 40
    rates = [float(point["optimizer.learning_rate"]) for point in drawn]
    assert rates[0::2] == rates[1::2]  # the same draws at every point of the grid
    assert 1e-3 <= min(rates) < 1e-2 < max(rates) <= 1
    assert drawn == sweep.settings(grids[:1], ["optimizer.learning_rate=1e-3:1"], samples=20)


@pytest.mark.parametrize(
    ("grids", "ranges", "message"),
    [
        (["loss.theta"], [], "'loss.theta' is not of the form FIELD=VALUE,VALUE"),
        (["loss.theta=1,,2"], [], "is not of the form FIELD=VALUE,VALUE"),
        (["loss.tetha=1"], [], "did you mean loss.theta"),
        ([], ["loss.theta=1"], "is not of the form FIELD=LOW:HIGH"),
        ([], ["loss.theta=2:1"], "is not of the form FIELD=LOW:HIGH"),
        ([], ["loss.theta=a:b"], "is not of the form FIELD=LOW:HIGH"),
    ],
)
def test_arguments_that_make_no_sense(grids, ranges, message):
    with pytest.raises(InputError, match=message):
        sweep.settings(grids, ranges, samples=1)


def test_the_best_setting_has_all_its_seeds():
    trials = [
        {"setting": setting, "accuracy": accuracy}
        for setting, accuracy in [("a", 0.5), ("b", 0.9), ("a", 0.6), ("b", None), ("c", 0.5)]
    ]
    assert sweep.best_setting(trials) == "a"
    with pytest.raises(InputError, match="no setting has ended with all its seeds"):
        sweep.best_setting(trials[3:4])


def command(data_dir, out):
    return [
        sys.executable, str(ROOT / "launch" / "sweep.py"), "--config=configs/digits.py",
        f"--out={out}", "--grid", "loss.theta=0,1e-2", "--seeds=0,1",
        "--then_config=configs/digits.py", "--then_grid", "loss.center_loss_weight=1e-3,1e-2", "--",
        f"--config.data.data_dir={data_dir}", "--config.model.widths=2,4",
        "--config.model.dense_features=32", "--config.model.dropout_rate=0.2",
        "--config.optimizer.learning_rate=0.05", "--config.num_epochs=3",
        "--config.binarize.start_epoch=1", "--config.optimizer.warmup_epochs=1",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_sweep_survives_the_death_of_a_trial_and_of_its_driver(data_dir, tmp_path):
    out = tmp_path / "sweep"
    environment = {**os.environ, "XLA_FLAGS": "", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    output = tmp_path / "output"

    def start():
        with output.open("a") as file:
            return subprocess.Popen(
                command(data_dir, out), cwd=ROOT, env=environment, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip

    def wait_for(condition, driver):
        deadline = time.monotonic() + 400
        while not condition():
            assert driver.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.2)

    driver = start()
    first = out / "theta=0,seed=0"
    wait_for((first / "metrics.jsonl").exists, driver)
    holder = (first / "lock").read_text()
    os.kill(int(holder.split()[1]), signal.SIGKILL)  # the training process of a trial
    wait_for(lambda: (first / "lock").read_text() != holder, driver)  # goes on in another process
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    subprocess.run(["pkill", "-KILL", "-f", str(out)], check=False)
    subprocess.run([sys.executable, "-m", "ray.scripts.scripts", "stop", "--force"],
                   capture_output=True, check=False)  # fmt: skip
    before = (first / "metrics.jsonl").read_bytes()

    assert start().wait(timeout=900) == 0, output.read_text()
    text = output.read_text()
    assert (first / "metrics.jsonl").read_bytes().startswith(before.rpartition(b"\n")[0])
    rows = list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))
    assert len(rows) == 8
    assert {row["state"] for row in rows} == {"ended"}
    assert {row["loss.theta"] for row in rows} == {"0", "1e-2", ""}
    accuracies = {}
    for row in rows:
        result = json.loads((pathlib.Path(row["workdir"]) / "result.json").read_text())
        assert float(row["final_test_accuracy"]) == result["final_test_accuracy"]
        accuracies.setdefault(row["loss.theta"], []).append(result["final_test_accuracy"])
        config = json.loads((pathlib.Path(row["workdir"]) / "config.json").read_text())["config"]
        assert str(config["seed"]) == row["seed"]
    best = max(("0", "1e-2"), key=lambda theta: sum(accuracies[theta]))
    assert max(sum(values) for values in accuracies.values()) > 1  # they have learned something
    assert f"best of stage 1: loss.theta={best}\n" in text
    for row in rows:
        if row["loss.theta"] == "":
            config = json.loads((pathlib.Path(row["workdir"]) / "config.json").read_text())
            start_of = pathlib.Path(config["init_from"]["workdir"]).name
            assert start_of == f"theta={best},seed={row['seed']}"
    for name in ("report.md", "theta.png", "lambda.png"):
        assert (out / "report" / name).stat().st_size > 0

    other = subprocess.run(
        [*command(data_dir, out), "--config.seed=9"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert other.returncode == 1
    assert "holds another sweep" in other.stderr
