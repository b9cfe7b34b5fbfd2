"""Tests that every file in configs/ is valid, can run a step, and does what its header says."""

import ast
import dataclasses
import functools
import math
import pathlib
import re
from typing import NamedTuple

import jax
import pytest

from mcn_jax import models
from mcn_jax.config import Config, flatten, from_config_dict, load_config_file
from mcn_jax.data.batches import Batch, Split
from mcn_jax.data.facts import DATASETS
from mcn_jax.errors import InputError
from mcn_jax.models.plan import plan_of, specs
from mcn_jax.training.checks import validate
from mcn_jax.training.phases import quantizes
from mcn_jax.training.state import create_state
from mcn_jax.training.steps import train_step
from small_runs import train_step_arguments

CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.py"))

# Fields that each derived config changes in its base. Every other file is a base.
BINARIZED_EARLY = {"num_epochs": 8, "binarize.start_epoch": 2}
COSINE = {"optimizer.schedule": "cosine"}
NARROW = {"model.depth": 20, "model.widths": (4, 4, 8, 16)}
FEW_DIGITS = {
    "data.train_split": "train[:10000]", "data.crop_padding": 0, "num_epochs": 5,
    "binarize.start_epoch": 1,
}  # fmt: skip
CENTER_LOSS = {
    "binarize.start_epoch": 0, "loss.center_loss_weight": 1e-3, "optimizer.schedule": "constant",
    "optimizer.warmup_epochs": 0,
}  # fmt: skip
ADADELTA = {"optimizer.name": "adadelta"}


def rates(m_learning_rate):
    return {
        "optimizer.learning_rate": 10 * m_learning_rate,
        "optimizer.m_learning_rate": m_learning_rate,
    }


DERIVED = {
    "cifar100": ("cifar10", {"data.name": "cifar100"}),
    "svhn": (
        "cifar10",
        {
            "data.name": "svhn_cropped", "data.crop_padding": 0, "data.flip": False,
            "model.depth": 28, "optimizer.schedule_epochs": (30, 60, 90, 120, 150, 180),
        },
    ),
    "cifar10_20_16_16_32_64": ("cifar10", {"model.depth": 20, "model.widths": (16, 16, 32, 64)}),
    "cifar10_20_16_32_64_128": ("cifar10_20_16_16_32_64", {"model.widths": (16, 32, 64, 128)}),
    "cifar10_20_32_64_128_256": ("cifar10_20_16_16_32_64", {"model.widths": (32, 64, 128, 256)}),
    "cifar10_20_64_64_128_256": ("cifar10_20_16_16_32_64", {"model.widths": (64, 64, 128, 256)}),
    "figure5": ("cifar10_20_16_16_32_64", ADADELTA),
    "figure5_lambda": ("figure5", {"num_epochs": 20, **CENTER_LOSS, **rates(0.001)}),
    "mnist_cpu": (
        "mnist",
        {
            "data.crop_padding": 2, "num_epochs": 24, "binarize.start_epoch": 4,
            "model.widths": (5, 10, 20, 40), "model.dense_features": 256,
            "optimizer.schedule": "cosine",
        },
    ),
    "cifar10_cpu": ("cifar10", {"num_epochs": 12, "binarize.start_epoch": 2, **NARROW, **COSINE}),
    "cifar10_small": (
        "cifar10_cpu",
        {
            "num_epochs": 100, "binarize.start_epoch": 5, "model.widths": (8, 8, 16, 32),
            "model.plane_signs": "hadamard", "model.head": "linear", "batch_norm_steps": 100,
        },
    ),
    "cifar100_cpu": ("cifar100", {**BINARIZED_EARLY, **NARROW, **COSINE}),
    "svhn_cpu": (
        "svhn", {"data.train_split": "train[:30000]", **BINARIZED_EARLY, **NARROW, **COSINE}
    ),
    "imagenet100_cpu": (
        "imagenet100",
        {
            "data.image_size": 64, "num_epochs": 6, "binarize.start_epoch": 1, "model.depth": 8,
            "model.widths": (4, 4, 8, 16), **COSINE,
        },
    ),
    "book_cpu": (
        "cifar10_20_16_16_32_64",
        {
            "data.train_split": "train[:20000]", "model.depth": 8, "model.widths": (4, 4, 8, 16),
            **BINARIZED_EARLY, **COSINE,
        },
    ),
    "figure5_cpu": ("mnist_cpu", {**FEW_DIGITS, **ADADELTA, **rates(0.1)}),
    "figure5_lambda_cpu": (
        "figure5_cpu", {"num_epochs": 3, **CENTER_LOSS, **rates(0.01)}
    ),
    "figure7_cpu": ("mnist_cpu", FEW_DIGITS),
    "lbcnn_mnist_cpu": (
        "lbcnn",
        {
            "data.name": "mnist", "data.crop_padding": 2, "data.flip": False, "num_epochs": 4,
            "model.widths": (16,), "model.depth": 10, "model.lbc_ratio": 4.0,
            "model.lbc_density": 0.5, "model.dense_features": 128, "optimizer.learning_rate": 0.03,
            **COSINE,
        },
    ),
    "filter_map_resnet34": ("filter_map_resnet18", {"model.blocks": (3, 4, 6, 3)}),
    "filter_map_resnet50": (
        "filter_map_resnet18", {"model.blocks": (3, 4, 6, 3), "model.block": "bottleneck"}
    ),
    "filter_map_densenet121": (
        "filter_map_resnet18",
        {"model.name": "densenet", "model.widths": (64,), "model.blocks": (6, 12, 24, 16)},
    ),
    "filter_map_resnet18_cpu": (
        "filter_map_resnet18", {"num_epochs": 30, "model.widths": (16, 16, 32, 64, 128)}
    ),
    "phc_resnet18_n2_cpu": (
        "phc_resnet18_n2", {"num_epochs": 30, "model.widths": (16, 16, 32, 64, 128)}
    ),
    "diffstride_cpu": (
        "diffstride",
        {
            "num_epochs": 30, "model.widths": (8, 8, 16, 32, 64), "optimizer.warmup_epochs": 1,
            **COSINE,
        },
    ),
    "mcn_diffstride_cpu": (
        "cifar10_cpu", {"model.head": "linear", "model.pooling": "diffstride"}
    ),
    "phc_resnet18_n3": ("phc_resnet18_n2", {"model.phc_n": 3}),
    "phc_resnet18_n4": ("phc_resnet18_n2", {"model.phc_n": 4}),
    "mcdonnell_cifar10": (
        "cifar10",
        {
            "num_epochs": 126, "model.conv": "mcdonnell", "model.depth": 20, "model.planes": 1,
            "model.head": "conv", "binarize.start_epoch": 0, **COSINE,
        },
    ),
    "bnn_cifar10": (
        "binaryconnect_cifar10",
        {
            "model.conv": "bnn", "optimizer.learning_rate": 0.001,
            "optimizer.schedule_final": 3e-7 / 0.001,
        },
    ),
    "irnet_cifar10": (
        "cifar10",
        {
            "num_epochs": 400, "model.name": "resnet", "model.conv": "irnet",
            "model.stem_conv": "conv", "model.widths": (16, 16, 32, 64), "model.blocks": (3, 3, 3),
            "model.shortcut": "zeros", "model.planes": 1, "model.head": "linear",
            "binarize.start_epoch": 0, "optimizer.weight_decay": 1e-4,
            "optimizer.warmup_epochs": 0, **COSINE,
        },
    ),
}  # fmt: skip


PARTNER = r"(.+?) with ((?:--config\.\S+ ?)+)"  # description and flags


def config_dict(name):
    return load_config_file(CONFIGS / f"{name}.py")


def load(name):
    return from_config_dict(config_dict(name))


def header(name):
    return ast.get_docstring(ast.parse((CONFIGS / f"{name}.py").read_text()))


def section(name, label):
    """Returns a header's text from "Label:" to the next label or empty line, as one line."""
    [text] = re.findall(rf"^{label}: (.*?)(?=^[A-Z]\w*:|^$|\Z)", header(name), re.M | re.S)
    return " ".join(text.replace("\\\n", " ").split())


def partners(name):
    """Returns [(description, {field: value})] from the header."""
    text = section(name, "Partners")
    return [(what.strip(" ,"), flags(given)) for what, given in re.findall(PARTNER, text)]


def flags(text):
    return {field: value_of(value) for field, value in re.findall(r"--config\.(\S+?)=(\S+)", text)}


def value_of(text):
    text = text.strip(",;.")
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def changed(name, changes):
    """Returns the config of a file, changed by flags."""
    config = config_dict(name)
    config.update_from_flattened_dict(changes)
    return from_config_dict(config)


def image_shape(config):
    facts = DATASETS[config.data.name]
    size = config.data.image_size or facts.image_shape[0]
    return (size, size, facts.image_shape[2])


def shallow(config):
    """Returns a config with one block per stage, because tracing 34 similar layers is slow."""
    depth = {2: 8, 4: 10}[config.model.depth % 6]
    blocks = (1,) * len(config.model.blocks)
    model = dataclasses.replace(config.model, depth=depth, blocks=blocks)
    return dataclasses.replace(config, model=model)


class Network(NamedTuple):
    """Sizes of a network.

    Attributes:
        channels: of the last convolution.
        weights: number of filter weights after the first layer, without dense layers.
    """

    channels: int
    weights: int


@functools.cache
def network(model, shape):
    """Returns the sizes for a model's config, without computing anything."""
    config = Config(model=model)
    module = models.make_model(config, 10, quantized=True)
    images = jax.ShapeDtypeStruct((1, *shape), "float32")
    outputs, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), images)
    _, *others = (
        layer.params[layer.family.filters]
        for layer in plan_of(config, 10, shape)
        if "direct" in layer.family.multiply_adds(layer) and layer.family.filters is not None
    )
    return Network(outputs.features.shape[-1], sum(map(math.prod, others)))


@functools.cache
def check_step(config):
    """Checks that training steps of U-MCN and MCN return a state of the same structure."""
    shape = jax.ShapeDtypeStruct
    split = Split(shape((1000, *image_shape(config)), "uint8"), shape((1000,), "int32"))
    batch = Batch(*[shape((config.batch_size,), "int32")] * 2)
    arguments = train_step_arguments(config, False, image_shape(config))
    state = jax.eval_shape(
        lambda: create_state(
            config,
            arguments["model"],
            arguments["optimizer"],
            arguments["settings"].plan,
            image_shape(config),
        )
    )
    for quantized in {False, quantizes(config)}:
        arguments = train_step_arguments(config, quantized, image_shape(config))
        step = functools.partial(train_step, **arguments)
        new_state, metrics = jax.eval_shape(step, state, split, batch)
        same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, new_state)
        assert all(jax.tree.leaves(same))
        assert metrics["softmax_loss"].shape == ()


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid_and_its_step_fits_together(name):
    config = load(name)
    validate(config)
    check_step(shallow(config))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lbcnn", "cifar10", "resnet101", "resnet110", "diffstride"])
def test_a_step_of_a_deep_network_fits_together(name):
    check_step(load(name))


@pytest.mark.parametrize("name", NAMES)
def test_its_header_has_a_command_of_its_own_and_says_what_to_expect(name):
    command = section(name, "Command")
    assert re.findall(r"python -m mcn_jax\.main --config=(\S+)", command) == [f"configs/{name}.py"]
    for field in re.findall(r"--config\.(\S+?)=", command):
        assert field in flatten(Config()), field
    assert section(name, "Expected")
    assert section(name, "Partners")
    for other in re.findall(r"`(\w+)\.py`", header(name)):
        assert other in NAMES, other
    for run in re.findall(r"runs/(\w+)", command):
        assert run.removesuffix("_cpu") in name, run


@pytest.mark.parametrize("name", NAMES)
def test_each_value_of_the_loop_in_its_command_is_valid(name):
    command = section(name, "Command")
    for variable, values in re.findall(r"for (\w+) in (.*?); do", command):
        [field] = re.findall(rf'--config\.(\S+)="?\${variable}', command)
        values = [value_of(value.strip('"')) for value in values.split()]
        assert len(set(values)) == len(values) >= 4
        assert flatten(load(name))[field] in values
        for value in values:
            validate(changed(name, {field: value}))


@pytest.mark.parametrize("name", NAMES)
def test_its_partners_are_what_the_header_calls_them(name):
    found = partners(name)
    assert sum(len(given) for _, given in found) == section(name, "Partners").count("--config.")
    config = shallow(load(name))
    ours = network(config.model, image_shape(config))
    for what, given in found:
        partner = shallow(changed(name, given))
        validate(partner)
        assert partner != config, what
        theirs = network(partner.model, image_shape(partner))
        if what == "U-MCN":
            assert not quantizes(partner)
            assert theirs == ours
        elif what.endswith("of the same channels"):
            assert theirs.channels == ours.channels
            assert theirs.weights == partner.model.planes * ours.weights
        elif what.endswith("of as many channels"):  # other layers need other numbers of weights
            assert theirs.channels == ours.channels
        elif "of equal bits" in what:
            assert theirs.weights == pytest.approx(ours.weights, rel=5e-3)
            assert not partner.model.plane_signs
        elif what.endswith("of the same number of weights"):
            assert theirs.weights == ours.weights
        elif what.endswith("of the same printed width"):
            assert theirs.channels == config.model.widths[-1]
        else:
            assert "center loss" in what
            assert theirs == ours
            assert partner.binarize.start_epoch == 0
        if what.startswith(("WRN", "CNN")):
            wide = config.model.name == "wide_resnet"
            assert what.startswith("WRN" if wide else "CNN")
            assert partner.model.conv == "conv"


def test_each_file_derives_from_the_base_that_is_stated_here():
    bases = {
        name: re.findall(r'with_name\("(\w+)\.py"\)', (CONFIGS / f"{name}.py").read_text())
        for name in NAMES
    }
    assert {name: base for name, base in bases.items() if base} == {
        name: [base] for name, (base, _) in DERIVED.items()
    }


@pytest.mark.parametrize("name", DERIVED)
def test_a_derived_config_changes_of_its_base_what_is_stated_here_and_no_more(name):
    base, changes = DERIVED[name]
    before, after = flatten(load(base)), flatten(load(name))
    assert after == before | changes
    assert changes, "a config that changes nothing is a line in docs/experiments.md"
    assert not [field for field, value in changes.items() if before[field] == value]
    lines = re.findall(r"^    config\.", (CONFIGS / f"{name}.py").read_text(), re.M)
    assert len(lines) == len(changes)


CPU = [name for name in NAMES if name.endswith("_cpu")]
CONTINUED = ["figure5_lambda_cpu"]  # binary from the start, after a float run
# Networks of other authors, which MCN is compared with.
OTHER_RECIPES = {
    "mcdonnell_cifar10", "binaryconnect_cifar10", "bnn_cifar10", "xnor_cifar10", "irnet_cifar10",
    "resnet18_mcn", "diffstride",
}  # fmt: skip
OTHER_RECIPES |= {
    name for name in NAMES if name.startswith(("filter_map_", "phc_")) and not name.endswith("_cpu")
}
OTHER_NETWORKS = {"nin", "maxout", "lbcnn", "resnet101", "resnet110", *OTHER_RECIPES}
ALONE = {"digits", "mnist_28", "image_folder"}  # not in the paper, and small already
ONE_BIT = {"convnet_mnist_cpu"}  # binary from the start, as their authors'
BOOK = "cifar10_20_16_16_32_64"
FULL = {  # full configs with other names
    "book_cpu": BOOK, "figure7_cpu": BOOK, "maxout_mnist_cpu": "maxout",
    "convnet_mnist_cpu": "binaryconnect_cifar10", "lbcnn_mnist_cpu": "lbcnn",
    "filter_map_resnet18_cpu": "filter_map_resnet18", "phc_resnet18_n2_cpu": "phc_resnet18_n2",
    "diffstride_cpu": "diffstride", "mcn_diffstride_cpu": "cifar10",
}  # fmt: skip


@pytest.mark.parametrize("name", CPU)
def test_one_for_a_cpu_says_how_long_it_takes(name):
    assert re.search(r"\b(minutes?|hours?)\b", section(name, "Expected"))


@pytest.mark.parametrize("name", CPU)
def test_one_for_a_cpu_has_a_full_one_and_binarizes_early(name):
    full = FULL.get(name, name.removesuffix("_cpu"))
    assert full in NAMES
    config = load(name)
    assert config.num_epochs < load(full).num_epochs
    if name in CONTINUED:
        assert config.binarize.start_epoch == 0
        return
    if name in ONE_BIT:
        assert config.binarize.start_epoch == 0
    elif quantizes(config):
        assert 0.15 <= config.binarize.start_epoch / config.num_epochs <= 0.25
    assert config.optimizer.schedule == "cosine"
    assert config.optimizer.warmup_epochs == 1


def test_each_row_of_the_paper_has_one_for_a_cpu():
    book = {name for name in NAMES if name.startswith("cifar10_20_")}
    assert {name.removesuffix("_cpu") for name in set(CPU) - set(FULL)} == (
        set(NAMES) - set(CPU) - ALONE - {"cifar10_small"} - book - OTHER_NETWORKS
    )


def test_the_experiments_list_each_row_and_figure():
    text = (CONFIGS.parent / "docs" / "experiments.md").read_text()
    [table] = re.findall(r"^## Configs$(.*?)^## ", text, re.M | re.S)
    listed = re.findall(r"`(\w+)`", table.split("|---|---|---|")[1].split("\n\n")[0])
    assert set(listed) == set(NAMES) - ALONE


def test_recipes_that_the_paper_prints():
    configs = {name: load(name) for name in NAMES}
    unlike = {"cifar10_small", "figure5_lambda", *ALONE, *OTHER_NETWORKS}
    for name in set(NAMES) - set(CPU) - unlike:
        config = configs[name]
        rates = (config.optimizer.learning_rate, config.optimizer.m_learning_rate)
        assert (config.model.planes, config.binarize.num_centers, *rates) == (4, 2, 0.1, 0.01)
        assert config.num_epochs == (120 if config.data.name == "imagenet100" else 200)
        assert config.binarize.start_epoch == 10
    assert configs["svhn"].data.train_split == "train"
    assert configs["imagenet100"].optimizer.schedule_epochs == (30, 60, 90)
    assert configs["imagenet100"].optimizer.schedule_factor == 0.1


@pytest.mark.parametrize("name", sorted(OTHER_NETWORKS - OTHER_RECIPES))
def test_other_networks_have_their_printed_width_and_the_recipe_of_cifar10(name):
    widths, features = {
        "nin": ((192, 160, 96, 192, 192, 192, 192, 192), None),
        "maxout": ((96, 192, 192), 500),
        "lbcnn": ((384,), 512),
        "resnet101": ((64, 64, 128, 256, 512), None),
        "resnet110": ((16, 16, 32, 64), None),
    }[name]
    config, base = load(name), load("cifar10")
    assert (config.model.planes, config.model.widths) == (1, widths)
    assert features in (None, config.model.dense_features)
    assert config.optimizer == base.optimizer
    assert config.data == base.data
    assert (config.batch_size, config.num_epochs) == (base.batch_size, base.num_epochs)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        (
            "binaryconnect_cifar10",
            {
                "num_epochs": 500, "batch_size": 50, "data.train_split": "train[:45000]",
                "data.crop_padding": 0, "data.flip": False, "loss.data": "squared_hinge",
                "optimizer.name": "adam", "optimizer.learning_rate": 0.003,
                "optimizer.schedule": "exponential", "optimizer.weight_decay": 0.0,
                "optimizer.warmup_epochs": 0, "model.head": "one_bit_dense",
                "model.widths": (128, 256, 512), "model.dense_features": 1024,
            },
        ),
        (
            "bnn_cifar10",
            {
                "num_epochs": 500, "batch_size": 50, "data.train_split": "train[:45000]",
                "data.crop_padding": 0, "data.flip": False, "loss.data": "squared_hinge",
                "optimizer.name": "adam", "optimizer.learning_rate": 0.001,
                "optimizer.schedule": "exponential", "optimizer.weight_decay": 0.0,
                "optimizer.warmup_epochs": 0, "model.head": "one_bit_dense",
                "model.widths": (128, 256, 512), "model.dense_features": 1024,
            },
        ),
        (
            "xnor_cifar10",
            {
                "num_epochs": 320, "optimizer.name": "adam", "optimizer.learning_rate": 0.01,
                "optimizer.schedule": "step", "optimizer.schedule_epochs": (120, 200, 240, 280),
                "optimizer.schedule_factor": 0.1, "optimizer.weight_decay": 1e-5,
                "optimizer.warmup_epochs": 0, "model.head": "one_bit_hidden",
                "model.stem_conv": "conv", "model.widths": (128, 256, 512),
                "model.dense_features": 1024,
            },
        ),
        (
            "irnet_cifar10",
            {
                "num_epochs": 400, "batch_size": 128, "optimizer.name": "sgd",
                "optimizer.learning_rate": 0.1, "optimizer.momentum": 0.9,
                "optimizer.schedule": "cosine", "optimizer.weight_decay": 1e-4,
                "model.name": "resnet", "model.stem_conv": "conv",
                "model.widths": (16, 16, 32, 64), "model.blocks": (3, 3, 3),
                "model.preactivation": False, "binarize.estimator": "",
            },
        ),
    ],
)  # fmt: skip
def test_recipes_that_other_authors_print(name, recipe):
    config = load(name)
    found = flatten(config)
    assert {field: found[field] for field in recipe} == recipe
    assert (config.model.planes, config.binarize.start_epoch) == (1, 0)
    assert config.optimizer.decay_of_latents == config.optimizer.weight_decay
    if config.optimizer.schedule == "exponential":
        last = config.optimizer.learning_rate * config.optimizer.schedule_final
        assert last == pytest.approx({"binaryconnect": 2e-6, "bnn": 3e-7}[config.model.conv])


@pytest.mark.parametrize(
    ("name", "convolutions", "dense"),
    [
        ("binaryconnect_cifar10", 4_574_592, 9_447_424),
        ("bnn_cifar10", 4_574_592, 9_447_424),
        # Without the float first and last layers.
        ("xnor_cifar10", 4_574_592 - 9 * 3 * 128, 9_447_424 - 1024 * 10),
        ("irnet_cifar10", 9 * (6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64), 0),
    ],
)
def test_one_bit_weights_of_other_authors(name, convolutions, dense):
    config = load(name)
    layers = plan_of(config, 10, (32, 32, 3))
    bits = {"filters": 0, "dense layers": 0}
    for tensor, held in specs(layers, config, quantized=True).items():
        if tensor.endswith("/bits"):
            bits[held.part] += held.bits
    assert bits == {"filters": convolutions, "dense layers": dense}
    if name == "irnet_cifar10":
        assert convolutions == 267_264
    if dense == 9_447_424:
        assert convolutions + dense == 14_022_016


def test_a_config_file_that_is_absent_or_has_no_config_is_named(tmp_path):
    with pytest.raises(InputError, match=r"config file .*absent\.py does not exist"):
        load_config_file(tmp_path / "absent.py")
    with pytest.raises(InputError, match="does not exist"):
        load_config_file(tmp_path)
    (tmp_path / "empty.py").write_text("def config():\n    pass\n")
    with pytest.raises(InputError, match=r"empty\.py defines no get_config\(\)"):
        load_config_file(str(tmp_path / "empty.py"))


def test_a_derived_config_is_locked():
    with pytest.raises(AttributeError, match="theta"):
        config_dict("figure5_cpu").loss.thetaa = 1.0
