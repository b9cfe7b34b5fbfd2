"""Tests the arguments of sweeps, and real sweeps on Ray Tune whose processes are killed."""

import contextlib
import csv
import json
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import time

import pytest

from mcn_jax.errors import InputError
from mcn_jax.workdirs.checkpoint import saved_steps
from mcn_jax.workdirs.files import locked, read_metrics

ROOT = pathlib.Path(__file__).parents[1]

pytest.importorskip("ray", reason="pip install -r launch/requirements.txt")
sys.path.insert(0, str(ROOT / "launch"))
import sweep  # noqa: E402
from search_space import settings  # noqa: E402
from trial import command_line  # noqa: E402


def test_settings_are_every_point_with_every_draw():
    grids = ["loss.theta=0,1e-4", "model.widths=2,4;4,8"]
    points = settings(grids, [], samples=1)
    assert points == [
        {"loss.theta": theta, "model.widths": widths}
        for theta in ("0", "1e-4")
        for widths in ("2,4", "4,8")
    ]
    assert settings([], [], samples=3) == [{}]
    drawn = settings(grids[:1], ["optimizer.learning_rate=1e-3:1"], samples=20)
    assert len(drawn) == 40
    rates = [float(point["optimizer.learning_rate"]) for point in drawn]
    assert rates[0::2] == rates[1::2]  # the same draws at every point of the grid
    assert 1e-3 <= min(rates) < 1e-2 < max(rates) <= 1
    assert (
        sum(rate < 10**-1.5 for rate in rates) >= 10
    )  # about half of 40, as of a uniform exponent
    assert drawn == settings(grids[:1], ["optimizer.learning_rate=1e-3:1"], samples=20)


def test_folders_of_images_are_a_field_like_others():
    assert settings(["data.root=/a,/b"], [], 1) == [{"data.root": "/a"}, {"data.root": "/b"}]


@pytest.mark.parametrize(
    ("grids", "ranges", "message"),
    [
        (["loss.theta"], [], "'loss.theta' is not of the form FIELD=VALUE,VALUE"),
        (["loss.theta=1,,2"], [], "is not of the form FIELD=VALUE,VALUE"),
        (["loss.tetha=1"], [], "did you mean loss.theta"),
        ([], ["loss.theta=1"], "is not of the form FIELD=LOW:HIGH"),
        ([], ["loss.theta=2:1"], "is not of the form FIELD=LOW:HIGH"),
        ([], ["loss.theta=a:b"], "is not of the form FIELD=LOW:HIGH"),
        ([], ["seed=0:10"], "seed cannot be a field of --random; use --seeds"),
        (["data.pipeline=resident,streamed"], [], "data.pipeline cannot be a field of --grid: it"),
        (
            [],
            ["eval_batch_size=1:9"],
            "eval_batch_size cannot be a field of --random: it changes no",
        ),
        (["loss.theta=1", "loss.theta=2"], [], "loss.theta is a field of two flags"),
        (["loss.theta=1"], ["loss.theta=0:1"], "loss.theta is a field of two flags"),
    ],
)
def test_arguments_that_make_no_sense(grids, ranges, message):
    with pytest.raises(InputError, match=message):
        settings(grids, ranges, samples=1)


@pytest.mark.parametrize("seeds", ["0,00", "1,1", "0,", "-1", "a"])
def test_seeds_are_different_numbers(seeds, tmp_path, capsys):
    config = f"--config={ROOT / 'configs' / 'digits.py'}"
    assert sweep.main([config, f"--out={tmp_path / 'out'}", f"--seeds={seeds}"]) == 1
    message = f"sweep: error: --seeds={seeds} is not of the form 0,1,2, each once\n"
    assert capsys.readouterr().err == message
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path, capsys):
    (tmp_path / "out").write_text("")
    config = f"--config={ROOT / 'configs' / 'digits.py'}"
    for out in ("out", "out/below"):
        assert sweep.main([config, f"--out={tmp_path / out}"]) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith(f"sweep: error: {tmp_path}/out")
        assert line.endswith("or name another place")


def test_samples_are_at_least_one_and_differ():
    with pytest.raises(InputError, match="--samples=0 must be at least 1"):
        settings([], ["loss.theta=0:1"], samples=0)
    assert settings([], ["loss.theta=0.1:0.10001"], samples=3) == [{"loss.theta": "0.1"}]


def test_a_trial_of_a_second_stage_starts_from_its_own_seed():
    config = {
        "config": "configs/digits.py", "out": "runs/sweep", "stage": "then_", "fields": {},
        "flags": [], "starts": {"0": "runs/a", "1": "runs/b"},
    }  # fmt: skip
    assert "--config.init_from=runs/b" in command_line(config | {"seed": 1})
    started = command_line(config | {"seed": 2})
    assert not [flag for flag in started if flag.startswith("--config.init_from")]


def test_the_best_setting_has_all_its_seeds():
    trials = [
        {"setting": setting, "accuracy": accuracy}
        for setting, accuracy in [("a", 0.5), ("b", 0.9), ("a", 0.6), ("b", None), ("c", 0.5)]
    ]
    assert sweep.best_setting(trials) == "a"
    with pytest.raises(InputError, match="no setting has ended with all its seeds"):
        sweep.best_setting(trials[3:4])


def test_a_trial_has_a_gpu_of_its_own_where_there_is_one():
    assert sweep.gpus_per_trial(None, {"CPU": 8.0, "GPU": 2.0}) == 1
    assert sweep.gpus_per_trial(None, {"CPU": 8.0}) == 0
    assert sweep.gpus_per_trial(0.5, {"CPU": 8.0, "GPU": 2.0}) == 0.5
    assert sweep.gpus_per_trial(0, {"CPU": 8.0, "GPU": 2.0}) == 0
    assert sweep.make_parser().parse_args(["--config=a", "--out=b"]).gpus_per_trial is None


@pytest.mark.parametrize(
    ("options", "address"),
    [([], "local"), (["--ray_address=auto"], "auto"), (["--ray_address=head:6379"], "head:6379")],
)
def test_no_cluster_is_joined_unasked(options, address, tmp_path, monkeypatch, capsys):
    asked = []

    def init(address, **_):
        asked.append(address)
        raise ConnectionError("no cluster")

    monkeypatch.setattr(sweep.ray, "init", init)
    arguments = [f"--config={ROOT}/configs/digits.py", f"--out={tmp_path}", *options]
    assert sweep.main(arguments) == 1
    assert asked == [address]
    assert "no cluster" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--out={tmp}/x[1]", "x[1] has a character that Ray Tune takes for a pattern"),
        ("--out=~nobody_such/x", "~nobody_such/x: there is no home directory"),
        ("--config={tmp}/broken.py", "broken.py, line 1: SyntaxError"),
        ("--then_config={tmp}/broken.py", "broken.py, line 1: SyntaxError"),
        ("--config={tmp}/none.py", "none.py does not exist"),
    ],
)
def test_paths_and_configs_are_checked_before_ray_starts(
    option, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(sweep.ray, "init", lambda *_, **__: pytest.fail("Ray starts"))
    (tmp_path / "broken.py").write_text("def get_config(:\n")
    before = sorted(tmp_path.rglob("*"))
    arguments = [f"--config={ROOT}/configs/digits.py", f"--out={tmp_path}/out"]
    assert sweep.main([*arguments, option.format(tmp=tmp_path)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("sweep: error: ")
    assert message in line
    assert sorted(tmp_path.rglob("*")) == before


def test_a_home_directory_is_expanded_in_the_paths_of_a_sweep(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "digits.py").write_text((ROOT / "configs" / "digits.py").read_text())
    started = []
    monkeypatch.setattr(sweep, "_sweep", lambda options: started.append(options) or 0)
    assert sweep.main(["--config=~/digits.py", "--out=~/x"]) == 0
    assert (started[0].config, started[0].out) == (tmp_path / "digits.py", tmp_path / "x")


def test_a_second_stage_goes_on_only_from_where_it_began(tmp_path, monkeypatch, capsys):
    accuracies = {"0": None, "1e-2": 0.5}  # the first trial has failed

    def stage(name, common, points, seeds, options):
        return [
            {
                "fields": point, "setting": str(point), "seed": 0, "workdir": str(point),
                "command": [], "accuracy": accuracy, "state": "ended" if accuracy else "failed",
            }
            for point in points
            for accuracy in [accuracies.get(point.get("loss.theta"), 0.7)]
        ]  # fmt: skip

    monkeypatch.setattr(sweep, "_stage", stage)
    monkeypatch.setattr(sweep.ray, "init", lambda *_, **__: None)
    monkeypatch.setattr(sweep.ray, "cluster_resources", dict)
    monkeypatch.setattr(sweep.report, "main", lambda arguments: 0)
    arguments = [
        f"--config={ROOT}/configs/digits.py", f"--out={tmp_path}", "--grid", "loss.theta=0,1e-2",
        f"--then_config={ROOT}/configs/digits.py", "--then_grid", "loss.center_loss_weight=0,1",
    ]  # fmt: skip
    assert sweep.main(arguments) == 1
    assert sweep.main(arguments) == 1
    assert "the best of the first stage" not in capsys.readouterr().err
    accuracies["0"] = 0.9
    assert sweep.main(arguments) == 1
    assert "the best of the first stage is now {'loss.theta': '0'}" in capsys.readouterr().err
    (tmp_path / "then.json").unlink()
    assert sweep.main(arguments) == 0


@pytest.mark.parametrize("name", ["experiment_state", "basic-variant-state"])
def test_a_record_that_a_killed_driver_left_is_whole_or_not_gone_on_with(name, tmp_path):
    directory = tmp_path / "first"
    assert not sweep.restorable(directory)
    directory.mkdir()
    (directory / "tuner.pkl").write_bytes(pickle.dumps({}))  # it is written first
    assert not sweep.restorable(directory)
    for time_of_day in ("09-00-00", "10-00-00"):
        state = directory / f"experiment_state-2026-01-01_{time_of_day}.json"
        state.write_text(json.dumps({"trial_data": []}))
        points = directory / f"basic-variant-state-2026-01-01_{time_of_day}.json"
        points.write_bytes(pickle.dumps([1, 2]))
    assert sweep.restorable(directory)
    path = {"experiment_state": state, "basic-variant-state": points}[name]
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert not sweep.restorable(directory)
    path.write_bytes(whole)
    assert sweep.restorable(directory)
    points.unlink()
    assert not sweep.restorable(directory)


ENVIRONMENT = {**os.environ, "XLA_FLAGS": "", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def command(data_dir, out, *options, num_epochs):
    return [
        sys.executable, str(ROOT / "launch" / "sweep.py"), "--config=configs/digits.py",
        f"--out={out}", "--grid", "loss.theta=0,1e-2", *options, "--",
        f"--config.data.data_dir={data_dir}", "--config.model.widths=2,4",
        "--config.model.dense_features=32", "--config.model.dropout_rate=0.2",
        "--config.optimizer.learning_rate=0.05", f"--config.num_epochs={num_epochs}",
        "--config.binarize.start_epoch=1", "--config.optimizer.warmup_epochs=1",
    ]  # fmt: skip


def rows_of(out):
    return list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))


@pytest.mark.slow
def test_a_trial_that_fails_is_tried_again_by_the_same_command_alone(data_dir, tmp_path):
    out = tmp_path / "sweep"

    def run():
        return subprocess.run(
            command(data_dir, out, num_epochs=2),
            cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=900,
        )  # fmt: skip

    held = out / "theta=1e-2,seed=0"
    with locked(held):
        first = run()
    assert first.returncode == 1, first.stderr
    assert [row["state"] for row in rows_of(out)] == ["ended", "failed"]
    line = f"sweep: error: {held} failed; see {held}.log; the same command tries it again\n"
    assert line in first.stderr
    log = pathlib.Path(f"{held}.log").read_text()
    assert log.count("is in use by") == 1
    (error,) = (out / "ray" / "first").glob("*theta_1e-2*/error.txt")
    assert "RuntimeError: mcn_jax.main: error: " in error.read_text()

    second = run()
    assert second.returncode == 0, second.stderr
    assert [row["state"] for row in rows_of(out)] == ["ended", "ended"]

    rows = rows_of(out)
    metrics = (held / "metrics.jsonl").read_bytes()
    state = max((out / "ray" / "first").glob("experiment_state-*.json"))
    state.write_text(state.read_text()[:100])
    third = run()
    assert third.returncode == 0, third.stderr
    assert "is incomplete and was renamed to first_damaged_1; the trials resume" in third.stderr
    assert (out / "ray" / "first_damaged_1" / state.name).stat().st_size == 100
    assert rows_of(out) == rows
    assert (held / "metrics.jsonl").read_bytes() == metrics


def kill_session(leader):
    """Kills a driver and its descendants: Ray's workers leave its group, but not its session."""
    deadline = time.monotonic() + 60
    while True:
        leader.poll()  # reaps it if it has ended
        listed = subprocess.check_output(["ps", "-A", "-o", "pid=,stat="], text=True)
        alive = False
        for pid, state in map(str.split, listed.splitlines()):
            with contextlib.suppress(OSError):  # it has ended
                if os.getsid(int(pid)) == leader.pid and not state.startswith("Z"):
                    alive = True
                    os.kill(int(pid), signal.SIGKILL)
        if not alive:
            return
        assert time.monotonic() < deadline, listed
        time.sleep(0.2)


@pytest.fixture
def start(tmp_path):
    """Starts commands with output in tmp_path/output, and kills them at the end of the test."""
    started = []

    def start(arguments):
        with (tmp_path / "output").open("a") as file:
            process = subprocess.Popen(
                arguments, cwd=ROOT, env=ENVIRONMENT, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            kill_session(process)


@pytest.mark.slow
def test_a_sweep_survives_the_death_of_a_trial_and_of_its_driver(data_dir, tmp_path, start):
    out = tmp_path / "sweep"
    output = tmp_path / "output"
    # All trials of a stage run at once on any machine, so a killed trial need not wait for others.
    sweep_command = command(
        data_dir, out, "--seeds=0,1", "--cpus_per_trial=0.25", "--then_config=configs/digits.py",
        "--then_grid", "loss.center_loss_weight=1e-3,1e-2", num_epochs=8,
    )  # fmt: skip

    def wait_for(condition, driver):
        deadline = time.monotonic() + 600
        while not condition():
            assert driver.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.05)

    driver = start(sweep_command)
    first = out / "theta=0,seed=0"
    wait_for(lambda: saved_steps(first / "checkpoints"), driver)  # seven epochs are left
    holder = (first / "lock").read_text()
    os.kill(int(holder.split()[1]), signal.SIGKILL)  # the training process of a trial
    wait_for(lambda: (first / "lock").read_text() != holder, driver)  # resumes in another process
    os.kill(driver.pid, signal.SIGKILL)
    kill_session(driver)
    metrics = first / "metrics.jsonl"
    kept = len(read_metrics(metrics, max(saved_steps(first / "checkpoints"))))
    assert kept > 0
    before = metrics.read_bytes().splitlines()[:kept]

    assert start(sweep_command).wait(timeout=1800) == 0, output.read_text()
    text = output.read_text()
    assert metrics.read_bytes().splitlines()[:kept] == before
    rows = rows_of(out)
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
        [*sweep_command, "--config.seed=9"],
        cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert other.returncode == 1
    assert "holds another sweep" in other.stderr
