import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import paper
from mcn_jax import layers
from mcn_jax.config import BinarizeConfig, Config, ModelConfig
from mcn_jax.layers import Affine, Conv, KernelConv, MCConv, folded_batch_norm
from mcn_jax.layers.arithmetic import Arithmetic, Quantized
from mcn_jax.layers.planes import expand_input
from mcn_jax.layers.pooling import average_pool, max_pool
from mcn_jax.models.plan import filter_bits, plan_of_module
from mcn_jax.ops.m_init import initial_m


def images(seed=0, shape=(2, 8, 8, 8)):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_mcconv_computes_with_binary_filters():
    layer = MCConv(out_maps=3)
    variables = layer.init(jax.random.key(0), images())
    params = variables["params"]
    assert params["latent_filters"].shape == (3, 3, 8, 3)
    assert params["m_filters"].shape == (3, 3, 4)
    centers = np.asarray(variables["centers"]["centers"])
    binary = paper.binary(np.asarray(params["latent_filters"]), centers)
    expected = paper.correlate(
        np.asarray(images(), np.float64), paper.reconstruct(binary, np.asarray(params["m_filters"]))
    )
    np.testing.assert_allclose(layer.apply(variables, images()), expected, rtol=1e-4, atol=1e-4)


def test_unbinarized_mcconv_computes_with_latent_filters():
    layer = MCConv(out_maps=3, binarized=False)
    variables = layer.init(jax.random.key(0), images())
    params = jax.tree.map(np.asarray, variables["params"])
    expected = paper.correlate(
        np.asarray(images(), np.float64),
        paper.reconstruct(params["latent_filters"], params["m_filters"]),
    )
    np.testing.assert_allclose(layer.apply(variables, images()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("binarized", [True, False])
def test_mcconv_takes_the_derivative_of_its_estimator(binarized):
    layer = MCConv(out_maps=3, estimator="ede", binarized=binarized)
    variables = layer.init(jax.random.key(0), images())
    assert jax.tree.map(jnp.shape, variables["progress"]) == {"progress": ()}
    assert "progress" not in MCConv(out_maps=3).init(jax.random.key(0), images())
    variables = variables | {"progress": {"progress": jnp.float32(0.5)}}

    def gradient(layer, variables):
        def output(params):
            return jnp.sum(jnp.sin(layer.apply(variables | {"params": params}, images())))

        return jax.grad(output)(variables["params"])["latent_filters"]

    found = gradient(layer, variables)
    straight = gradient(MCConv(out_maps=3, binarized=binarized), variables)
    lower, higher = variables["centers"]["centers"]
    latent = variables["params"]["latent_filters"]
    z = (latent - (lower + higher) / 2) / ((higher - lower) / 2)
    slope = 1 - np.tanh(z) ** 2 if binarized else 1  # t = k = 1
    np.testing.assert_allclose(found, straight * slope, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_centers", [2, 4])
def test_first_centers_are_the_kmeans_of_the_first_filters(num_centers):
    layer = MCConv(out_maps=5, num_centers=num_centers)
    variables = jax.jit(layer.init)(jax.random.key(1), images())
    updated = layers.updated_centers({"conv": variables["params"]}, num_centers)
    np.testing.assert_allclose(
        variables["centers"]["centers"], updated["conv"]["centers"], rtol=1e-6
    )


def test_strides_padding_and_kernel_size_reach_the_convolution():
    layer = MCConv(out_maps=2, kernel_size=5, strides=2, padding="VALID")
    output, variables = layer.init_with_output(jax.random.key(0), images())
    assert variables["params"]["latent_filters"].shape == (5, 5, 8, 2)
    assert output.shape == (2, 2, 2, 8)
    assert MCConv(out_maps=2, strides=2).init_with_output(jax.random.key(0), images())[0].shape == (
        2, 4, 4, 8,
    )  # fmt: skip


def test_m_starts_non_negative_with_planes_that_differ():
    layer = MCConv(out_maps=3, m_noise=2.0)
    m = layer.init(jax.random.key(0), images())["params"]["m_filters"]
    assert np.min(m) >= 0
    assert np.max(np.std(m, axis=-1)) > 0.5


@pytest.mark.parametrize("start", ["disjoint", "orientations"])
def test_a_config_chooses_what_m_starts_as(start):
    config = Config(model=ModelConfig(m_init=start, m_noise=0.0, planes=2))
    layer = layers.table.LAYERS["mcconv"].make(config, True)(3)
    m = layer.init(jax.random.key(0), images())["params"]["m_filters"]
    np.testing.assert_allclose(m, initial_m(start, 3, 2), rtol=1e-6)


def test_conv_has_the_signature_and_output_of_mcconv():
    for strides in (1, 2):
        outputs = [
            module(out_maps=3, planes=4, strides=strides).init_with_output(
                jax.random.key(0), images()
            )[0]
            for module in (MCConv, Conv)
        ]
        assert outputs[0].shape == outputs[1].shape == (2, 8 // strides, 8 // strides, 12)


def test_mcconv_trains_in_a_model_of_somebody_else():
    class Tiny(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(MCConv(out_maps=4)(x))
            return nn.Dense(2)(x.mean((1, 2)))

    x, y = images(3, (64, 8, 8, 8)), jnp.arange(64) % 2
    x = x.at[:, :, ::2].add(y.reshape(-1, 1, 1, 1) * 0.8)
    variables = Tiny().init(jax.random.key(0), x)

    def loss(params):
        logits = Tiny().apply(variables | {"params": params}, x)
        return -jnp.mean(jnp.take_along_axis(nn.log_softmax(logits), y[:, None], 1))

    params = variables["params"]
    first = loss(params)
    gradient = jax.jit(jax.grad(loss))
    for _ in range(60):
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient(params))
    assert loss(params) < 0.5 * first


def test_expand_input():
    rgb = jnp.arange(12.0).reshape(1, 2, 2, 3)
    copied = expand_input(rgb, "copy", 4)
    assert copied.shape == (1, 2, 2, 12)
    np.testing.assert_array_equal(copied[0, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    np.testing.assert_array_equal(expand_input(rgb, "first", 4)[0, 1, 0], [6, 6, 6, 6])
    np.testing.assert_array_equal(expand_input(rgb, "rgbx", 4)[0, 0, 1], [3, 4, 5, 4])
    with pytest.raises(ValueError, match="'rgbx' needs 3 channels and planes=4, not 1 and 4"):
        expand_input(rgb[..., :1], "rgbx", 4)
    with pytest.raises(ValueError, match="needs 3 channels and planes=4, not 3 and 8"):
        expand_input(rgb, "rgbx", 8)
    with pytest.raises(ValueError, match="input_planes='rgb' must be one of"):
        expand_input(rgb, "rgb", 4)


@pytest.mark.parametrize("window", [2, 3])
def test_max_pool_is_that_of_flax(window):
    x = images(4, (2, 7, 6, 3))
    shape = (window, window)
    ours = max_pool(x, window)
    np.testing.assert_array_equal(ours, nn.max_pool(x, shape, shape))
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x, window) ** 3))(x)
    expected = jax.grad(lambda x: jnp.sum(nn.max_pool(x, shape, shape) ** 3))(x)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_average_pool():
    x = images(4, (2, 6, 4, 3))
    np.testing.assert_allclose(average_pool(x, 2), nn.avg_pool(x, (2, 2), (2, 2)), rtol=1e-6)
    np.testing.assert_array_equal(average_pool(x, 1), x)
    dropped = average_pool(x, 4)
    np.testing.assert_allclose(dropped, nn.avg_pool(x[:, :4], (4, 4), (4, 4)), rtol=1e-6)


def test_binary_filters_and_bits_of_a_model():
    params = MCConv(out_maps=3).init(jax.random.key(0), images())
    tree = {"block": {"conv": params["params"]}}
    centers = {"block": {"conv": params["centers"]}}
    binary = layers.binary_filters(tree, centers)
    assert list(binary) == ["block/conv"]
    assert set(np.unique(binary["block/conv"])) == set(np.asarray(params["centers"]["centers"]))

    class Tiny(nn.Module):
        conv: type[nn.Module]
        out_maps: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.BatchNorm(True)(self.conv(self.out_maps)(x)))

    def bits(conv, out_maps, num_centers):
        plan = plan_of_module(Tiny(conv, out_maps), (8, 8, 8))
        config = Config(binarize=BinarizeConfig(num_centers=num_centers or 2))
        return filter_bits(plan, config, quantized=num_centers is not None)

    weights = 3 * 3 * 8 * 3
    assert bits(MCConv, 3, 2) == (weights, 32 * weights)
    assert bits(MCConv, 3, 3) == (2 * weights, 32 * weights)
    assert bits(MCConv, 3, 4) == (2 * weights, 32 * weights)
    assert bits(MCConv, 3, None) == (32 * weights, 32 * weights)
    assert bits(Conv, 2, 2) == (32 * 9 * 8 * 8, 32 * 9 * 8 * 8)


@pytest.mark.parametrize(
    ("strides", "padding", "size"),
    [(1, "SAME", 3), (2, "SAME", 3), (1, "VALID", 5), (1, "SAME", 1), (2, "CENTERED", 3)],
)
def test_a_convolution_with_a_kernel_from_a_file_is_the_trained_one(strides, padding, size):
    arguments = {"out_maps": 3, "kernel_size": size, "strides": strides, "padding": padding}
    expected, variables = Conv(**arguments).init_with_output(jax.random.key(0), images())
    kernel = variables["params"]["conv"]["kernel"]
    found = KernelConv(**arguments).apply({"params": {"kernel": kernel}}, images())
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    if padding != "VALID":
        features, kernel = np.asarray(images(), np.float64), np.asarray(kernel)
        reference = paper.correlate(features, kernel, strides, padding)
        np.testing.assert_allclose(found, reference, rtol=1e-4, atol=1e-4)


def test_a_folded_batch_norm_is_the_batch_norm():
    generator = np.random.default_rng(0)
    params = {name: generator.normal(size=5).astype(np.float32) for name in ("scale", "bias")}
    statistics = {
        "mean": generator.normal(size=5).astype(np.float32),
        "var": generator.uniform(0.1, 2, 5).astype(np.float32),
    }
    x = generator.normal(size=(2, 3, 4, 5)).astype(np.float32)
    batch_norm = nn.BatchNorm(use_running_average=True)
    expected = batch_norm.apply({"params": params, "batch_stats": statistics}, x)
    folded = folded_batch_norm(params, statistics)
    np.testing.assert_allclose(
        Affine().apply({"params": folded}, x), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("quantized", "fields", "message"),
    [
        (False, {"taken": "signs"}, "takes no signs with weights of this kind"),
        (True, {"taken": "clipped"}, "takes no clipped with weights of this kind"),
        (
            True, {"scales_activations": True, "m_filters": np.ones((3, 3, 4), np.float32)},
            "scales no activations of a layer with M",
        ),
    ],
)  # fmt: skip
def test_arithmetic_that_c_source_would_get_wrong_is_refused(quantized, fields, message):
    weights = np.ones((3, 3, 4, 1), np.float32)
    if quantized:
        weights = Quantized(weights.astype(np.uint8), np.array([-1, 1], np.float32))
    with pytest.raises(ValueError, match=message):
        Arithmetic(weights=weights, **fields)
    Arithmetic(weights=weights)
