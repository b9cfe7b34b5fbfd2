"""Tests which parts of a run's state a checkpoint holds."""

import jax
import numpy as np
import pytest

from mcn_jax.models.plan import plan_of
from mcn_jax.training.run import restore_last
from mcn_jax.training.state import from_saved_tree, new_progress, saved_tree
from mcn_jax.workdirs.checkpoint import Checkpoints, named_leaves
from mcn_jax.workdirs.trained import TRAINING_PARTS
from small_runs import digits_config, step_arguments

CONFIG = digits_config()
PLAN = plan_of(CONFIG, 10, (16, 16, 1))


@pytest.fixture
def state():
    return step_arguments(CONFIG, quantized=True)[0]


def test_leaves_have_the_names_that_version_0_1_gave_them(state):
    layers = {
        **{f"conv_{i}": ("latent_filters", "m_filters") for i in (1, 2)},
        **{f"batch_norm_{i}": ("scale", "bias") for i in (1, 2)},
        **{f"dense_{i}": ("kernel", "bias") for i in (1, 2)},
    }
    expected = {
        "step",
        *(f"params/{layer}/{leaf}" for layer, leaves in layers.items() for leaf in leaves),
        *(f"batch_stats/batch_norm_{i}/{leaf}" for i in (1, 2) for leaf in ("mean", "var")),
        *(f"centers/conv_{i}/centers" for i in (1, 2)),
    }
    names = {name for name in named_leaves(saved_tree(state)) if not name.startswith("opt_state/")}
    assert names == expected
    progress = new_progress(state, PLAN, 3.0)
    inside = named_leaves(saved_tree(state, progress))
    means = ("softmax_loss", "accuracy", "filter_loss", "center_loss")
    assert inside.keys() - named_leaves(saved_tree(state)).keys() == {
        "epoch/seconds",
        *(f"epoch/sums/{name}" for name in means),
        *(f"epoch/filters_before/conv_{i}/latent_filters" for i in (1, 2)),
    }
    assert {str(inside[f"epoch/sums/{name}"].dtype) for name in means} == {"float64"}


def test_the_first_state_depends_on_the_seed_alone(state):
    same, other = (step_arguments(digits_config(seed=seed), quantized=True)[0] for seed in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, same, state)
    for layer, leaf in (("conv_1", "latent_filters"), ("dense_2", "kernel")):
        assert np.abs(other.params[layer][leaf] - state.params[layer][leaf]).max() > 0


def test_readers_know_what_is_no_collection_of_the_network(state):
    tree = saved_tree(state, new_progress(state, PLAN, 3.0))
    assert tree.keys() - set(TRAINING_PARTS) == {"params", "batch_stats", "centers"}
    assert set(TRAINING_PARTS) <= tree.keys()


def test_a_state_and_its_progress_come_back(state):
    progress = new_progress(state, PLAN, 3.0)
    for given in (progress, None):
        found, same = from_saved_tree(saved_tree(state, given))
        assert same is given
        assert found.layer_state.keys() == {"centers"}
        assert jax.tree.structure(found) == jax.tree.structure(state)
        jax.tree.map(np.testing.assert_array_equal, found, state)


def test_a_checkpoint_inside_an_epoch_is_restored_with_its_progress(state, tmp_path):
    template = step_arguments(digits_config(seed=1), quantized=True)[0]
    sums = {"softmax_loss": 1.5, "accuracy": 2.0, "filter_loss": 0.25, "center_loss": 0.0}
    progress = new_progress(state, PLAN, 3.0).replace(
        sums={name: np.float64(total) for name, total in sums.items()}
    )
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(7, saved_tree(state, progress), test_accuracy=0.5)
    found, restored = restore_last(checkpoints, template, PLAN)
    assert (restored.sums, restored.seconds) == (sums, 3.0)
    jax.tree.map(np.testing.assert_array_equal, restored, progress)
    jax.tree.map(np.testing.assert_array_equal, found, state)
    checkpoints.save(8, saved_tree(state), test_accuracy=0.5)
    found, restored = restore_last(checkpoints, template, PLAN)
    assert restored is None
    jax.tree.map(np.testing.assert_array_equal, found, state)
    checkpoints.close()
