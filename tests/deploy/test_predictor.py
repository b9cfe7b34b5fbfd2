"""Tests the dtype in which predictors of checkpoints compute, and where they find their data."""

import dataclasses
import io
import pathlib

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from mcn_jax import models
from mcn_jax.config import Config, DataConfig, ModelConfig
from mcn_jax.deploy import predictor
from mcn_jax.deploy.model_file import model_of
from mcn_jax.errors import InputError
from mcn_jax.workdirs.trained import Trained


@pytest.fixture
def float64_run():
    """Returns a short run that was trained in float64."""
    model = ModelConfig(widths=(2, 3), dense_features=8)
    config = Config(model=model, dtype="float64", param_dtype="float64")
    with jax.enable_x64(True):
        module = models.make_model(config, 10, quantized=True)
        variables = module.init(jax.random.key(0), np.zeros((1, 32, 32, 1)))
    names = [str(digit) for digit in range(10)]
    return Trained(
        workdir=pathlib.Path("run"),
        config=config,
        data={
            "full_name": "digits/1.0.0", "image_shape": [32, 32, 1], "mean": [0.3], "std": [0.3],
            "class_names": names,
        },
        git_revision=None,
        epoch={"kind": "epoch", "step": 1, "epoch": 0, "binarized": True, "test_accuracy": 0.1},
        file_bytes=0,
        variables=jax.device_get(variables),
    )  # fmt: skip


def test_only_weights_that_are_quantized_stay_in_float64(float64_run, monkeypatch):
    taken = {}

    def keep(module, variables, images, *, x64):
        taken.update(variables=variables, dtype=module.dtype, x64=x64)

    monkeypatch.setattr(predictor, "_logits", keep)
    predictor.of_trained(float64_run, {})
    assert taken["x64"]
    assert taken["dtype"] == np.float32
    leaves = jax.tree_util.tree_leaves_with_path(taken["variables"])
    dtypes = {jax.tree_util.keystr(p, simple=True, separator="/"): x.dtype for p, x in leaves}
    exact = {name for name, dtype in dtypes.items() if dtype == np.float64}
    assert exact == {
        *(f"params/conv_{i}/{leaf}" for i in (1, 2) for leaf in ("latent_filters", "m_filters")),
        *(f"centers/conv_{i}/centers" for i in (1, 2)),
    }


def test_a_weight_beside_the_threshold_keeps_its_center(float64_run):
    """Rounding to float32 before quantization would move the weight to the other center."""
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1), np.uint8)
    layer = float64_run.variables["params"]["conv_1"]["latent_filters"]
    centers = float64_run.variables["centers"]["conv_1"]["centers"]
    middle = centers.mean()
    below = middle - 1e-12
    assert np.float32(below) == np.float32(middle)
    logits = []
    for value in (centers[0], below, centers[1]):
        layer = np.array(layer)
        layer[0, 0, 0, 0] = value
        float64_run.variables["params"]["conv_1"]["latent_filters"] = layer
        logits.append(predictor.of_trained(float64_run, {}).logits(images))
    assert {values.dtype for values in logits} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(logits[1], logits[0])
    assert np.abs(logits[2] - logits[0]).max() > 1e-6


class Photos(tfds.core.GeneratorBasedBuilder):
    """A data set that somebody else has prepared, of images that differ in size."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 1)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(6), "test": self._generate_examples(4)}

    def _generate_examples(self, count):
        for number in range(count):
            file = io.BytesIO()
            Image.new("L", (5 + number, 9), 20 * number).save(file, "PNG")
            file.seek(0)
            yield number, {"image": file, "label": number}


def test_another_data_set_whose_images_differ_in_size_is_found_where_it_is_now(
    float64_run, tmp_path
):
    Photos(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    data = DataConfig(name="photos", data_dir=str(tmp_path / "before"), image_size=32)
    trained = dataclasses.replace(
        float64_run,
        config=Config(model=float64_run.config.model, data=data),
        variables=jax.tree.map(np.float32, float64_run.variables),
        data=float64_run.data | {"full_name": "photos/1.0.0"},
    )
    with pytest.raises(InputError, match=r"config\.data\.name='photos' must be one of"):
        predictor.of_trained(trained, {})
    places = {"data_dir": str(tmp_path)}
    model = model_of(trained, predictor.stored_shape(trained, places))
    for member in (predictor.of_trained(trained, places), predictor.of_model(model)):
        examples = predictor.open_test_split(member, places).read_all()
        assert examples.images.shape == (4, 32, 32, 1)
        assert member.logits(examples.images).shape == (4, 10)
