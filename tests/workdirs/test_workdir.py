import dataclasses
import json
import logging
import os
import re
import subprocess

import pytest

from mcn_jax.config import BinarizeConfig, Config, DataConfig, LossConfig, OptimizerConfig
from mcn_jax.errors import InputError
from mcn_jax.workdirs import files as workdir
from mcn_jax.workdirs.files import (
    as_begun,
    check_workdir,
    of_kind,
    read_metrics,
    read_result,
    write_bytes_atomically,
    write_config,
)
from mcn_jax.workdirs.trained import saved_epochs

DATA = {"train_examples": 1437, "class_names": ["0", "1"]}


def test_a_new_directory_is_not_created_by_the_check(tmp_path):
    check_workdir(tmp_path / "new", Config(), DATA)
    assert not (tmp_path / "new").exists()


def test_the_same_config_and_harmless_changes_may_resume(tmp_path):
    write_config(tmp_path, Config(), DATA)
    check_workdir(tmp_path, Config(), DATA)
    elsewhere = Config(eval_batch_size=7, data=DataConfig(archive_dir="/elsewhere"))
    check_workdir(tmp_path, elsewhere, DATA)
    with pytest.raises(InputError, match=r"written with config.seed=0, this run has 1"):
        check_workdir(tmp_path, Config(seed=1), DATA)


def test_a_run_of_a_version_without_some_fields_may_resume_where_they_have_their_defaults(tmp_path):
    write_config(tmp_path, Config(), DATA)
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    del record["config"]["model"]["pooling"], record["config"]["num_epochs"]
    path.write_text(json.dumps(record))
    check_workdir(tmp_path, Config(), DATA)
    with pytest.raises(InputError, match=r"written with config.num_epochs=200, this run has 7"):
        check_workdir(tmp_path, Config(num_epochs=7), DATA)


def test_other_data_are_refused(tmp_path):
    write_config(tmp_path, Config(), DATA)
    message = r"was written with other data: train_examples was 1437 and is now 1438; use another"
    with pytest.raises(InputError, match=message):
        check_workdir(tmp_path, Config(), DATA | {"train_examples": 1438})


def test_a_revision_is_dirty_by_changes_of_the_source_alone(tmp_path, monkeypatch):
    def git(*arguments):
        name = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        return subprocess.check_output(["git", "-C", tmp_path, *name, *arguments], text=True)

    monkeypatch.setattr(workdir, "__file__", str(tmp_path / "mcn_jax" / "workdirs" / "files.py"))
    assert workdir.environment()["git_revision"] is None
    source, record = tmp_path / "mcn_jax/workdirs/steps.py", tmp_path / "results/a/step.json"
    for path in (source, record):
        path.parent.mkdir(parents=True)
        path.write_text("0")
    assert workdir.environment()["git_revision"] is None
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "First")
    revision = git("rev-parse", "HEAD").strip()
    record.write_text("1")
    (source.parent / "new.py").touch()
    assert workdir.environment()["git_revision"] == revision
    source.write_text("1")
    assert workdir.environment()["git_revision"] == f"{revision}-dirty"
    # A tree that was copied over another one's repository is not what git says.
    monkeypatch.setenv("MCN_JAX_REVISION", "0123abc")
    assert workdir.environment()["git_revision"] == "0123abc"


def test_the_repository_of_another_user_has_its_revision(monkeypatch, caplog):
    revision = workdir.git_revision()
    if revision is None:
        pytest.skip("the tests run outside a git repository")
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.delenv("MCN_JAX_REVISION", raising=False)
    assert workdir.git_revision() == revision
    assert not caplog.records


def test_a_revision_that_git_does_not_tell_is_not_lost_in_silence(tmp_path, monkeypatch, caplog):
    (tmp_path / ".git").touch()
    monkeypatch.setattr(workdir, "__file__", str(tmp_path / "mcn_jax" / "workdirs" / "files.py"))
    monkeypatch.setenv("MCN_JAX_REVISION", "abc")
    assert workdir.git_revision() == "abc"
    assert not caplog.records
    monkeypatch.delenv("MCN_JAX_REVISION")
    assert workdir.git_revision() is None
    [message] = [record.getMessage() for record in caplog.records]
    assert f"the git revision of {tmp_path} is not recorded (fatal: invalid gitfile" in message


def test_each_changed_package_is_told_in_one_line_unless_the_run_has_ended(tmp_path, caplog):
    write_config(tmp_path, Config(), DATA)
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    jax, flax = (record["versions"][name] for name in ("jax", "flax"))
    record["versions"] |= {"jax": "0.1.0", "flax": None}
    del record["versions"]["grain"]  # as an older version of this project recorded it
    path.write_text(json.dumps(record))
    check_workdir(tmp_path, Config(), DATA)
    bits = "the result may differ in the last bits"
    assert [record.getMessage() for record in caplog.records] == [
        f"resuming {tmp_path} with jax {jax} instead of 0.1.0: {bits}",
        f"resuming {tmp_path} with flax {flax} instead of None: {bits}",
    ]
    caplog.clear()
    (tmp_path / "result.json").write_text("{}")
    check_workdir(tmp_path, Config(), DATA)
    assert not caplog.records


def test_another_environment_is_told(tmp_path, caplog):
    write_config(tmp_path, Config(), DATA)
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    record["devices"] = ["NVIDIA H200"]
    path.write_text(json.dumps(record))
    with caplog.at_level(logging.WARNING, logger="absl"):
        check_workdir(tmp_path, Config(), DATA)
    [message] = [record.getMessage() for record in caplog.records if record.name == "absl"]
    assert "with devices" in message
    assert "instead of ['NVIDIA H200']: the result may differ in the last bits" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"config": ', "is damaged"),
        ("[]", "is damaged (it holds no JSON object)"),
        ("{}", "does not fit this version"),
        (json.dumps({"config": dataclasses.asdict(Config())}), "does not fit this version"),
        ('{"config": {"seed": 0}}', "does not fit this version ('data')"),
        ('{"config": {"sed": 0}}', "unknown field config.sed; did you mean seed?"),
        ('{"config": {"seed": "0"}}', "config.seed='0' must be of type int"),
    ],
)
def test_damaged_configs_are_refused(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=re.escape(message)):
        check_workdir(tmp_path, as_begun(tmp_path, Config()), DATA)


def test_checkpoints_without_a_config_are_refused(tmp_path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with pytest.raises(InputError, match=r"has checkpoints and no config\.json"):
        check_workdir(tmp_path, Config(), DATA)


def test_a_result_without_a_config_is_not_taken_for_that_of_a_new_run(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(InputError, match=r"has a result\.json and no config\.json .* --workdir"):
        check_workdir(tmp_path, Config(), DATA)


def test_a_file_in_place_of_the_directory(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file is a file; name a directory"):
        check_workdir(tmp_path / "file", Config(), DATA)


def test_a_directory_that_is_not_utf_8_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"x is not UTF-8, which checkpoints need"):
        check_workdir(tmp_path / os.fsdecode(b"\xff") / "x", Config(), DATA)


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    def disk_full(number):
        raise OSError("disk full")

    path = tmp_path / "x"
    write_bytes_atomically(path, b"before")
    monkeypatch.setattr("os.fsync", disk_full)
    with pytest.raises(OSError, match="disk full"):
        write_bytes_atomically(path, b"after")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("x", b"before")]


def test_a_damaged_result_is_named(tmp_path):
    assert read_result(tmp_path) is None
    for content in ("{", "[]"):
        (tmp_path / "result.json").write_text(content)
        with pytest.raises(InputError, match=r"result.json is damaged"):
            read_result(tmp_path)


@pytest.mark.parametrize("line", ["{", '{"kind": "epoch"}', "7", '{"step": "x"}', "\\xff"])
def test_a_line_of_the_metrics_that_is_no_record_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "step", "step": 1}\n' + line + "\n")
    with pytest.raises(InputError, match=r"metrics.jsonl, line 2, is damaged"):
        read_metrics(path, last_step=5)


@pytest.mark.parametrize("line", ["{", "7", "[1]", "null", "\\xff"])
def test_a_line_that_is_no_object_is_named_wherever_the_metrics_are_read(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "step", "step": 1}\n' + line + "\n")
    with pytest.raises(InputError, match=r"metrics.jsonl, line 2, is damaged"):
        read_metrics(path)
    with pytest.raises(InputError, match=r"metrics.jsonl, line 2, is damaged"):
        saved_epochs(tmp_path)


def test_records_without_a_kind_are_of_no_kind():
    records = [{"step": 1}, {"step": 2, "kind": "epoch"}]
    assert of_kind(records, "epoch") == records[1:]


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 64}, {"num_epochs": 7}, {"dtype": "bfloat16"}, {"init_from": "runs/first"},
        {"data": DataConfig(train_split="train[:90%]")}, {"data": DataConfig(crop_padding=3)},
        {"loss": LossConfig(theta=0.5)}, {"binarize": BinarizeConfig(num_centers=3)},
        {"optimizer": OptimizerConfig(momentum=0.5)},
    ],
    ids=str,
)  # fmt: skip
def test_a_change_that_matters_is_refused(change, tmp_path):
    write_config(tmp_path, Config(), DATA)
    with pytest.raises(InputError, match=rf"written with config\.{next(iter(change))}"):
        check_workdir(tmp_path, Config(**change), DATA)


@pytest.mark.parametrize("group", [None, 5, []])
def test_a_group_of_fields_that_is_none_is_one_line(group, tmp_path):
    write_config(tmp_path, Config(), DATA)
    record = json.loads((tmp_path / "config.json").read_text())
    record["config"]["data"] = group
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"config\.json .*another"):
        check_workdir(tmp_path, as_begun(tmp_path, Config()), DATA)


def test_the_command_of_an_older_run_resumes_it_with_the_same_images(tmp_path, caplog):
    config = Config(data=DataConfig(name="image_folder", image_size=8))
    assert as_begun(tmp_path, config) == config
    write_config(tmp_path, config, DATA)
    assert as_begun(tmp_path, config) == config
    path = tmp_path / "config.json"
    record = json.loads(path.read_text())
    del record["config"]["data"]["background"], record["config"]["data"]["exif_orientation"]
    path.write_text(json.dumps(record))
    older = dataclasses.replace(config.data, background=-1, exif_orientation=False)
    begun = as_begun(tmp_path, config)
    assert begun == dataclasses.replace(config, data=older)
    assert "config.data.background=-1, config.data.exif_orientation=False" in caplog.text
    check_workdir(tmp_path, begun, DATA)
    # What the command sets is not changed, but refused.
    gray = dataclasses.replace(config, data=dataclasses.replace(config.data, background=90))
    begun = as_begun(tmp_path, gray)
    assert begun.data.background == 90
    with pytest.raises(InputError, match=r"config.data.background=-1, this run has 90"):
        check_workdir(tmp_path, begun, DATA)
    # Nor is what the run itself has recorded.
    record["config"]["data"] |= {"background": 255, "exif_orientation": True}
    path.write_text(json.dumps(record))
    assert as_begun(tmp_path, config) == config
