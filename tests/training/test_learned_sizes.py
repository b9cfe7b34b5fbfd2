"""Tests runs whose images change their size: dispatches, resuming, devices and records."""

import dataclasses
import itertools
import os
import signal

import jax
import numpy as np
import pytest

from conftest import use_one_device
from mcn_jax import parallel
from mcn_jax.config import BinarizeConfig, LossConfig, ModelConfig, OptimizerConfig
from mcn_jax.data.dataset import open_dataset
from mcn_jax.models.plan import plan_of
from mcn_jax.training import learned_sizes, metrics
from mcn_jax.training.evaluation import evaluate
from mcn_jax.training.run import train_and_evaluate
from mcn_jax.training.setup import Setup
from mcn_jax.training.stopping import Stopped
from mcn_jax.workdirs.checkpoint import Checkpoints
from mcn_jax.workdirs.files import of_kind, read_metrics
from mcn_jax.workdirs.trained import read_trained
from small_runs import STEPS_PER_EPOCH, digits_config, without_times

UPDATE_STEPS = 4


def config_of(data_dir, **changes):
    """Returns the config of a narrow Wide-ResNet on digits whose strides move fast."""
    model = ModelConfig(
        name="wide_resnet", conv="conv", planes=1, widths=(2, 2, 3, 4), depth=8, head="linear",
        pooling="diffstride", smoothness=2.0,
    )  # fmt: skip
    config = digits_config(data_dir, num_epochs=1, stride_update_steps=UPDATE_STEPS, **changes)
    config = dataclasses.replace(config, model=model, binarize=BinarizeConfig(start_epoch=0))
    optimizer = OptimizerConfig(learning_rate=0.3, schedule="constant")
    return dataclasses.replace(config, optimizer=optimizer, loss=LossConfig(stride_cost=0.3))


def digests_and_records(workdir):
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    digests = checkpoints.digests(checkpoints.steps()[-1])
    checkpoints.close()
    return digests, without_times(read_metrics(workdir / "metrics.jsonl"))


def sizes_in(workdir):
    """Returns the "sizes" records as {step: sizes}."""
    records = of_kind(read_metrics(workdir / "metrics.jsonl"), "sizes")
    return {
        record["step"]: tuple(value for name, value in record.items() if "/" in name)
        for record in records
    }


@pytest.fixture(scope="module")
def run(shared_run, data_dir):
    return shared_run("learned_sizes", config_of(data_dir))


@pytest.mark.slow
def test_sizes_change_at_multiples_of_the_update_steps_and_at_no_other(run):
    sizes = sizes_in(run)
    assert next(iter(sizes)) == 1
    assert all((step - 1) % UPDATE_STEPS == 0 for step in sizes)
    assert len(set(sizes.values())) >= 3  # otherwise the tests of this file show nothing
    for earlier, later in itertools.pairwise(sizes.values()):
        assert earlier != later


@pytest.mark.slow
def test_sizes_and_strides_of_the_last_step_are_recorded_and_used(run):
    [strides] = of_kind(read_metrics(run / "metrics.jsonl"), "strides")
    assert strides["step"] == STEPS_PER_EPOCH
    trained = read_trained(run)
    params = trained.variables["params"]
    found = {name: value for name, value in strides.items() if "/" in name}
    assert found["pooling_2/y"] == pytest.approx(float(params["pooling_2"]["strides"][0]))
    assert len(found) == 6
    assert all(value >= 1 for value in found.values())
    assert max(abs(value - 2) for name, value in found.items() if "pooling_1" not in name) > 0.1
    plan = plan_of(trained.config, 10, (32, 32, 1))
    assert trained.config.model.pooled_sizes == learned_sizes.pooled_sizes(plan, params)


@pytest.mark.slow
def test_a_run_stopped_between_changes_of_size_ends_where_the_whole_one_ends(
    run, data_dir, tmp_path, monkeypatch, one_device
):  # 22
    config = dataclasses.replace(config_of(data_dir), checkpoint_every_steps=7)
    steps = [2, 6, 11, 15, 25, 38]  # at changes of size, and between them
    step_done = metrics.ProgressBar.step
    seen = itertools.count(1)

    def send_signal(self, *arguments):
        step_done(self, *arguments)
        if next(seen) in steps:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(metrics.ProgressBar, "step", send_signal)
    for _ in steps:
        with pytest.raises(Stopped):
            train_and_evaluate(config, tmp_path)
    train_and_evaluate(config, tmp_path)
    assert digests_and_records(tmp_path) == digests_and_records(run)


@pytest.fixture(scope="module")
def exact_run(share, data_dir):
    """Returns the work directory of a run in float64, where rounding hardly moves a stride."""

    def train(directory):
        with pytest.MonkeyPatch.context() as patch:
            use_one_device(patch)
            train_exactly(config_of(data_dir), directory)

    return share("learned_sizes_float64", train)


def train_exactly(config, workdir):
    config = dataclasses.replace(config, dtype="float64", param_dtype="float64")
    with jax.enable_x64(True):
        train_and_evaluate(config, workdir)


def check_equal(workdir, expected):
    """Checks that two runs have the same sizes, and the same numbers apart from rounding."""
    assert sizes_in(workdir) == sizes_in(expected)
    assert len(set(sizes_in(workdir).values())) >= 3
    records = (without_times(read_metrics(path / "metrics.jsonl")) for path in (workdir, expected))
    for mine, theirs in zip(*records, strict=True):
        for name, value in theirs.items():
            same = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
            assert mine[name] == same, name


@pytest.mark.slow
def test_the_length_of_a_dispatch_changes_nothing(exact_run, data_dir, tmp_path, one_device):  # 21
    train_exactly(dataclasses.replace(config_of(data_dir), steps_per_dispatch=32), tmp_path)
    check_equal(tmp_path, exact_run)


def test_dispatches_end_where_sizes_may_change(data_dir, one_device):
    config = dataclasses.replace(config_of(data_dir), steps_per_dispatch=32)
    dataset = open_dataset(config.data)
    for update_steps, expected in ((4, 4), (6, 2), (22, 22), (88, 22)):
        changed = dataclasses.replace(config, stride_update_steps=update_steps)
        source = Setup(changed, dataset).source
        source.close()
        assert source.together == expected, update_steps
    strided = dataclasses.replace(config.model, pooling="strided")
    source = Setup(dataclasses.replace(config, model=strided), dataset).source
    source.close()
    assert source.together == 22


@pytest.mark.slow
def test_two_devices_compute_what_one_computes(exact_run, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(parallel, "local_devices", lambda: jax.local_devices()[:2])
    train_exactly(config_of(data_dir), tmp_path)
    check_equal(tmp_path, exact_run)


@pytest.mark.slow
def test_strides_that_are_not_finite_stop_the_run(data_dir, tmp_path, one_device):
    optimizer = OptimizerConfig(learning_rate=1e30, schedule="constant")
    config = dataclasses.replace(config_of(data_dir), optimizer=optimizer)
    with pytest.raises(FloatingPointError, match="at step"):
        train_and_evaluate(config, tmp_path)


def test_how_sizes_are_named():
    sizes = (24, 22, 18, 16)
    assert (
        learned_sizes.described(sizes) == "images of 24x22, 18x16 pixels after the pooling layers"
    )
    expected = {"pooling_1/y": 24, "pooling_1/x": 22, "pooling_2/y": 18, "pooling_2/x": 16}
    assert learned_sizes.named(sizes) == expected


def test_a_shared_stride_counts_for_both_axes(data_dir):
    config = config_of(data_dir)
    model = dataclasses.replace(config.model, shares_stride=True)
    plan = plan_of(dataclasses.replace(config, model=model), 10, (32, 32, 1))
    params = {f"pooling_{n}": {"strides": np.float32([1.5 + n])} for n in (1, 2, 3)}
    strides = learned_sizes.strides_of(plan, params)
    assert strides["pooling_2/y"] == strides["pooling_2/x"] == 3.5


@pytest.mark.slow
def test_averaged_strides_have_the_sizes_that_the_run_ends_with(data_dir, tmp_path, one_device):
    """The recorded loss is that of the network in the checkpoint, with its own sizes."""
    config = config_of(data_dir, batch_norm_steps=3)
    optimizer = dataclasses.replace(config.optimizer, average_epochs=1)
    config = dataclasses.replace(config, optimizer=optimizer)
    train_and_evaluate(config, tmp_path)
    trained = read_trained(tmp_path)
    assert trained.config.model.pooled_sizes != tuple(sizes_in(tmp_path).values())[-1]
    setup = Setup(config, open_dataset(config.data))
    variables = dict(trained.variables)
    state = dataclasses.replace(
        setup.initial_state(),
        params=variables.pop("params"), batch_stats=variables.pop("batch_stats"),
    )  # fmt: skip
    phase = setup.phase(False, trained.config.model.pooled_sizes)
    found = evaluate(phase.eval_step, parallel.replicate(state), setup.source.test_batches(0))
    assert found["test_loss"] == pytest.approx(trained.epoch["test_loss"], rel=1e-5)
    assert found["test_accuracy"] == trained.epoch["test_accuracy"]
