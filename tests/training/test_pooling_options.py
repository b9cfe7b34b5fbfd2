"""Tests what learned strides and mixed pairs change in a step: optimizer, losses, inputs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mcn_jax.config import Config, DataConfig, LossConfig, ModelConfig, OptimizerConfig
from mcn_jax.data.augment import mixup, training_inputs
from mcn_jax.data.batches import Batch
from mcn_jax.errors import InputError
from mcn_jax.layers.spectral_pooling import DIFFSTRIDE
from mcn_jax.models.plan import plan_of
from mcn_jax.seeds import Purpose, example_keys
from mcn_jax.training import optim
from mcn_jax.training.checks import validate
from mcn_jax.training.steps import train_step
from small_runs import planned, random_split, step_arguments

MODEL = ModelConfig(
    name="wide_resnet", conv="conv", planes=1, widths=(2, 2, 3, 4), depth=8, head="linear",
    pooling="diffstride", strides=(2, 2, 2), smoothness=2.0,
)  # fmt: skip


def updated(config, strides, gradients):
    """Returns strides after one update for each gradient."""
    params = {"pooling_1": {"strides": jnp.asarray(strides)}}
    plan = (planned("pooling_1", DIFFSTRIDE, strides=np.asarray(strides)),)
    optimizer = optim.make_optimizer(config, 10, 1, plan)
    state = optimizer.init(params)
    for gradient in gradients:
        given = {"pooling_1": {"strides": jnp.asarray(gradient)}}
        updates, state = optimizer.update(given, state, params)
        params = optax.apply_updates(params, updates)
    return params["pooling_1"]["strides"]


def test_strides_have_the_rate_of_weights_and_no_decay():
    config = OptimizerConfig(
        learning_rate=0.1, weight_decay=0.5, momentum=0.9, nesterov=False, schedule="constant"
    )
    # Momentum: 1, then 0.9 * 1 + 2 = 2.9.
    found = updated(config, [2.0, 3.0], [[1.0, -1.0], [2.0, -2.0]])
    np.testing.assert_allclose(found, [2 - 0.1 - 0.29, 3 + 0.1 + 0.29], rtol=1e-6)
    nesterov = dataclasses.replace(config, nesterov=True)
    # Nesterov's: 0.9 * 1 + 1 = 1.9, then 0.9 * 2.9 + 2 = 4.61.
    found = updated(nesterov, [2.0, 3.0], [[1.0, -1.0], [2.0, -2.0]])
    np.testing.assert_allclose(found, [2 - 0.19 - 0.461, 3 + 0.19 + 0.461], rtol=1e-6)


@pytest.mark.parametrize(("limit", "expected"), [(0.0, [1, 6]), (2.5, [1, 2.5])])
def test_strides_stay_between_one_and_the_limit(limit, expected):
    config = OptimizerConfig(
        learning_rate=1.0, momentum=0.0, schedule="constant", stride_limit=limit
    )
    np.testing.assert_allclose(updated(config, [1.5, 2.0], [[4.0, -4.0]]), expected)


@pytest.fixture(scope="module")
def step():
    """Returns a function that runs one step and returns (state before, state after, metrics)."""

    def run(**loss):
        config = Config(
            model=MODEL, loss=LossConfig(**loss),
            optimizer=OptimizerConfig(learning_rate=0.1, momentum=0.0, schedule="constant"),
        )  # fmt: skip
        state, arguments = step_arguments(config, quantized=False)
        split = jax.tree.map(jnp.asarray, random_split(8))
        batch = Batch(jnp.arange(8), jnp.arange(8))
        after, metrics = jax.jit(lambda s: train_step(s, split, batch, **arguments))(state)
        return state, after, metrics

    return run


def test_the_cost_of_strides_is_added_to_the_loss(step):
    before, plain, metrics = step()
    assert "stride_cost" not in metrics
    _, costly, metrics = step(stride_cost=0.5)
    expected = 1 / 4 + 1 / 16 + 1 / 64
    assert float(metrics["stride_cost"]) == pytest.approx(expected, rel=1e-5)
    moved = [
        np.asarray(costly.params[name]["strides"] - plain.params[name]["strides"])
        for name in ("pooling_1", "pooling_2", "pooling_3")
    ]
    # Minus the rate times the weight times the gradient, -term / S for each stride of a product.
    terms = [expected / 2, (1 / 16 + 1 / 64) / 2, 1 / 64 / 2]
    for found, term in zip(moved, terms, strict=True):
        np.testing.assert_allclose(found, 0.1 * 0.5 * term, rtol=1e-3)
    assert before.params["pooling_2"]["strides"].tolist() == [2, 2]


def test_strides_are_watched(step):
    _, after, metrics = step()
    strides = np.concatenate([after.params[f"pooling_{n}"]["strides"] for n in (1, 2, 3)])
    assert float(metrics["stride_min"]) == strides.min()
    assert float(metrics["stride_max"]) == strides.max()


def inputs_of(config, size=8):
    split = jax.tree.map(jnp.asarray, random_split(size))
    batch = Batch(jnp.arange(size), jnp.arange(size))
    keys = example_keys(0, Purpose.MIXUP, jnp.int32(0), batch.positions)
    found = training_inputs(
        split, batch, lambda purpose: keys, config, mean=(0.0,), std=(1.0,),
        dtype=jnp.dtype("float32"),
    )  # fmt: skip
    return split, keys, found


def test_each_pair_becomes_one_image_with_a_draw_of_its_own():
    split, keys, pairs = inputs_of(DataConfig(mixup=0.3, mixup_pairs=True))
    whole = mixup(split.images.astype(jnp.float32) / 255, split.labels, keys, 0.3)
    assert pairs.images.shape == (4, 16, 16, 1)
    np.testing.assert_allclose(pairs.images, whole.images[::2], rtol=1e-6)
    np.testing.assert_array_equal(pairs.labels, split.labels[::2])
    np.testing.assert_array_equal(pairs.other_labels, split.labels[1::2])
    np.testing.assert_array_equal(pairs.shares, whole.shares[::2])


def test_a_step_takes_mixed_pairs_with_dropout():
    config = Config(
        data=DataConfig(mixup=0.3, mixup_pairs=True),
        model=ModelConfig(conv="conv", planes=1, widths=(2, 3), dense_features=8),
    )
    state, arguments = step_arguments(config, quantized=False)
    split = jax.tree.map(jnp.asarray, random_split(8))
    after, metrics = train_step(state, split, Batch(jnp.arange(8), jnp.arange(8)), **arguments)
    assert np.isfinite(float(metrics["softmax_loss"]))
    assert int(after.step) == 1


def test_pairs_need_mixup():
    with pytest.raises(InputError, match=r"mixup_pairs=True needs config.data.mixup above 0"):
        validate(Config(data=DataConfig(mixup_pairs=True)))


def test_the_strides_have_a_group_of_their_own():
    plan = plan_of(Config(model=MODEL), 10, (16, 16, 1))
    groups = optim.parameter_groups(plan)
    assert groups["pooling_1"] == groups["pooling_3"] == {"strides": "strides"}
    assert "strides 6 in 3" in optim.describe_groups(plan)
