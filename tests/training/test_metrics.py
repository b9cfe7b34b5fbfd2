import json
import pathlib
import resource
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mcn_jax.errors import InputError
from mcn_jax.training import metrics
from mcn_jax.workdirs.files import read_metrics

EPOCH = {
    "kind": "epoch", "epoch": 0, "binarized": True, "train_loss": 0.5, "train_accuracy": 0.75,
    "test_loss": 0.25, "test_accuracy": 0.875, "images_per_second": 1234.5,
}  # fmt: skip


def all_events(directory):
    """Returns all events, parsed from the records of the event files."""
    for path in sorted(directory.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            yield Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]


def events(directory):
    """Returns (step, tag, value) of every scalar in the event files."""
    return [
        (event.step, value.tag, value.simple_value)
        for event in all_events(directory)
        for value in event.summary.value
    ]


def test_records_reach_the_file_and_tensorboard(tmp_path):
    with metrics.MetricsWriter(tmp_path, 0) as writer:
        writer.write({"kind": "step", "step": 1, "softmax_loss": 0.5})
        writer.write(EPOCH | {"step": 2})
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert read_metrics(tmp_path / "metrics.jsonl")[1] == EPOCH | {"step": 2}
    scalars = events(tmp_path / "tensorboard")
    assert (1, "step/softmax_loss", 0.5) in scalars
    assert (2, "epoch/test_accuracy", 0.875) in scalars


def test_resuming_cuts_what_came_after_the_checkpoint(tmp_path):
    with metrics.MetricsWriter(tmp_path, 0) as writer:
        for step in (1, 2, 3):
            writer.write({"kind": "step", "step": step, "softmax_loss": 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "st')
    with metrics.MetricsWriter(tmp_path, 2) as writer:
        writer.write({"kind": "step", "step": 3, "softmax_loss": 0.25})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["softmax_loss"]) for line in lines] == [
        (1, 0.5), (2, 0.5), (3, 0.25),
    ]  # fmt: skip


def write_epochs(writer, count):
    for step in range(count):
        writer.write(EPOCH | {"step": step})


def test_a_full_disk_is_one_error_that_says_what_to_do(tmp_path):
    """A limit of 20 kB per file simulates a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with metrics.MetricsWriter(tmp_path, 0) as writer:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
            with pytest.raises(OSError, match=r"metrics\.jsonl .* cannot be written: .*; make"):
                write_epochs(writer, 10_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    written = (tmp_path / "metrics.jsonl").read_text().count("\n")
    with metrics.MetricsWriter(tmp_path, 5) as writer:  # resumes
        assert len(writer.records) == 6 < written
        writer.write(EPOCH | {"step": 6})
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 7


def test_viewers_are_told_where_a_run_goes_on(tmp_path):
    with metrics.MetricsWriter(tmp_path, 0):
        pass
    with metrics.MetricsWriter(tmp_path, 20):
        pass
    logs = [
        (event.step, event.session_log.status) for event in all_events(tmp_path / "tensorboard")
    ]
    assert (21, SessionLog.START) in logs


def test_plain_lines_without_a_terminal(capsys):
    with metrics.ProgressBar(4, 10, 0, quiet=False) as progress:
        progress.step(0, 0.5)
        progress.epoch(EPOCH)
    output = capsys.readouterr().out
    assert output.splitlines() == [
        "epoch   1/4  binary  train loss 0.5000 accuracy  75.00%  test loss 0.2500"
        " accuracy  87.50%  1,234 images/s"
    ]


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with metrics.ProgressBar(4, 10, 10, quiet=False) as progress:
        progress.step(1, 0.5)
    output = capsys.readouterr().out
    assert "epoch 2/4  loss 0.5000" in output
    assert "11/40" in output


RESULT = {
    "final_test_accuracy": 0.5, "best_test_accuracy": 0.75, "test_examples": 8, "filter_bits": 9,
    "float32_filter_bits": 288, "wall_seconds": 1.0, "class_names": ["a:x:b", "[red]"],
}  # fmt: skip


def test_names_are_printed_as_they_are(capsys):
    metrics.print_result(RESULT, pathlib.Path("[bold]:x:"))
    metrics.ProgressBar(1, 1, 0, quiet=False).say("[bold]:x:")
    out = capsys.readouterr().out
    assert out.count("[bold]:x:") == 2
    assert "2: a:x:b, [red]" in out


@pytest.mark.parametrize("name", RESULT)
@pytest.mark.parametrize("damage", [lambda r, n: r | {n: None}, lambda r, n: r.pop(n) and r])
def test_a_damaged_result_is_one_line_and_prints_nothing(name, damage, capsys):
    damaged = damage(dict(RESULT), name)
    with pytest.raises(InputError, match=r"^x/result\.json is damaged \(.*\); remove it, and the"):
        metrics.print_result(damaged, pathlib.Path("x"))
    assert not capsys.readouterr().out
