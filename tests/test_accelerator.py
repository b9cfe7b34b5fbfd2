"""Tests launch/accelerator.sh: its plans, its clock, and what it delivers."""

import dataclasses
import fnmatch
import functools
import importlib.util
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import time

import delivery
import numpy as np
import parcels
import plans
import pytest
import runner
import small_networks
import source
import stages
from pack import spread

from mcn_jax.config import DataConfig, from_config_dict, load_config_file
from mcn_jax.data import packed
from mcn_jax.data.examples import Examples
from mcn_jax.deploy.model_file import read_model
from mcn_jax.errors import InputError
from mcn_jax.training.checks import validate
from mcn_jax.workdirs.files import of_kind, read_json, read_metrics

ROOT = pathlib.Path(__file__).parents[1]
TRAININGS = {
    f"{name}-{run.name}": (stage, run)
    for name, stage in stages.STAGES.items()
    for group in stage.trainings
    for run in group
}


class RandomImages:
    """A store of random images with CIFAR-10's shape and classes."""

    split_names = ("train", "test")
    full_name = "cifar10/1.0.0"
    class_names = tuple("abcdefghij")
    sizes_differ = False

    def examples(self, config, split):
        count = {"train": 1000, "test": 300}[split]
        generator = np.random.default_rng(count)
        images = generator.integers(0, 256, (count, 32, 32, 3), np.uint8)
        labels = generator.integers(0, 10, count)
        rows = packed._Rows([packed.Split(images, labels.astype(np.int32))])
        return Examples(
            source=rows, encoded=False, path=pathlib.Path(), shape=(32, 32, 3), classes=10,
            config=config,
        )  # fmt: skip


@pytest.fixture(scope="module")
def loads(tmp_path_factory):
    """A directory with one load."""
    directory = tmp_path_factory.mktemp("loads")
    packed.pack(RandomImages(), DataConfig(name="cifar10"), directory / "1" / "data")
    source.write_revision(directory / "1", "0123abc")
    return directory


def run(*arguments, out, **environment):
    """Runs launch/accelerator.sh; returns the result and the seconds it took."""
    command = [ROOT / "launch" / "accelerator.sh", *arguments]
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(out), **environment}
    start = time.monotonic()
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    return result, time.monotonic() - start


@pytest.mark.parametrize(
    "name", [name for name in TRAININGS if name[-6:-1] != "_seed" or name[-1] == "0"]
)
def test_the_configs_of_all_runs_are_valid(name):
    stage, training = TRAININGS[name]
    fitted = (1, 2, plans.fitted_epochs(stage, stage.budget) + 1, 201)
    for epochs in (0,) if training.epochs else fitted:
        for rehearse in (False, True):
            for choice in training.choices.values() or [{}]:
                config = load_config_file(ROOT / "configs" / f"{training.config}.py")
                fields = training.all_fields(epochs, rehearse=rehearse) | choice
                config.update_from_flattened_dict(fields)
                frozen = from_config_dict(config)
                validate(frozen)
            assert frozen.data.name == stage.data
            if not training.epochs:
                assert frozen.num_epochs == epochs
            else:
                assert frozen.num_epochs == (3 if rehearse else training.epochs)
            assert frozen.dtype == ("bfloat16" if stage.fits_budget else "float32")
            assert (frozen.model.widths == plans.TINY["model.widths"]) == (
                rehearse and "model.widths" not in training.tiny
            )


@pytest.mark.parametrize("name", stages.STAGES)
def test_a_plan_fills_its_budget_and_no_more(name):
    stage = stages.STAGES[name]
    for budget in (stage.budget, 900):
        epochs = plans.fitted_epochs(stage, budget)
        if not stage.fits_budget:
            assert epochs == 0
            continue
        assert plans.FEWEST_EPOCHS <= epochs <= plans.MOST_EPOCHS
        assert plans.seconds(stage, epochs) <= 0.95 * budget
        if epochs < plans.MOST_EPOCHS:
            assert plans.seconds(stage, epochs + 1) > 0.95 * budget
        large = [run for run in stage.parts if isinstance(run, plans.Training) and run.is_large]
        training = plans.seconds(stage, epochs) - len(large) * plans.EXPORT_SECONDS
        assert budget - runner.STOP_SECONDS - training > len(large) * plans.EXPORT_SECONDS


def test_the_time_of_the_measured_runs_is_what_they_took():
    """The records are of 70 epochs; they do not count the start of the process, 10 s."""
    (mcn,), (umcn,) = stages.STAGES["c10-20"].trainings
    for training, record in ((mcn, "mcn"), (umcn, "umcn")):
        result = read_json(ROOT / f"results/cifar10_20_70_epochs_{record}/result.json")
        assert plans.group_seconds([training], [70]) - 10 == pytest.approx(
            result["wall_seconds"], rel=0.05
        )


def test_the_first_twentieth_of_the_epochs_has_float_filters():
    fields = [plans.schedule_fields(epochs) for epochs in (1, 2, 3, 70, 200)]
    assert [f["binarize.start_epoch"] for f in fields] == [0, 1, 1, 4, 10]


def small(pattern):
    (runs,) = stages.STAGES["small"].trainings
    return [run for run in runs if fnmatch.fnmatch(run.name, pattern)]


def test_systems_at_equal_bits_differ_only_in_their_layer_and_its_first_epochs():
    systems = small_networks.EQUAL_BITS
    for kind in ("trial", "seed"):
        runs = [run for name in systems for run in small(f"bits_{name}_{kind}?")]
        assert len(runs) == 3 * len(systems)
        for run in runs:
            fields = run.all_fields(0, rehearse=False)
            for field in (
                "model.conv", "model.planes", "model.plane_signs", "binarize.enabled",
                "binarize.start_epoch",
            ):  # fmt: skip
                fields.pop(field, None)
            number = int(run.name[-1])
            own = {"seed": number}
            if kind == "trial":
                own = small_networks.RATES_AT_EQUAL_BITS[number] | small_networks.VALIDATION
            assert fields == {
                "num_epochs": 30 if kind == "seed" else 10, "dtype": "float32",
                "optimizer.schedule": "cosine", "model.head": "linear", **own,
            }  # fmt: skip


def test_all_systems_of_a_comparison_have_the_same_number_of_trials_on_validation_images():
    finals = [run for run in small("*_seed?") if run.choices]
    assert len(finals) == 3 * 9 + 4 + 3 * 9
    for run in finals:
        trials = [trial for name in run.choices for trial in small(name)]
        assert len(trials) == (3 if run.name.startswith("bits_") else 2)
        for trial, choice in zip(trials, run.choices.values(), strict=True):
            fields = {**run.fields, **small_networks.VALIDATION, **choice}
            fields.pop("seed")
            assert trial.fields == fields
            assert trial.epochs == 10


@pytest.mark.parametrize("best", [0, 1, 2])
def test_a_final_run_waits_for_its_trials_and_takes_the_fields_of_the_best(best, tmp_path):
    (run,) = small("bits_irnet_seed1")
    plan = plans.Plan(stage="small", epochs=0, rehearse=False)
    found = runner.Runner(tmp_path, tmp_path / "data", io.StringIO(), None, plan)
    end = time.time() + 100
    for number, name in enumerate(run.choices):
        assert found._command(run, end) is None
        (tmp_path / name).mkdir()
        result = {"final_test_accuracy": 0.6 if number == best else 0.5}
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    command = found._command(run, end)
    assert f"--config.optimizer.learning_rate={[0.1, 0.03, 0.3][best]}" in command
    assert "--config.seed=1" in command
    assert found._command(run, time.time() + run.start_seconds - 1) is None  # too late to start


@pytest.mark.parametrize("option", sorted(small_networks.PLANES_TEACHERS))
def test_a_run_waits_for_its_teacher(option, tmp_path):
    (run,) = small(f"planes_{option}_seed1")
    (teacher,) = small(run.teacher)
    assert teacher.name == f"planes_{small_networks.PLANES_TEACHERS[option]}_seed1"
    assert teacher.fields["binarize.enabled"] is False
    plan = plans.Plan(stage="small", epochs=0, rehearse=False)
    found = runner.Runner(tmp_path, tmp_path / "data", io.StringIO(), None, plan)
    end = time.time() + 100
    assert found._command(run, end) is None
    (tmp_path / teacher.name).mkdir()
    (tmp_path / teacher.name / "result.json").write_text("{}")
    assert found._command(run, end) is None  # its checkpoint did not come along
    (tmp_path / teacher.name / "checkpoints" / "30").mkdir(parents=True)
    command = found._command(run, end)
    assert f"--config.loss.teacher={tmp_path / teacher.name}" in command


def test_runs_of_a_group_start_together_and_share_the_device():
    one = plans.Training(name="a", config="", fields={}, step_seconds=0.1, start_seconds=7)
    other = dataclasses.replace(one, name="b", step_seconds=0.3, start_seconds=5)
    stage = plans.Stage(summary="", budget=1, trainings=((one, other), (other,)))
    epoch = 0.1 * 390 + 0.3 * 390 + 0.3 * 390 + 3 * plans.EPOCH_SECONDS
    assert plans.seconds(stage, 2) == pytest.approx(7 + 5 + 2 * epoch)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a stage; choose one of bench, c10-20"),
        (["c10-2"], "'c10-2' is not a stage; choose one of .*; did you mean c10-20?"),
        (["c10-20", "--budget=-1"], "--budget=-1.0 must be positive and finite"),
        (["c10-20", "--epochs=0"], "--epochs=0 must be positive and finite"),
        (
            ["c10-20", "--only=mcm"],
            "--only=mcm is not a part of c10-20, which has mcn, umcn; did you mean mcn?",
        ),
        (["bench", "--only=layer"], "--only=layer is not a part of bench, .* did you mean layers?"),
        (["c10-20", "--resume=/nowhere"], "--resume=/nowhere is not a directory"),
        (["c10-20", "--resume=~nobody_such/x"], "~nobody_such/x: there is no home directory"),
        (["c10-20", "--resume=."], "--resume=. has no c10-20.tar.1-of-1; pass the directory"),
        (["c10-20"], "c10-20 needs packed/cifar10/dataset.json, which is not in .*/nowhere"),
        (
            ["c10-20", "--budget=60"],
            "--budget=60 is too short for 3 epochs of c10-20, which take",
        ),
        (["small", "--epochs=3"], "--epochs=3: the runs of small have epochs of their own; leave"),
        (["c10-20", "--budget=inf"], "--budget=inf must be positive and finite"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, tmp_path):
    places = [f"--store={tmp_path / 'store'}", "--loads=nowhere"]
    result, _ = run(*arguments, *places, out=tmp_path / "out")
    assert result.returncode == 1
    [line] = result.stderr.strip().splitlines()
    assert re.match(f"launch/accelerator.sh: error: {message}", line), line
    assert list(tmp_path.iterdir()) == []


def test_what_went_wrong_is_printed_however_many_runs_a_stage_has(tmp_path):
    plan = plans.Plan(stage="small", epochs=0, rehearse=False)
    failed = [f"run_{number} failed with code 1" for number in range(30)]
    ended, states, notes = delivery.summary(stages.STAGES["small"], plan, tmp_path, failed, [])
    assert not ended
    assert len(states) == 1 + len(stages.STAGES["small"].parts) > 200
    assert notes == [f"  {line}" for line in failed]
    file = tmp_path / "small.txt"
    lines = delivery.to_print(states, notes, file)
    assert len(lines) == 37
    assert lines[:19] == states[:19]
    assert lines[19] == f"    ({len(states) - 19} more lines in {file})"
    assert lines[20:] == [*notes[:16], f"    (14 more lines in {file})"]
    assert delivery.to_print(states, notes[:2], file)[34:] == [
        f"    ({len(states) - 34} more lines in {file})", *notes[:2]
    ]  # fmt: skip
    assert delivery.to_print(states[:3], notes, file) == states[:3] + notes


def test_the_checkpoint_of_a_teacher_comes_before_those_of_other_ended_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(parcels, "PIECE_BYTES", 50_000)
    store, out = tmp_path / "small", tmp_path / "out"
    out.mkdir()
    teacher, stopped = "planes_umcn_seed0", "planes_usual_seed0"  # of planes_distilled_seed0
    for name in ("bits_irnet_trial0", "planes_circulant_seed0", teacher, stopped):
        random_file(store / name / "checkpoints" / "5" / "state", 80_000)
        (store / name / "config.json").write_text("{}")
        if name != stopped:
            (store / name / "result.json").write_text("{}")
    lines = delivery.deliver(stages.STAGES["small"], store, out)
    names = [re.search(r"the checkpoint of (\S+), which", line)[1] for line in lines]
    assert names == ["bits_irnet_trial0", "planes_circulant_seed0"]
    parcels.unpack(out, "small", tmp_path / "back")
    found = {path.parts[-3] for path in (tmp_path / "back").glob("small/*/checkpoints/5")}
    assert found == {teacher, stopped}


def test_out_is_checked_before_anything_is_trained(loads, tmp_path):
    (tmp_path / "file").touch()
    result, _ = run("c10-20", f"--loads={loads}", f"--store={tmp_path}", out=tmp_path / "file")
    assert result.returncode == 1
    [line] = result.stderr.strip().splitlines()
    assert f"OUT={tmp_path / 'file'} cannot be written (File exists); set another" in line
    assert not (tmp_path / "c10-20").exists()


def test_paths_are_relative_to_the_directory_of_the_caller(loads, tmp_path):
    command = [ROOT / "launch" / "accelerator.sh", "c10-20", "--rehearse", "--budget=15"]
    places = ["--store", "a store", "--loads", os.path.relpath(loads, tmp_path)]
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": "an out"}
    result = subprocess.run(
        [*command, *places], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 75, result.stderr
    assert "mcn: not started" in result.stdout
    assert re.search(r"mcn: \d s are left, but to start takes 20 s", result.stdout)
    assert (tmp_path / "a store" / "data" / "packed" / "cifar10" / "dataset.json").exists()
    assert (tmp_path / "an out" / "c10-20.txt").read_text() in result.stdout


def test_an_interpreter_without_the_packages_is_named(tmp_path):
    command = [ROOT / "launch" / "accelerator.sh", "--list"]
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)}
    (tmp_path / "flax.py").write_text("raise ModuleNotFoundError('x', name='flax')")
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    [line] = result.stderr.strip().splitlines()
    assert f"{sys.executable} has no package flax; set PYTHON to" in line


def test_list_names_all_stages_and_runs(tmp_path):
    result, _ = run("--list", out=tmp_path)
    assert result.returncode == 0
    for name, stage in stages.STAGES.items():
        assert re.search(rf"^{name} +{re.escape(stage.summary)}$", result.stdout, re.MULTILINE)
        for part in stage.parts:
            assert re.search(rf"^ +{part.name}$", result.stdout, re.MULTILINE)


def test_a_stage_ends_delivers_and_is_not_repeated(loads, tmp_path):
    options = ("c10-20", "--rehearse", "--only=umcn", f"--loads={loads}")
    store, out = tmp_path / "store", tmp_path / "out"
    # Without a git repository, the revision is the one that the load names.
    tree = tmp_path / "tree"
    for part in source.PARTS:
        shutil.copytree(ROOT / part, tree / part)
    command = [tree / "launch" / "accelerator.sh", *options, "--epochs=3", f"--store={store}"]
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(out),
                   "GIT_CEILING_DIRECTORIES": str(tmp_path)}  # fmt: skip
    result = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tree)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "umcn: 3 of 3 epochs" in result.stdout
    assert {file.name for file in out.iterdir()} == {
        "c10-20.txt", "c10-20.log", "c10-20.tar.1-of-1",
    }  # fmt: skip
    assert (out / "c10-20.txt").read_text() == result.stdout
    with tarfile.open(out / "c10-20.tar.1-of-1") as tar:
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # since Python 3.11.4
        tar.extractall(tmp_path)
    workdir = tmp_path / "c10-20" / "umcn"
    record = read_json(workdir / "config.json")
    assert record["git_revision"] == "0123abc"
    assert record["config"]["num_epochs"] == 3
    assert record["data"]["train_examples"] == 640  # TINY
    assert (workdir / "result.json").exists()
    assert (workdir / "curves.png").exists()
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == ["30"]

    again, _ = run(*options, f"--store={store}", out=out)
    assert again.returncode == 0
    assert "umcn: 3 of 3 epochs" in again.stdout
    assert (store / "c10-20" / "log.txt").read_text().count("====") == 1  # nothing was started
    wrong, _ = run(*options, "--epochs=4", f"--store={store}", out=out)
    assert wrong.returncode == 1
    assert "began with 3 epochs, not 4; leave out --epochs" in wrong.stderr
    real, _ = run("c10-20", f"--loads={loads}", f"--store={store}", out=out)
    assert real.returncode == 1
    assert "is a rehearsal; add --rehearse, or use another --store" in real.stderr
    # Without its result and its checkpoint, a run starts again, and the summary says so.
    (store / "c10-20" / "umcn" / "result.json").unlink()
    shutil.rmtree(store / "c10-20" / "umcn" / "checkpoints")
    assert delivery.epochs_done(store / "c10-20" / "umcn") == []
    text = delivery.describe_run(store / "c10-20" / "umcn", 3)
    assert text == "has no checkpoint; the same stage starts it again"


@pytest.mark.slow
def test_measurements_take_turns_and_are_delivered(tmp_path):
    result, _ = run(
        "bench", "--rehearse", "--only=pytorch,step_bfloat16", "--budget=900",
        f"--store={tmp_path}", out=tmp_path / "out",
    )  # fmt: skip
    assert "step_bfloat16: step_bfloat16.json" in result.stdout
    for name in ("MCN", "WRN", "U-MCN", "MCN, factored"):
        assert re.search(rf"depth 8 {name}: .* ms per step", result.stdout)
    record = read_json(tmp_path / "bench" / "step_bfloat16.json")
    assert record["dtype"] == "bfloat16"
    assert record["networks"][0]["widths"] == [1, 1, 1, 2]
    with tarfile.open(tmp_path / "out" / "bench.tar.1-of-1") as tar:
        assert "bench/step_bfloat16.json" in tar.getnames()
    if importlib.util.find_spec("torch") is None:
        assert result.returncode == 0
        assert "pytorch is left out, because torch is not installed" in result.stdout


@pytest.mark.slow
def test_the_clock_stops_a_stage_and_another_machine_resumes_it(loads, tmp_path):
    options = ("c10-20", "--rehearse", "--only=umcn", f"--loads={loads}", "--budget=70")
    first, seconds = run(
        *options, "--epochs=5000", f"--store={tmp_path / 'a'}", out=tmp_path / "out"
    )
    assert first.returncode == 75, first.stdout + first.stderr
    assert seconds < 85
    assert "stopped; the same stage resumes it" in first.stdout

    def epochs(store):
        return list(of_kind(read_metrics(store / "c10-20" / "umcn" / "metrics.jsonl"), "epoch"))

    before = epochs(tmp_path / "a")
    assert before
    second, seconds = run(
        *options, f"--store={tmp_path / 'b'}", f"--resume={tmp_path / 'out'}", out=tmp_path / "out2"
    )
    assert second.returncode == 75, second.stdout + second.stderr
    assert seconds < 85
    after = epochs(tmp_path / "b")
    assert after[: len(before)] == before
    assert len(after) > len(before)
    assert "resuming after epoch" in (tmp_path / "out2" / "c10-20.log").read_text()
    # The store has the stage now, so results from elsewhere are not read, and the summary says so.
    third, _ = run(
        *options[:-1], "--budget=1", f"--store={tmp_path / 'b'}", f"--resume={tmp_path / 'out'}",
        out=tmp_path / "out2",
    )  # fmt: skip
    assert f"--resume={tmp_path / 'out'} was not read" in third.stdout
    assert epochs(tmp_path / "b") == after


def test_a_signal_stops_it_like_the_clock(loads, tmp_path):
    command = [
        ROOT / "launch" / "accelerator.sh", "c10-20", "--rehearse", "--only=umcn",
        "--epochs=5000", f"--loads={loads}", f"--store={tmp_path}",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path / "out")}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    metrics = tmp_path / "c10-20" / "umcn" / "metrics.jsonl"
    while not (metrics.exists() and of_kind(read_metrics(metrics), "epoch")):
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    printed, _ = process.communicate()
    assert process.returncode == 75, printed
    assert "stopped; the same stage resumes it" in printed
    assert (tmp_path / "out" / "c10-20.tar.1-of-1").exists()


def run_stage(store, *programs, seconds=600, at_once=0):
    """Runs Python programs as a stage runs its processes; returns the runner."""
    (store / "stage").mkdir(parents=True)
    plan = plans.Plan(stage="c10-20", epochs=4, rehearse=True)
    clock = runner.Clock(time.time() + seconds)
    with (store / "stage" / "log.txt").open("w") as log, clock.listening():
        found = runner.Runner(store / "stage", store / "data", log, clock, plan)
        commands = {str(n): functools.partial(list, ("-c", one)) for n, one in enumerate(programs)}
        found._run(commands, clock.left(), at_once=at_once)
    return found


def test_a_process_that_fails_is_named_and_the_others_end(tmp_path):
    found = run_stage(tmp_path, "import sys; sys.exit(3)", "print(1)", "raise ValueError('x')")
    assert sorted(found.failures) == ["0", "2"]
    assert "0 failed with code 3" in "".join(found.notes)
    assert "2 failed with code 1: ValueError: x" in found.notes


def test_so_many_processes_run_at_once(tmp_path):
    log = tmp_path / "order"
    program = f"""
import os, pathlib, time
path = pathlib.Path({str(log)!r})
with path.open("a") as file: file.write("start\\n")
time.sleep(0.5)
with path.open("a") as file: file.write("end\\n")
"""
    found = run_stage(tmp_path, *[program] * 4, at_once=2)
    assert found.failures == []
    count, most = 0, 0
    for line in log.read_text().split():
        count += 1 if line == "start" else -1
        most = max(most, count)
    assert (count, most) == (0, 2)


def test_a_process_that_does_not_stop_is_killed_in_time_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "STOP_SECONDS", 0.0)
    monkeypatch.setattr(runner, "KILL_SECONDS", 1.0)
    ignores = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    start = time.monotonic()
    found = run_stage(tmp_path, ignores, "import time; time.sleep(600)", seconds=5)
    assert time.monotonic() - start < 60
    assert found.failures == []
    assert found.notes == ["0 was killed, because it did not stop in time"]


def test_a_signal_to_the_whole_group_is_not_a_failure(tmp_path):
    ends = "import os; os.kill(os.getppid(), 15); os.kill(os.getpid(), 15)"
    found = run_stage(tmp_path, ends)
    assert found.clock.stopped
    assert found.failures == []


def test_a_run_with_too_large_a_checkpoint_returns_its_model_file(
    digits_run, tmp_path, monkeypatch
):
    shutil.copytree(digits_run, tmp_path / "stage" / "mcn")
    (run_of_stage,) = stages.STAGES["c10-34"].trainings[0]
    plan = plans.Plan(stage="c10-34", epochs=4, rehearse=True)
    file = tmp_path / "stage" / "mcn" / "model.safetensors"
    with (tmp_path / "log.txt").open("w") as log:
        clock = runner.Clock(time.time() + 600)
        found = runner.Runner(tmp_path / "stage", tmp_path / "data", log, clock, plan)
        found.train([[run_of_stage]])  # it has ended, and its checkpoint is small
        assert not file.exists()
        monkeypatch.setattr(parcels, "PIECE_BYTES", 100)
        found.train([[run_of_stage]])
    assert found.failures == [], (tmp_path / "log.txt").read_text()
    assert read_model(file).class_names == tuple("0123456789")


def test_a_load_of_other_sources_names_no_revision(tmp_path, monkeypatch):
    source.write_revision(tmp_path, "0123abc")
    assert source.revision_in(tmp_path) == "0123abc"
    tree = tmp_path / "tree"
    (tree / "mcn_jax").mkdir(parents=True)
    (tree / "mcn_jax" / "a.py").write_text("a = 1\n")
    monkeypatch.setattr(source, "ROOT", tree)
    assert source.revision_in(tmp_path) is None
    source.write_revision(tmp_path, "4567def")
    assert source.revision_in(tmp_path) == "4567def"
    (tree / "mcn_jax" / "a.py").write_text("a = 2\n")
    assert source.revision_in(tmp_path) is None


def random_file(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.random.default_rng(size).bytes(size))


def test_an_archive_is_cut_into_pieces_and_joined_again(tmp_path, monkeypatch):
    monkeypatch.setattr(parcels, "PIECE_BYTES", 5 * 2**12)
    store, out = tmp_path / "store", tmp_path / "out"
    out.mkdir()
    run_dir = store / "stage" / "run"
    random_file(run_dir / "metrics.jsonl", 1000)
    for step, size in ((1, 500), (2, 30_000), (3, 90_000), (4, 400)):
        random_file(run_dir / "checkpoints" / str(step) / "state" / "x", size)
    wanted = [run_dir / "checkpoints" / str(step) for step in (2, 3, 4)]
    (store / "stage" / "log.txt").write_text("not packed")
    (out / "stage.tar.1-of-4").write_text("old")
    assert parcels.pack(store / "stage", out, wanted) == [wanted[1]]
    pieces = sorted(out.iterdir())
    assert [piece.name for piece in pieces] == [f"stage.tar.{n}-of-3" for n in (1, 2, 3)]
    assert len(pieces) <= parcels.PIECES
    assert max(piece.stat().st_size for piece in pieces) == 5 * 2**12
    back = tmp_path / "back"
    parcels.unpack(out, "stage", back)
    files = {path.relative_to(back) for path in back.rglob("*") if path.is_file()}
    assert {str(file) for file in files} == {
        "stage/run/metrics.jsonl", "stage/run/checkpoints/2/state/x",
        "stage/run/checkpoints/4/state/x",
    }  # fmt: skip
    for file in files:
        assert (back / file).read_bytes() == (store / file).read_bytes()
    with pytest.raises(InputError, match=r"has no other\.tar\.1-of-1"):
        parcels.unpack(out, "other", back)


@pytest.mark.parametrize("function", ["write_bytes", "unlink", "rename"])
@pytest.mark.parametrize("calls", range(4))
def test_pieces_of_two_archives_are_never_joined(function, calls, tmp_path, monkeypatch):
    """Whenever a call is killed that replaces the pieces of an earlier one."""
    monkeypatch.setattr(parcels, "PIECE_BYTES", 2**13)
    file, out = tmp_path / "store" / "stage" / "a", tmp_path / "out"
    out.mkdir()
    random_file(file, 20_000)
    parcels.pack(file.parent, out, [])
    old = file.read_bytes()
    file.write_bytes(old[::-1])
    left, change = calls, getattr(pathlib.Path, function)

    def change_or_end(*arguments):
        nonlocal left
        if (left := left - 1) < 0:
            raise KeyboardInterrupt
        return change(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, function, change_or_end)
        with pytest.raises(KeyboardInterrupt):
            parcels.pack(file.parent, out, [])
    if len([*out.glob("stage.tar.?-of-4")]) == 4:
        parcels.unpack(out, "stage", tmp_path / "back")
        assert (tmp_path / "back" / "stage" / "a").read_bytes() in (old, old[::-1])
    else:
        with pytest.raises(InputError, match="pass the directory with all results"):
            parcels.unpack(out, "stage", tmp_path / "back")
    parcels.pack(file.parent, out, [])
    assert sorted(one.name for one in out.iterdir()) == [
        f"stage.tar.{number}-of-4" for number in (1, 2, 3, 4)
    ]


@pytest.mark.parametrize("damage", ["first", "last", "cut"])
def test_missing_and_damaged_pieces_are_one_line_and_leave_nothing(damage, tmp_path, monkeypatch):
    monkeypatch.setattr(parcels, "PIECE_BYTES", 2**13)
    out = tmp_path / "out"
    out.mkdir()
    random_file(tmp_path / "store" / "stage" / "a", 20_000)
    parcels.pack(tmp_path / "store" / "stage", out, [])
    pieces = sorted(out.iterdir())
    assert len(pieces) == 4
    if damage == "cut":
        for piece in pieces[2:]:
            piece.write_bytes(b"")
        message = "stage.tar.* is damaged"
    else:
        piece = pieces[0 if damage == "first" else -1]
        piece.unlink()
        message = f"has no {piece.name}; pass the directory"
    with pytest.raises(InputError, match=re.escape(message)):
        parcels.unpack(out, "stage", tmp_path / "back")
    assert [*tmp_path.glob("back/*")] == []


def test_results_of_several_stages_share_the_room(tmp_path, monkeypatch):
    monkeypatch.setattr(parcels, "PIECE_BYTES", 1000)
    assert parcels.room(tmp_path, "c10-20") == 4000
    random_file(tmp_path / "c10-20.tar.1-of-1", 999)  # of an earlier call, to be replaced
    assert parcels.room(tmp_path, "c10-20") == 4000
    random_file(tmp_path / "bench.tar.1-of-1", 700)
    assert parcels.room(tmp_path, "c10-20") == 3300
    for name in ("bench.log", "bench.txt", "a"):
        random_file(tmp_path / name, 1)
    assert parcels.room(tmp_path, "c10-20") == 2000  # two files are left
    for name in ("b", "c"):
        random_file(tmp_path / name, 1)
    assert parcels.room(tmp_path, "c10-20") == 0


def test_files_are_spread_over_loads_in_order(tmp_path):
    files = []
    for name, size in (("a", 40), ("b", 60), ("c", 1), ("d", 100)):
        random_file(tmp_path / name, size)
        files.append(tmp_path / name)
    assert spread(files, 100) == [files[:2], files[2:3], files[3:]]
    with pytest.raises(InputError, match="d has 100 bytes, more than --load_bytes=99"):
        spread(files, 99)


@pytest.mark.slow
def test_loads_hold_wheels_that_need_no_installer(data_dir, tmp_path):
    command = [sys.executable, ROOT / "launch" / "accelerator" / "pack.py", tmp_path]
    options = ["--data=digits", f"--data_dir={data_dir}"]
    subprocess.run([*command, *options], check=True, cwd=ROOT)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    wheels = [wheel.name for wheel in (tmp_path / "1" / "wheels").iterdir()]
    assert len(wheels) == 2
    assert all(wheel.endswith("-none-any.whl") for wheel in wheels)
    config = DataConfig(data_dir=str(tmp_path / "1" / "data"))
    assert packed.missing_files(config) == []
    (tmp_path / "1" / "data" / "packed" / "digits" / "test_0.webp").unlink()
    assert [pathlib.Path(f).name for f in packed.missing_files(config)] == ["test_0.webp"]
    again = subprocess.run([*command, *options], capture_output=True, text=True, cwd=ROOT)
    assert again.returncode == 1
    assert "has the load 1; delete it to make the loads" in again.stderr
