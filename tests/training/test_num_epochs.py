"""Tests runs that get another number of epochs."""

import dataclasses
import json
import shlex
import shutil

import numpy as np
import pytest

from mcn_jax.config import BinarizeConfig, LossConfig, OptimizerConfig, check_field
from mcn_jax.errors import InputError
from mcn_jax.reports.run_pictures import draw_run
from mcn_jax.training import run
from mcn_jax.training.checks import validate
from mcn_jax.training.num_epochs import check_num_epochs
from mcn_jax.training.run import train_and_evaluate
from mcn_jax.workdirs import files
from mcn_jax.workdirs.checkpoint import Checkpoints, saved_steps
from mcn_jax.workdirs.files import read_metrics
from small_runs import digits_config, without_times

STEPS = 4  # per epoch


def open_ended(data_dir, schedule="step", **changes):
    """Returns a config in whose third epoch the rates drop, warm-up ends and centers change."""
    fields = {
        "batch_size": 352,
        "log_every_steps": 3,
        "loss": LossConfig(theta=1e-3, center_loss_weight=1e-3),
        "binarize": BinarizeConfig(start_epoch=1, refresh_epochs=2),
        "optimizer": OptimizerConfig(
            learning_rate=0.05, schedule=schedule, schedule_epochs=(1, 3), warmup_epochs=3
        ),
    }
    return digits_config(data_dir, **(fields | changes))


@pytest.fixture(scope="module", params=["step", pytest.param("constant", marks=pytest.mark.slow)])
def runs(request, data_dir, shared_run):
    """Returns (config, directory of a run of four epochs, directory of one of two epochs)."""
    config = open_ended(data_dir, request.param)
    short = dataclasses.replace(config, num_epochs=2)
    name = f"open_ended_{request.param}"
    return config, shared_run(f"{name}_4", config), shared_run(f"{name}_2", short)


def leaves_of(workdir):
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    leaves = {step: checkpoints.read(step) for step in checkpoints.steps()}
    best = checkpoints.best_step()
    checkpoints.close()
    return best, leaves


def assert_same_run(workdir, expected):
    """Compares everything but times: config, records, result and every kept checkpoint."""
    record, other = (json.loads((d / "config.json").read_text()) for d in (workdir, expected))
    assert record == other
    records, others = (read_metrics(d / "metrics.jsonl") for d in (workdir, expected))
    assert without_times(records) == without_times(others)
    results = [json.loads((d / "result.json").read_text()) for d in (workdir, expected)]
    assert without_times(results[:1]) == without_times(results[1:])
    (best, leaves), (other_best, others) = leaves_of(workdir), leaves_of(expected)
    assert best == other_best
    assert leaves.keys() == others.keys()
    for step, names in others.items():
        assert leaves[step].keys() == names.keys()
        for name, leaf in names.items():
            np.testing.assert_array_equal(leaves[step][name], leaf, err_msg=f"{step} {name}")


def test_an_ended_run_with_more_epochs_is_the_run_that_had_them_from_the_start(
    runs, tmp_path, one_device
):
    config, whole, short = runs
    shutil.copytree(short, tmp_path / "run")
    draw_run(tmp_path / "run")
    curves = (tmp_path / "run" / "curves.png").read_bytes()
    train_and_evaluate(config, tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)
    seconds = [r.get("wall_seconds", 0.0) for r in read_metrics(tmp_path / "run/metrics.jsonl")]
    assert [s for s in seconds if s] == sorted(s for s in seconds if s)
    draw_run(tmp_path / "run")
    assert (tmp_path / "run" / "curves.png").read_bytes() != curves


@pytest.mark.parametrize(
    "function", ["unlink", pytest.param("write_atomically", marks=pytest.mark.slow)]
)
def test_a_kill_while_a_run_is_opened_again_loses_nothing(
    function, runs, tmp_path, monkeypatch, one_device
):
    config, whole, short = runs
    result = json.loads((short / "result.json").read_text())
    again = tmp_path / "run"
    shutil.copytree(short, again)
    before = leaves_of(again)

    def kill(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if function == "unlink":
            patch.setattr(type(again), "unlink", kill)
        else:
            patch.setattr(files, "write_atomically", kill)
        with pytest.raises(KeyboardInterrupt):
            run.reopen(again, config.num_epochs)
    np.testing.assert_equal(leaves_of(again), before)
    # The earlier command gives its result again, and the new one continues.
    shutil.copytree(again, tmp_path / "earlier")
    earlier = train_and_evaluate(dataclasses.replace(config, num_epochs=2), tmp_path / "earlier")
    assert earlier == result
    train_and_evaluate(config, again)
    assert_same_run(again, whole)


@pytest.mark.slow
def test_a_run_stopped_inside_an_epoch_may_end_with_it_but_not_before(
    runs, tmp_path, monkeypatch, one_device
):
    config, _, short = runs
    save = Checkpoints.save

    def save_and_stop(self, step, *arguments):
        save(self, step, *arguments)
        if step == STEPS + 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(dataclasses.replace(config, checkpoint_every_steps=2), tmp_path)
    assert saved_steps(tmp_path / "checkpoints")[-1] == STEPS + 2
    message = (
        r"written with config.num_epochs=4, this run has 1, but its last checkpoint lies in epoch"
        r" 2; use --config.num_epochs=2 or more"
    )
    with pytest.raises(InputError, match=message):
        check_num_epochs(tmp_path, config, dataclasses.replace(config, num_epochs=1), STEPS)
    result = train_and_evaluate(dataclasses.replace(config, num_epochs=2), tmp_path)
    expected = json.loads((short / "result.json").read_text())
    assert without_times([result]) == without_times([expected])
    (_, leaves), (_, others) = leaves_of(tmp_path), leaves_of(short)
    np.testing.assert_equal(leaves[2 * STEPS], others[2 * STEPS])


def test_what_an_ended_run_cannot_continue_without_is_named_and_nothing_changed(
    runs, tmp_path, one_device
):
    config, _, short = runs
    for name in ("metrics.jsonl", "checkpoints"):
        workdir = tmp_path / name
        shutil.copytree(short, workdir)
        if name == "checkpoints":
            shutil.rmtree(workdir / "checkpoints" / str(2 * STEPS))
        else:
            (workdir / name).unlink()
        before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
        with pytest.raises(InputError, match=r"has 4, but the checkpoint of its last epoch or its"):
            train_and_evaluate(config, workdir)
        assert {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()} == before


def test_a_run_whose_theta_depends_on_the_epochs_is_refused(data_dir, tmp_path):
    config = open_ended(data_dir, loss=LossConfig(theta_schedule="linear"))
    longer = dataclasses.replace(config, num_epochs=config.num_epochs + 1)
    with pytest.raises(InputError, match=r"weights of its config.loss.theta_schedule='linear'"):
        check_num_epochs(tmp_path, config, longer, STEPS)
    free = dataclasses.replace(config, binarize=BinarizeConfig(enabled=False))
    check_num_epochs(tmp_path, free, dataclasses.replace(free, num_epochs=longer.num_epochs), STEPS)


def test_a_cosine_run_is_refused_with_flags_that_train_on(data_dir, digits_run, one_device):
    config = digits_config(data_dir)
    before = {p: p.read_bytes() for p in digits_run.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=r"num_epochs=4, this run has 7, which would") as caught:
        train_and_evaluate(dataclasses.replace(config, num_epochs=7), digits_run)
    first, second = str(caught.value).split("; or train again in another --workdir with ")
    assert "\n" not in str(caught.value)
    flags = [flag for flag in shlex.split(first) if flag.startswith("--")]
    assert flags == [
        "--workdir=OTHER", f"--config.init_from={digits_run}", "--config.num_epochs=3",
        "--config.binarize.start_epoch=0",
    ]  # fmt: skip
    for flag in flags[1:]:
        check_field(flag.partition("=")[0].removeprefix("--config."))
    assert second.startswith("--config.optimizer.schedule=step or constant")
    with pytest.raises(InputError, match=r"num_epochs=4, this run has 3; use another --workdir"):
        train_and_evaluate(dataclasses.replace(config, num_epochs=3), digits_run)
    assert {p: p.read_bytes() for p in digits_run.rglob("*") if p.is_file()} == before
    # The flags fit the rules for values.
    validate(
        dataclasses.replace(
            config, init_from=str(digits_run), num_epochs=3, binarize=BinarizeConfig(start_epoch=0)
        )
    )
