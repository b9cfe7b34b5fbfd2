import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paper
from mcn_jax.config import LossConfig
from mcn_jax.data.augment import Inputs
from mcn_jax.layers.dense import DENSE
from mcn_jax.layers.mcconv import MCCONV
from mcn_jax.training import losses
from small_runs import planned

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, 2.0]])
LABELS = np.array([0, 2])


def inputs(*arrays):
    return Inputs(jnp.zeros((2, 1, 1, 1)), *map(jnp.asarray, arrays))


def test_squared_hinge_by_hand():
    logits = jnp.array([[2.0, -0.5, 0.0], [-1.0, 0.25, -3.0]])
    # Targets are (1, -1, -1) and (-1, 1, -1).
    expected = [(0 + 0.5**2 + 1) / 3, (0 + 0.75**2 + 0) / 3]
    np.testing.assert_allclose(losses.squared_hinge(logits, jnp.array([0, 1])), expected)
    mean = losses.data_loss(logits, inputs(np.array([0, 1])), "squared_hinge")
    assert float(mean) == pytest.approx(np.mean(expected))


def test_softmax_loss():
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    expected = -np.mean(np.log(probabilities[[0, 1], LABELS]))
    with jax.enable_x64(True):
        loss = losses.data_loss(jnp.asarray(LOGITS), inputs(LABELS))
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    assert losses.accuracy(jnp.asarray(LOGITS), inputs(LABELS)) == 0.5


def test_mixed_images_have_both_labels_in_their_shares():
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    others, shares = LABELS[::-1], np.array([0.75, 0.4])
    expected = -np.mean(
        shares * np.log(probabilities[[0, 1], LABELS])
        + (1 - shares) * np.log(probabilities[[0, 1], others])
    )
    with jax.enable_x64(True):
        mixed = inputs(LABELS, others, shares)
        loss = losses.data_loss(jnp.asarray(LOGITS), mixed)
        # The first is predicted as 0, a label with share 0.75. The second is predicted as 1, which
        # is none of its labels.
        accuracy = losses.accuracy(jnp.asarray(LOGITS), mixed)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(accuracy, 0.75 / 2)


def two_layers(seed=0):
    """Returns (params, {"centers": ...}, gradients, plan) of two MCconv layers and a dense one."""
    generator = np.random.default_rng(seed)
    params, centers, gradients = {}, {}, {}
    for name in ("a", "b"):
        latent = generator.normal(size=(3, 3, 4, 2))
        m = np.abs(generator.normal(size=(3, 3, 4)))
        params[name] = {"latent_filters": latent, "m_filters": m}
        centers[name] = {"centers": np.sort(generator.normal(size=2))}
    params["dense"] = {"kernel": generator.normal(size=(4, 3))}
    gradients = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape), params)
    plan = tuple(
        planned(name, family, state, **params[name])
        for name, family, state in (
            ("a", MCCONV, {"centers": "centers"}),
            ("dense", DENSE, {}),
            ("b", MCCONV, {"centers": "centers"}),
        )
    )
    return params, {"centers": centers}, gradients, plan


def penalised(params, layer_state, gradients, plan, loss, learning_rate, progress=0.5):
    """Calls `with_penalties` in float64."""
    with jax.enable_x64(True):
        arrays = jax.tree.map(jnp.asarray, (gradients, params, layer_state))
        return jax.device_get(
            losses.with_penalties(
                *arrays, plan, loss, jnp.asarray(learning_rate), jnp.asarray(progress)
            )
        )


def test_filter_loss_sums_over_layers():
    params, layer_state, gradients, plan = two_layers()
    expected = 0.0
    for name in ("a", "b"):
        latent, m = params[name].values()
        binary = paper.binary(latent, layer_state["centers"][name]["centers"])
        expected += paper.filter_loss(latent, binary, m, theta=1.0)
    # The recorded filter loss is Eq. 1 without theta.
    for theta in (0.0, 0.3):
        loss = LossConfig(theta=theta)
        _, value = penalised(params, layer_state, gradients, plan, loss, 0.1)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
    dense = planned("dense", DENSE, kernel=np.ones((3, 1)))
    tree = {"dense": {"kernel": np.ones((3, 1))}}
    same, value = penalised(tree, {}, tree, (dense,), LossConfig(), 0.1)
    assert value == 0
    jax.tree.map(np.testing.assert_array_equal, same, tree)


@pytest.mark.parametrize("progress", [0.0, 0.25, 0.9])
def test_theta_grows_linearly_with_the_training(progress):
    arrays = two_layers()
    grown = LossConfig(theta=0.3, theta_schedule="linear")
    found, value = penalised(*arrays, grown, 0.1, progress)
    expected, same_value = penalised(*arrays, LossConfig(theta=0.3 * progress), 0.1)
    assert value == same_value
    for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-12)


@pytest.mark.parametrize("projection_penalty", [True, False])
def test_gradients_get_the_terms_of_eqs_10_13_and_17(projection_penalty):
    theta, rate = 0.3, 0.1
    params, layer_state, gradients, plan = two_layers(seed=1)
    loss = LossConfig(theta=theta, projection_penalty=projection_penalty)
    found, _ = penalised(params, layer_state, gradients, plan, loss, rate)
    for name in ("a", "b"):
        latent, m = params[name].values()
        binary = paper.binary(latent, layer_state["centers"][name]["centers"])
        d_latent, d_m = paper.filter_loss_gradients(latent, binary, m, theta)
        given = gradients[name]["latent_filters"]
        if projection_penalty:  # the third term of Eq. 10
            d_latent += paper.projection_term(latent, binary, given, theta, rate)
        np.testing.assert_allclose(found[name]["latent_filters"], given + d_latent, rtol=1e-10)
        expected = gradients[name]["m_filters"] + d_m
        np.testing.assert_allclose(found[name]["m_filters"], expected, rtol=1e-10)
    np.testing.assert_array_equal(found["dense"]["kernel"], gradients["dense"]["kernel"])
    assert jax.tree.structure(found) == jax.tree.structure(gradients)


def test_center_loss_and_its_gradient():
    generator = np.random.default_rng(1)
    features, means = generator.normal(size=(4, 2, 2, 3)), generator.normal(size=(5, 2, 2, 3))
    labels = np.array([1, 1, 4, 0])
    with jax.enable_x64(True):
        value, gradient = jax.value_and_grad(losses.center_loss)(
            jnp.asarray(features), jnp.asarray(labels), jnp.asarray(means)
        )
    distances = features - means[labels]
    np.testing.assert_allclose(value, 0.5 * (distances**2).sum() / 4, rtol=1e-12)
    np.testing.assert_allclose(gradient, distances / 4, rtol=1e-12)


def moved_means_of_wen(means, features, labels, rate):
    """Computes Eq. 4 of Wen et al. 2016 and the update below it, class by class."""
    moved = means.copy()
    for j in range(len(means)):
        members = [x for x, y in zip(features, labels, strict=True) if y == j]
        moved[j] -= (
            rate
            * sum((means[j] - x for x in members), np.zeros_like(means[j]))
            / (1 + len(members))
        )
    return moved


def test_class_means_count_more_than_bfloat16_can():
    """A bfloat16 count would stop growing at 256."""
    moved = losses.moved_class_means(
        jnp.zeros((2, 1, 1, 1)), jnp.ones((1000, 1, 1, 1), jnp.bfloat16), jnp.zeros(1000, int), 1.0
    )
    np.testing.assert_allclose(moved.ravel(), [1000 / 1001, 0], rtol=1e-6)


def test_class_means_move_alike_on_one_device_and_on_many():
    generator = np.random.default_rng(2)
    features, means = generator.normal(size=(16, 1, 1, 3)), generator.normal(size=(4, 1, 1, 3))
    labels = generator.integers(0, 3, size=16)  # no example of class 3, which must not move
    expected = moved_means_of_wen(means, features, labels, 0.5)
    with jax.enable_x64(True):
        one = losses.moved_class_means(
            jnp.asarray(means), jnp.asarray(features), jnp.asarray(labels), 0.5
        )
        many = jax.vmap(
            lambda f, y: losses.moved_class_means(jnp.asarray(means), f, y, 0.5, "devices"),
            axis_name="devices",
        )(jnp.asarray(features.reshape(8, 2, 1, 1, 3)), jnp.asarray(labels.reshape(8, 2)))
    np.testing.assert_allclose(one, expected, rtol=1e-12)
    np.testing.assert_array_equal(one[3], means[3])
    for device in many:
        np.testing.assert_allclose(device, expected, rtol=1e-12)
