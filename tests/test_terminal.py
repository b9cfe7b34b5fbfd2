"""Tests what commands do if their output cannot be read, shown or drawn, and who prints where."""

import io
import json
import os
import pathlib
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest
from absl import logging
from PIL import Image

import processes
from mcn_jax.reports import figures
from mcn_jax.terminal import log_libraries, lost_output, run_command
from mcn_jax.workdirs.checkpoint import saved_steps

NOTEBOOK = "module://matplotlib_inline.backend_inline"
TINY = (
    "--config=configs/digits.py", "--config.binarize.enabled=False", "--config.model.widths=2",
    "--config.model.dense_features=8", "--config.optimizer.warmup_epochs=0",
    "--config.batch_size=718",
)  # fmt: skip


def in_a_thread(function, *arguments):
    threading.Thread(target=function, args=arguments, daemon=True).start()


def leave_after(reader, text):
    """Reads from a descriptor until the text appears, then closes it."""
    seen = b""
    while text not in seen:
        seen += os.read(reader, 4096)
    os.close(reader)


def kill_after(tee, log, text):
    while not log.exists() or text not in log.read_text():
        time.sleep(0.01)
    tee.kill()


def hang_up_after(terminal, text):
    """Does what a terminal does whose window is closed."""
    leave_after(terminal, text)
    os.kill(os.getpid(), signal.SIGHUP)


def with_output(kind, log, module, arguments):
    """Runs a command, in a process of its own, with an output of this kind."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if kind == "closed":
        os.close(1)
        sys.stdout = None
    elif kind == "full disk":
        os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    elif kind == "killed tee":
        tee = subprocess.Popen(["tee", log], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        os.dup2(tee.stdin.fileno(), 1)
        tee.stdin.close()
        in_a_thread(kill_after, tee, pathlib.Path(log), "epoch   1")
    else:
        reader, writer = pty.openpty() if kind == "closed terminal" else os.pipe()
        os.dup2(writer, 1)
        os.close(writer)
        if kind == "no reader":
            os.close(reader)
        elif kind == "reader that leaves":
            in_a_thread(leave_after, reader, b"epoch   1")
        else:
            in_a_thread(hang_up_after, reader, b"epoch   1")
    os.environ["MPLBACKEND"] = NOTEBOOK
    processes._run_module(module, arguments)


def start(kind, workdir, module, *arguments):
    return processes.Running(with_output, kind, f"{workdir}.log", module, arguments)


def test_a_run_that_nobody_reads_saves_its_state_and_stops(data_dir, tmp_path):
    lost = {
        "no reader": "the loss of its output (Broken pipe)",
        "reader that leaves": "the loss of its output (Broken pipe)",
        "killed tee": "the loss of its output (Broken pipe)",
        "full disk": "the loss of its output (No space left on device)",
        "closed terminal": "SIGHUP",
    }
    flags = (*TINY, "--config.num_epochs=300", f"--config.data.data_dir={data_dir}")
    running = {
        kind: start(kind, tmp_path / kind, "mcn_jax.main", *flags, f"--workdir={tmp_path / kind}")
        for kind in lost
    }
    for kind, reason in lost.items():
        returncode, _, stderr = running[kind].finish()
        assert returncode == 75, (kind, stderr)
        [line] = stderr.splitlines()
        stopped = re.fullmatch(r"mcn_jax.main: stopped by (.*) after step (\d+), .* resumes", line)
        assert stopped[1] == reason, kind
        assert saved_steps(tmp_path / kind / "checkpoints")[-1] == int(stopped[2])
        assert not (tmp_path / kind / "result.json").exists()


def test_commands_write_their_files_for_no_reader_and_with_any_backend(
    report_runs, data_dir, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(report_runs["seed_0"], run)
    full = "cannot be written: No space left on device; files that the command was asked for"
    cases = {  # module: (output, arguments, files, exit code, error)
        "evaluate": (
            "no reader", (run, "--confusion", tmp_path / "a.png"), ["a.png"], 141, ""
        ),
        "inspect_checkpoint": (
            "closed", (run, "--html", tmp_path / "b.html"), ["b.html"], 1, "it is closed"
        ),
        "report": (
            "full disk", (run, "--out", tmp_path / "c"), ["c/report.md", "c/curves.png"], 1, full
        ),
        "export": (
            "no reader", (run, tmp_path / "d"), ["d/model.safetensors", "d/model.onnx"], 141, ""
        ),
        "data": (
            "full disk",
            ("digits", "--data_dir", data_dir, "--sheet", tmp_path / "e.png"), ["e.png"], 1, full,
        ),
    }  # fmt: skip
    running = {
        name: start(kind, run, f"mcn_jax.{name}", *arguments)
        for name, (kind, arguments, *_) in cases.items()
    }
    for name, (_, _, files, code, error) in cases.items():
        returncode, _, stderr = running[name].finish()
        assert returncode == code, (name, stderr)
        lines = stderr.splitlines()
        assert len(lines) == bool(error), (name, stderr)
        assert all(line.startswith(f"mcn_jax.{name}: error: ") and error in line for line in lines)
        assert all((tmp_path / file).stat().st_size for file in files), name


def test_predict_stops_when_its_reader_has_left(report_runs, tmp_path):
    for number in range(20):
        Image.new("L", (8, 8), number).save(tmp_path / f"{number}.png")
    (tmp_path / "last.png").write_bytes(b"no image")
    arguments = (report_runs["seed_0"], tmp_path, "--batch_size=1")
    ended = start("no reader", tmp_path, "mcn_jax.predict", *arguments).finish()
    assert ended == (141, "", "")  # an error of the last image would end it with code 1


def with_encoding(encoding, module, arguments):
    for number, name in ((1, "stdout"), (2, "stderr")):
        setattr(sys, name, io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding))
    processes._run_module(module, arguments)


def test_any_name_can_be_shown_in_any_encoding(tmp_path):
    for name in ("c", "é", "日本"):
        for split in ("train", "test"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(2):
                file = tmp_path / "images" / split / name / f"{number}.png"
                Image.new("RGB", (16, 16), (number, 0, 0)).save(file)
    place = tmp_path / "é"
    place.mkdir()
    data = {"root": tmp_path / "images", "data_dir": tmp_path / "data", "image_size": 16}
    flags = [f"--config.data.{name}={value}" for name, value in data.items()]
    train = (
        "--config=configs/image_folder.py", *flags, "--config.model.widths=2",
        "--config.model.dense_features=8", "--config.num_epochs=1", "--config.batch_size=3",
        "--config.optimizer.warmup_epochs=0", "--config.binarize.enabled=False",
    )  # fmt: skip
    run = tmp_path / "run"
    commands = [
        ("main", (*train, f"--workdir={run}"), r"c, \xe9, \u65e5\u672c"),
        ("data", ("image_folder", *flags, "--sheet", place / "a.png"), r"\u65e5\u672c"),
        ("evaluate", (run, "--confusion", place / "b.png"), r"\u65e5\u672c"),
        ("report", (run, "--out", place / "c"), r"\xe9/c/report.md"),
    ]
    for name, arguments, shown in commands:
        running = processes.Running(with_encoding, "ascii", f"mcn_jax.{name}", arguments)
        returncode, stdout, stderr = running.finish()
        assert returncode == 0, (name, stderr)
        assert shown in stdout, name


def without_drawing(module, arguments):
    def fail(*arguments, **options):
        raise ValueError("no font\nmore")

    figures.save = fail
    processes._run_module(module, arguments)


def test_a_run_without_output_or_pictures_ends_with_its_result(data_dir, tmp_path):
    workdir = tmp_path / "run"
    flags = (*TINY, "--config.num_epochs=1", f"--config.data.data_dir={data_dir}")
    arguments = (*flags, f"--workdir={workdir}")
    assert start("closed", tmp_path, "mcn_jax.main", *arguments).finish() == (0, "", "")
    assert json.loads((workdir / "result.json").read_text())["test_examples"] == 360
    assert (workdir / "curves.png").read_bytes().startswith(b"\x89PNG")  # with any backend
    (workdir / "curves.png").unlink()
    running = processes.Running(without_drawing, "mcn_jax.main", arguments)
    returncode, stdout, stderr = running.finish()
    assert (returncode, "test accuracy" in stdout) == (0, True), stderr
    [line] = stderr.splitlines()
    assert line == (
        f"mcn_jax.main: warning: the pictures of {workdir} are not drawn: no font; the same"
        " command draws them"
    )


def with_full_disk(module, arguments):
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, resource.RLIM_INFINITY))
    processes._run_module(module, arguments)


def test_a_full_disk_is_one_line_and_the_words_of_libraries_are_in_their_file(data_dir, tmp_path):
    flags = (*TINY, "--config.num_epochs=1", f"--config.data.data_dir={data_dir}")
    arguments = (*flags, f"--workdir={tmp_path}/run")
    returncode, _, stderr = processes.Running(with_full_disk, "mcn_jax.main", arguments).finish()
    assert returncode == 1
    [line] = stderr.splitlines()
    assert re.match(r"mcn_jax.main: error: a checkpoint in .* cannot be written: .*; make", line)
    assert "Traceback" in (tmp_path / "run/libraries.log").read_text()


def test_a_damaged_checkpoint_is_one_line(report_runs, tmp_path):
    shutil.copytree(report_runs["seed_0"], tmp_path / "run")
    for path in sorted((tmp_path / "run/checkpoints").iterdir()):
        for damaged in ("_CHECKPOINT_METADATA", "digests/metadata"):
            (path / damaged).write_bytes((path / damaged).read_bytes()[:50])
    returncode, _, stderr = processes.run("mcn_jax.evaluate", tmp_path / "run")
    assert returncode == 1
    [line] = stderr.splitlines()
    assert re.match(r"mcn_jax.evaluate: error: checkpoint .* cannot be read: ", line)


class FailsAtItsEnd:
    def __del__(self):
        raise ValueError("a destructor")


def fail(message):
    raise ValueError(message)


def report_in_every_way(directory, command):
    def noise():
        log_libraries(pathlib.Path(directory, "libraries.log"))
        logging.error("before the directory")
        pathlib.Path(directory).mkdir()
        warnings.warn("a warning", stacklevel=1)
        thread = threading.Thread(target=fail, args=("a thread",))
        thread.start()
        thread.join()
        FailsAtItsEnd()
        sys.stdout.write("printed\n")
        print(lost_output())
        command()

    run_command("noisy", noise)


REPORTED = (
    "before the directory",
    "UserWarning: a warning",
    "ValueError: a thread",
    "ValueError: a destructor",
)


def end():
    sys.exit()


def end_with_a_line():
    sys.exit("our line")


@pytest.mark.parametrize(
    ("command", "code", "stderr"), [(end, 0, ""), (end_with_a_line, 1, "our line\n")]
)
def test_what_libraries_report_goes_to_their_file(command, code, stderr, tmp_path):
    directory = tmp_path / "run"
    ended = processes.Running(report_in_every_way, str(directory), command).finish()
    assert ended == (code, "printed\nNone\n", stderr)
    text = (directory / "libraries.log").read_text()
    assert [what for what in REPORTED if text.count(what) != 1] == []
