"""Tests the Maxout networks: shapes, counts, values, gradients and errors."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exported import CLASSES, random_model
from mcn_jax import export
from mcn_jax.config import Config, DataConfig, ModelConfig
from mcn_jax.errors import InputError
from mcn_jax.layers.conv import CONV
from mcn_jax.layers.dense import DENSE
from mcn_jax.layers.formats import FLOAT32
from mcn_jax.models import make_model
from mcn_jax.models.maxout import LAYOUTS, check_image_size, sizes
from mcn_jax.models.plan import plan_of
from mcn_jax.training.checks import validate
from mcn_jax.training.run import train_and_evaluate
from numpy_layers import convolved, normed, pooled
from small_runs import digits_config

COMMON = ModelConfig(name="maxout", conv="conv", planes=1)
# The authors' networks, and the images that they take.
NETWORKS = {
    "cifar10": (
        dataclasses.replace(COMMON, widths=(96, 192, 192), head="maxout", dense_features=500),
        (32, 32, 3),
    ),
    "svhn": (
        dataclasses.replace(
            COMMON, layout="svhn", widths=(64, 128, 128), head="maxout", dense_features=400
        ),
        (32, 32, 3),
    ),
    "mnist": (
        dataclasses.replace(COMMON, layout="mnist", widths=(48, 48, 24), head="linear"),
        (28, 28, 1),
    ),
}
# Weights, and biases of the convolutions and of the dense layers.
COUNTS = {
    "cifar10": (
        64 * 3 * 192 + 64 * 96 * 384 + 25 * 192 * 384 + 5 * 5 * 192 * 2500 + 500 * 10,
        192 + 384 + 384,
        2500 + 10,
    ),
    "svhn": (
        25 * 3 * 128 + 25 * 64 * 256 + 25 * 128 * 256 + 6 * 6 * 128 * 2000 + 400 * 10,
        128 + 256 + 256,
        2000 + 10,
    ),
    "mnist": (
        64 * 1 * 96 + 64 * 48 * 96 + 25 * 48 * 96 + 3 * 3 * 24 * 10,
        96 + 96 + 96,
        10,
    ),
}


def plan(name):
    model, shape = NETWORKS[name]
    return plan_of(Config(model=model), 10, shape)


def test_every_layout_is_one_of_the_authors_networks():
    assert set(NETWORKS) == set(COUNTS) == set(LAYOUTS)


@pytest.mark.parametrize(
    ("name", "printed", "ours"),
    [("cifar10", 16_247_830, 16_248_790), ("svhn", 10_461_050, 10_461_690),
     ("mnist", 418_714, 419_002)],
)  # fmt: skip
def test_the_parameters_are_the_authors_with_batch_norm_after_convolutions(name, printed, ours):
    weights, conv_biases, dense_biases = COUNTS[name]
    assert weights + conv_biases + dense_biases == printed
    layers = plan(name)
    found = {
        family: sum(
            int(np.prod(shape))
            for layer in layers
            if family in (None, layer.family)
            for shape in layer.params.values()
        )
        for family in (CONV, DENSE, None)
    }
    assert found[CONV] + found[DENSE] == weights + dense_biases
    # A convolution has a scale and an offset per output, where the authors' have a bias.
    assert found[None] == weights + 2 * conv_biases + dense_biases == ours


def test_the_multiply_adds_on_cifar10():
    layers = plan("cifar10")
    convolutions = [CONV.multiply_adds(x)["direct"] for x in layers if x.family is CONV]
    dense = [int(np.prod(x.params["kernel"])) for x in layers if x.family is DENSE]
    assert convolutions == [33**2 * 64 * 3 * 192, 15**2 * 64 * 96 * 384, 9**2 * 25 * 192 * 384]
    assert sum(convolutions) + sum(dense) == 732_290_696


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cifar10", [33, 16, 15, 7, 9, 5]),
        ("svhn", [36, 18, 20, 10, 12, 6]),
        ("mnist", [21, 10, 9, 4, 6, 3]),
    ],
)
def test_sizes_of_convolutions_and_poolings(name, expected):
    model, shape = NETWORKS[name]
    assert sizes(name, shape[0]) == expected
    convolutions = [layer for layer in plan(name) if layer.family is CONV]
    assert [layer.out_shape[0] for layer in convolutions] == expected[::2]
    # The image is padded before the convolution.
    pads = [layer.padding for layer in LAYOUTS[name]]
    inside = [x.in_shape[0] - 2 * pad for x, pad in zip(convolutions, pads, strict=True)]
    assert inside == [shape[0], *expected[1:-1:2]]
    module = make_model(Config(model=model), 10, quantized=False)
    outputs, variables = jax.eval_shape(
        module.init_with_output, jax.random.key(0), jnp.zeros((1, *shape))
    )
    assert outputs.features.shape == (1, expected[-2], expected[-2], model.widths[-1])
    first_dense = variables["params"]["dense" if name == "mnist" else "dense_1"]
    assert first_dense["kernel"].shape[0] == expected[-1] ** 2 * model.widths[-1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_are_those_of_numpy(layout):
    head = "linear" if layout == "mnist" else "maxout"
    _, variables, config = random_model(
        num_centers=0, name="maxout", conv="conv", head=head, layout=layout, planes=1,
        dense_features=6, size=(13, 17),
    )  # fmt: skip
    images = np.random.default_rng(2).normal(size=(2, 13, 17, 1)).astype(np.float32)
    found = make_model(config, CLASSES, quantized=False).apply(variables, images)
    params, x = variables["params"], images
    for number, layer in enumerate(LAYOUTS[layout], start=1):
        kernel = params[f"conv_{number}"]["conv"]["kernel"]
        x = normed(
            convolved(x, kernel, (layer.padding, layer.padding)), variables, f"batch_norm_{number}"
        )
        # The pieces of a unit are neighbours.
        x = features = np.max([x[..., i :: layer.pieces] for i in range(layer.pieces)], axis=0)
        x = pooled(x, layer.window, 2, np.max)
    np.testing.assert_allclose(found.features, features, rtol=1e-4, atol=1e-5)
    x = x.reshape(len(x), -1)
    last = params["dense"] if head == "linear" else params["dense_2"]
    if head == "maxout":
        units = x @ params["dense_1"]["kernel"] + params["dense_1"]["bias"]
        x = np.max([units[:, i::5] for i in range(5)], axis=0)
    logits = x @ last["kernel"] + last["bias"]
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-5)


def test_a_piece_gets_a_gradient_only_where_it_wins():
    """Raises the offset of one piece, so it wins everywhere and the other one nowhere."""
    _, variables, config = random_model(
        num_centers=0, name="maxout", conv="conv", head="linear", planes=1
    )
    params = variables["params"]
    offsets = jnp.asarray(params["batch_norm_1"]["bias"]).at[0].set(100).at[3].set(100)
    params = params | {"batch_norm_1": params["batch_norm_1"] | {"bias": offsets}}
    module = make_model(config, CLASSES, quantized=False)
    images = jax.random.normal(jax.random.key(0), (4, 16, 16, 1))

    def loss(params):
        return jnp.sum(module.apply(variables | {"params": params}, images).logits[:, 0])

    gradients = jax.grad(loss)(params)
    kernel = np.abs(gradients["conv_1"]["conv"]["kernel"]).max((0, 1, 2))
    offset = np.abs(gradients["batch_norm_1"]["bias"])
    # Units 0, 1 and 2 consist of the pieces 0 and 1, 2 and 3, 4 and 5.
    for found in (kernel, offset):
        assert found[0] > 0
        assert found[3] > 0
        assert found[1] == found[2] == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": (96, 192)}, r"config\.model\.widths=\(96, 192\) must be the 3 widths"),
        ({"layout": "cifar"}, r"config\.model\.layout='cifar' must be one of .* mean cifar10\?"),
        ({"conv": "bnn"}, r"config\.model\.conv='bnn' takes the signs of its input"),
        ({"conv": "mcconv"}, r"config\.model\.conv='mcconv' needs kernels with an odd side"),
        ({"stem_conv": "mcconv"}, r"config\.model\.stem_conv='mcconv' needs .*layout to svhn"),
    ],
)
def test_errors_name_the_value(fields, message):
    config = Config(data=DataConfig(name="cifar10"), model=NETWORKS["cifar10"][0])
    validate(config)
    with pytest.raises(InputError, match=message):
        validate(dataclasses.replace(config, model=dataclasses.replace(config.model, **fields)))


def test_images_that_are_too_small_are_refused():
    # An image of 9 pixels leaves 2, 1 and then a padded image smaller than the kernel of 8 pixels.
    model = dataclasses.replace(NETWORKS["mnist"][0], widths=(1, 1, 1))
    with pytest.raises(InputError, match=r"images of 9 pixels are too small .*'mnist'.* least 12"):
        check_image_size(model, 20, 9)
    check_image_size(model, 12, 12)
    plan_of(Config(model=model), 10, (12, 12, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "head", "conv"),
    [("cifar10", "maxout", "conv"), ("svhn", "maxout", "mcconv"), ("mnist", "linear", "bwn")],
)
def test_it_learns_digits_and_its_files_agree(layout, head, conv, data_dir, tmp_path, one_device):
    model = ModelConfig(
        name="maxout", layout=layout, conv=conv, planes=2, widths=(4, 8, 8), head=head,
        dense_features=32, dropout_rate=0.2,
    )  # fmt: skip
    train_and_evaluate(digits_config(data_dir, model=model, num_epochs=10), tmp_path / "run")
    accuracy = json.loads((tmp_path / "run" / "result.json").read_text())["final_test_accuracy"]
    assert accuracy > 0.9
    result = export.export(tmp_path / "run", tmp_path / "out", FLOAT32, {})
    for file in ("model.safetensors", "model.onnx"):
        assert result[file]["accuracy"] == accuracy
        assert result[file]["difference"] <= 1e-4
