import json
import struct

from tensorboardX.proto.event_pb2 import Event

from mcn_jax import metrics
from mcn_jax.workdir import read_metrics

EPOCH = {
    "kind": "epoch", "epoch": 0, "binarized": True, "train_loss": 0.5, "train_accuracy": 0.75,
    "test_loss": 0.25, "test_accuracy": 0.875, "images_per_second": 1234.5,
}  # fmt: skip


def events(directory):
    """(step, tag, value) of every scalar in the event files, parsed from their records."""
    scalars = []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            scalars += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
    return scalars


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


def test_plain_lines_without_a_terminal(capsys):
    with metrics.Progress(4, 10, 0, quiet=False) as progress:
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
    with metrics.Progress(4, 10, 10, quiet=False) as progress:
        progress.step(1, 0.5)
    output = capsys.readouterr().out
    assert "epoch 2/4  loss 0.5000" in output
    assert "11/40" in output
