"""Every file in configs/ loads, is valid, and its step fits together."""

import functools
import importlib.util
import pathlib

import jax
import pytest

from mcn_jax.config import from_config_dict, validate
from mcn_jax.data import DATASETS
from mcn_jax.data.batches import Batch, Split
from mcn_jax.state import create_state
from mcn_jax.steps import train_step
from small_runs import train_step_arguments

FILES = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, from_config_dict(module.get_config())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config(path):
    module, config = load(path)
    validate(config)
    assert f"python -m mcn_jax.main --config=configs/{path.name}" in module.__doc__
    facts = DATASETS[config.data.name]
    size = config.data.image_size or facts.image_shape[0]
    examples = facts.examples.get("train", 1000)  # of an image folder, any number
    shape = jax.ShapeDtypeStruct
    split = Split(
        shape((examples, size, size, facts.image_shape[2]), "uint8"),
        shape((examples,), "int32"),
    )
    batch = Batch(*[shape((config.batch_size,), "int32")] * 2)
    for binarized in {False, config.binarizes}:
        arguments = train_step_arguments(config, binarized)
        state = jax.eval_shape(
            lambda arguments=arguments: create_state(
                config, arguments["model"], arguments["optimizer"], split.images.shape[1:]
            )
        )
        new_state, metrics = jax.eval_shape(
            functools.partial(train_step, **arguments), state, split, batch
        )
        same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), state, new_state)
        assert all(jax.tree.leaves(same))
        assert metrics["softmax_loss"].shape == ()
