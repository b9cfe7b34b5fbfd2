"""Compares one device with eight, and counts how often a step is compiled."""

import functools

import jax
import numpy as np
import pytest

from mcn_jax import parallel
from mcn_jax.config import DataConfig, LossConfig, ModelConfig
from mcn_jax.data.batches import Batch
from mcn_jax.training.state import saved_tree
from mcn_jax.training.steps import train_step
from mcn_jax.workdirs.checkpoint import Checkpoints, named_leaves
from small_runs import digits_config, random_split, relative_distance, restored, step_arguments

WIDE_RESNET = ModelConfig(
    name="wide_resnet", widths=(1, 1, 2, 2), depth=8, planes=2, dense_features=8, dropout_rate=0.2
)


def train(config, quantized, steps):
    """Returns the state after steps of `parallel.parallel(train_step)` on `local_devices()`."""
    state, arguments = step_arguments(config, quantized, axis_name=parallel.AXIS)
    step = parallel.parallel(functools.partial(train_step, **arguments), donate_state=True)
    state = parallel.replicate(state)
    split = parallel.replicate(random_split())
    for i in range(steps):
        order = np.random.default_rng(i).permutation(64)[:32].astype(np.int32)
        batch = parallel.shard(Batch(order, np.arange(32, dtype=np.int32)))
        state, metrics = step(state, split, batch)
        jax.block_until_ready(metrics)
    return parallel.unreplicate(state)


def compare(config, quantized, steps, tolerance, monkeypatch):
    assert len(parallel.local_devices()) == 8
    eight = named_leaves(train(config, quantized, steps))
    with monkeypatch.context() as patch:
        patch.setattr(parallel, "local_devices", lambda: jax.local_devices()[:1])
        one = named_leaves(train(config, quantized, steps))
    assert eight.keys() == one.keys()
    distances = {name: relative_distance(eight[name], one[name]) for name in one}
    assert max(distances.values()) <= tolerance, distances
    assert any(name.startswith("batch_stats") for name in distances)


@pytest.mark.parametrize(
    ("quantized", "center_loss_weight"),
    [
        (True, 0.01),
        (False, 0.0),
        pytest.param(True, 0.0, marks=pytest.mark.slow),
        pytest.param(False, 0.01, marks=pytest.mark.slow),
    ],
)
def test_one_device_equals_eight_in_float64(quantized, center_loss_weight, monkeypatch):
    loss = LossConfig(theta=1e-3, center_loss_weight=center_loss_weight)
    config = digits_config(dtype="float64", param_dtype="float64", loss=loss)
    with jax.enable_x64(True):
        compare(config, quantized, 10, 1e-9, monkeypatch)


@pytest.mark.slow
def test_one_device_equals_eight_in_float64_with_every_augmentation(monkeypatch):
    data = DataConfig(crop_padding=2, flip=True, color_jitter=0.4, cutout=5, mixup=0.5)
    config = digits_config(dtype="float64", param_dtype="float64", data=data)
    with jax.enable_x64(True):
        compare(config, True, 10, 1e-9, monkeypatch)


@pytest.mark.slow
def test_one_device_equals_eight_in_float64_with_a_wide_resnet(monkeypatch):
    config = digits_config(dtype="float64", param_dtype="float64", model=WIDE_RESNET)
    with jax.enable_x64(True):
        compare(config, True, 10, 1e-9, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("quantized", [True, False])
def test_one_device_equals_eight_in_float32(quantized, monkeypatch):
    compare(digits_config(), quantized, 1, 1e-5, monkeypatch)


COMPILATIONS = []


def record_compilation(event, duration, **details):
    if event == "/jax/core/compile/backend_compile_duration":
        COMPILATIONS.append(details)


jax.monitoring.register_event_duration_secs_listener(record_compilation)


@pytest.mark.parametrize(
    ("model", "resumes"),
    [
        pytest.param(digits_config().model, False, id="simple_cnn"),
        pytest.param(digits_config().model, True, id="simple_cnn-restored"),
        pytest.param(WIDE_RESNET, False, id="wide_resnet", marks=pytest.mark.slow),
    ],
)
def test_the_second_step_compiles_nothing(model, resumes, tmp_path):
    config = digits_config(model=model)
    state, arguments = step_arguments(config, quantized=True, axis_name=parallel.AXIS)
    if resumes:
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(3, saved_tree(train(config, quantized=True, steps=3)), test_accuracy=0.5)
        state = restored(checkpoints, 3, state)
        checkpoints.close()
    step = parallel.parallel(functools.partial(train_step, **arguments), donate_state=True)
    state, split = parallel.replicate(state), parallel.replicate(random_split())
    batch = Batch(np.arange(32, dtype=np.int32), np.arange(32, dtype=np.int32))
    counts = []
    for _ in range(3):
        before = len(COMPILATIONS)
        state, metrics = step(state, split, parallel.shard(batch))
        jax.block_until_ready(metrics)
        counts.append(len(COMPILATIONS) - before)
    assert counts[0] >= 1, "the first step must be seen compiling, or this test sees nothing"
    assert counts[1:] == [0, 0]


def test_shard_divides_in_order_and_unreplicate_undoes_replicate():
    divided = parallel.shard(np.arange(16))
    assert [np.asarray(s.data).ravel().tolist() for s in divided.addressable_shards] == [
        [2 * i, 2 * i + 1] for i in range(8)
    ]
    tree = {"a": np.arange(6.0).reshape(2, 3), "b": np.asarray(7)}
    back = parallel.unreplicate(parallel.replicate(tree))
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert back["b"].shape == ()


def test_unreplicate_fetches_all_arrays_together(monkeypatch):
    fetched, device_get = [], jax.device_get
    tree = parallel.replicate({"a": np.arange(6.0), "b": {"c": np.arange(2), "d": np.ones(3)}})
    monkeypatch.setattr(jax, "device_get", lambda x: fetched.append(x) or device_get(x))
    parallel.unreplicate(tree)
    assert [len(jax.tree.leaves(x)) for x in fetched] == [3]


def test_several_cpu_devices_are_awaited(monkeypatch):
    assert parallel.must_await_steps()
    monkeypatch.setattr(parallel, "local_devices", lambda: jax.local_devices()[:1])
    assert not parallel.must_await_steps()
