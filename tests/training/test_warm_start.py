"""Tests runs that start from the filters of another run."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from mcn_jax.config import BinarizeConfig, LossConfig, ModelConfig, OptimizerConfig
from mcn_jax.errors import InputError
from mcn_jax.training.run import train_and_evaluate
from mcn_jax.training.state import saved_tree
from mcn_jax.training.warm_start import warm_start
from mcn_jax.workdirs.checkpoint import Checkpoints, named_leaves
from mcn_jax.workdirs.files import read_metrics
from small_runs import STEPS_PER_EPOCH, digits_config, restored, step_arguments

IMAGE = (32, 32, 1)  # of digits
BINARY_AT_ONCE = BinarizeConfig(start_epoch=0)


@pytest.fixture(scope="module")
def first_stage(data_dir, shared_run):
    """Returns (work directory, config) of a finished run: two epochs, the second binary."""
    config = digits_config(data_dir, num_epochs=2, binarize=BinarizeConfig(start_epoch=1))
    return shared_run("first_stage", config), config


def fine_tuning(first_stage, **changes):
    workdir, config = first_stage
    loss = LossConfig(theta=1e-3, center_loss_weight=1e-3)
    rates = OptimizerConfig(learning_rate=0.005, m_learning_rate=0.001, schedule="cosine")
    changes = {"num_epochs": 2, "binarize": BINARY_AT_ONCE, "loss": loss} | changes
    return dataclasses.replace(config, init_from=str(workdir), optimizer=rates, **changes)


def leaves_of(workdir, config, step=-1):
    template, _ = step_arguments(config, quantized=True, image_size=32)
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    state = restored(checkpoints, checkpoints.steps()[step], template)
    checkpoints.close()
    return named_leaves(saved_tree(state))


def first_epoch_accuracy(workdir):
    return next(
        record["train_accuracy"]
        for record in read_metrics(workdir / "metrics.jsonl")
        if record["kind"] == "epoch"
    )


def new_state(config):
    return step_arguments(config, quantized=True, image_size=32)[0]


def test_only_epochs_with_binary_filters_are_ranked(first_stage):
    ranked = [
        json.loads((first_stage[0] / "checkpoints" / str(step) / "metrics/metrics").read_text())
        for step in (STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH)
    ]
    result = json.loads((first_stage[0] / "result.json").read_text())
    assert ranked[0]["test_accuracy"] == 0.0
    assert ranked[1]["test_accuracy"] == result["final_test_accuracy"] > 0


def test_parameters_statistics_and_centers_are_taken_and_nothing_else(first_stage):
    workdir, config = first_stage
    trained = leaves_of(workdir, config)
    tuning = fine_tuning(first_stage, seed=5)
    state = new_state(tuning)
    start = warm_start(tuning, state, IMAGE)
    for name, leaf in named_leaves(saved_tree(start.state)).items():
        taken = name.split("/")[0] in ("params", "batch_stats", "centers")
        np.testing.assert_array_equal(
            leaf, trained[name] if taken else named_leaves(saved_tree(state))[name], err_msg=name
        )
    assert start.keeps_centers
    assert int(start.state.step) == 0
    assert start.state.class_means is not None
    assert start.description["step"] == 2 * STEPS_PER_EPOCH
    last = [r for r in read_metrics(workdir / "metrics.jsonl") if r["kind"] == "epoch"][-1]
    assert start.description["test_accuracy"] == last["test_accuracy"]


def test_an_ended_run_gets_new_statistics_by_an_epoch_without_a_rate(
    first_stage, tmp_path, one_device
):
    """As docs/training.md says: its weights and centers stay, and no bit flips."""
    rates = OptimizerConfig(learning_rate=1e-9, m_learning_rate=1e-9, warmup_epochs=0)
    leaves = {}
    for steps in (0, 5):
        config = dataclasses.replace(
            fine_tuning(first_stage, num_epochs=1, batch_norm_steps=steps), optimizer=rates
        )
        train_and_evaluate(config, tmp_path / str(steps))
        leaves[steps] = leaves_of(tmp_path / str(steps), config)
        records = read_metrics(tmp_path / str(steps) / "metrics.jsonl")
        [epoch] = [record for record in records if record["kind"] == "epoch"]
        assert epoch["flip_ratio"] == 0
    before = leaves_of(*first_stage)
    for name, leaf in leaves[5].items():
        if name.startswith(("params/", "centers/")):
            np.testing.assert_allclose(leaf, before[name], atol=1e-6, err_msg=name)
        if name.startswith("batch_stats/"):
            assert np.abs(leaf / leaves[0][name] - 1).max() > 1e-4, name
        else:
            np.testing.assert_array_equal(leaf, leaves[0][name], err_msg=name)


def test_centers_of_another_kind_are_not_kept(first_stage):
    tuning = fine_tuning(first_stage, binarize=BinarizeConfig(start_epoch=0, centers="symmetric"))
    assert not warm_start(tuning, new_state(tuning), IMAGE).keeps_centers


def test_centers_are_kept_whatever_the_estimator(first_stage):
    tuning = fine_tuning(first_stage, binarize=BinarizeConfig(start_epoch=0, estimator="ede"))
    start = warm_start(tuning, new_state(tuning), IMAGE)
    assert start.keeps_centers
    assert jax.tree.leaves(start.state.layer_state["progress"]) == [0.0, 0.0]


@pytest.mark.slow
@pytest.mark.parametrize("num_centers", [2, 4])
def test_fine_tuning_keeps_the_centers_where_it_can(num_centers, first_stage, tmp_path, one_device):
    binarize = BinarizeConfig(start_epoch=0, num_centers=num_centers)
    config = fine_tuning(first_stage, binarize=binarize)
    before = {p: p.read_bytes() for p in first_stage[0].rglob("*") if p.is_file()}
    train_and_evaluate(config, tmp_path)
    # The first stage is only read.
    assert {p: p.read_bytes() for p in first_stage[0].rglob("*") if p.is_file()} == before
    trained = leaves_of(*first_stage)
    tuned = leaves_of(tmp_path, config)
    same = [
        np.array_equal(leaf, trained[name])
        for name, leaf in tuned.items()
        if name.startswith("centers/")
    ]
    assert same == [num_centers == 2] * 2
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["init_from"]["step"] == 2 * STEPS_PER_EPOCH
    # It continues where the first stage ended, far from the loss of a random network.
    train_and_evaluate(dataclasses.replace(config, init_from=""), tmp_path / "random")
    tuned, random = (first_epoch_accuracy(path) for path in (tmp_path, tmp_path / "random"))
    assert tuned > random + 0.2
    assert json.loads((tmp_path / "random" / "config.json").read_text())["init_from"] is None


@pytest.mark.slow
def test_a_float_first_stage_gets_its_centers_by_k_means(
    first_stage, data_dir, tmp_path, one_device
):
    umcn = digits_config(data_dir, num_epochs=1, binarize=BinarizeConfig(enabled=False))
    train_and_evaluate(umcn, tmp_path / "umcn")
    tuning = dataclasses.replace(umcn, init_from=str(tmp_path / "umcn"))
    start = warm_start(tuning, new_state(umcn), IMAGE)
    assert not start.keeps_centers
    config = fine_tuning((tmp_path / "umcn", umcn), num_epochs=1)
    train_and_evaluate(config, tmp_path / "tuned")
    tuned, first = leaves_of(tmp_path / "tuned", config), leaves_of(tmp_path / "umcn", umcn)
    for layer in ("conv_1", "conv_2"):
        latent = np.sort(first[f"params/{layer}/latent_filters"].ravel().astype(np.float64))
        splits = [(latent[:cut], latent[cut:]) for cut in range(1, latent.size)]
        best = min(splits, key=lambda parts: sum(part.size * part.var() for part in parts))
        np.testing.assert_allclose(
            tuned[f"centers/{layer}/centers"], [part.mean() for part in best], rtol=1e-5
        )


def test_fine_tuning_that_was_stopped_needs_the_first_stage_no_more(
    first_stage, tmp_path, monkeypatch, one_device
):
    copy = tmp_path / "first"
    shutil.copytree(first_stage[0], copy)
    config = fine_tuning((copy, first_stage[1]))
    train_and_evaluate(config, tmp_path / "whole")
    save = Checkpoints.save

    def save_and_stop(self, *arguments):
        save(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(config, tmp_path / "stopped")
    shutil.rmtree(copy)
    train_and_evaluate(config, tmp_path / "stopped")
    expected = leaves_of(tmp_path / "whole", config)
    for name, leaf in leaves_of(tmp_path / "stopped", config).items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)


def damaged(workdir):
    (workdir / "metrics.jsonl").write_text("")


def without_checkpoints(workdir):
    shutil.rmtree(workdir / "checkpoints")


def not_a_run(workdir):
    (workdir / "config.json").unlink()


def without_config(workdir):
    (workdir / "config.json").write_text("{}")


@pytest.mark.parametrize(
    ("break_it", "changes", "message"),
    [
        (without_config, {}, "config.json has no config of a run; name another config.init_from"),
        (not_a_run, {}, "config.init_from=.*first is not the work directory of a run"),
        (without_checkpoints, {}, "config.init_from=.*first has no checkpoint yet"),
        (
            damaged,
            {},
            "metrics.jsonl has no record of an epoch that ended at a checkpoint, at step 44 or 88",
        ),
        (
            None,
            {"model": ModelConfig(widths=(2, 8), dense_features=32)},
            r"of shape \(.*\), this model needs \(.*\); start from a run with the same",
        ),
        (
            None,
            {"model": ModelConfig(widths=(2, 4), dense_features=32, conv="conv")},
            r"has no params/conv_1/conv/kernel, which this model needs; start from a run",
        ),
        (
            None,
            {"model": ModelConfig(widths=(2, 4), dense_features=32, plane_signs="hadamard")},
            r"model.plane_signs='hadamard' must be '', with which the filters of .*first were",
        ),
    ],
)
def test_what_cannot_be_started_from_is_named_and_nothing_written(
    break_it, changes, message, first_stage, tmp_path, one_device
):
    copy = tmp_path / "first"
    shutil.copytree(first_stage[0], copy)
    if break_it:
        break_it(copy)
    with pytest.raises(InputError, match=message):
        train_and_evaluate(fine_tuning((copy, first_stage[1]), **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
