"""Tests paths that users give: characters with a meaning for libraries, ~, and addresses."""

import argparse
import contextlib
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

import processes
from mcn_jax import evaluate, export, inspect_checkpoint, paths, predict, report
from mcn_jax.command_line import make_parser, one_line_errors
from mcn_jax.data.mnist import FILES
from mcn_jax.errors import InputError
from mcn_jax.paths import plain_path, user_path
from mcn_jax.workdirs.checkpoint import Checkpoints, saved_steps
from small_runs import load

# Parts of paths that a library may take for something else.
NAMES = {
    "pattern": "x[1]",
    "negated pattern": "[!a]{b,c}*?",
    "backslash": "a\\b",
    "address": "gs:",
    "query": "a%20b?c#d:e",
    "quotes": 'it\'s "$HOME"; `x` & y|z',
    "unicode": "Größe ☃ 猫",
    "newline": "two\nlines",
    "not UTF-8": os.fsdecode(b"\xff\xfe"),
}
ALL = "".join(name for kind, name in NAMES.items() if kind != "not UTF-8")


@pytest.mark.parametrize("kind", NAMES)
def test_checkpoints_are_found_again_in_a_directory_of_any_name(tmp_path, kind, monkeypatch):
    directory = tmp_path / NAMES[kind] / "checkpoints"
    for step in (1, 2):
        with contextlib.closing(Checkpoints(directory)) as opened:
            opened.save(step, {"x": np.arange(3.0) + step}, test_accuracy=0.5)
    monkeypatch.chdir(directory.parent)  # a relative path is no plainer than the whole path
    with contextlib.closing(Checkpoints(pathlib.Path("checkpoints"), read_only=True)) as opened:
        assert opened.steps() == [1, 2]
        for step in (1, 2):
            np.testing.assert_array_equal(opened.read(step)["x"], np.arange(3.0) + step)
    assert sorted(path.name for path in directory.iterdir()) == ["1", "2"]
    assert [path.name for path in tmp_path.iterdir()] == [NAMES[kind]]  # nothing lies elsewhere


def test_directories_that_are_opened_one_after_another_are_not_confused(tmp_path):
    """They may get the same number of a descriptor, and libraries have caches."""
    for number in range(3):
        with contextlib.closing(Checkpoints(tmp_path / f"[{number}]")) as opened:
            opened.save(1, {"x": np.full(3, number)}, test_accuracy=0.5)
    numbers = set()
    for number in range(3):
        with contextlib.closing(Checkpoints(tmp_path / f"[{number}]", read_only=True)) as opened:
            numbers.add(str(opened._path))
            np.testing.assert_array_equal(opened.read(1)["x"], np.full(3, number))
    assert len(numbers) == 1


def test_a_plain_path_stays_and_a_descriptor_is_closed(tmp_path):
    plain = tmp_path / "runs,a=1+b@c" / "checkpoints"
    with plain_path(plain) as path:
        assert path == plain
    (tmp_path / "[1]").mkdir()
    with plain_path(tmp_path / "[1]") as path:
        assert os.path.samefile(path, tmp_path / "[1]")
    assert not path.exists()


@pytest.mark.parametrize("name", ["gs", "s3", "az", "hf"])
def test_a_directory_that_is_called_like_a_store_is_no_address(name):
    assert paths.is_store(pathlib.Path(f"/{name}/data"))
    assert not paths.is_store(pathlib.Path(f"/data/{name}"))
    with pytest.raises(FileNotFoundError), plain_path(pathlib.Path(f"/{name}/no such")):
        pass
    with pytest.raises(InputError, match=f"data_dir='/{name}/x' means the address of a store"):
        load(name="digits", data_dir=f"/{name}/x")


def test_without_paths_of_descriptors_the_path_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "_OPEN_FILES", tmp_path / "absent")
    with pytest.raises(InputError, match=r"x\[1\]/checkpoints has characters with a meaning"):
        Checkpoints(tmp_path / "x[1]" / "checkpoints")


def test_a_first_checkpoint_that_cannot_be_read_back_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "mcn_jax.workdirs.checkpoint.plain_path", contextlib.nullcontext
    )  # Orbax gets the path as it is, takes [1] for a pattern, and saves an unreadable state
    opened = Checkpoints(tmp_path / "x[1]")
    with pytest.raises(OSError, match=r"^the first checkpoint .* be read back"):
        opened.save(1, {"x": np.arange(3.0)}, test_accuracy=0.5)
    opened.close()


@pytest.mark.parametrize("kind", [kind for kind in NAMES if kind != "not UTF-8"])
def test_data_are_prepared_and_read_in_a_directory_of_any_name(tmp_path, kind):
    directory = tmp_path / NAMES[kind]
    for label, name in enumerate(("a", "b")):
        (directory / "root" / name).mkdir(parents=True)
        for number in range(5):
            pixels = np.full((8, 8, 3), 20 * number + 5 * label, np.uint8)
            Image.fromarray(pixels).save(directory / "root" / name / f"{number}.png")
    config = {
        "name": "image_folder", "root": str(directory / "root"), "image_size": 8,
        "data_dir": str(directory / "data"),
    }  # fmt: skip
    before, again = load(**config), load(**config)
    assert sorted(before.train.images[:, 0, 0, 0]) == sorted(again.train.images[:, 0, 0, 0])
    assert len(before.train.images) + len(before.test.images) == 10


def test_archives_are_found_in_a_directory_of_any_name(tmp_path):
    directory = tmp_path / ALL
    directory.mkdir()
    for name, _, _ in FILES.values():
        (directory / f"{name}.gz").write_bytes(b"not an archive")
    with pytest.raises(InputError) as caught:
        load(name="mnist", archive_dir=str(directory), data_dir=str(directory / "data"))
    assert str(caught.value).startswith(f"{directory}/train-images-idx3-ubyte.gz holds 14 bytes")


def test_every_command_reads_and_writes_in_a_directory_of_any_name(
    digits_run, data_dir, tmp_path, capsys
):
    workdir = tmp_path / ALL / "run"
    shutil.copytree(digits_run, workdir)
    evaluate.main([str(workdir), "--json", f"--data_dir={data_dir}"])
    accuracy = json.loads(capsys.readouterr().out)["accuracy"]
    evaluate.main([str(digits_run), "--json", f"--data_dir={data_dir}"])
    assert json.loads(capsys.readouterr().out)["accuracy"] == accuracy
    out = workdir.parent / "out"
    export.main([str(workdir), str(out), "--json", f"--data_dir={data_dir}"])
    exported = json.loads(capsys.readouterr().out)
    assert exported["model.onnx"]["accuracy"] == accuracy
    image = out / "image[1].png"
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(image)
    for model in (out / "model.safetensors", out / "model.onnx"):
        predict.main([str(model), str(image), str(out), "--json"])
        lines = capsys.readouterr().out.splitlines()
        assert [json.loads(line)["image"] for line in lines] == [str(image)] * 2
    [step] = saved_steps(workdir / "checkpoints")[-1:]
    page = out / "page.html"
    inspect_checkpoint.main([str(workdir / "checkpoints" / str(step)), f"--html={page}"])
    assert "conv_1" in page.read_text()
    report.main([str(workdir), f"--out={out}/report", f"--json={out}/report.json"])
    assert (out / "report" / "curves.png").stat().st_size > 0


def test_a_home_directory_is_expanded_once(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert user_path("~/runs/x") == tmp_path / "runs/x"
    assert user_path("~") == tmp_path
    assert user_path("runs/~x") == pathlib.Path("runs/~x")
    assert user_path(user_path("./~x")) == tmp_path / "~x"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~nobody_such/x", r"~nobody_such/x: there is no home directory of this name; .* \./~nob"),
        ("gs://bucket/run", "gs://bucket/run is an address"),
        ("file:///tmp/x", "file:///tmp/x is an address"),
        (os.fsdecode(b"a\xff"), r"'a\\udcff' is not UTF-8"),
    ],
)
def test_a_path_that_means_nothing_here_is_refused(path, message):
    with pytest.raises(InputError, match=message):
        user_path(path)


def test_without_a_home_directory_there_is_one_line(monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda _: (_ for _ in ()).throw(KeyError("uid")))
    with pytest.raises(InputError, match=r"^~/x: there is no home directory"):
        user_path("~/x")


def test_an_empty_home_is_not_the_root_directory(monkeypatch):
    monkeypatch.setenv("HOME", "")
    with pytest.raises(InputError, match=r"^~/x: there is no home directory"):
        user_path("~/x")


def test_an_error_of_the_operating_system_names_the_file_and_a_remedy(tmp_path):
    with (
        pytest.raises(SystemExit, match=rf"error: {tmp_path}/no/a.png: No such file .*; check"),
        one_line_errors("report"),
    ):
        (tmp_path / "no" / "a.png.tmp").write_text("")


def test_an_argument_that_is_a_path_is_expanded_or_refused_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser: argparse.ArgumentParser = make_parser("report", None)
    parser.add_argument("--out", type="path")
    assert parser.parse_args(["--out=~/x"]).out == tmp_path / "x"
    with pytest.raises(SystemExit, match=r"^mcn_jax.report: error: ~nobody_such/x: there is no"):
        parser.parse_args(["--out=~nobody_such/x"])


NO_HOME = "~nobody_such/x"


@pytest.mark.parametrize(
    "arguments",
    [
        ("main", "--config=configs/digits.py", f"--workdir={NO_HOME}"),
        ("main", "--config=configs/digits.py", f"--config.data.data_dir={NO_HOME}"),
        ("main", f"--config={NO_HOME}.py"),
        ("evaluate", NO_HOME),
        ("evaluate", "runs/x", f"--confusion={NO_HOME}.png"),
        ("export", "runs/x", NO_HOME),
        ("predict", "runs/x", NO_HOME),
        ("inspect_checkpoint", "runs/x", f"--compare={NO_HOME}"),
        ("report", "runs/x", f"--out={NO_HOME}"),
        ("report", "runs/x", f"--json={NO_HOME}"),
        ("data", "digits", f"--data_dir={NO_HOME}"),
        ("data", "digits", f"--sheet={NO_HOME}.png"),
        ("data", "digits", f"--pack={NO_HOME}"),
    ],
)
def test_every_command_expands_its_paths(tmp_path, arguments):
    command, *rest = arguments
    if command == "main":
        rest = [argument.replace("configs/", f"{processes.ROOT}/configs/") for argument in rest]
    result = processes.run(f"mcn_jax.{command}", *rest, cwd=tmp_path)
    assert result.returncode == 1
    [line] = result.stderr.strip().splitlines()
    assert line.startswith(f"mcn_jax.{command}: error: ")
    assert "there is no home directory of this name" in line
    assert not list(tmp_path.iterdir())
