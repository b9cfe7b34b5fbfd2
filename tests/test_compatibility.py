"""Tests that all commands still work with the runs and model files of version 0.1.

tests/fixtures/v0_1 has two finished runs, their model files, and a run that was stopped inside its
second epoch. Its expected.json has the results of version 0.1 for these runs and files.
"""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import processes
from mcn_jax import evaluate, export, inspect_checkpoint, predict, report
from mcn_jax.deploy.model_file import read_model
from mcn_jax.deploy.predictor import open_predictor
from mcn_jax.errors import InputError
from mcn_jax.reports.runs import read_run
from mcn_jax.training import run
from small_runs import digits_config

ROOT = pathlib.Path(__file__).parents[1]
FIXTURES = pathlib.Path(__file__).parent / "fixtures/v0_1"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())
# The config had this head when the fixtures were made.
FLAGS = [*EXPECTED["resume"]["flags"], "--config.model.head=dense"]
IMAGES = [FIXTURES / name for name in EXPECTED["images"]]
RUNS = ("mcn", "umcn", "stopped")
TOLERANCE = 1e-5  # error of a logit over the largest logit

# Some fields that had their defaults when the fixtures were made, inside groups and outside.
OPTIONAL = ("steps_per_dispatch", "data.mixup", "model.stem", "optimizer.name")


def copied(name, tmp_path):
    """Copies the files of a fixture; returns the path of the copied directory or model file."""
    run, *file = pathlib.PurePath(name).parts
    shutil.copytree(FIXTURES / run, tmp_path / run)
    return tmp_path.joinpath(run, *file)


def change_config(workdir, change):
    """Applies `change` to the config in config.json."""
    path = workdir / "config.json"
    record = json.loads(path.read_text())
    change(record["config"])
    path.write_text(json.dumps(record))


def without(field):
    def change(config):
        *groups, last = field.split(".")
        for group in groups:
            config = config[group]
        del config[last]

    return change


def with_unknown(config):
    config["loss"]["tetha"] = 1e-3


def printed(capsys, main, *arguments):
    """Returns what a command prints."""
    capsys.readouterr()
    main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def evaluated(capsys, path, data_dir):
    # A line about data that are being prepared may precede it.
    out = printed(capsys, evaluate.main, path, "--json", "--data_dir", data_dir)
    return json.loads(out.splitlines()[-1])


def resume(workdir, data_dir):
    """Runs the command that made the fixture, on one device as it did then."""
    places = (f"--config.data.data_dir={data_dir}", f"--workdir={workdir}")
    return processes.run("mcn_jax.main", *FLAGS, *places)


def epochs(workdir):
    """Returns the records of complete epochs."""
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == "epoch"]


def assert_alike(found, expected, place=""):
    """Checks that everything expected is found. More may be found; floats differ slightly."""
    if isinstance(expected, dict):
        for name, value in expected.items():
            assert name in found, f"{place}.{name}"
            assert_alike(found[name], value, f"{place}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for index, pair in enumerate(zip(found, expected, strict=True)):
            assert_alike(*pair, f"{place}[{index}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-9), place
    else:
        assert found == expected, place


def assert_same_logits(lines, expected):
    """Compares the output of `predict --json` with logits.

    It has the probabilities of the five likeliest classes. Their logarithms are the logits plus a
    constant per image. The other five classes only show in the sum.
    """
    assert len(lines) == len(expected)
    for line, logits in zip(lines, np.array(expected), strict=True):
        top = json.loads(line)["top"]
        assert len(top) == 5
        indices = [entry["index"] for entry in top]
        assert indices == np.argsort(-logits, kind="stable")[:5].tolist()
        found = np.log([entry["probability"] for entry in top])
        difference = (found - found[0]) - (logits[indices] - logits[indices[0]])
        assert np.abs(difference).max() <= TOLERANCE * np.abs(logits).max()
        # The constant is known, because the probabilities of all ten classes sum to one.
        whole = np.log(np.exp(logits - logits.max()).sum()) + logits.max()
        np.testing.assert_allclose(found, logits[indices] - whole, rtol=0, atol=1e-4)


def assert_usable(path, name, data_dir, tmp_path, capsys):
    """Checks that all commands except training give the same results for a run or model file."""
    expected = EXPECTED["fixtures"][name]
    found = evaluated(capsys, path, data_dir)
    assert (found["examples"], found["accuracy"]) == (360, expected["evaluate"]["accuracy"])
    assert found["confusion"] == expected["evaluate"]["confusion"]
    calibration = expected["evaluate"]["calibration_error"]  # covers every logit of all test images
    assert found["calibration_error"] == pytest.approx(calibration, rel=1e-4)
    lines = printed(capsys, predict.main, path, *IMAGES, "--json").splitlines()
    assert_same_logits(lines, expected["logits"])
    if "inspect" in expected:
        description = json.loads(printed(capsys, inspect_checkpoint.main, path, "--json"))
        assert_alike(description, expected["inspect"] | {"path": str(path)})
    if not path.is_dir():
        return
    out = tmp_path / "exported"
    if name == "stopped":  # after its first epoch, without binary filters
        with pytest.raises(SystemExit, match="has no binary filters yet, after epoch 1"):
            export.main([str(path), str(out), "--data_dir", data_dir])
        return
    printed(capsys, export.main, path, out, "--data_dir", data_dir)
    assert evaluated(capsys, out / "model.safetensors", data_dir)["accuracy"] == found["accuracy"]
    assert_same_tensors(out, FIXTURES / f"{name}_export")
    compare_with_onnx_runtime(out / "model.onnx", expected["logits"])


def assert_same_tensors(out, before):
    found, expected = (
        read_model(directory / "model.safetensors").tensors for directory in (out, before)
    )
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name, strict=True)


def compare_with_onnx_runtime(path, expected):
    """Compares every logit of an ONNX graph, without this package."""
    onnxruntime = pytest.importorskip("onnxruntime")
    images = np.stack([np.asarray(Image.open(image))[..., None] for image in IMAGES])
    [logits] = onnxruntime.InferenceSession(path).run(None, {"images": images})
    assert np.abs(logits - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("name", EXPECTED["fixtures"])
def test_it_gives_what_it_gave(name, data_dir, tmp_path, capsys):
    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime")
        compare_with_onnx_runtime(FIXTURES / name, EXPECTED["fixtures"][name]["logits"])
    path = copied(name, tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert_usable(path, name, data_dir, tmp_path, capsys)
    assert all(file.read_bytes() == content for file, content in before.items())


@pytest.mark.parametrize("field", OPTIONAL)
def test_a_field_that_is_not_there_has_its_default(field, data_dir, tmp_path, capsys):
    workdir = copied("mcn", tmp_path)
    change_config(workdir, without(field))
    assert_usable(workdir, "mcn", data_dir, tmp_path, capsys)
    printed(capsys, report.main, workdir, "--out", tmp_path / "report")


@pytest.mark.parametrize(
    "command", ["evaluate", "inspect_checkpoint", "export", "predict", "report"]
)
def test_a_field_that_is_unknown_is_named_in_one_line(command, data_dir, tmp_path):
    workdir = copied("mcn", tmp_path)
    change_config(workdir, with_unknown)
    main, more = {
        "evaluate": (evaluate.main, ["--data_dir", data_dir]),
        "inspect_checkpoint": (inspect_checkpoint.main, []),
        "export": (export.main, [str(tmp_path / "out"), "--data_dir", data_dir]),
        "predict": (predict.main, [str(IMAGES[0])]),
        "report": (report.main, ["--out", str(tmp_path / "out")]),
    }[command]
    with pytest.raises(SystemExit) as ended:
        main([str(workdir), *more])
    line = str(ended.value)
    assert line.startswith(f"mcn_jax.{command}: error: ")
    assert "unknown field config.loss.tetha" in line
    assert "\n" not in line
    assert not (tmp_path / "out").exists()


def test_a_run_with_an_unknown_field_is_not_resumed(data_dir, tmp_path):
    workdir = copied("stopped", tmp_path)
    change_config(workdir, with_unknown)
    before = {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file()}
    ended = resume(workdir, data_dir)
    assert ended.returncode == 1
    [line] = ended.stderr.strip().splitlines()
    assert line.startswith("mcn_jax.main: error: ")
    assert "unknown field config.loss.tetha" in line
    assert {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("case", "removed"),
    [
        ("inside_an_epoch", None),
        pytest.param("after_an_epoch", None, marks=pytest.mark.slow),
        pytest.param("inside_an_epoch", "data.mixup", marks=pytest.mark.slow),
        pytest.param("inside_an_epoch", "steps_per_dispatch", marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on(case, removed, data_dir, tmp_path, capsys):
    workdir, expected = copied("stopped", tmp_path), EXPECTED["resume"][case]
    steps = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
    for step in (step for step in steps if step > expected["from_step"]):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    if removed:
        change_config(workdir, without(removed))
    ended = resume(workdir, data_dir)
    assert ended.returncode == 0, ended.stderr
    assert expected["said"] in ended.stdout.splitlines()
    result = json.loads((workdir / "result.json").read_text())
    # Other machines sum in another order, which may change two of the 360 test images.
    for name in ("final_test_accuracy", "best_test_accuracy"):
        assert result[name] == pytest.approx(expected["result"][name], abs=2 / 360 + 1e-9)
    for name in ("filter_bits", "float32_filter_bits", "test_examples", "seed", "class_names"):
        assert result[name] == expected["result"][name]
    # It ends like the run that was not stopped.
    (first, last), whole = epochs(workdir), epochs(FIXTURES / "mcn")
    assert (first["step"], last["step"]) == (89, expected["final_step"])
    times = ("wall_seconds", "images_per_second")
    assert {k: v for k, v in first.items() if k not in times} == {
        k: v for k, v in whole[0].items() if k not in times
    }
    for name in ("train_loss", "test_loss", "train_filter_loss", "train_center_loss"):
        assert last[name] == pytest.approx(whole[1][name], rel=1e-3)
    assert evaluated(capsys, workdir, data_dir)["accuracy"] == result["final_test_accuracy"]
    printed(capsys, export.main, workdir, tmp_path / "out", "--data_dir", data_dir)
    found, exported = (
        read_model(directory / "model.safetensors").tensors
        for directory in (tmp_path / "out", FIXTURES / "mcn_export")
    )
    assert found.keys() == exported.keys()
    for name, tensor in exported.items():
        if name.endswith("/bits"):  # at most one weight has the other center
            assert np.bitwise_count(found[name] ^ tensor).sum() <= 1
        else:
            np.testing.assert_allclose(found[name], tensor, rtol=1e-2, atol=1e-3, err_msg=name)


def test_runs_are_compared(tmp_path, capsys):
    paths = [copied(name, tmp_path) for name in RUNS]
    out, numbers = tmp_path / "report", tmp_path / "report.json"
    told = printed(capsys, report.main, *paths[:2], "--out", out, "--json", numbers)
    for name in ("mcn", "umcn"):
        accuracy = EXPECTED["fixtures"][name]["evaluate"]["accuracy"]
        assert f"{100 * accuracy:.2f} (n = 1)" in told
        assert f"{100 * accuracy:.2f}" in (out / "report.md").read_text()
    records = {record["method"]: record for record in json.loads(numbers.read_text())}
    assert records.keys() == {"MCN", "U-MCN"}
    assert (
        records["MCN"]["filter_bits"]
        == EXPECTED["resume"]["inside_an_epoch"]["result"]["filter_bits"]
    )
    told = printed(capsys, report.main, paths[2], "--out", tmp_path / "stopped_report")
    assert re.search(r"running, epoch 1/2", told)


def test_a_run_is_compared_with_an_earlier_one(tmp_path, capsys):
    path, other = copied("mcn", tmp_path), copied("stopped", tmp_path)
    out = printed(capsys, inspect_checkpoint.main, path, "--compare", other, "--json")
    assert "compare" in json.loads(out)
    page = tmp_path / "page.html"
    printed(capsys, inspect_checkpoint.main, path, "--html", page)
    assert "conv_4" in page.read_text()


@pytest.mark.parametrize("name", ["mcn", "mcn_export/model.safetensors"])
def test_an_older_model_ignores_transparency_and_orientation(name):
    model = open_predictor(FIXTURES / name)
    for settings in (model.images, model.data()):  # of predict and of evaluate
        assert (settings.background, settings.exif_orientation) == (-1, False)


def test_an_older_run_reads_its_images_as_it_began(tmp_path, monkeypatch):
    """The data set is opened with the values of the older version."""
    workdir, opened = copied("mcn", tmp_path), []

    def note(data):
        opened.append((data.background, data.exif_orientation))
        raise InputError("opened")

    monkeypatch.setattr(run, "open_dataset", note)
    for directory in (workdir, tmp_path / "new"):
        with pytest.raises(InputError, match="opened"):
            run.train_and_evaluate(digits_config(), directory)
    assert opened == [(-1, False), (255, True)]


def test_older_and_newer_runs_on_arrays_have_the_same_setting(tmp_path):
    older, newer = copied("mcn", tmp_path), tmp_path / "newer"
    shutil.copytree(older, newer)
    fields = {"background": 255, "exif_orientation": True}
    change_config(newer, lambda config: config["data"].update(fields))
    assert read_run(older).setting == read_run(newer).setting
    for workdir in (older, newer):
        change_config(workdir, lambda config: config["data"].update(name="image_folder"))
    assert read_run(older).setting != read_run(newer).setting
