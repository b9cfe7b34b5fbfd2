"""Tests networks with each pooling: sizes, counts, values, files, and what is refused."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exported import random_images, random_model
from mcn_jax import models
from mcn_jax.config import Config, DataConfig, LossConfig, ModelConfig, OptimizerConfig
from mcn_jax.deploy import model_file, onnx, predictor
from mcn_jax.errors import InputError
from mcn_jax.layers.pooling import POOLINGS, average_pool, max_pool
from mcn_jax.layers.spectral_pooling import DIFFSTRIDE
from mcn_jax.models.plan import plan_of, pooled_sizes, sized
from mcn_jax.models.wide_resnet import with_channels
from mcn_jax.ops.spectral import spectral_pool
from mcn_jax.training.checks import validate
from mcn_jax.training.losses import stride_cost

RESNET_18 = {
    "name": "resnet", "conv": "conv", "planes": 1, "widths": (64, 64, 128, 256, 512),
    "head": "linear", "preactivation": True,
}  # fmt: skip
SMALL = {
    "name": "resnet", "conv": "conv", "planes": 1, "widths": (2, 2, 3), "blocks": (1, 1),
    "head": "linear", "preactivation": True,
}  # fmt: skip


def plan_for(classes=10, size=(32, 32), channels=3, **fields):
    config = Config(model=ModelConfig(**fields))
    models.check(config)
    models.MODELS[config.model.name].check_image_size(config.model, *size)
    return plan_of(config, classes, (*size, channels))


def parameters(plan):
    return sum(math.prod(shape) for layer in plan for shape in layer.params.values())


def multiply_adds(plan):
    return sum(sum(layer.family.multiply_adds(layer).values()) for layer in plan)


def test_parameters_of_the_resnet_18_of_diffstride():  # 23
    for pooling in POOLINGS:
        strides = 8 if pooling == "diffstride" else 0
        assert parameters(plan_for(**RESNET_18, pooling=pooling)) == 11_172_170 + strides
    assert parameters(plan_for(100, **RESNET_18)) == 11_218_340


def sizes_of(plan):
    """Returns the heights and widths of the second convolution of each stage's first block."""
    return [x.out_shape[:2] for x in plan if x.name.endswith("block_1/conv_2")]


@pytest.mark.parametrize(
    ("pooling", "strides", "expected", "giga"),
    [  # 25, and multiply-adds of images of 32x32 pixels, with those of pooling
        ("strided", (1, 2, 2, 2), [(32, 32), (16, 16), (8, 8), (4, 4)], 0.555),
        ("strided", (1, 3, 2, 3), [(32, 32), (11, 11), (6, 6), (2, 2)], 0.325),
        ("max", (1, 3, 2, 3), [(32, 32), (10, 10), (5, 5), (1, 1)], 0.385),
        ("spectral", (1, 2, 2, 2), [(32, 32), (16, 16), (8, 8), (4, 4)], 0.738),
        ("spectral", (1, 3, 2, 3), [(32, 32), (10, 10), (4, 5), (2, 2)], 0.397),
        ("diffstride", (1, 2, 2, 2), [(32, 32), (24, 24), (20, 20), (18, 18)], 4.248),
        ("diffstride", (1, 3, 2, 3), [(32, 32), (20, 20), (18, 18), (14, 14)], 2.950),
    ],
)
def test_sizes_in_the_resnet_18_of_diffstride(pooling, strides, expected, giga):
    plan = plan_for(**RESNET_18, pooling=pooling, strides=strides)
    assert sizes_of(plan) == expected
    assert multiply_adds(plan) / 1e9 == pytest.approx(giga, abs=5e-4)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    ("fields", "strides", "halved", "chosen"),
    [  # height after the last pooling, for the strides of the network and for those chosen
        ({"name": "simple_cnn", "widths": (2, 3), "head": "conv"}, (2, 4), 8, 4),
        ({"name": "convnet", "widths": (2, 3), "head": "conv"}, (2, 4), 8, 4),
        ({"name": "wide_resnet", "widths": (2, 2, 3, 4), "depth": 8}, (2, 2, 4), 8, 2),
        ({"name": "densenet", "widths": (3,), "blocks": (1, 1), "growth": 2}, (4,), 16, 8),
    ],
)
def test_every_network_that_gets_smaller_takes_each_pooling(
    pooling, fields, strides, halved, chosen
):
    fields = {"conv": "conv", "planes": 1} | fields
    for given, expected in ((), halved), (strides, chosen):
        plan = plan_for(**fields, pooling=pooling, strides=given)
        learned = [layer for layer in plan if layer.family is DIFFSTRIDE]
        if pooling == "diffstride":  # 8 pixels more, to 10 at least
            assert learned[-1].out_shape[0] > expected
        else:
            assert not learned
            assert last_image(plan) == expected


def last_image(plan):
    """Returns the height of the images that reach the head or the last pooling layer's output."""
    heights = [layer.out_shape[0] for layer in plan if len(layer.out_shape) == 3]
    return heights[-1]


def applied(fields, x, seed=0):
    """Returns the network's variables, and its outputs for images x."""
    config = Config(model=ModelConfig(**fields))
    network = models.make_model(config, 4, quantized=False)
    variables = network.init(jax.random.key(seed), x)
    return variables, network.apply(variables, x)


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [
        ("max", lambda x: max_pool(x, 2)),
        ("average", lambda x: average_pool(x, 2)),
        ("spectral", lambda x: spectral_pool(x, (x.shape[1] // 2, x.shape[2] // 2))),
    ],
)
def test_a_wide_resnet_pools_both_branches_between_convolution_and_batch_norm(pooling, pool):
    fields = {
        "name": "wide_resnet", "conv": "conv", "planes": 1, "widths": (2, 2, 3, 4), "depth": 8,
        "head": "linear", "pooling": pooling,
    }  # fmt: skip
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    variables, outputs = applied(fields, x)
    params = variables["params"]

    def convolved(x, *path):
        kernel = params
        for name in path:
            kernel = kernel[name]
        return jax.lax.conv_general_dilated(
            x, kernel["conv"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def normed(x):  # fresh statistics
        return jax.nn.relu(x / math.sqrt(1 + 1e-5))

    x = convolved(x, "stem")
    for stage in (1, 2, 3):
        block, halves = f"stage_{stage}_block_1", pool if stage > 1 else lambda x: x
        y = halves(convolved(normed(x), block, "conv_1"))
        y = convolved(normed(y), block, "conv_2")
        x = y + with_channels(halves(x), y.shape[-1])
    np.testing.assert_allclose(outputs.features, normed(x), rtol=1e-4, atol=1e-4)


def test_a_simple_cnn_pools_linearly_before_batch_norm():
    fields = {
        "name": "simple_cnn", "conv": "conv", "planes": 1, "widths": (3,), "head": "conv",
        "pooling": "spectral", "spectral_gain": "unit",
    }  # fmt: skip
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    variables, outputs = applied(fields, x)
    y = jax.lax.conv_general_dilated(
        x, variables["params"]["conv_1"]["conv"]["kernel"], (1, 1), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    y = jax.nn.relu(spectral_pool(y, (4, 4), gain="unit") / math.sqrt(1 + 1e-5))
    np.testing.assert_allclose(outputs.features, y, rtol=1e-5, atol=1e-5)


def changed_strides(plan, values):
    """Returns a "params" collection with only strides, those of the given layers."""
    names = [layer.name for layer in plan if layer.family is DIFFSTRIDE]
    return {
        name: {"strides": np.asarray(pair, np.float32)}
        for name, pair in zip(names, values, strict=True)
    }


@pytest.mark.parametrize("reading", ["code", "paper"])
def test_sizes_follow_from_strides_and_the_network_has_them(reading):
    fields = SMALL | {"widths": (2, 2, 3, 4), "blocks": (1, 1, 1), "pooling": "diffstride"}
    config = Config(model=ModelConfig(**fields, reading=reading, smoothness=2.0))
    plan = plan_of(config, 10, (32, 32, 3))
    params = changed_strides(plan, [(1.5, 1.0), (2.5, 1.7), (1.2, 3.0)])
    new = sized(config, plan, params)
    sizes = new.model.pooled_sizes
    assert sizes == pooled_sizes(plan, params)
    if reading == "code":
        # 2 * ceil(2 + 32 / (2 * 1.5)) = 26; 2 * ceil(2 + 26 / 5) = 16; 2 * ceil(2 + 16 / 2.4) = 18,
        # but at most 16. In x, 1.0 is lifted to 32 / 30; 2 * ceil(2 + 32 / 3.4) = 24; then 12.
        assert sizes == (26, 32, 16, 24, 16, 12)
    found = [x.out_shape[:2] for x in plan_of(new, 10, (32, 32, 3)) if x.family is DIFFSTRIDE]
    assert tuple(size for pair in found for size in pair) == sizes
    assert sized(new, plan_of(new, 10, (32, 32, 3)), params) is new
    shapes = [x.params for x in plan]
    assert [x.params for x in plan_of(new, 10, (32, 32, 3))] == shapes  # 21


def test_networks_without_learned_strides_have_no_sizes():
    config = Config(model=ModelConfig(**SMALL, pooling="spectral"))
    plan = plan_of(config, 10, (32, 32, 3))
    assert pooled_sizes(plan, {}) == ()
    assert sized(config, plan, {}) is config


def test_the_cost_of_strides_and_its_gradient():
    config = Config(model=ModelConfig(**SMALL, pooling="diffstride"))
    plan = plan_of(config, 10, (32, 32, 3))
    params = jax.tree.map(jnp.asarray, changed_strides(plan, [(2.0, 1.0), (2.0, 4.0)]))
    cost, gradient = jax.value_and_grad(stride_cost)(params, plan)
    # The stride 1 acts as 32 / (32 - 4) = 8 / 7. Stage 2 takes 32x32 pixels in the plan.
    first, second = 1 / (2 * 8 / 7), 1 / (2 * 8 / 7 * 2 * 4)
    assert float(cost) == pytest.approx(first + second)
    np.testing.assert_allclose(
        gradient["pooling_1"]["strides"], [-(first + second) / 2, -(first + second) / (8 / 7)],
        rtol=1e-5,
    )  # fmt: skip
    np.testing.assert_allclose(
        gradient["pooling_2"]["strides"], [-second / 2, -second / 4], rtol=1e-5
    )


@pytest.mark.parametrize(
    ("pooling", "reading"),
    [("max", "code"), ("average", "code"), ("spectral", "code"), ("diffstride", "code"),
     ("diffstride", "paper")],
)  # fmt: skip
@pytest.mark.parametrize("conv", ["conv", "mcconv"])
def test_files_of_every_pooling_agree_with_the_network(pooling, reading, conv, tmp_path):  # 34
    model, variables, config = random_model(
        name="wide_resnet", conv=conv, planes=4 if conv == "mcconv" else 1, pooling=pooling,
        reading=reading, smoothness=3.0, size=(16, 16), head="linear",
        num_centers=2 if conv != "conv" else 0,
    )  # fmt: skip
    network = models.make_model(config, 5, quantized=conv != "conv")
    images = random_images(3, model)
    x = predictor.normalise(images, model.images.mean, model.images.std, jnp.dtype("float32"))
    expected = network.apply(variables, x).logits
    model_file.write_model(model, tmp_path / "model.safetensors")
    read = model_file.read_model(tmp_path / "model.safetensors")
    assert read.network.config.model.pooled_sizes == config.model.pooled_sizes
    tolerance = 1e-5 * float(jnp.abs(expected).max())
    found = predictor.of_model(read).logits(images)
    np.testing.assert_allclose(found, expected, atol=tolerance)
    pytest.importorskip("onnxruntime")
    onnx.write_onnx(model, tmp_path / "model.onnx")
    found = predictor.of_onnx(tmp_path / "model.onnx").logits(images)
    np.testing.assert_allclose(found, expected, atol=tolerance)


def test_a_graph_holds_the_matrices_and_not_their_making():
    model, _, _ = random_model(
        name="wide_resnet", conv="conv", planes=1, pooling="diffstride", head="linear",
        num_centers=0,
    )  # fmt: skip
    graph = onnx.onnx_model(model).graph
    assert not {node.op_type for node in graph.node} & {"Cos", "Sin", "DFT", "Where", "Clip"}
    sizes = [math.prod(tensor.dims) for tensor in graph.initializer]
    assert max(sizes) <= 2 * 16 * 16  # of a layer's matrices


def cifar(**fields):
    groups = {name: fields.pop(name) for name in ("loss", "optimizer") if name in fields}
    return Config(data=DataConfig(name="cifar10"), model=ModelConfig(**fields), **groups)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (SMALL | {"pooling": "median"}, "model.pooling='median' must be one of strided, max"),
        (SMALL | {"strides": (1, 2, 2)}, "one stride for each of the 2 pooling layers"),
        (SMALL | {"strides": (1, 0)}, r"model.strides=\(1, 0\) must each lie in 1..64"),
        (SMALL | {"spectral_gain": "two"}, "spectral_gain='two' must be one of authors, unit"),
        (SMALL | {"reading": "slides"}, "reading='slides' must be one of code, paper"),
        (SMALL | {"smoothness": 0.0}, "smoothness=0.0 must be above 0"),
        (SMALL | {"pooling": "diffstride", "smoothness": 40.0}, "needs at least 41"),
        (SMALL | {"pooling": "max", "strides": (1, 33)}, "reach pooling layer 2 .* at least 33"),
        (SMALL | {"pooling": "diffstride", "pooled_sizes": (8, 8, 8, 8)}, "leave it"),
        (
            {"name": "nin", "conv": "conv", "planes": 1, "pooling": "max", "head": "conv_relu",
             "widths": (4,) * 8},
            "cannot be chosen for the network 'nin'",
        ),
        (
            {"name": "simple_cnn", "widths": (2, 3), "pooling": "diffstride"},
            "set config.model.head to one of conv, conv_relu",
        ),
        (
            SMALL | {"pooling": "diffstride", "loss": LossConfig(center_loss_weight=0.1)},
            "set config.loss.center_loss_weight=0",
        ),
        (
            SMALL | {"pooling": "diffstride", "optimizer": OptimizerConfig(stride_limit=0.5)},
            "stride_limit=0.5 must be 0 or at least 1",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        validate(cifar(**fields))


def test_the_reading_of_the_code_takes_only_even_heights():
    fields = SMALL | {"pooling": "diffstride"}
    with pytest.raises(InputError, match="takes images of an even height, not 31x32 pixels"):
        plan_for(size=(31, 32), **fields)
    plan_for(size=(31, 32), **fields, reading="paper")


@pytest.mark.parametrize("field", ["pooled_sizes", "smoothness", "strides"])
def test_a_header_with_other_sizes_is_refused(field):
    model, _, config = random_model(
        name="wide_resnet", conv="conv", planes=1, pooling="diffstride", head="linear",
        num_centers=0,
    )  # fmt: skip
    values, message = {
        "pooled_sizes": ((90, 90, 90, 90, 90, 90), "make images larger in pooling layer 1"),
        "smoothness": (1e9, "pooling layer 1 of the network, which needs at least 1000000001"),
        "strides": ((1, 2, 2, 2), "one stride for each of the 3 pooling layers"),
    }[field]
    changed = dataclasses.replace(config.model, **{field: values})
    network = model.network._replace(config=dataclasses.replace(config, model=changed))
    bad = dataclasses.replace(model, network=network).network.to_json()
    with pytest.raises(InputError, match=message):
        model_file.network_from_json(bad, model.images, 5, len(model.tensors), 10**6)
