import jax
import jax.numpy as jnp
import numpy as np

import paper
from mcn_jax.data.augment import Inputs
from mcn_jax.training import losses

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 3.0, 2.0]])
LABELS = np.array([0, 2])


def inputs(*arrays):
    return Inputs(jnp.zeros((2, 1, 1, 1)), *map(jnp.asarray, arrays))


def test_softmax_loss():
    probabilities = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    expected = -np.mean(np.log(probabilities[[0, 1], LABELS]))
    with jax.enable_x64(True):
        loss = losses.softmax_loss(jnp.asarray(LOGITS), inputs(LABELS))
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
        loss = losses.softmax_loss(jnp.asarray(LOGITS), mixed)
        # The first is predicted as 0, the label of its share of 0.75; the second as 1, no label.
        accuracy = losses.accuracy(jnp.asarray(LOGITS), mixed)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(accuracy, 0.75 / 2)


def test_filter_loss_sums_over_layers():
    generator = np.random.default_rng(0)
    params, centers, expected = {}, {}, 0.0
    for name in ("a", "b"):
        latent = generator.normal(size=(3, 3, 4, 2))
        m = np.abs(generator.normal(size=(3, 3, 4)))
        layer_centers = np.sort(generator.normal(size=2))
        params[name] = {"latent_filters": latent, "m_filters": m}
        centers[name] = {"centers": layer_centers}
        expected += paper.filter_loss(latent, paper.binary(latent, layer_centers), m, theta=1.0)
    with jax.enable_x64(True):
        value = losses.filter_loss(*jax.tree.map(jnp.asarray, (params, centers)))
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert losses.filter_loss({"dense": {"kernel": jnp.ones(3)}}, {}) == 0


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
    """Wen et al. 2016, Eqs. 4 and the update below it, class by class."""
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
    """Above 256 a bfloat16 count would stand still."""
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
