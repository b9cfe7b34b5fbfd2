"""Tests that interrupted preparation leaves nothing incomplete, and finds prepared sets."""

import errno
import io
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import processes
from mcn_jax.config import DataConfig
from mcn_jax.data import mnist
from mcn_jax.data.dataset import open_dataset
from mcn_jax.errors import InputError

PREPARE = (
    "import sys; from mcn_jax.config import DataConfig; from mcn_jax.data.dataset import"
    " open_dataset; open_dataset(DataConfig(data_dir=sys.argv[1]))"
)


def prepare_with_limit(data_dir, file_size_limit):
    """Prepares digits while no file may grow beyond a limit in bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size_limit, file_size_limit))
    try:
        open_dataset(DataConfig(data_dir=data_dir))
    except InputError as error:
        sys.exit(str(error))


def prepared(data_dir):
    """Returns the versions of digits that exist under their final name."""
    return [path.name for path in (data_dir / "digits").glob("[0-9]*")]


@pytest.mark.parametrize("limit", [1000, 20_000, 300_000])
def test_a_full_disk_is_one_line_and_leaves_nothing(limit, tmp_path):
    finished = processes.Running(prepare_with_limit, str(tmp_path), limit).finish()
    assert finished.returncode == 1
    [line] = finished.stderr.strip().splitlines()
    assert f"data set digits does not fit on the disk of {tmp_path}" in line
    assert "pass another directory as --config.data.data_dir" in line
    assert not [path for path in (tmp_path / "digits").rglob("*") if path.is_file()]
    # With enough space, preparation works again.
    assert len(open_dataset(DataConfig(data_dir=str(tmp_path))).train) == 1437


def test_another_process_may_prepare_it_just_before_the_last_rename(tmp_path, monkeypatch):
    rename = os.rename

    def rename_after_another(source, target):
        if pathlib.Path(target) == tmp_path / "digits" / "1.0.0":
            shutil.copytree(source, target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_after_another)
    assert len(open_dataset(DataConfig(data_dir=str(tmp_path))).train) == 1437
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


@pytest.mark.slow
def test_a_kill_in_the_middle_of_preparation_leaves_it_absent_or_whole(tmp_path):
    """Kills preparation at moments spread over its whole time, then prepares again."""
    kills = 0
    for number in range(6):
        directory = tmp_path / str(number)
        process = subprocess.Popen([sys.executable, "-c", PREPARE, directory])
        while not list((directory / "digits").glob("*")) and process.poll() is None:
            time.sleep(0.002)
        time.sleep(0.06 * number)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += process.returncode == -signal.SIGKILL
        if prepared(directory):  # after the rename, nothing may be missing
            before = sorted(directory.rglob("*"))
            assert len(open_dataset(DataConfig(data_dir=str(directory))).train) == 1437
            assert sorted(directory.rglob("*")) == before
        loaded = open_dataset(DataConfig(data_dir=str(directory)))
        assert len(loaded.train.read_all().labels) == 1437
        assert prepared(directory) == ["1.0.0"]
    assert kills >= 2


class Shapes(tfds.core.GeneratorBasedBuilder):
    """A data set that somebody else might have prepared."""

    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(6, 5, 1)),
                    "label": tfds.features.ClassLabel(names=["square", "circle"]),
                    "id": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(12), "validation": self._generate_examples(4)}

    def _generate_examples(self, count):
        for number in range(count):
            file = io.BytesIO()
            Image.new("L", (5, 6), 20 * number).save(file, "PNG")
            file.seek(0)
            yield number, {"image": file, "label": number % 2, "id": str(number)}


class NoLabels(Shapes):
    """`Shapes` without labels."""

    def _info(self):
        features = {"image": tfds.features.Image(shape=(6, 5, 1))}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self, count):
        for key, example in super()._generate_examples(count):
            yield key, {"image": example["image"]}


class Wide(Shapes):
    """`Shapes` with another kind of label."""

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(6, 5, 1)),
            "label": tfds.features.Scalar(np.int64),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self, count):
        for key, example in super()._generate_examples(count):
            yield key, {"image": example["image"], "label": example["label"]}


def others(builder, data_dir, file_format="array_record"):
    builder(data_dir=str(data_dir), file_format=file_format).download_and_prepare()


@pytest.mark.parametrize("name", ["shapes", "shapes:1.2.0"])
def test_a_set_that_somebody_else_prepared_is_found_by_name(name, tmp_path):
    others(Shapes, tmp_path)
    dataset = open_dataset(
        DataConfig(name=name, data_dir=str(tmp_path), test_split="validation", image_size=8)
    )
    assert dataset.class_names == ("square", "circle")
    assert dataset.image_shape == (8, 8, 1)
    split = dataset.train.read_all()
    values = {int(image[4, 4, 0]): int(label) for image, label in zip(*split, strict=True)}
    assert values == {20 * number: number % 2 for number in range(12)}
    assert len(dataset.test) == 4
    padded = np.zeros((12, 8, 8, 1))
    padded[:, 1:7, 1:6, 0] = np.array(sorted(values))[:, None, None] / 255
    np.testing.assert_allclose(dataset.mean, padded.mean(), atol=1e-4)
    np.testing.assert_allclose(dataset.std, padded.std(), atol=1e-4)


def test_parts_of_splits_in_the_notation_of_tfds(tmp_path):
    others(Shapes, tmp_path)
    config = DataConfig(
        name="shapes", data_dir=str(tmp_path), train_split="train[:75%]", test_split="train[75%:]"
    )
    dataset = open_dataset(config)
    pixels = [e.read_all().images[:, 0, 0, 0].tolist() for e in (dataset.train, dataset.test)]
    assert [len(values) for values in pixels] == [9, 3]
    assert sorted(pixels[0] + pixels[1]) == [20 * number for number in range(12)]
    both = DataConfig(
        name="shapes", data_dir=str(tmp_path), train_split="train[:8]+validation",
        test_split="train[8:]",
    )  # fmt: skip
    assert len(open_dataset(both).train) == 12


@pytest.mark.parametrize(
    ("train_split", "test_split", "shared"),
    [("train", "train", 12), ("train", "train[75%:]", 3), ("train[:8]", "train[6:]", 2),
     ("train+validation", "validation", 4)],
)  # fmt: skip
def test_a_test_split_that_is_trained_on_is_refused(train_split, test_split, shared, tmp_path):
    others(Shapes, tmp_path)
    config = DataConfig(
        name="shapes", data_dir=str(tmp_path), train_split=train_split, test_split=test_split
    )
    with pytest.raises(InputError, match=rf"share {shared} examples of shapes; .* held out"):
        open_dataset(config)


@pytest.mark.parametrize(
    ("builder", "changes", "message"),
    [
        (Shapes, {}, r"split 'test' does not fit data set shapes, which has train, validation"),
        (
            Shapes,
            {"train_split": "train[9:5]"},
            r"split 'train\[9:5\]' does not fit data set shapes",
        ),
        (Shapes, {"train_split": "all[:9]"}, r"split 'all\[:9\]' does not fit data set shapes"),
        (Shapes, {"train_split": "train[:0]"}, r"split 'train\[:0\]' does not fit data set shapes"),
        (Shapes, {"name": "shapes:9.9.9"}, r"config.data.name='shapes:9.9.9' must be one of"),
        (Shapes, {"name": "shapes/other"}, r"config.data.name='shapes/other' must be one of"),
        (Shapes, {"min_crop_area": 0.5}, r"min_crop_area=0.5 is for images that differ in size"),
        (NoLabels, {"name": "no_labels"}, r"has the features image; .* image and label"),
        (Wide, {"name": "wide"}, r"the labels of data set wide must be a ClassLabel"),
    ],
)
def test_sets_that_do_not_fit_are_one_line(builder, changes, message, tmp_path):
    others(builder, tmp_path)
    config = DataConfig(**({"name": "shapes", "data_dir": str(tmp_path)} | changes))
    with pytest.raises(InputError, match=message) as error:
        open_dataset(config)
    assert "\n" not in str(error.value)


def test_an_archive_that_may_not_be_read_is_named_and_not_the_data_directory(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    for name, _, _ in mnist.FILES.values():
        (tmp_path / name).write_bytes(b"x")
    monkeypatch.setattr(pathlib.Path, "read_bytes", refuse)  # file permissions do not stop root
    config = DataConfig(name="mnist", data_dir=str(tmp_path / "d"), archive_dir=str(tmp_path))
    with pytest.raises(InputError, match=rf"^{tmp_path}/train-images-idx3-ubyte cannot be read"):
        open_dataset(config)


def test_another_record_format_is_refused(tmp_path):
    others(Shapes, tmp_path)
    [info] = tmp_path.rglob("dataset_info.json")
    info.write_text(info.read_text().replace("array_record", "riegeli"))
    with pytest.raises(InputError, match="is prepared as riegeli; prepare it again with"):
        open_dataset(DataConfig(name="shapes", data_dir=str(tmp_path)))


def test_a_label_out_of_range_is_one_line(tmp_path):
    others(Shapes, tmp_path)
    [labels] = tmp_path.rglob("label.labels.txt")
    labels.write_text("square\n")
    [features] = tmp_path.rglob("features.json")
    features.write_text(features.read_text().replace('"numClasses": "2"', '"numClasses": "1"'))
    with pytest.raises(InputError, match="has the label 1, but only 1 classes"):
        open_dataset(DataConfig(name="shapes", data_dir=str(tmp_path), test_split="validation"))
