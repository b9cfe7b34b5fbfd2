"""Tests what runs do after their last update: averaged weights, new batch-norm statistics."""

import dataclasses
import functools
import itertools

import jax
import numpy as np
import optax
import pytest

from mcn_jax import parallel
from mcn_jax.config import BinarizeConfig, DataConfig, OptimizerConfig
from mcn_jax.data.batches import Batch
from mcn_jax.data.dataset import open_dataset
from mcn_jax.errors import InputError
from mcn_jax.training import optim
from mcn_jax.training.num_epochs import check_num_epochs
from mcn_jax.training.run import train_and_evaluate
from mcn_jax.training.setup import Setup
from mcn_jax.training.steps import statistics_step, train_step
from mcn_jax.workdirs.checkpoint import Checkpoints, named_leaves
from small_runs import copy_after, digits_config, random_split, step_arguments

STEPS = 5  # per epoch
FINISHED = OptimizerConfig(learning_rate=0.05, schedule="constant", average_epochs=2)


def finished_config(data_dir, **changes):
    """Returns the config of three epochs, the last two binary and averaged."""
    fields = {
        "num_epochs": 3,
        "data": DataConfig(name="digits", data_dir=data_dir, train_split="train[:160]"),
        "binarize": BinarizeConfig(start_epoch=1),
        "optimizer": FINISHED,
        "batch_norm_steps": 3,
    }
    return digits_config(data_dir, **(fields | changes))


def last_leaves(workdir):
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    leaves = checkpoints.read(checkpoints.steps()[-1])
    checkpoints.close()
    return leaves


def parts(leaves, *names):
    return {name: leaf for name, leaf in leaves.items() if name.split("/")[0] in names}


def assert_equal(leaves, others):
    assert leaves.keys() == others.keys()
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(leaf, others[name], err_msg=name)


def test_the_average_is_that_of_the_parameters_after_each_counted_update():
    optimizer = optim.averaged(optax.sgd(0.5), first=2)
    with jax.enable_x64(True):
        params = {"w": np.array([1.0, -2.0])}
        state = optimizer.init(params)
        after = []
        for gradient in np.random.default_rng(0).normal(size=(9, 2)):
            updates, state = optimizer.update({"w": gradient}, state, params)
            params = optax.apply_updates(params, updates)
            after.append(params["w"])
            counted = after[2:] or after[-1:]
            np.testing.assert_allclose(state.mean["w"], np.mean(counted, axis=0), rtol=1e-14)


@pytest.fixture(scope="module")
def runs(data_dir, tmp_path_factory):
    """Returns (directory, parameters of the run "usual" after each step, config of "finished").

    "usual" ends with its last update. "stopped" is a copy of "finished" from its last epoch.
    """
    root = tmp_path_factory.mktemp("finish")
    config = finished_config(data_dir, checkpoint_every_steps=1)
    usual = dataclasses.replace(
        config, batch_norm_steps=0, optimizer=dataclasses.replace(FINISHED, average_epochs=0)
    )
    params = {}
    save = Checkpoints.save

    def kept(self, step, tree, *arguments):
        params[step] = named_leaves(jax.device_get(tree["params"]))
        save(self, step, tree, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", kept)
        train_and_evaluate(usual, root / "usual")
    with pytest.MonkeyPatch.context() as patch:
        copy_after(patch, 2 * STEPS + 3, root / "stopped")
        train_and_evaluate(config, root / "finished")
    return root, params, config


def test_a_run_ends_with_the_mean_of_its_weights(runs):
    root, params, _ = runs
    counted = [params[step] for step in range(STEPS + 1, 3 * STEPS + 1)]
    last = last_leaves(root / "finished")
    for name, leaf in parts(last, "params").items():
        expected = np.mean([p[name.removeprefix("params/")] for p in counted], axis=0)
        np.testing.assert_allclose(leaf, expected, rtol=1e-4, atol=1e-6, err_msg=name)
    usual = last_leaves(root / "usual")
    assert_equal(parts(last, "centers"), parts(usual, "centers"))
    changed = parts(last, "params")["params/conv_2/latent_filters"]
    assert np.abs(changed - usual["params/conv_2/latent_filters"]).max() > 1e-4


def test_its_end_is_the_same_when_it_resumes_or_dispatches_several_steps(runs, tmp_path):
    root, _, config = runs
    expected = last_leaves(root / "finished")
    train_and_evaluate(config, root / "stopped")
    assert_equal(last_leaves(root / "stopped"), expected)
    together = dataclasses.replace(config, steps_per_dispatch=5, checkpoint_every_steps=0)
    train_and_evaluate(together, tmp_path)
    for name, leaf in last_leaves(tmp_path).items():
        np.testing.assert_allclose(leaf, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)


def test_it_does_not_get_more_epochs(runs):
    root, _, config = runs
    more = dataclasses.replace(config, num_epochs=4)
    with pytest.raises(InputError, match=r"average_epochs=2 its network has other weights"):
        check_num_epochs(root / "finished", config, more, STEPS)
    last = dataclasses.replace(FINISHED, average_epochs=0)
    config, more = (dataclasses.replace(one, optimizer=last) for one in (config, more))
    with pytest.raises(InputError, match=r"batch_norm_steps=3 its network has other weights"):
        check_num_epochs(root / "finished", config, more, STEPS)


def test_the_statistics_are_those_of_one_batch():
    """A training step moves the running statistics a tenth of the way to them."""
    config = digits_config()
    state, arguments = step_arguments(config, quantized=True)
    batch = Batch(np.arange(32, dtype=np.int32), np.arange(32, dtype=np.int32))
    moved, _ = jax.jit(functools.partial(train_step, **arguments))(state, random_split(), batch)
    own = {name: arguments[name] for name in ("model", "settings", "axis_name")}
    after, found = jax.jit(functools.partial(statistics_step, **own))(state, random_split(), batch)
    expected = jax.tree.map(
        lambda new, old: (new - 0.9 * old) / 0.1, moved.batch_stats, state.batch_stats
    )
    for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-4, atol=1e-5)
    assert after.step == state.step + 1
    assert_equal(named_leaves(after.params), named_leaves(state.params))


def test_the_statistics_are_the_mean_over_batches_of_a_further_epoch(data_dir, tmp_path):
    """A run whose rates are zero has the weights that it starts with in every batch."""
    still = dataclasses.replace(FINISHED, learning_rate=0.0, m_learning_rate=0.0, average_epochs=0)
    config = finished_config(
        data_dir, optimizer=still, binarize=BinarizeConfig(enabled=False), num_epochs=1
    )
    train_and_evaluate(config, tmp_path)
    found = parts(last_leaves(tmp_path), "batch_stats")
    setup = Setup(config, open_dataset(config.data))
    state = dataclasses.replace(setup.initial_state(), step=np.int32(STEPS))
    state, seen = parallel.replicate(state), []
    for split, batch in itertools.islice(setup.source.train_batches(1), 3):
        state, values = setup.phase(False).statistics(state, split, batch)
        seen.append(named_leaves({"batch_stats": parallel.unreplicate(values)}))
    setup.source.close()
    for name, leaf in found.items():
        each = np.stack([leaves[name] for leaves in seen])
        np.testing.assert_allclose(leaf, each.mean(axis=0), rtol=1e-5, atol=1e-6, err_msg=name)
        assert np.abs(each[0] - each[1]).max() > 1e-6
