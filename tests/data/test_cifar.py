import dataclasses
import functools
import gzip
import hashlib
import io
import pathlib
import tarfile

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds

from mcn_jax import parallel
from mcn_jax.config import DataConfig, ModelConfig
from mcn_jax.data import cifar
from mcn_jax.data.dataset import open_dataset
from mcn_jax.data.facts import DATASETS
from mcn_jax.data.sources import make_source
from mcn_jax.errors import InputError
from mcn_jax.training.evaluation import evaluate
from mcn_jax.training.steps import eval_step
from small_runs import digits_config, step_arguments
from small_runs import load as load_data

BUILDERS = {"cifar10": cifar.Cifar10, "cifar100": cifar.Cifar100}


def small_archive(archive, records):
    """Returns (description, {name: content}) of an official archive with fewer records."""
    generator = np.random.default_rng(0)
    classes = {"label": 10 if len(archive.labels) == 1 else 100, "coarse_label": 20}
    files, contents = {}, {}
    for split, entries in archive.files.items():
        described = []
        for name, _, _ in entries:
            labels = [
                generator.integers(0, classes[label], (records, 1)) for label in archive.labels
            ]
            pixels = generator.integers(0, 256, (records, cifar.PIXELS))
            contents[name] = np.hstack([*labels, pixels]).astype(np.uint8).tobytes()
            described.append((name, records, hashlib.sha256(contents[name]).hexdigest()))
        files[split] = tuple(described)
    return dataclasses.replace(archive, files=files), contents


def write_tar(path, archive, contents, extra=()):
    with tarfile.open(path, "w:gz") as tar:
        members = [(f"{archive.folder}/{name}", content) for name, content in contents.items()]
        for name, content in [*members, *extra]:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture(params=["cifar10", "cifar100"])
def small(request, tmp_path, monkeypatch):
    """Returns (data set, description, contents, empty archive directory) of a small CIFAR."""
    name = request.param
    archive, contents = small_archive(BUILDERS[name].ARCHIVE, records=6)
    monkeypatch.setattr(BUILDERS[name], "ARCHIVE", archive)
    examples = {split: 6 * len(files) for split, files in archive.files.items()}
    facts = dataclasses.replace(DATASETS[name], examples=examples)
    monkeypatch.setitem(DATASETS, name, facts)
    directory = tmp_path / "archives"
    directory.mkdir()
    return name, archive, contents, directory


def load(name, directory, tmp_path):
    config = {"name": name, "data_dir": str(tmp_path / "d"), "archive_dir": str(directory)}
    return load_data(**config)


def tar_path(archive, directory):
    return directory / archive.url.rsplit("/", 1)[1]


@pytest.mark.parametrize("layout", ["tar", "folder", "flat"])
def test_records_become_images_and_labels(small, tmp_path, layout):
    name, archive, contents, directory = small
    if layout == "tar":
        write_tar(tar_path(archive, directory), archive, contents)
    else:
        folder = directory / archive.folder if layout == "folder" else directory
        folder.mkdir(exist_ok=True)
        for file, content in contents.items():
            (folder / file).write_bytes(content)
    dataset = load(name, directory, tmp_path)
    [(test_file, _, _)] = archive.files["test"]
    record_size = len(archive.labels) + cifar.PIXELS
    records = [contents[test_file][i * record_size :][:record_size] for i in range(6)]
    expected = {}
    for record in records:
        image = np.zeros((32, 32, 3), np.uint8)
        planes = record[len(archive.labels) :]
        for channel in range(3):
            for y in range(32):
                for x in range(32):
                    image[y, x, channel] = planes[1024 * channel + 32 * y + x]
        expected[image.tobytes()] = record[archive.labels.index("label")]
    ours = zip(dataset.test.images, dataset.test.labels, strict=True)
    assert {image.tobytes(): label for image, label in ours} == expected
    assert len(dataset.train.images) == 6 * len(archive.files["train"])


def test_coarse_labels_and_names_of_cifar100(tmp_path, monkeypatch):
    archive, contents = small_archive(cifar.CIFAR100, records=6)
    monkeypatch.setattr(cifar.Cifar100, "ARCHIVE", archive)
    write_tar(tar_path(archive, tmp_path), archive, contents)
    builder = cifar.Cifar100(
        data_dir=str(tmp_path / "d"), archive_dir=str(tmp_path), file_format="array_record"
    )
    builder.download_and_prepare()
    examples = list(builder.as_data_source(split="test"))
    pairs = sorted((int(e["coarse_label"]), int(e["label"])) for e in examples)
    content = np.frombuffer(contents["test.bin"], np.uint8).reshape(6, -1)
    assert pairs == sorted(map(tuple, content[:, :2].tolist()))
    assert builder.info.features["label"].names[:2] == ["apple", "aquarium_fish"]
    assert builder.info.features["coarse_label"].names[-1] == "vehicles_2"


@pytest.mark.parametrize(
    "damage", ["truncated", "flipped", "other", "missing", "escaping", "absolute"]
)
def test_damaged_archives_are_named_and_nothing_is_written(small, tmp_path, damage):
    name, archive, contents, directory = small
    path = tar_path(archive, directory)
    last = list(contents)[-1]
    extra, message = (), ""
    if damage == "other":
        changed = bytearray(contents[last])
        changed[5] ^= 1
        contents = contents | {last: bytes(changed)}
        message = f"{last} is not the official file"
    elif damage == "missing":
        contents = {file: content for file, content in contents.items() if file != last}
        message = f"has no {archive.folder}/{last}"
    elif damage == "escaping":
        extra, message = [("../escaped", b"x")], r"holds the path '\.\./escaped'"
    elif damage == "absolute":
        extra, message = [("/tmp/absolute", b"x")], "holds the path '/tmp/absolute'"
    write_tar(path, archive, contents, extra)
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])
        message = "is truncated or damaged"
    elif damage == "flipped":
        compressed = bytearray(path.read_bytes())
        compressed[len(compressed) // 2] ^= 255
        path.write_bytes(compressed)
        message = "is truncated or damaged|is not the official file"
    with pytest.raises(InputError, match=message) as error:
        load(name, directory, tmp_path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert not [p for p in (tmp_path / "d").rglob("*") if p.is_file()]


@pytest.mark.parametrize("python_version", ["folder", "tar"])
def test_pickles_are_refused_with_the_file_to_get_instead(small, tmp_path, python_version):
    name, archive, _, directory = small
    if python_version == "folder":
        (directory / archive.pickles).mkdir()
    else:
        python_name = archive.url.rsplit("/", 1)[1].replace("binary", "python")
        (directory / python_name).write_bytes(gzip.compress(b""))
    with pytest.raises(InputError, match=f"holds Python pickles.*{archive.url}"):
        load(name, directory, tmp_path)


def test_an_empty_directory_and_a_half_extracted_one(small, tmp_path):
    name, archive, contents, directory = small
    with pytest.raises(InputError, match=f"has no .* and no {archive.folder}; put {archive.url}"):
        load(name, directory, tmp_path)
    first, *_ = contents
    (directory / first).write_bytes(contents[first])
    with pytest.raises(InputError, match=r"has no \S+\.bin; extract"):
        load(name, directory, tmp_path)


def test_the_checksums_of_both_downloads_are_package_data():
    for builder in BUILDERS.values():
        assert builder.ARCHIVE.url in builder.url_infos
    assert "_cifar" not in tfds.list_builders(with_community_datasets=False)


@pytest.fixture
def real_config(name, cifar_archives, share):
    """Returns the config of a real data set, which is prepared once for all workers."""

    def config(directory):
        return DataConfig(name=name, data_dir=str(directory), archive_dir=cifar_archives)

    return config(share(f"real_{name}", lambda directory: open_dataset(config(directory))))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_real_cifar(name, cifar_archives, real_config):
    dataset = load_data(**dataclasses.asdict(real_config))
    facts, archive = DATASETS[name], BUILDERS[name].ARCHIVE
    for split, images, labels in (
        ("train", dataset.train.images, dataset.train.labels),
        ("test", dataset.test.images, dataset.test.labels),
    ):
        folder = pathlib.Path(cifar_archives, archive.folder)
        content = b"".join((folder / file).read_bytes() for file, _, _ in archive.files[split])
        records = np.frombuffer(content, np.uint8).reshape(-1, len(archive.labels) + cifar.PIXELS)
        # TFDS shuffles, so the sets of (label, planes) must be equal.
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        ours = np.hstack([labels[:, None].astype(np.uint8), planes])
        expected = records[:, len(archive.labels) - 1 :]
        assert checksum(ours) == checksum(expected)
        np.testing.assert_array_equal(
            np.bincount(labels), np.full(facts.classes, len(images) // facts.classes)
        )
    pixels = dataset.train.images / 255
    np.testing.assert_allclose(facts.mean, pixels.mean((0, 1, 2)), atol=5e-5)
    np.testing.assert_allclose(facts.std, pixels.std((0, 1, 2)), atol=5e-5)
    names = pathlib.Path(cifar_archives, "cifar-100-binary", "fine_label_names.txt")
    assert names.read_text().split() == cifar.CIFAR100_FINE_NAMES
    coarse = names.with_name("coarse_label_names.txt")
    assert coarse.read_text().split() == cifar.CIFAR100_COARSE_NAMES


def checksum(rows):
    """Returns the SHA-256 of the sorted rows."""
    return hashlib.sha256(b"".join(sorted(row.tobytes() for row in rows))).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("devices", [1, 8])
def test_evaluation_of_real_cifar_counts_every_image_once(name, devices, real_config, monkeypatch):
    monkeypatch.setattr(parallel, "local_devices", lambda: jax.local_devices()[:devices])
    run = digits_config(
        data=real_config,
        model=ModelConfig(widths=(1,), dense_features=4),
    )
    state, arguments = step_arguments(run, quantized=True, image_size=32, channels=3)
    step = parallel.parallel(
        functools.partial(
            eval_step,
            model=arguments["model"],
            settings=arguments["settings"],
            axis_name=parallel.AXIS,
        ),
        donate_state=False,
    )
    dataset = open_dataset(run.data)
    dataset = dataclasses.replace(dataset, train=dataset.test)  # any split will do here
    state = parallel.replicate(state)
    results = []
    for size in (128, 1000, 333):
        source = make_source(dataclasses.replace(run, eval_batch_size=size), dataset)
        results.append(evaluate(step, state, source.test_batches(0)))
    assert [result["test_examples"] for result in results] == [10_000] * 3
    assert len({result["test_accuracy"] for result in results}) == 1
