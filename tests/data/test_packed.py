"""Tests packed data sets: they equal the prepared ones, and are read without TFDS."""

import dataclasses
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

import processes
from mcn_jax.config import Config, DataConfig
from mcn_jax.data import packed
from mcn_jax.data.dataset import open_dataset, open_store
from mcn_jax.errors import InputError
from mcn_jax.training.checks import validate
from mcn_jax.training.run import train_and_evaluate
from mcn_jax.workdirs.files import read_metrics
from small_runs import digits_config

# A finder that hides packages, as on a machine that lacks them.
WITHOUT_TFDS = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow_datasets", "array_record", "grain"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
"""


@pytest.fixture(scope="module")
def packed_dir(data_dir, tmp_path_factory):
    """A data directory that holds digits in packed form only."""
    directory = tmp_path_factory.mktemp("packed")
    result = processes.run(
        "mcn_jax.data", "digits", f"--data_dir={data_dir}", f"--pack={directory}"
    )
    assert result.returncode == 0, result.stderr
    assert f"packed digits in {directory}/packed/digits" in result.stdout
    return directory


@pytest.fixture
def copy(packed_dir, tmp_path):
    """A copy of the packed digits, to be damaged."""
    target = tmp_path / "packed" / "digits"
    target.mkdir(parents=True)
    for file in (packed_dir / "packed" / "digits").iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


@pytest.mark.parametrize(
    ("train_split", "test_split"),
    [
        ("train", "test"), ("train[:90%]", "train[90%:]"), ("train[10:-7]", "test[33%:]"),
        ("train[:100]+test[:-50]", "train[-100:]"), ("test[:31%]", "test[31%:100%]"),
    ],
)  # fmt: skip
def test_the_examples_are_those_of_the_prepared_data_set(
    train_split, test_split, data_dir, packed_dir
):
    names = {"train_split": train_split, "test_split": test_split}
    a = open_dataset(DataConfig(data_dir=data_dir, **names))
    b = open_dataset(DataConfig(data_dir=str(packed_dir), **names))
    assert a.description() == b.description()
    for prepared, copied in ((a.train, b.train), (a.test, b.test)):
        for expected, found in zip(prepared.read_all(), copied.read_all(), strict=True):
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)


class Strips(tfds.core.GeneratorBasedBuilder):
    """Colour images whose sides differ; 11 of them do not fill a grid."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(3, 5, 3)),
            "label": tfds.features.ClassLabel(names=["a", "b"]),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(11), "test": self._generate_examples(1)}

    def _generate_examples(self, count):
        generator = np.random.default_rng(count)
        for row in range(count):
            image = io.BytesIO()
            pixels = generator.integers(0, 256, (3, 5, 3), np.uint8)
            Image.fromarray(pixels).save(image, "png")
            image.seek(0)
            yield row, {"image": image, "label": row % 2}


def test_colour_images_in_several_sheets(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "SHEET_PIXELS", 4 * 3 * 5)  # 4 images
    Strips(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    config = DataConfig(name="strips", data_dir=str(tmp_path))
    prepared = open_dataset(config)
    directory = packed.pack(open_store(config), config, tmp_path)
    assert sorted(file.name for file in directory.glob("*.webp")) == [
        "test_0.webp", "train_0.webp", "train_1.webp", "train_2.webp",
    ]  # fmt: skip
    found = open_dataset(config)
    assert found.train.path == directory
    assert found.description() == prepared.description()
    np.testing.assert_array_equal(found.train.read_all().images, prepared.train.read_all().images)
    validate(Config(data=config))  # the name is known


def test_a_run_needs_no_tfds_and_is_the_same(data_dir, packed_dir, tmp_path):
    code = WITHOUT_TFDS + (
        "from mcn_jax.config import DataConfig\n"
        "from mcn_jax.training.run import train_and_evaluate\n"
        "sys.path.insert(0, sys.argv[3])\n"
        "from small_runs import digits_config\n"
        "result = train_and_evaluate(digits_config(sys.argv[1], num_epochs=3), sys.argv[2])\n"
        "assert not [m for m in sys.modules if m.startswith(('tensorflow_datasets', 'grain'))]\n"
    )
    tests = str(processes.ROOT / "tests")
    command = [sys.executable, "-c", code, str(packed_dir), str(tmp_path / "a"), tests]
    subprocess.run(command, check=True, cwd=processes.ROOT)
    train_and_evaluate(digits_config(data_dir, num_epochs=3), tmp_path / "b")
    records = []
    for run in ("a", "b"):
        lines = read_metrics(tmp_path / run / "metrics.jsonl")
        records.append([(r["step"], r.get("softmax_loss"), r.get("test_loss")) for r in lines])
    assert records[0] == records[1]
    assert len(records[0]) == 17


def test_without_tfds_and_without_a_packed_copy_one_line_says_what_to_do(tmp_path):
    code = WITHOUT_TFDS + (
        "from mcn_jax.config import DataConfig\n"
        "from mcn_jax.data.dataset import open_dataset\n"
        "from mcn_jax.errors import InputError\n"
        "try:\n    open_dataset(DataConfig(data_dir='/nowhere'))\n"
        "except InputError as error:\n    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=processes.ROOT
    )
    [line] = result.stdout.splitlines()
    assert line.startswith("data set digits is not packed in /nowhere")
    assert "tensorflow_datasets" in line
    assert "python -m mcn_jax.data digits --pack=DIR" in line


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("validation", "split 'validation' does not fit the packed data set .* train, test"),
        ("train[:9x]", r"split 'train\[:9x\]' does not fit"),
        ("train[10:90%]", r"split 'train\[10:90%\]' does not fit"),
        ("train[", r"split 'train\[' does not fit"),
        ("train[:2000]", "2000 lies beyond the 1437 examples"),
        ("train[-1438:]", "-1438 lies beyond the 1437 examples"),
        ("train[10:5]", r"split 'train\[10:5\]' of data set digits has no examples"),
        ("train[7:7]", r"split 'train\[7:7\]' of data set digits has no examples"),
        ("test[:5]", "share 5 examples of digits"),
        ("train+test[-3:]", "share 3 examples of digits"),
    ],
)
def test_wrong_splits_are_one_line(split, message, packed_dir):
    with pytest.raises(InputError, match=message) as error:
        open_dataset(DataConfig(data_dir=str(packed_dir), train_split=split))
    assert "\n" not in str(error.value)


def _edited(key, value):
    def edit(directory):
        path = directory / "dataset.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    return edit


def _cut(file):
    def cut(directory):
        content = (directory / file).read_bytes()
        (directory / file).write_bytes(content[: len(content) // 2])

    return cut


def _holding(file, content):
    return lambda directory: (directory / file).write_bytes(content)


def _other_labels(directory):
    labels = np.load(directory / "train_labels.npy")
    np.save(directory / "train_labels.npy", labels[::-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_edited("format", 2), "dataset.json has format 2, .* reads format 1"),
        (_edited("splits", {"train": {}}), "dataset.json is damaged"),
        (_edited("splits", []), "dataset.json is damaged"),
        (_edited("image_shape", [32, 32]), "dataset.json is damaged"),
        (_edited("image_shape", [16, 32, 1]), r"train_0.webp: it has 1216x1216 pixels"),
        (_cut("dataset.json"), "dataset.json is damaged"),
        (_cut("train_0.webp"), r"cannot be read \(train_0.webp: .*copy it there again"),
        (_cut("test_labels.npy"), "cannot be read"),
        (_holding("train_labels.npy", b""), "cannot be read .*copy it there again"),
        (_holding("train_labels.npy", b"PK" + bytes(99)), "cannot be read .*copy it there again"),
        (_other_labels, "the train images or labels differ from their SHA-256"),
        (lambda directory: (directory / "test_0.webp").unlink(), "test_0.webp"),
    ],
)
def test_damage_is_one_line_that_names_it(damage, message, copy, tmp_path):
    damage(copy)
    with pytest.raises(InputError, match=message) as error:
        open_dataset(DataConfig(data_dir=str(tmp_path)))
    assert "\n" not in str(error.value)
    assert str(copy) in str(error.value)


def test_what_cannot_be_packed_is_one_line(data_dir, packed_dir, tmp_path, monkeypatch):
    run = processes.run("mcn_jax.data", "digits", f"--data_dir={data_dir}", f"--pack={packed_dir}")
    assert run.returncode == 1
    assert "packed/digits exists; delete it to pack digits again" in run.stderr
    config = DataConfig(data_dir=data_dir)
    monkeypatch.setattr(packed, "LARGEST_BYTES", 1e6)
    with pytest.raises(InputError, match=r"digits takes 0\.0 GB in memory; only"):
        packed.pack(open_store(config), config, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def icons(tmp_path):
    """Prepares a data set as TFDS does for others, of images whose shape is in their alpha."""

    class Icons(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(8, 8, 3)),
                "label": tfds.features.ClassLabel(num_classes=2),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            del dl_manager
            return {split: self._generate_examples() for split in ("train", "test")}

        def _generate_examples(self):
            for number in range(4):
                pixels = np.zeros((8, 8, 4), np.uint8)
                pixels[number] = 255
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "PNG")
                file.seek(0)
                yield number, {"image": file, "label": number % 2}

    builder = Icons(data_dir=str(tmp_path / "tfds"), file_format="array_record")
    builder.download_and_prepare()
    return DataConfig(name="icons", data_dir=str(tmp_path / "tfds"))


def test_a_copy_keeps_its_background(icons, tmp_path):
    config = dataclasses.replace(icons, background=90)
    path = packed.pack(open_store(config), config, tmp_path)
    config = dataclasses.replace(config, data_dir=str(tmp_path))
    pixels = open_dataset(config).train.read_all().images
    assert np.unique(pixels).tolist() == [90, 255]
    message = r"dataset\.json was packed with config.data.background=90, and not 255; use the same"
    with pytest.raises(InputError, match=message):
        open_dataset(dataclasses.replace(config, background=255))
    # A copy of an older version has black pixels there.
    file = path / "dataset.json"
    record = json.loads(file.read_text())
    del record["background"], record["exif_orientation"]
    file.write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"config\.data\.background=-1, and not 90"):
        open_dataset(config)
    open_dataset(dataclasses.replace(config, background=-1, exif_orientation=False))


def test_a_copy_without_encoded_images_fits_any_background(copy, tmp_path):
    file = copy / "dataset.json"
    record = json.loads(file.read_text())
    del record["background"], record["exif_orientation"]
    file.write_text(json.dumps(record))
    open_dataset(DataConfig(data_dir=str(tmp_path)))
    open_dataset(DataConfig(data_dir=str(tmp_path), background=0))
