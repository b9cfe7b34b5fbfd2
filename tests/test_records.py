"""Finished runs and benchmarks, stored under results/ and read back."""

import json
import os
import pathlib
import shutil

import pytest
import record_files
import records

from mcn_jax.workdirs.files import read_metrics

RUN = pathlib.Path(__file__).parents[1] / "results" / "mnist_cpu_mcn"


@pytest.fixture
def workdir(tmp_path):
    """A finished run whose config names places of its machine."""
    path = tmp_path / "run"
    path.mkdir()
    for file in ("metrics.jsonl", "result.json"):
        shutil.copy(RUN / file, path / file)
    config = json.loads((RUN / "config.json").read_text())
    config["config"]["data"] |= {"archive_dir": "/somewhere", "data_dir": "/else", "root": "/r"}
    config["config"]["init_from"] = "/runs/first"
    config["init_from"] = {"workdir": "/runs/first"}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture
def results(tmp_path, monkeypatch):
    path = tmp_path / "results"
    path.mkdir()
    monkeypatch.setattr(record_files, "RESULTS", path)
    return path


def test_a_run_is_stored_in_a_directory_or_as_a_line(workdir, results):
    records.add(workdir, "alone", draws=False)
    assert sorted(path.name for path in (results / "alone").iterdir()) == [
        "config.json", "metrics.jsonl", "result.json",
    ]  # fmt: skip
    for name in ("b", "a"):
        records.add(workdir, f"sweep/{name}", draws=False)
    lines = [json.loads(line) for line in (results / "sweep.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["a", "b"]
    assert lines[0]["result"] == json.loads((workdir / "result.json").read_text())
    assert lines[0]["metrics"] == read_metrics(workdir / "metrics.jsonl")
    config = record_files.config_record("sweep/a")
    assert config == record_files.config_record("alone") == lines[0]["config"]
    assert config["config"]["init_from"] == config["init_from"]["workdir"] == "first"
    assert "/" not in config["config"]["data"]["archive_dir"]
    [alone], both = record_files.stored_runs("alone"), record_files.stored_runs("sweep/?")
    assert [run.workdir.name for run in both] == ["a", "b"]
    for run in both:
        assert (run.config, run.records, run.result) == (alone.config, alone.records, alone.result)


def test_a_line_of_the_same_name_is_replaced(workdir, results):
    records.add(workdir, "sweep/a", draws=False)
    result = json.loads((workdir / "result.json").read_text()) | {"final_test_accuracy": 0.5}
    (workdir / "result.json").write_text(json.dumps(result))
    records.add(workdir, "sweep/a", draws=False)
    [run] = record_files.stored_runs("sweep/*")
    assert run.result["final_test_accuracy"] == 0.5


def test_a_file_that_has_changed_is_read_again(workdir, results):
    path = results / "sweep.jsonl"
    for written, name in enumerate("ab", start=1):
        records.add(workdir, f"sweep/{name}", draws=False)
        os.utime(path, (written, written))
        assert record_files.has_run(f"sweep/{name}")
        assert len(record_files.stored_runs("sweep/?")) == written


def test_a_run_that_has_not_ended_is_refused(workdir, results):
    (workdir / "result.json").unlink()
    with pytest.raises(SystemExit, match=r"result\.json"):
        records.add(workdir, "sweep/a", draws=False)
    assert not list(results.iterdir())


def test_a_name_without_a_run_is_refused(workdir, results):
    records.add(workdir, "sweep/a", draws=False)
    with pytest.raises(SystemExit, match="'b'"):
        record_files.stored_runs("sweep/b")


def test_benchmarks_stand_alone_or_beside_other_runs(results):
    first, second, third = {"layers": [1]}, {"layers": [2]}, {"layers": [3]}
    record_files.write_benchmark("cpu", "step", "main", first)
    assert json.loads((results / "benchmarks/cpu/step.json").read_text()) == first
    record_files.write_benchmark("cpu", "step", "later", second)
    record_files.write_benchmark("cpu", "step", "main", third)
    assert record_files.benchmark_runs("cpu", "step") == {"main": third, "later": second}
    assert record_files.read_benchmark("cpu", "step") == third
    record_files.write_benchmark("cpu", "layers", "only", first)
    assert record_files.benchmark_runs("cpu", "layers") == {"only": first}


def test_a_document_without_its_marker_is_refused():
    with pytest.raises(SystemExit, match="results"):
        records.with_tables("text", {"results": lambda: "|"})
