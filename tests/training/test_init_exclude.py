"""Tests runs that start from another run without some of its layers."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from PIL import Image

from mcn_jax import models
from mcn_jax.config import BinarizeConfig, DataConfig, LossConfig, ModelConfig, from_config_dict
from mcn_jax.errors import InputError
from mcn_jax.models.plan import plan_of
from mcn_jax.training import optim
from mcn_jax.training.checks import validate
from mcn_jax.training.phases import quantizes
from mcn_jax.training.run import train_and_evaluate
from mcn_jax.training.state import create_state, saved_tree
from mcn_jax.training.warm_start import excluded_layers, warm_start
from mcn_jax.workdirs.checkpoint import Checkpoints, named_leaves
from small_runs import digits_config

IMAGE = (32, 32, 1)
BINARY_AT_ONCE = BinarizeConfig(start_epoch=0)
WIDE = {"name": "wide_resnet", "depth": 8, "widths": (1, 1, 2, 2), "dense_features": 8}
SMALL = {"widths": (1, 2), "dense_features": 8}


def config_of(model, **changes):
    return digits_config(model=ModelConfig(**model), **changes)


def state_of(config, classes):
    plan = plan_of(config, classes, IMAGE)
    optimizer = optim.make_optimizer(config.optimizer, 1, 1, plan)
    model = models.make_model(config, classes, quantized=quantizes(config))
    return jax.device_get(create_state(config, model, optimizer, plan, IMAGE))


def write_run(workdir, config, *, binary):
    """Writes a run of one step and ten classes, with random parameters, and returns its leaves."""
    leaves = named_leaves(saved_tree(state_of(dataclasses.replace(config, seed=7), 10)))
    generator = np.random.default_rng(0)
    leaves = {
        name: np.asarray(generator.normal(size=leaf.shape), leaf.dtype)
        for name, leaf in leaves.items()
    }
    workdir.mkdir()
    (workdir / "config.json").write_text('{"config": {"model": {}, "binarize": {}}}')
    epoch = {"kind": "epoch", "step": 1, "epoch": 0, "binarized": binary, "test_accuracy": 0.5}
    (workdir / "metrics.jsonl").write_text(json.dumps(epoch) + "\n")
    checkpoints = Checkpoints(workdir / "checkpoints")
    checkpoints.save(1, leaves, 0.5)
    checkpoints.wait()
    checkpoints.close()
    return leaves


@pytest.mark.parametrize(
    ("model", "binary", "last"),
    [
        (SMALL, True, ["dense_2"]),
        (SMALL | {"conv": "conv", "head": "linear"}, False, ["dense"]),
        (SMALL | {"head": "conv"}, True, ["head", "batch_norm_head"]),
        pytest.param(SMALL | {"head": "linear"}, True, ["dense"], marks=pytest.mark.slow),
        pytest.param(
            WIDE | {"head": "conv"}, True, ["head", "batch_norm_head"], marks=pytest.mark.slow
        ),
        pytest.param(WIDE, True, ["dense_2"], marks=pytest.mark.slow),
        pytest.param(WIDE | {"conv": "conv"}, False, ["dense_2"], marks=pytest.mark.slow),
        pytest.param(SMALL, False, ["dense_2"], marks=pytest.mark.slow),  # a U-MCN
    ],
)
def test_all_layers_but_the_last_are_taken_and_the_last_are_those_of_a_fresh_start(
    model, binary, last, tmp_path
):
    config = config_of(model, loss=LossConfig(center_loss_weight=1e-3))
    other = write_run(tmp_path / "run", config, binary=binary)
    config = dataclasses.replace(config, init_from=str(tmp_path / "run"), init_exclude="last")
    state = state_of(config, 3)
    start = warm_start(config, state, IMAGE)
    fresh = named_leaves(saved_tree(state))
    seen = {True: set(), False: set()}
    for name, leaf in named_leaves(saved_tree(start.state)).items():
        collection, *path = name.split("/")
        is_taken = collection in ("params", "batch_stats", "centers")
        is_taken &= not {*path} & {*last}
        is_taken &= binary or collection != "centers"
        np.testing.assert_array_equal(leaf, (other if is_taken else fresh)[name], err_msg=name)
        seen[is_taken].add(name)
        if is_taken:
            assert not np.array_equal(leaf, fresh[name]), name
    assert start.state.class_means.shape[0] == 3
    for name in last:
        assert any(leaf.startswith(f"params/{name}/") for leaf in seen[False]), name
    assert start.keeps_centers == binary
    layers = [layer.name for layer in plan_of(config, 3, IMAGE)]
    assert start.description["random"] == last
    assert start.description["taken"] == [name for name in layers if name not in last]
    assert start.summary().endswith(
        f"layers taken: {len(layers) - len(last)}, left random: {len(last)} ({', '.join(last)})"
    )


def test_a_layer_with_centers_that_is_left_out_gets_new_ones(tmp_path):
    config = config_of(SMALL)
    write_run(tmp_path / "run", config, binary=True)
    config = dataclasses.replace(config, init_from=str(tmp_path / "run"))
    state = state_of(config, 10)
    assert warm_start(config, state, IMAGE).keeps_centers
    config = dataclasses.replace(config, init_exclude="conv_2")
    start = warm_start(config, state, IMAGE)
    assert not start.keeps_centers
    assert start.description["random"] == ["conv_2"]


@pytest.mark.parametrize(
    ("model", "names", "expected"),
    [
        (SMALL, "", ()),
        (SMALL, "last, conv_1", ("conv_1", "dense_2")),
        (SMALL | {"head": "conv"}, "head", ("head",)),
        (WIDE, "stage_2_block_1", tuple(f"stage_2_block_1/{n}_{i}" for i in (1, 2)
                                         for n in ("batch_norm", "conv"))),
        (SMALL, "dense_3", "names 'dense_3', which is not a layer of this network; use names of"
                           " layers, such as dense_2, or 'last', separated by commas; did you mean"
                           " dense_2?"),
        (SMALL, "lst", "did you mean last?"),
        (WIDE, "stage_2_blok_1", "did you mean stage_2_block_1?"),
        (SMALL, "dense_2,", "names ''"),
        (SMALL, "conv_1,batch_norm_1,conv_2,batch_norm_2,dense_1,last", "leaves no layer to take"),
    ],
)  # fmt: skip
def test_names_of_layers(model, names, expected):
    config = config_of(model, init_from="somewhere", init_exclude=names)
    if isinstance(expected, tuple):
        validate(config)
        assert excluded_layers(config, IMAGE) == expected
    else:
        with pytest.raises(InputError, match=rf"^config\.init_exclude=.*{re.escape(expected)}"):
            validate(config)


def test_names_without_a_run_to_start_from():
    with pytest.raises(InputError, match=r"init_exclude='last' needs config.init_from"):
        validate(config_of(SMALL, init_exclude="last"))


@pytest.fixture(scope="module")
def three_classes(tmp_path_factory):
    """Returns a folder of small images: each class has a hue."""
    root = tmp_path_factory.mktemp("three")
    generator = np.random.default_rng(0)
    for name, hue in {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}.items():
        (root / name).mkdir()
        for number in range(20):
            pixels = hue + generator.normal(0, 30, (8, 8, 1))
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            image.save(root / name / f"{number}.png")
    return root


def test_a_digits_run_is_tuned_to_three_classes_of_colour_images(
    digits_run, three_classes, tmp_path, one_device, capsys
):
    config = from_config_dict(json.loads((digits_run / "config.json").read_text())["config"])
    config = dataclasses.replace(
        config,
        init_from=str(digits_run),
        num_epochs=1,
        batch_size=16,
        binarize=BINARY_AT_ONCE,
        loss=LossConfig(theta=1e-3, center_loss_weight=1e-3),
        data=DataConfig(
            name="image_folder", root=str(three_classes), data_dir=str(tmp_path / "data"),
            image_size=32, test_fraction=0.2,
        ),
    )  # fmt: skip
    # Color images have more input maps than digits, so the first filters do not fit, either.
    for excluded, leaf in (("", "conv_1"), ("conv_1", "dense_2")):
        config = dataclasses.replace(config, init_exclude=excluded)
        with pytest.raises(
            InputError, match=rf"params/{leaf}/\S+ of shape .*, this model"
        ) as error:
            train_and_evaluate(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()
        advice = str(error.value).partition("layers that differ random: --config.init_exclude=")
        assert advice[2] == "conv_1,last"
    config = dataclasses.replace(config, init_exclude="conv_1,last")
    result = train_and_evaluate(config, tmp_path / "run")
    assert result["class_names"] == ["blue", "green", "red"]
    lines = capsys.readouterr().out.splitlines()
    assert sum(x.startswith("MCconv on this CPU: ") for x in lines) == 1
    [line] = [x for x in lines if x.startswith("starting from")]
    assert line.endswith("without its centers; layers taken: 4, left random: 2 (conv_1, dense_2)")
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["config"]["init_exclude"] == "conv_1,last"
    assert record["init_from"]["random"] == ["conv_1", "dense_2"]
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", read_only=True)
    leaves = checkpoints.read(checkpoints.steps()[-1])
    checkpoints.close()
    assert leaves["params/dense_2/kernel"].shape[1] == leaves["class_means"].shape[0] == 3
    # K-means has found the centers of all layers anew.
    assert all(np.ptp(leaves[f"centers/conv_{n}/centers"]) > 0 for n in (1, 2))
