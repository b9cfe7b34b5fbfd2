"""Tests the pictures in a work directory."""

import shutil

import pytest

from mcn_jax.reports.run_pictures import draw_run

PNG = b"\x89PNG"


@pytest.mark.parametrize(
    ("run", "expected"),
    [("seed_0", {"curves.png", "health.png"}), ("umcn", {"curves.png"})],
)
def test_health_is_drawn_where_weights_were_quantized(run, expected, report_runs, tmp_path):
    workdir = tmp_path / run
    shutil.copytree(report_runs[run], workdir)
    assert not list(workdir.glob("*.png"))  # training draws nothing
    draw_run(workdir)
    assert {path.name for path in workdir.glob("*.png")} == expected
    assert all(path.read_bytes().startswith(PNG) for path in workdir.glob("*.png"))


def test_a_picture_that_is_there_is_left_alone(report_runs, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(report_runs["seed_0"], workdir)
    (workdir / "curves.png").write_bytes(b"mine")
    draw_run(workdir)
    assert (workdir / "curves.png").read_bytes() == b"mine"
    assert (workdir / "health.png").read_bytes().startswith(PNG)


def test_a_picture_is_written_as_a_whole_or_not_at_all(report_runs, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(report_runs["umcn"], workdir)

    def full_disk(descriptor):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full_disk)
        with pytest.raises(OSError, match="No space left"):
            draw_run(workdir)
    assert not list(workdir.glob("*.png*"))
    draw_run(workdir)
    assert (workdir / "curves.png").read_bytes().startswith(PNG)


def test_nothing_is_drawn_of_a_run_without_records(tmp_path):
    draw_run(tmp_path)
    assert not list(tmp_path.iterdir())
