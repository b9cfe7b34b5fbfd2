"""Tests runs whose planes differ by more than a trained M."""

import dataclasses

import jax
import numpy as np
import pytest

from mcn_jax.config import BinarizeConfig, Config, DataConfig, ModelConfig, OptimizerConfig
from mcn_jax.errors import InputError
from mcn_jax.layers.table import LAYERS
from mcn_jax.models.plan import plan_of
from mcn_jax.ops.m_init import initial_m
from mcn_jax.training.checks import validate
from mcn_jax.training.num_epochs import check_num_epochs
from mcn_jax.training.run import train_and_evaluate
from mcn_jax.workdirs.checkpoint import Checkpoints, named_leaves
from small_runs import copy_after, digits_config, restored, step_arguments


@pytest.mark.parametrize(
    ("plane_signs", "m_init"), [("quaternion", "disjoint"), ("circulant", "orientations")]
)
def test_a_run_with_all_options_resumes_where_it_was_stopped(
    plane_signs, m_init, data_dir, tmp_path, monkeypatch, one_device
):
    config = digits_config(
        data_dir,
        num_epochs=2,
        data=DataConfig(name="digits", data_dir=data_dir, train_split="train[:160]"),
        model=ModelConfig(
            widths=(2, 4), dense_features=32, plane_signs=plane_signs, m_init=m_init, m_noise=0.0
        ),
        binarize=BinarizeConfig(start_epoch=1, estimator="ede"),
        optimizer=OptimizerConfig(
            learning_rate=0.05, schedule="constant", m_momentum=0.5, m_decay=0.1,
            center_latents=True,
        ),
    )  # fmt: skip
    with monkeypatch.context() as patch:
        copy_after(patch, 5, tmp_path / "stopped")
        result = train_and_evaluate(config, tmp_path / "whole")
    assert not (tmp_path / "stopped" / "result.json").exists()
    resumed = train_and_evaluate(config, tmp_path / "stopped")
    assert resumed["final_test_accuracy"] == result["final_test_accuracy"]

    template, _ = step_arguments(config, quantized=True, image_size=32)
    # The start of a run is that of its options, and the centers are of centered filters.
    np.testing.assert_allclose(
        template.params["conv_2"]["m_filters"], initial_m(m_init, 3, 4), rtol=1e-6
    )
    states = []
    for workdir in (tmp_path / "whole", tmp_path / "stopped"):
        checkpoints = Checkpoints(workdir / "checkpoints")
        states.append(restored(checkpoints, 10, template))
        checkpoints.close()
    expected = named_leaves(states[0])
    for name, leaf in named_leaves(states[1]).items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)
    shares = [leaf for name, leaf in expected.items() if "progress" in name]
    np.testing.assert_allclose(shares, 2 * [9 / 10], rtol=1e-6)  # before the last step
    for layer in ("conv_1", "conv_2"):
        params = jax.device_get(states[0].params[layer])
        means = np.mean(params["latent_filters"], axis=(0, 1, 2))
        np.testing.assert_allclose(means, 0, atol=1e-6)
        assert np.min(params["m_filters"]) >= 0


@pytest.mark.parametrize("estimator", ["", "identity", "ede", "reste"])
def test_an_estimator_that_changes_needs_the_number_of_epochs(estimator, tmp_path):
    config = digits_config(
        "",
        num_epochs=2,
        binarize=BinarizeConfig(estimator=estimator),
        optimizer=OptimizerConfig(schedule="constant"),
    )
    longer = dataclasses.replace(config, num_epochs=3)
    if estimator in ("", "identity"):
        check_num_epochs(tmp_path, config, longer, 5)
        return
    message = "would change the layers of config.model.conv='mcconv': they depend on the share"
    with pytest.raises(InputError, match=message):
        check_num_epochs(tmp_path, config, longer, 5)


@pytest.mark.parametrize(
    ("estimator", "num_centers", "message"),
    [
        ("sharp", 2, "'sharp' must be one of identity, ede, reste"),
        ("ede", 4, "'ede' needs config.binarize.num_centers=2, not 4"),
        ("reste", 3, "'reste' needs config.binarize.num_centers=2, not 3"),
    ],
)
def test_an_estimator_that_cannot_be_is_refused(estimator, num_centers, message):
    config = Config(binarize=BinarizeConfig(estimator=estimator, num_centers=num_centers))
    with pytest.raises(InputError, match=f"config.binarize.estimator={message}"):
        check_mcconv(config)
    identity = BinarizeConfig(estimator="identity", num_centers=num_centers)
    check_mcconv(Config(binarize=identity))


def check_mcconv(config):
    LAYERS["mcconv"].check(config)
    for layer in plan_of(config, num_classes=10, image_shape=(28, 28, 1)):
        layer.family.check_layer(layer, config)


def test_an_estimator_needs_two_centers_of_mcconv_only():
    model = ModelConfig(
        name="resnet", conv="filter_map_kmeans", pointwise="irnet", widths=(64, 64, 128),
        blocks=(1, 1), planes=1,
    )  # fmt: skip
    config = Config(model=model, binarize=BinarizeConfig(estimator="reste", num_centers=4))
    validate(config)
