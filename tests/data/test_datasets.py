import dataclasses
import functools
import gzip
import hashlib
import http.server
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

import processes
from mcn_jax.config import DataConfig
from mcn_jax.data import digits, mnist
from mcn_jax.data.dataset import open_dataset
from mcn_jax.data.facts import DATASETS
from mcn_jax.errors import InputError
from small_runs import load


def test_digits_are_the_real_scans_in_a_stratified_split(data_dir):
    dataset = load(name="digits", data_dir=data_dir)
    assert dataset.train.images.shape == (1437, 32, 32, 1)
    assert dataset.test.images.shape == (360, 32, 32, 1)
    assert dataset.train.images.dtype == np.uint8
    scans = load_digits()
    expected = sorted(
        (digits.enlarged(scan).tobytes(), label)
        for scan, label in zip(scans.images, scans.target, strict=True)
    )
    images = np.concatenate([dataset.train.images, dataset.test.images])
    labels = np.concatenate([dataset.train.labels, dataset.test.labels])
    assert sorted(zip((i.tobytes() for i in images), labels, strict=True)) == expected
    shares = np.bincount(dataset.test.labels) / np.bincount(labels)
    np.testing.assert_allclose(shares, 0.2, atol=0.005)


def test_the_split_of_digits_is_the_same_everywhere(data_dir, tmp_path):
    a = load(name="digits", data_dir=data_dir)
    b = load(name="digits", data_dir=str(tmp_path))
    np.testing.assert_array_equal(a.train.images, b.train.images)
    np.testing.assert_array_equal(a.test.labels, b.test.labels)


def check_facts(name, dataset):
    facts = DATASETS[name]
    pixels = dataset.train.images / 255
    np.testing.assert_allclose(facts.mean, pixels.mean((0, 1, 2)), atol=5e-5)
    np.testing.assert_allclose(facts.std, pixels.std((0, 1, 2)), atol=5e-5)
    assert dataset.train.images.shape == (facts.examples["train"], *facts.image_shape)
    assert dataset.test.images.shape == (facts.examples["test"], *facts.image_shape)
    assert set(dataset.test.labels) == set(range(facts.classes))


def test_facts_of_digits(data_dir):
    check_facts("digits", load(name="digits", data_dir=data_dir))


@pytest.mark.slow
def test_real_mnist(mnist_archives, tmp_path):
    config = {"name": "mnist", "data_dir": str(tmp_path), "archive_dir": mnist_archives}
    dataset = load(**config)
    check_facts("mnist", dataset)
    with gzip.open(f"{mnist_archives}/t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read()[16:], np.uint8).reshape(10000, 28, 28, 1)
    order = np.lexsort(pixels.reshape(10000, -1).T)
    ours = dataset.test.images
    np.testing.assert_array_equal(ours[np.lexsort(ours.reshape(10000, -1).T)], pixels[order])
    np.testing.assert_array_equal(
        np.bincount(dataset.train.labels),
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    )


def test_mnist_extracted_in_torchvisions_layout(mnist_archives, tmp_path):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name, _, _ in mnist.FILES.values():
        with gzip.open(f"{mnist_archives}/{name}.gz") as file:
            (folder / name).write_bytes(file.read())
    paths = mnist.find_archives(tmp_path)
    arrays = {key: mnist.read_idx(path, *mnist.FILES[key][1:]) for key, path in paths.items()}
    assert arrays["train", "images"].shape == (60000, 28, 28)
    assert arrays["test", "labels"][:3].tolist() == [7, 2, 1]


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """Writes four small archives in the official format, and the table that describes them."""
    generator = np.random.default_rng(0)
    directory = tmp_path / "archives"
    directory.mkdir()
    files = {}
    for (split, kind), (name, shape, _) in mnist.FILES.items():
        shape = ({"train": 30, "test": 10}[split], *shape[1:])
        values = generator.integers(0, 256 if kind == "images" else 10, shape).astype(np.uint8)
        header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
        content = header + values.tobytes()
        files[split, kind] = (name, shape, hashlib.sha256(content).hexdigest())
        (directory / f"{name}.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(mnist, "FILES", files)
    facts = dataclasses.replace(DATASETS["mnist"], examples={"train": 30, "test": 10})
    monkeypatch.setitem(DATASETS, "mnist", facts)
    return directory


def replace(path, content):
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "other", "short", "missing"])
def test_archives_are_named_and_nothing_is_written(archives, tmp_path, damage):
    path = archives / "t10k-labels-idx1-ubyte.gz"
    content = path.read_bytes()
    extracted = bytearray(gzip.decompress(content))
    extracted[12] ^= 1
    if damage == "truncated":
        replace(path, content[:-9])
        message = "is truncated or damaged"
    elif damage == "flipped":
        replace(path, content[:20] + bytes([content[20] ^ 255]) + content[21:])
        message = "is truncated or damaged"
    elif damage == "other":
        replace(path, gzip.compress(bytes(extracted)))
        message = "is not the official file"
    elif damage == "short":
        replace(path, gzip.compress(bytes(extracted[:15])))
        message = "holds 15 bytes where 18 are expected"
    else:
        path.unlink()
        message = "has no t10k-labels-idx1-ubyte.gz; put the four official MNIST files there"
    data_dir = tmp_path / "prepared"
    config = {"name": "mnist", "data_dir": str(data_dir), "archive_dir": str(archives)}
    with pytest.raises(InputError, match=f"{archives}.*{message}") as error:
        load(**config)
    assert "\n" not in str(error.value)
    assert not [p for p in data_dir.rglob("*") if p.is_file()]


def test_an_archive_directory_that_does_not_exist(tmp_path):
    config = {"name": "mnist", "data_dir": str(tmp_path), "archive_dir": "/nowhere/at/all"}
    with pytest.raises(InputError, match="archive directory /nowhere/at/all does not exist"):
        load(**config)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def archive_server(archives, monkeypatch):
    """Serves a local directory over HTTP in place of the official site."""
    handler = functools.partial(QuietHandler, directory=str(archives))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    infos = {
        f"{url}/{path.name}": tfds.download.checksums.compute_url_info(path)
        for path in archives.iterdir()
    }
    monkeypatch.setattr(mnist, "URL", url)
    monkeypatch.setattr(mnist.Mnist, "url_infos", infos)
    yield archives
    server.shutdown()
    thread.join()
    server.server_close()


def test_downloads_are_checked_against_their_checksums(archive_server, tmp_path):
    config = {"name": "mnist", "data_dir": str(tmp_path / "good")}
    assert load(**config).train.images.shape == (30, 28, 28, 1)
    path = archive_server / "t10k-labels-idx1-ubyte.gz"
    replace(path, gzip.compress(gzip.decompress(path.read_bytes()) + b"x"))
    config = {"name": "mnist", "data_dir": str(tmp_path / "bad")}
    with pytest.raises(InputError, match=r"could not be prepared.*--config.data.archive_dir"):
        load(**config)


def test_the_checksums_are_package_data_with_the_official_urls():
    urls = {f"{mnist.URL}/{name}.gz" for name, _, _ in mnist.FILES.values()}
    assert urls <= set(mnist.Mnist.url_infos)


# Without dataset_info.json, TFDS prepares a data set again.
@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("digits-train.array_record*", "truncated"),
        ("digits-train.array_record*", "emptied"),
        ("digits-train.array_record*", "deleted"),
        ("dataset_info.json", "truncated"),
        ("dataset_info.json", "emptied"),
    ],
)
def test_a_damaged_prepared_data_set_is_named(tmp_path, file, damage):
    config = {"name": "digits", "data_dir": str(tmp_path)}
    load(**config)
    [path] = tmp_path.rglob(file)
    content = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    message = rf"digits in {tmp_path}.* delete {tmp_path}/digits(/1\.0\.0)? and start again"
    with pytest.raises(InputError, match=message):
        load(**config)


def prepare_and_count(data_dir):
    print(len(open_dataset(DataConfig(data_dir=data_dir)).train.read_all().labels))


def test_several_processes_prepare_the_same_data_set(tmp_path):
    running = [processes.Running(prepare_and_count, str(tmp_path)) for _ in range(3)]
    for process in running:
        finished = process.finish()
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.splitlines()[-1] == "1437"
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]
