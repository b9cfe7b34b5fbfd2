import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import paper
from mcn_jax.config import BinarizeConfig, LossConfig, OptimizerConfig
from mcn_jax.data.batches import Batch, EvalBatch
from mcn_jax.data.facts import DATASETS
from mcn_jax.models import make_model
from mcn_jax.training.steps import eval_step, train_step
from small_runs import digits_config, random_split, step_arguments

PLAIN_SGD = OptimizerConfig(
    learning_rate=0.05, m_learning_rate=0.02, momentum=0.0, weight_decay=0.0, schedule="constant"
)
BATCH = Batch(np.arange(32, dtype=np.int32), np.arange(32, dtype=np.int32))


def float64_config(**changes):
    config = digits_config(dtype="float64", param_dtype="float64", optimizer=PLAIN_SGD)
    return dataclasses.replace(config, **changes)


@functools.cache
def one_step(config, quantized=True):
    """Returns (state before, state after, metrics) as numpy, in float64."""
    with jax.enable_x64(True):
        state, arguments = step_arguments(config, quantized)
        step = jax.jit(functools.partial(train_step, **arguments))
        return jax.device_get((state, *step(state, random_split(), BATCH)))


@pytest.mark.parametrize("projection_penalty", [True, False])
def test_a_step_adds_the_terms_of_eqs_10_13_and_17(projection_penalty):
    """The softmax gradient is from a step with theta = 0; the rest is from the paper."""
    theta = 0.3
    before, plain, _ = one_step(float64_config(loss=LossConfig(theta=0.0)))
    loss = LossConfig(theta=theta, projection_penalty=projection_penalty)
    _, full, metrics = one_step(float64_config(loss=loss))
    filter_loss = 0.0
    for name in ("conv_1", "conv_2"):
        latent, m = (before.params[name][key] for key in ("latent_filters", "m_filters"))
        binary = paper.binary(latent, before.layer_state["centers"][name]["centers"])
        filter_loss += paper.filter_loss(latent, binary, m, 1.0)
        softmax_gradient = (latent - plain.params[name]["latent_filters"]) / 0.05
        d_latent, d_m = paper.filter_loss_gradients(latent, binary, m, theta)
        d_latent = softmax_gradient + d_latent
        if projection_penalty:
            d_latent += paper.projection_term(latent, binary, softmax_gradient, theta, 0.05)
        np.testing.assert_allclose(
            full.params[name]["latent_filters"], latent - 0.05 * d_latent, rtol=1e-9
        )
        m_softmax_gradient = (m - plain.params[name]["m_filters"]) / 0.02
        np.testing.assert_allclose(
            full.params[name]["m_filters"],
            np.abs(m - 0.02 * (m_softmax_gradient + d_m)),
            rtol=1e-8,
        )
    np.testing.assert_allclose(metrics["filter_loss"], filter_loss, rtol=1e-9)
    assert full.step == before.step + 1


def test_a_step_has_the_theta_of_its_share_of_the_training():
    after = []
    for loss in (LossConfig(theta=0.4, theta_schedule="linear"), LossConfig(theta=0.1)):
        with jax.enable_x64(True):
            state, arguments = step_arguments(float64_config(loss=loss), quantized=True)
            quarter = arguments["settings"].num_steps // 4
            assert quarter * 4 == arguments["settings"].num_steps
            state = dataclasses.replace(state, step=jnp.asarray(quarter, state.step.dtype))
            step = jax.jit(functools.partial(train_step, **arguments))
            after.append(jax.device_get(step(state, random_split(), BATCH)[0].params))
    found, expected = map(jax.tree.leaves, after)
    for leaf, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-9, atol=1e-12)


def test_a_u_mcn_is_trained_with_the_softmax_loss_alone():
    states = [
        one_step(float64_config(loss=LossConfig(theta=theta)), quantized=False)[1]
        for theta in (0.0, 0.3)
    ]
    jax.tree.map(np.testing.assert_array_equal, *(state.params for state in states))


def test_the_latent_reading_of_eq_16_changes_m_alone():
    binary, latent = (
        one_step(float64_config(binarize=BinarizeConfig(start_epoch=2, m_gradient=reading)))[1]
        for reading in ("binary", "latent")
    )
    for name in ("conv_1", "conv_2"):
        a, b = binary.params[name], latent.params[name]
        np.testing.assert_array_equal(a["latent_filters"], b["latent_filters"])
        assert np.max(np.abs(a["m_filters"] - b["m_filters"])) > 1e-6


def plain_loss(config, params, state, images, labels):
    """Returns softmax plus center loss, computed with model.apply instead of the step."""
    model = make_model(config, 10, quantized=True)
    outputs, _ = model.apply(
        state.variables | {"params": params}, images, train=True, mutable=["batch_stats"]
    )
    log_probabilities = jax.nn.log_softmax(outputs.logits)
    softmax = -jnp.mean(log_probabilities[jnp.arange(len(labels)), labels])
    distances = outputs.features - state.class_means[labels]
    weight = config.loss.center_loss_weight
    return softmax + weight / 2 * jnp.mean(jnp.sum(distances**2, axis=(1, 2, 3)))


def test_a_step_follows_the_gradient_of_softmax_and_center_loss():
    config = float64_config(loss=LossConfig(theta=0.0, center_loss_weight=0.1))
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, crop_padding=0),
        model=dataclasses.replace(config.model, dropout_rate=0.0),
    )
    with jax.enable_x64(True):
        state, arguments = step_arguments(config, quantized=True)
        means = np.random.default_rng(5).normal(size=state.class_means.shape)
        state = dataclasses.replace(state, class_means=means)
        split = random_split()
        step = jax.jit(functools.partial(train_step, **arguments))
        after, _ = jax.device_get(step(state, split, BATCH))
        facts = DATASETS["digits"]
        images = (split.images[:32] / 255 - facts.mean[0]) / facts.std[0]
        gradients = jax.jit(jax.grad(plain_loss, argnums=1), static_argnums=0)(
            config, state.params, state, jnp.asarray(images), split.labels[:32]
        )
    for path, gradient in traverse_util.flatten_dict(gradients).items():
        rate = 0.02 if path[-1] == "m_filters" else 0.05
        p, q = (traverse_util.flatten_dict(s.params)[path] for s in (state, after))
        np.testing.assert_allclose(q, p - rate * np.asarray(gradient), rtol=1e-9, atol=1e-12)


def test_every_step_draws_other_crops_and_other_dropout_masks():
    """At a learning rate of zero, only the random draws can change the loss."""
    still = dataclasses.replace(PLAIN_SGD, learning_rate=0.0, m_learning_rate=0.0)
    whole = float64_config(optimizer=still)
    no_crop = dataclasses.replace(whole, data=dataclasses.replace(whole.data, crop_padding=0))
    no_dropout = dataclasses.replace(
        whole, model=dataclasses.replace(whole.model, dropout_rate=0.0)
    )
    neither = dataclasses.replace(no_crop, model=no_dropout.model)
    flip = dataclasses.replace(neither, data=dataclasses.replace(neither.data, flip=True))
    cases = ((no_crop, True), (no_dropout, True), (flip, True), (neither, False))
    for config, changes in cases:
        with jax.enable_x64(True):
            state, arguments = step_arguments(config, quantized=True)
            step = jax.jit(functools.partial(train_step, **arguments))
            state, first = step(state, random_split(), BATCH)
            _, second = step(state, random_split(), BATCH)
        assert (float(first["softmax_loss"]) != float(second["softmax_loss"])) == changes


@pytest.mark.parametrize(
    ("dtype", "param_dtype"),
    [
        ("float32", "float32"),
        ("bfloat16", "float32"),
        ("float64", "float64"),
        ("float32", "float64"),
        ("bfloat16", "float64"),
    ],
)
def test_a_step_keeps_the_dtypes_of_the_state(dtype, param_dtype):
    loss = LossConfig(theta=0.1, center_loss_weight=0.1)
    config = digits_config(dtype=dtype, param_dtype=param_dtype, loss=loss)
    with jax.enable_x64("float64" in (dtype, param_dtype)):
        state, arguments = step_arguments(config, quantized=True)
        after, _ = jax.eval_shape(
            functools.partial(train_step, **arguments), state, random_split(), BATCH
        )
    before_dtypes, after_dtypes = (
        {name: str(leaf.dtype) for name, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (state, after))
    )
    assert before_dtypes == after_dtypes
    assert set(before_dtypes.values()) == {param_dtype, "int32"}


def test_the_center_loss_moves_the_means_of_the_classes_it_sees():
    config = float64_config(loss=LossConfig(theta=0.0, center_loss_weight=0.1))
    before, after, metrics = one_step(config)
    assert before.class_means.shape == (10, 8, 8, 16)
    assert metrics["center_loss"] > 0
    present = np.unique(random_split().labels[:32])
    moved = np.abs(after.class_means - before.class_means).max((1, 2, 3)) > 0
    np.testing.assert_array_equal(np.flatnonzero(moved), present)
    _, without, _ = one_step(float64_config(loss=LossConfig(theta=0.0)))
    assert without.class_means is None
    assert np.any(
        after.params["conv_2"]["latent_filters"] != without.params["conv_2"]["latent_filters"]
    )


def test_bfloat16_computation_leaves_the_state_in_float32():
    state, arguments = step_arguments(digits_config(dtype="bfloat16"), quantized=True)
    new_state, metrics = jax.jit(functools.partial(train_step, **arguments))(
        state, random_split(), BATCH
    )
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(new_state)}
    assert dtypes == {"float32", "int32"}
    full_state, arguments = step_arguments(digits_config(), quantized=True)
    _, full = jax.jit(functools.partial(train_step, **arguments))(full_state, random_split(), BATCH)
    np.testing.assert_allclose(metrics["softmax_loss"], full["softmax_loss"], rtol=0.05)


def test_evaluation_counts_what_is_not_padding():
    state, arguments = step_arguments(digits_config(), quantized=True)
    split = random_split()
    step = jax.jit(
        functools.partial(eval_step, model=arguments["model"], settings=arguments["settings"])
    )
    whole = step(state, split, EvalBatch(np.arange(64), np.ones(64, bool)))
    mask = np.arange(64) < 40
    part = step(state, split, EvalBatch(np.where(mask, np.arange(64), 0), mask))
    rest = step(state, split, EvalBatch(np.arange(40, 64), np.ones(24, bool)))
    assert (whole["examples"], part["examples"], rest["examples"]) == (64, 40, 24)
    assert part["correct"] + rest["correct"] == whole["correct"]
    np.testing.assert_allclose(part["loss"] + rest["loss"], whole["loss"], rtol=1e-5)
