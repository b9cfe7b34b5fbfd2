import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mcn_jax.config import Config, ModelConfig
from mcn_jax.models import make_model

CONFIG = Config(model=ModelConfig(widths=(2, 3, 4, 5), dense_features=16))


@pytest.mark.parametrize("size", [32, 28])
@pytest.mark.parametrize("conv", ["mcconv", "conv"])
def test_shapes_of_every_layer(conv, size):
    config = Config(model=ModelConfig(conv=conv, widths=(2, 3, 4, 5), dense_features=16))
    model = make_model(config, 10, quantized=True)
    outputs, variables = jax.eval_shape(
        model.init_with_output, jax.random.key(0), jnp.zeros((2, size, size, 1))
    )
    assert outputs.logits.shape == (2, 10)
    assert outputs.features.shape == (2, size // 8, size // 8, 20)
    params = variables["params"]
    if conv == "mcconv":
        # The gray image is copied onto the 4 planes of one map.
        shapes = [params[f"conv_{i}"]["latent_filters"].shape for i in (1, 2, 3, 4)]
        assert shapes == [(3, 3, 4, 2), (3, 3, 8, 3), (3, 3, 12, 4), (3, 3, 16, 5)]
    else:
        shapes = [params[f"conv_{i}"]["conv"]["kernel"].shape for i in (1, 2, 3, 4)]
        assert shapes == [(3, 3, 1, 8), (3, 3, 8, 12), (3, 3, 12, 16), (3, 3, 16, 20)]
    final = size // 16
    assert params["dense_1"]["kernel"].shape == (final * final * 20, 16)


def test_filter_count_of_the_papers_mnist_network():
    """A layer has 36*G*H weights. The gray image is one map, then come 20, 40, 80 and 160."""
    model = make_model(Config(), 10, quantized=True)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
    weights = sum(
        layer["latent_filters"].size for layer in shapes["params"].values() if "m_filters" in layer
    )
    assert weights == 36 * (1 * 20 + 20 * 40 + 40 * 80 + 80 * 160) == 605520


def test_binarized_and_unbinarized_share_their_variables():
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 1)), jnp.float32)
    binary, latent = (make_model(CONFIG, 10, quantized=b) for b in (True, False))
    variables = binary.init(jax.random.key(0), images)
    a, b = binary.apply(variables, images).logits, latent.apply(variables, images).logits
    assert float(jnp.max(jnp.abs(a - b))) > 1e-3


def test_batch_statistics_move_by_a_tenth():
    model = make_model(Config(model=ModelConfig(widths=(2,), head="linear")), 10, quantized=True)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 1)), jnp.float32)
    variables = model.init(jax.random.key(0), images)
    means = []
    for _ in range(2):
        _, updated = model.apply(variables, images, train=True, mutable=["batch_stats"])
        variables = variables | updated
        means.append(updated["batch_stats"]["batch_norm_1"]["mean"])
    assert np.abs(means[0]).max() > 1e-3
    # From zero: 0.1 m, then 0.9 * 0.1 m + 0.1 m.
    np.testing.assert_allclose(means[1], 1.9 * means[0], rtol=1e-5)


def test_training_with_dropout_needs_keys():
    model = make_model(CONFIG, 10, quantized=True)
    images = jnp.ones((2, 32, 32, 1))
    variables = model.init(jax.random.key(0), images)
    with pytest.raises(ValueError, match="needs dropout_keys"):
        model.apply(variables, images, train=True, mutable=["batch_stats"])
