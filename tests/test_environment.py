"""Tests faults of the machine: no such device, no home, and directories that cannot be written."""

import ctypes
import json
import logging
import os
import pathlib
import runpy
import shutil
import subprocess
import sys
import types

import jax
import pytest

import processes
from mcn_jax.config import DataConfig, from_config_dict
from mcn_jax.data import shared_memory, sources
from mcn_jax.data.dataset import open_dataset
from mcn_jax.errors import InputError
from mcn_jax.training.run import train_and_evaluate
from mcn_jax.workdirs.files import locked
from small_runs import digits_config

SMALL = ("--config=configs/digits.py", "--config.model.widths=2", "--config.model.dense_features=8")
HAS_GPU = pathlib.Path("/dev/nvidiactl").exists()
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="capabilities are those of Linux")


def one_line(result, command):
    """Returns the only line that a failed command printed."""
    assert result.returncode == 1
    [line] = result.stderr.strip().splitlines()
    assert line.startswith(f"mcn_jax.{command}: error: ")
    return line


def on_platform(name, module, arguments):
    jax.config.update("jax_platforms", name)  # as JAX_PLATFORMS does when JAX is imported
    run_module(module, arguments)


def run_module(module, arguments):
    sys.argv = [module, *map(str, arguments)]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


@pytest.mark.parametrize(
    ("platform", "command"),
    [
        pytest.param("cuda", "main", marks=pytest.mark.skipif(HAS_GPU, reason="it has a GPU")),
        ("cdua", "evaluate"),
        ("rocm", "export"),
        (" ", "inspect_checkpoint"),
        ("cpu,nonsense", "predict"),
        ("nonsense", "data"),
    ],
)
def test_a_platform_that_is_not_there(platform, command, digits_run, data_dir, tmp_path):
    arguments = {
        "main": (*SMALL, f"--config.data.data_dir={data_dir}",
                 f"--workdir={tmp_path}/run"),
        "evaluate": (digits_run,),
        "export": (digits_run, tmp_path / "exported"),
        "inspect_checkpoint": (digits_run,),
        "predict": (digits_run, "docs"),
        "data": ("digits", f"--data_dir={data_dir}", f"--sheet={tmp_path}/digits.png"),
    }  # fmt: skip
    module = f"mcn_jax.{command}"
    result = processes.Running(on_platform, platform, module, arguments[command]).finish()
    line = one_line(result, command)
    assert f"JAX_PLATFORMS={platform!r} names a platform that JAX does not have here" in line
    assert "this machine has " in line
    assert "set JAX_PLATFORMS=" in line
    assert not result.stdout
    assert not list(tmp_path.iterdir())


def test_a_report_needs_no_device(digits_run, tmp_path):
    arguments = (digits_run, "--out", tmp_path / "report")
    result = processes.Running(on_platform, "nonsense", "mcn_jax.report", arguments).finish()
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize(("command", "lines"), [("-m mcn_jax.evaluate x", 1), ("-c pass", 0)])
def test_a_variable_that_jax_cannot_read(command, lines):
    program = ["-c", "import mcn_jax"] if command == "-c pass" else command.split()
    ran = subprocess.run(
        [sys.executable, *program], cwd=processes.ROOT, capture_output=True, text=True,
        check=False, env=os.environ | {"JAX_ENABLE_X64": "maybe"},
    )  # fmt: skip
    assert ran.returncode == 1
    assert "'maybe' for environment 'JAX_ENABLE_X64'" in ran.stderr
    is_one_line = len(ran.stderr.splitlines()) == 1
    assert is_one_line == bool(lines)  # a program that imports the package gets the exception


def without_home(module, arguments):
    del os.environ["HOME"]

    def no_entry(user):
        raise KeyError(user)

    import pwd

    pwd.getpwuid = no_entry
    run_module(module, arguments)


@pytest.mark.parametrize(("command", "arguments"), [("main", [*SMALL]), ("data", ["digits"])])
def test_a_user_without_home(command, arguments, tmp_path):
    arguments = [*arguments, f"--workdir={tmp_path}/run"][: len(arguments) + (command == "main")]
    result = processes.Running(without_home, f"mcn_jax.{command}", arguments).finish()
    line = one_line(result, command)
    assert "no home directory" in line
    assert not list(tmp_path.iterdir())


def drawn_at_home(home, path):
    os.environ["HOME"] = home
    os.environ.pop("MPLCONFIGDIR", None)
    assert "matplotlib" not in sys.modules
    from mcn_jax.reports import axes, figures

    figures.save(axes.new_figure(1, 1), path, formats=("png",))


def test_pictures_are_drawn_without_a_word_where_home_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    result = processes.Running(drawn_at_home, f"{tmp_path}/file/home", tmp_path / "x").finish()
    assert result == (0, "", "")
    assert (tmp_path / "x.png").exists()
    assert not logging.getLogger("matplotlib").filter(message("mkdir -p failed for path /x"))
    assert logging.getLogger("matplotlib").filter(message("the backend is unknown"))


def message(text):
    return logging.LogRecord("matplotlib", logging.WARNING, __file__, 1, text, (), None)


def obeying_permissions(function, *arguments):
    """Calls a function without root's right to ignore permissions."""
    if os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
        assert ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)()) == 0
    function(*arguments)


@on_linux
@pytest.mark.parametrize(
    ("field", "reason"),
    [("workdir", "Permission denied"), ("config.data.data_dir", "Not a directory")],
)
def test_a_directory_that_cannot_be_written(field, reason, data_dir, tmp_path):
    base = tmp_path / "base"
    base.touch() if reason == "Not a directory" else base.mkdir(0o555)
    places = {"workdir": tmp_path / "run", "config.data.data_dir": data_dir}
    places[field] = base / "inside"
    arguments = [*SMALL, *(f"--{name}={path}" for name, path in places.items())]
    running = processes.Running(obeying_permissions, run_module, "mcn_jax.main", arguments)
    line = one_line(running.finish(), "main")
    assert f"{base}/inside cannot be written ({reason}); make it writable, or " in line
    assert f"another --{field}" in line or f"another directory as --{field}" in line
    assert list(tmp_path.rglob("*")) == [base]


@on_linux
def test_an_ended_run_in_a_directory_that_cannot_be_written(digits_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(digits_run, workdir)
    (workdir / "curves.png").touch()
    for path in (workdir, *workdir.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    result = processes.Running(obeying_permissions, read_again, workdir).finish()
    assert result.returncode == 0, result.stderr
    [line] = result.stderr.strip().splitlines()
    assert f"the pictures of {workdir} are not drawn: [Errno 13] Permission denied" in line
    assert f"{workdir}/health.png" in line


def read_again(workdir):
    from mcn_jax.main import _draw  # defines flags, which this process may do once

    config = from_config_dict(json.loads((workdir / "config.json").read_text())["config"])
    assert train_and_evaluate(config, workdir)["test_examples"] == 360
    _draw(workdir)
    run_module("mcn_jax.inspect_checkpoint", [workdir])


def test_the_lock_of_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "lock").mkdir()
    with pytest.raises(InputError, match=r"cannot be written \(Is a directory\)"), locked(tmp_path):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere shared memory is no directory")
@pytest.mark.parametrize(
    ("directory", "free", "message"),
    [
        (
            "missing",
            None,
            r"missing cannot be written \(No such file or directory\); mount a tmpfs",
        ),
        ("file", None, r"file cannot be written \(Not a directory\)"),
        (
            "",
            15 * (104 * 1024 + 2**16) - 1,
            "4 workers need 2,580,480 bytes of shared memory, .* has 2,580,479 bytes free; enlarge",
        ),
    ],
)
def test_shared_memory_that_is_missing_or_small(
    directory, free, message, data_dir, tmp_path, monkeypatch
):
    config = digits_config(
        data=DataConfig(name="digits", data_dir=data_dir, pipeline="streamed", workers=4)
    )
    dataset = open_dataset(config.data)
    sources.make_source(config, dataset)  # does not raise here
    (tmp_path / "file").touch()
    monkeypatch.setattr(shared_memory, "DIRECTORY", tmp_path / directory)
    if free is not None:
        small = types.SimpleNamespace(f_bavail=free, f_frsize=1)
        monkeypatch.setattr(shared_memory.os, "statvfs", lambda path: small)
    with pytest.raises(InputError, match=message):
        sources.make_source(config, dataset)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
