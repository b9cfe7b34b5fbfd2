"""Tests the network of BinaryConnect, BNN and XNOR-Net: counts, values, signs and errors."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exported import CLASSES, random_model
from mcn_jax import export
from mcn_jax.config import BinarizeConfig, Config, DataConfig, ModelConfig
from mcn_jax.errors import InputError
from mcn_jax.layers.batch_norm import BATCH_NORM, BatchNorm
from mcn_jax.layers.conv import CONV
from mcn_jax.layers.dense import DENSE
from mcn_jax.layers.formats import FLOAT32
from mcn_jax.layers.sign_conv import SignConv
from mcn_jax.layers.table import LAYERS
from mcn_jax.models import make_model
from mcn_jax.models.plan import filter_bits, plan_of, specs
from mcn_jax.training.checks import validate
from mcn_jax.training.run import train_and_evaluate
from numpy_layers import convolved, normed, pooled
from small_runs import digits_config

PAPER = ModelConfig(
    name="convnet", conv="binaryconnect", planes=1, widths=(128, 256, 512),
    head="dense_batch_norm", dense_features=1024,
)  # fmt: skip
CONV_WEIGHTS = 9 * (
    3 * 128 + 128 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 512 * 512
)  # fmt: skip
DENSE_WEIGHTS = 4 * 4 * 512 * 1024 + 1024 * 1024 + 1024 * 10


ONE_BIT = dataclasses.replace(PAPER, head="one_bit_dense")
DENSE_NAMES = ("dense_1", "dense_2", "dense_3")


def plan(model=PAPER):
    return plan_of(Config(model=model), 10, (32, 32, 3))


def test_the_weights_are_those_of_the_paper():
    assert CONV_WEIGHTS == 4_574_592
    assert DENSE_WEIGHTS == 9_447_424
    assert CONV_WEIGHTS + DENSE_WEIGHTS == 14_022_016
    counts = {
        family: sum(
            int(np.prod(shape))
            for layer in plan()
            if layer.family is family
            for shape in layer.params.values()
        )
        for family in (LAYERS["binaryconnect"], DENSE, BATCH_NORM)
    }
    # A scale and an offset per output of each layer, the last one too; no biases.
    outputs = 2 * (128 + 256 + 512) + 1024 + 1024 + 10
    assert list(counts.values()) == [4_574_592, 9_447_424, 2 * outputs]


def test_filters_take_a_bit_per_weight():
    config = Config(model=PAPER)
    assert filter_bits(plan(), config, quantized=True) == (4_574_592, 32 * 4_574_592)


@pytest.mark.parametrize("conv", ["binaryconnect", "bnn"])
def test_all_weights_take_a_bit(conv):
    model = dataclasses.replace(ONE_BIT, conv=conv)
    layers = plan(model)
    weights = {
        layer.name: int(np.prod(layer.params["latent_kernel"]))
        for layer in layers
        if layer.family is LAYERS[conv]
    }
    convolutions, dense = 4_574_592, 8_388_608 + 1_048_576 + 10_240
    assert sum(weights.values()) == convolutions + dense == 14_022_016
    assert [weights[name] for name in DENSE_NAMES] == [8_388_608, 1_048_576, 10_240]
    assert {layer.family for layer in layers} == {LAYERS[conv], BATCH_NORM}
    tensors = specs(layers, Config(model=model), quantized=True)
    bits = dict.fromkeys(("filters", "dense layers", "scales", "batch norm"), 0)
    for tensor in tensors.values():
        bits[tensor.part] += tensor.bits
    # Nine scales. Filters are those of convolutions alone.
    outputs = 2 * (128 + 256 + 512) + 1024 + 1024 + 10
    assert list(bits.values()) == [convolutions, dense, 9 * 32, 32 * 2 * outputs]
    assert tensors["dense_1/bits"].shape == (1, 1_048_576)  # bytes
    config = Config(model=model)
    assert filter_bits(layers, config, quantized=True) == (convolutions, 32 * convolutions)
    assert [LAYERS[conv].multiply_adds(layer) for layer in layers if layer.name in DENSE_NAMES] == [
        {"dense": 8_388_608}, {"dense": 1_048_576}, {"dense": 10_240},
    ]  # fmt: skip


def test_xnor_net_has_a_float_first_and_last_layer():
    layers = plan(
        dataclasses.replace(ONE_BIT, conv="xnor", stem_conv="conv", head="one_bit_hidden")
    )
    families = {layer.name: layer.family for layer in layers if layer.family is not BATCH_NORM}
    assert families.pop("conv_1") is CONV
    assert families.pop("dense_3") is DENSE
    assert list(families) == [*(f"conv_{n}" for n in range(2, 7)), "dense_1", "dense_2"]
    assert set(families.values()) == {LAYERS["xnor"]}
    assert "batch_norm_dense_3" not in {layer.name for layer in layers}


def test_the_multiply_adds_are_those_of_the_paper():
    direct = [
        LAYERS["binaryconnect"].multiply_adds(layer)["direct"]
        for layer in plan()
        if layer.family is LAYERS["binaryconnect"]
    ]
    assert direct == [
        9 * pixels * weights
        for pixels, weights in (
            (1024, 3 * 128), (1024, 128 * 128), (256, 128 * 256), (256, 256 * 256),
            (64, 256 * 512), (64, 512 * 512),
        )
    ]  # fmt: skip
    assert sum(direct) + DENSE_WEIGHTS == 616_966_144


def test_the_network_for_svhn_has_half_the_channels():
    layers = plan(dataclasses.replace(PAPER, widths=(64, 128, 256)))
    weights = sum(
        int(np.prod(next(iter(layer.params.values()))))
        for layer in layers
        if layer.family is not BATCH_NORM
    )
    convolutions = 9 * (3 * 64 + 64 * 64 + 64 * 128 + 128 * 128 + 128 * 256 + 256 * 256)
    assert weights == convolutions + 4 * 4 * 256 * 1024 + 1024 * 1024 + 1024 * 10 == 6_397_632


def test_layers_in_call_order():
    rows = [(x.name, x.in_shape, x.out_shape) for x in plan() if "dense" not in x.name]
    expected = []
    for layer, (size, channels, width) in enumerate(
        [
            (32, 3, 128),
            (32, 128, 128),
            (16, 128, 256),
            (16, 256, 256),
            (8, 256, 512),
            (8, 512, 512),
        ],
        start=1,
    ):
        pooled_size = size // 2 if layer % 2 == 0 else size
        inside = (pooled_size, pooled_size, width)
        expected += [
            (f"conv_{layer}", (size, size, channels), (size, size, width)),
            (f"batch_norm_{layer}", inside, inside),  # pooling comes before it
        ]
    assert rows == expected


def test_values_are_those_of_numpy():
    _, variables, config = random_model(
        num_centers=0, name="convnet", conv="conv", head="dense_batch_norm", planes=1
    )
    # Half of the scales are negative, so pooling does not commute with batch norm.
    params = dict(variables["params"])
    for name in [name for name in params if name.startswith("batch_norm")]:
        scale = params[name]["scale"]
        params[name] = params[name] | {"scale": np.where(np.arange(scale.size) % 2, scale, -scale)}
    variables = variables | {"params": params}
    images = np.random.default_rng(2).normal(size=(3, 16, 17, 1)).astype(np.float32)
    module = make_model(config, CLASSES, quantized=False)
    found = jax.jit(module.apply)(variables_of(module, variables, images), images)
    params, x = variables_of(module, variables, images)["params"], images
    for layer in range(1, 5):
        x = convolved(x, params[f"conv_{layer}"]["conv"]["kernel"], (1, 1))
        if layer % 2 == 0:
            x = pooled(x[:, :, : x.shape[2] // 2 * 2], 2, 2, np.max)
        x = np.maximum(normed(x, variables, f"batch_norm_{layer}"), 0)
    np.testing.assert_allclose(found.features, x, rtol=1e-4, atol=1e-5)
    x = x.reshape(len(x), -1)
    for layer in (1, 2, 3):
        x = normed(x @ params[f"dense_{layer}"]["kernel"], variables, f"batch_norm_dense_{layer}")
        x = x if layer == 3 else np.maximum(x, 0)
    np.testing.assert_allclose(found.logits, x, rtol=1e-4, atol=1e-4)


def variables_of(module, variables, images):
    """Returns the variables if they fit these images; otherwise an error says which do not."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(images))
    assert jax.tree.map(np.shape, variables) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    return variables


@pytest.mark.parametrize(
    ("conv", "head"),
    [
        ("bnn", "dense_batch_norm"), ("xnor", "dense_batch_norm"), ("bnn", "one_bit_dense"),
        ("xnor", "one_bit_hidden"),
    ],
)  # fmt: skip
def test_signs_follow_batch_norm_without_relu(conv, head):
    model = dataclasses.replace(PAPER, conv=conv, widths=(4, 8), dense_features=32, head=head)
    config = Config(model=model, binarize=BinarizeConfig(start_epoch=0))
    network = make_model(config, 10, quantized=True)
    images = jax.random.normal(jax.random.key(0), (32, 16, 16, 3))
    variables = network.init(jax.random.key(1), images)
    taken, relus = {}, {}

    def note(call, arguments, keywords, context):
        module = context.module
        if isinstance(module, SignConv):
            taken[module.name] = (module.signs_input, np.asarray(arguments[0]))
        if isinstance(module, BatchNorm):
            relus[module.name] = module.relu
        return call(*arguments, **keywords)

    with nn.intercept_methods(note):
        network.apply(variables, images, train=True, mutable=["batch_stats"])
    dense = {"dense_batch_norm": (), "one_bit_hidden": DENSE_NAMES[:2]}.get(head, DENSE_NAMES)
    assert list(taken) == ["conv_1", "conv_2", "conv_3", "conv_4", *dense]
    np.testing.assert_array_equal(taken["conv_1"][1], images)
    assert not taken.pop("conv_1")[0]
    for name, (takes_signs, x) in taken.items():
        assert takes_signs, name
        assert 0.3 < np.mean(x < 0) < 0.7, name
    before_head = {
        "dense_batch_norm": {
            "batch_norm_4": True, "batch_norm_dense_1": True, "batch_norm_dense_2": True,
            "batch_norm_dense_3": False,
        },
        "one_bit_dense": {
            "batch_norm_4": False, "batch_norm_dense_1": False, "batch_norm_dense_2": False,
            "batch_norm_dense_3": False,
        },
        "one_bit_hidden": {
            "batch_norm_4": False, "batch_norm_dense_1": False, "batch_norm_dense_2": True,
        },
    }[head]  # fmt: skip
    assert relus == {
        "batch_norm_1": False, "batch_norm_2": False, "batch_norm_3": False, **before_head
    }  # fmt: skip


def test_the_first_convolution_may_be_of_another_kind():
    layers = plan(dataclasses.replace(PAPER, conv="xnor", stem_conv="conv", widths=(2,)))
    families = [layer.family for layer in layers if layer.name.startswith("conv")]
    assert families == [CONV, LAYERS["xnor"]]


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((), r"config\.model\.widths=\(\) must name at least one stage"),
        ((1, 1, 1, 1, 1, 1), r"config\.model\.widths=.* has too many stages for images of 32"),
    ],
)
def test_errors_name_the_value(widths, message):
    config = Config(data=DataConfig(name="cifar10"), model=PAPER)
    with pytest.raises(InputError, match=message):
        validate(dataclasses.replace(config, model=dataclasses.replace(PAPER, widths=widths)))


@pytest.mark.slow
@pytest.mark.parametrize("conv", ["conv", "binaryconnect", "bnn", "mcconv"])
def test_it_learns_digits_and_its_files_agree(conv, data_dir, tmp_path, one_device):
    model = ModelConfig(
        name="convnet", conv=conv, planes=2, widths=(4, 8, 16), head="dense_batch_norm",
        dense_features=64,
    )  # fmt: skip
    train_and_evaluate(digits_config(data_dir, model=model, num_epochs=8), tmp_path / "run")
    accuracy = json.loads((tmp_path / "run" / "result.json").read_text())["final_test_accuracy"]
    assert accuracy > 0.9
    result = export.export(tmp_path / "run", tmp_path / "out", FLOAT32, {})
    for file in ("model.safetensors", "model.onnx"):
        assert result[file]["accuracy"] == accuracy
        assert result[file]["difference"] <= 1e-4
