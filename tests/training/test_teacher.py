"""Tests runs that also learn the outputs of a trained network."""

import dataclasses
import functools
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from mcn_jax.config import BinarizeConfig, DataConfig, LossConfig, ModelConfig, OptimizerConfig
from mcn_jax.data.batches import Batch
from mcn_jax.data.dataset import open_dataset
from mcn_jax.errors import InputError
from mcn_jax.training import losses
from mcn_jax.training.run import train_and_evaluate
from mcn_jax.training.steps import train_step
from mcn_jax.training.teacher import read_teacher
from mcn_jax.workdirs.checkpoint import Checkpoints
from small_runs import copy_after, digits_config, random_split, step_arguments

SMALL = {"name": "digits", "train_split": "train[:160]"}  # 5 steps per epoch
BATCH = Batch(np.arange(32, dtype=np.int32), np.arange(32, dtype=np.int32))


def test_the_distance_and_its_gradient_by_value():
    generator = np.random.default_rng(0)
    logits, taught = generator.normal(size=(2, 6, 5))
    temperature = 3.0
    target = softmax(taught / temperature, axis=-1)
    difference = np.log(target) - log_softmax(logits / temperature, axis=-1)
    with jax.enable_x64(True):
        value, gradients = jax.value_and_grad(losses.distillation, argnums=(0, 1))(
            jnp.asarray(logits), jnp.asarray(taught), temperature
        )
        np.testing.assert_allclose(
            value, 9 * np.sum(target * difference, axis=-1).mean(), rtol=1e-12
        )
        # T^2 times the difference of both distributions, over T and over the number of images.
        expected = temperature * (softmax(logits / temperature, axis=-1) - target) / 6
        np.testing.assert_allclose(gradients[0], expected, rtol=1e-10, atol=1e-14)
        np.testing.assert_array_equal(gradients[1], 0)
        assert (
            abs(float(losses.distillation(jnp.asarray(taught), jnp.asarray(taught), 2.0))) < 1e-12
        )


def stepped(share):
    """Returns (state, metrics) after a step of plain SGD in float64; without a teacher for 0."""
    optimizer = OptimizerConfig(
        learning_rate=0.05, momentum=0.0, weight_decay=0.0, schedule="constant"
    )
    model = ModelConfig(widths=(2, 4), dense_features=32, dropout_rate=0.0)
    fields = {"dtype": "float64", "param_dtype": "float64", "model": model, "optimizer": optimizer}
    loss = LossConfig(theta=0.0, distillation=share, temperature=2.0)
    with jax.enable_x64(True):
        config = digits_config(loss=loss, **fields)
        state, arguments = step_arguments(config, quantized=True)
        if share:
            other, _ = step_arguments(dataclasses.replace(config, seed=1), quantized=True)
            settings = arguments["settings"]
            arguments["settings"] = dataclasses.replace(settings, teacher=arguments["model"])
            state = dataclasses.replace(state, teacher=other.variables)
        step = jax.jit(functools.partial(train_step, **arguments))
        return jax.device_get((state, *step(state, random_split(), BATCH)))


def test_a_step_weighs_labels_and_teacher():
    """The gradient is that of the labels at a share of 0, and changes linearly with the share."""
    (_, none, alone), (before, low, metrics), (_, high, _) = map(stepped, (0.0, 0.25, 0.75))
    leaves = [jax.tree.leaves(state.params) for state in (none, low, high)]
    for a, b, c in zip(*leaves, strict=True):
        np.testing.assert_allclose(b - a, (c - a) / 3, rtol=1e-6, atol=1e-12)
    assert max(np.abs(a - c).max() for a, _, c in zip(*leaves, strict=True)) > 1e-4
    assert metrics["softmax_loss"] == alone["softmax_loss"]
    assert metrics["distillation_loss"] > 0.01
    assert "distillation_loss" not in alone
    kept = zip(jax.tree.leaves(before.teacher), jax.tree.leaves(low.teacher), strict=True)
    for a, b in kept:
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def taught(data_dir, shared_run):
    """Returns (work directory of a wider U-MCN, config of a narrow MCN that learns from it)."""
    data = DataConfig(data_dir=data_dir, **SMALL)
    teacher = digits_config(
        data_dir, num_epochs=1, data=data, binarize=BinarizeConfig(enabled=False),
        model=ModelConfig(widths=(4, 8), dense_features=32),
    )  # fmt: skip
    workdir = shared_run("teacher", teacher)
    student = digits_config(
        data_dir, num_epochs=2, data=data, binarize=BinarizeConfig(start_epoch=1),
        loss=LossConfig(teacher=str(workdir), distillation=0.5),
    )  # fmt: skip
    return workdir, student


def test_a_run_with_a_teacher_resumes_and_records_it(taught, tmp_path, monkeypatch, one_device):
    workdir, config = taught
    with monkeypatch.context() as patch:
        copy_after(patch, 5, tmp_path / "stopped")
        train_and_evaluate(config, tmp_path / "whole")
    record = json.loads((tmp_path / "whole" / "config.json").read_text())
    assert record["teacher"]["workdir"] == str(workdir)
    assert record["teacher"]["step"] == 5
    moved = tmp_path / "moved"
    shutil.copytree(workdir, moved)
    elsewhere = dataclasses.replace(config.loss, teacher=str(moved))
    train_and_evaluate(dataclasses.replace(config, loss=elsewhere), tmp_path / "stopped")
    last = []
    for name in ("whole", "stopped"):
        checkpoints = Checkpoints(tmp_path / name / "checkpoints", read_only=True)
        last.append(checkpoints.read(10))
        checkpoints.close()
    assert not any(name.startswith("teacher") for name in last[0])
    for name, leaf in last[1].items():
        np.testing.assert_array_equal(leaf, last[0][name], err_msg=name)
    alone = dataclasses.replace(config, loss=LossConfig())
    train_and_evaluate(alone, tmp_path / "alone")
    checkpoints = Checkpoints(tmp_path / "alone" / "checkpoints", read_only=True)
    name = "params/conv_2/latent_filters"
    assert np.abs(checkpoints.read(10)[name] - last[0][name]).max() > 1e-4
    checkpoints.close()


def test_a_run_does_not_resume_with_another_teacher(taught, tmp_path, monkeypatch, data_dir):
    workdir, config = taught
    copied = tmp_path / "teacher"
    shutil.copytree(workdir, copied)
    config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, teacher=str(copied)))
    with monkeypatch.context() as patch:
        copy_after(patch, 5, tmp_path / "stopped")
        train_and_evaluate(config, tmp_path / "whole")
    shutil.rmtree(copied)
    with pytest.raises(InputError, match=r"config\.loss\.teacher: .* is not the work directory"):
        train_and_evaluate(config, tmp_path / "stopped")
    other = digits_config(
        data_dir, num_epochs=1, data=DataConfig(data_dir=data_dir, **SMALL), seed=7,
        binarize=BinarizeConfig(enabled=False), model=ModelConfig(widths=(4, 8), dense_features=32),
    )  # fmt: skip
    train_and_evaluate(other, copied)
    before = sorted((tmp_path / "stopped" / "checkpoints").iterdir())
    with pytest.raises(
        InputError, match=r"teacher=.* have changed since .* \(step 5 then, 5 now\)"
    ):
        train_and_evaluate(config, tmp_path / "stopped")
    assert sorted((tmp_path / "stopped" / "checkpoints").iterdir()) == before


def test_a_teacher_with_float64_weights_needs_a_run_with_float64(taught, tmp_path):
    _, config = taught
    teacher = tmp_path / "teacher"
    wide = {"dtype": "float64", "param_dtype": "float64"}
    with jax.enable_x64(True):
        train_and_evaluate(dataclasses.replace(config, loss=LossConfig(), **wide), teacher)
    named = dataclasses.replace(config, loss=LossConfig(teacher=str(teacher)))
    with pytest.raises(InputError, match=r"teacher=.* has float64 .*config.param_dtype=float64"):
        train_and_evaluate(named, tmp_path / "student")
    assert not (tmp_path / "student").exists()
    with jax.enable_x64(True):
        train_and_evaluate(dataclasses.replace(named, param_dtype="float64"), tmp_path / "student")
    assert (tmp_path / "student" / "result.json").exists()


def test_a_teacher_that_still_trains_is_refused(taught, tmp_path):
    workdir, config = taught
    shutil.copytree(workdir, tmp_path / "teacher")
    (tmp_path / "teacher" / "result.json").unlink()
    named = dataclasses.replace(config, loss=LossConfig(teacher=str(tmp_path / "teacher")))
    with pytest.raises(InputError, match=r"config\.loss\.teacher=.* has not ended"):
        train_and_evaluate(named, tmp_path / "student")
    assert not (tmp_path / "student").exists()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("image_shape", [16, 16, 1], "image_shape [16, 16, 1], this run has [32, 32, 1]"),
        ("std", [0.5], "std [0.5], this run has ["),
        ("class_names", ["a", "b"], "2 classes, this run has 10"),
        ("class_names", [*map(str, range(9)), "x"], "a class is 'x', in this run '9'"),
    ],
)
def test_a_teacher_of_other_data_is_refused(taught, tmp_path, field, value, said):
    workdir, config = taught
    copied = tmp_path / "teacher"
    shutil.copytree(workdir, copied)
    record = json.loads((copied / "config.json").read_text())
    data = open_dataset(config.data).description()
    record["data"][field] = value
    (copied / "config.json").write_text(json.dumps(record))
    named = dataclasses.replace(config, loss=LossConfig(teacher=str(copied)))
    message = f"config.loss.teacher={str(copied)!r} was trained with other data: {said}"
    with pytest.raises(InputError, match=re.escape(message)):
        read_teacher(named, data)
