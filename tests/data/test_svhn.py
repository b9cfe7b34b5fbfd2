"""Tests SVHN, from MATLAB files that the tests write in the official format."""

import dataclasses
import functools
import hashlib
import http.server
import pathlib
import threading

import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds
from tensorflow_datasets.core import shuffle

from mcn_jax.data import archives, spill, svhn
from mcn_jax.data.facts import DATASETS
from mcn_jax.errors import InputError
from small_runs import load

EXAMPLES = {"train": 23, "test": 11, "extra": 12}


def official(path, **changes):
    """Returns a description that makes a file the official one."""
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    fields = {"name": path.name, "size": len(content), "digest": digest} | changes
    return archives.OfficialFile(**fields)


def write_mat(path, variables):
    scipy.io.savemat(path, variables, do_compression=True)


def small_arrays(split):
    """Returns X [32, 32, 3, N] with random pixels, and y [N, 1] with every label from 1 to 10."""
    generator = np.random.default_rng(EXAMPLES[split])
    images = generator.integers(0, 256, (32, 32, 3, EXAMPLES[split])).astype(np.uint8)
    labels = (np.arange(EXAMPLES[split]) % 10 + 1).astype(np.uint8)[:, None]
    return {"X": images, "y": labels}


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Returns a directory with three small official files, and adapts the tables to them."""
    directory = tmp_path / "archives"
    directory.mkdir()
    files = {}
    for split, file in svhn.FILES.items():
        write_mat(directory / file.name, small_arrays(split))
        files[split] = official(directory / file.name)
    monkeypatch.setattr(svhn, "FILES", files)
    monkeypatch.setattr(svhn, "EXAMPLES", EXAMPLES)
    facts = dataclasses.replace(DATASETS["svhn_cropped"], examples=EXAMPLES)
    monkeypatch.setitem(DATASETS, "svhn_cropped", facts)
    return directory


def load_svhn(directory, tmp_path, **changes):
    data_dir = str(tmp_path / "prepared")
    return load(name="svhn_cropped", data_dir=data_dir, archive_dir=str(directory), **changes)


def expected_pairs(*splits):
    """Returns {bytes of an image, row by row: its digit}, read from X and y by index."""
    pairs = {}
    for split in splits:
        arrays = small_arrays(split)
        for n in range(EXAMPLES[split]):
            image = np.zeros((32, 32, 3), np.uint8)
            for y in range(32):
                for x in range(32):
                    image[y, x] = arrays["X"][y, x, :, n]
            digit = {10: 0}.get(int(arrays["y"][n, 0]), int(arrays["y"][n, 0]))
            pairs[image.tobytes()] = digit
    return pairs


def pairs(split):
    return {image.tobytes(): label for image, label in zip(split.images, split.labels, strict=True)}


def prepared_files(tmp_path):
    return [path for path in (tmp_path / "prepared").rglob("*") if path.is_file()]


def test_every_image_and_its_digit(small, tmp_path):
    dataset = load_svhn(small, tmp_path)
    assert pairs(dataset.train) == expected_pairs("train")
    assert pairs(dataset.test) == expected_pairs("test")
    assert set(dataset.train.labels) == set(range(10))
    assert dataset.train.images.shape == (23, 32, 32, 3)
    both = load_svhn(small, tmp_path, train_split="train+extra")
    assert pairs(both.train) == expected_pairs("train", "extra")


def test_a_directory_without_the_extra_split(small, tmp_path):
    (small / "extra_32x32.mat").unlink()
    dataset = load_svhn(small, tmp_path)
    assert pairs(dataset.train) == expected_pairs("train")
    with pytest.raises(InputError, match="split 'extra' does not fit data set svhn_cropped"):
        load_svhn(small, tmp_path, train_split="extra")


@pytest.mark.parametrize("in_memory", [0, 20_000])
def test_more_than_the_memory_holds_is_stored_in_the_same_order(
    small, tmp_path, monkeypatch, in_memory
):
    config = {"name": "svhn_cropped", "archive_dir": str(small), "train_split": "extra"}
    expected = load(data_dir=str(tmp_path / "a"), **config)
    monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", in_memory)
    monkeypatch.setattr(shuffle, "BUCKETS_NUMBER", 3)
    spilled = []

    def add(bucket, key, data):
        spilled.append(bucket)
        original(bucket, key, data)

    original = spill.Bucket.add
    monkeypatch.setattr(spill.Bucket, "add", add)
    found = load(data_dir=str(tmp_path / "b"), **config)
    assert len(spilled) == sum(EXAMPLES.values())
    assert len(set(spilled)) == 9  # of three splits
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert not list(tmp_path.rglob("*.tmp"))


def test_labels_that_matlab_keeps_as_doubles(small, tmp_path, monkeypatch):
    path = small / "test_32x32.mat"
    arrays = small_arrays("test")
    write_mat(path, arrays | {"y": arrays["y"].astype(np.float64)})
    monkeypatch.setitem(svhn.FILES, "test", official(path))
    assert pairs(load_svhn(small, tmp_path).test) == expected_pairs("test")


# The second split has the bad file, because TFDS would write the first split before reading it.
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("missing", "archives has no test_32x32.mat; put http.*/test_32x32.mat there"),
        ("truncated", r"test_32x32.mat is truncated or not the official file: it holds \d+ bytes"),
        ("flipped", "test_32x32.mat is not the official file: its SHA-256 differs"),
        ("text", "test_32x32.mat cannot be read as a MATLAB file .*; replace it"),
        ("no y", r"test_32x32.mat holds y as nothing of shape \[\] where uint8 of shape \[11, 1\]"),
        ("order", r"holds X as uint8 of shape \[11, 32, 32, 3\] where .*\[32, 32, 3, 11\]"),
        ("float", r"holds X as double of shape \[32, 32, 3, 11\] where uint8 of shape"),
        ("fewer", r"holds X as uint8 of shape \[32, 32, 3, 10\] where .*\[32, 32, 3, 11\]"),
        ("fewer y", r"holds y as uint8 of shape \[10, 1\] where uint8 of shape \[11, 1\]"),
        ("characters", r"holds y as char of shape \[11, 1\] where uint8 of shape \[11, 1\]"),
        ("label 0", "test_32x32.mat has the label 0 where 1 to 10 are expected"),
        ("label 11", "test_32x32.mat has the label 11 where 1 to 10 are expected"),
        ("label 1.5", "test_32x32.mat has the label 1.5 where 1 to 10 are expected"),
    ],
)
def test_bad_files_are_named_and_nothing_is_written(small, tmp_path, monkeypatch, damage, message):
    path = small / "test_32x32.mat"
    content = path.read_bytes()
    arrays = small_arrays("test")
    images, labels = arrays["X"], arrays["y"]
    variables = {
        "no y": {"X": images},
        "order": {"X": images.transpose(3, 0, 1, 2), "y": labels},
        "float": {"X": images.astype(np.float64), "y": labels},
        "fewer": {"X": images[..., 1:], "y": labels},
        "fewer y": {"X": images, "y": labels[1:]},
        "characters": {"X": images, "y": np.full((11, 1), "3")},
        "label 0": {"X": images, "y": np.where(labels == 10, 0, labels)},
        "label 11": {"X": images, "y": np.where(labels == 10, 11, labels)},
        "label 1.5": {"X": images, "y": np.where(labels == 10, 1.5, labels)},
    }
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[:-100])
    elif damage == "flipped":
        path.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    else:
        if damage == "text":
            path.write_text("<html>no such file</html>" * 100)
        else:
            write_mat(path, variables[damage])
        monkeypatch.setitem(svhn.FILES, "test", official(path))
    with pytest.raises(InputError, match=message) as error:
        load_svhn(small, tmp_path)
    assert "\n" not in str(error.value)
    assert str(small) in str(error.value)
    assert not prepared_files(tmp_path)


def test_a_bad_optional_file_is_an_error_all_the_same(small, tmp_path):
    path = small / "extra_32x32.mat"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"extra_32x32\.mat is truncated"):
        load_svhn(small, tmp_path)
    assert not prepared_files(tmp_path)


def test_a_damaged_stream_inside_the_right_bytes(small):
    """Tests a file that matches the hash in the table but is damaged inside."""
    path = small / "test_32x32.mat"
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(InputError, match=r"test_32x32\.mat cannot be read as a") as error:
        archives.read_mat(path, "y")
    assert "\n" not in str(error.value)
    write_mat(path, {"y": np.ones(3)})
    with pytest.raises(InputError, match=r"test_32x32\.mat has no variable z"):
        archives.read_mat(path, "z")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_downloads_fetch_all_three_files(small, tmp_path, monkeypatch):
    handler = functools.partial(QuietHandler, directory=str(small))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    infos = {
        f"{url}/{path.name}": tfds.download.checksums.compute_url_info(path)
        for path in small.iterdir()
    }
    monkeypatch.setattr(svhn, "URL", url)
    monkeypatch.setattr(svhn.SvhnCropped, "url_infos", infos)
    try:
        dataset = load_svhn("", tmp_path, train_split="extra")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert pairs(dataset.train) == expected_pairs("extra")
    assert pairs(dataset.test) == expected_pairs("test")


def test_the_checksums_of_the_downloads_are_those_of_the_files():
    for file in svhn.FILES.values():
        info = svhn.SvhnCropped.url_infos[f"{svhn.URL}/{file.name}"]
        assert (info.size, info.checksum) == (file.size, file.digest)
    assert DATASETS["svhn_cropped"].examples == svhn.EXAMPLES
    assert svhn.SvhnCropped.name == "svhn_cropped"


def test_a_bar_shows_the_hashing_on_a_terminal_only(small, capsys, monkeypatch):
    path = small / "train_32x32.mat"
    archives.check_official({path: official(path)})
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    archives.check_official({path: official(path)})
    out, err = capsys.readouterr()
    assert out == ""
    assert "checking train_32x32.mat" in err


def test_hashes_of_large_files_are_read_in_pieces(small, monkeypatch):
    path = small / "train_32x32.mat"
    monkeypatch.setattr(archives, "HASHED_AT_ONCE", 1000)
    monkeypatch.setattr(pathlib.Path, "read_bytes", None)
    digest = svhn.FILES["train"].digest
    archives.check_official({path: svhn.FILES["train"]})
    wrong = dataclasses.replace(svhn.FILES["train"], digest=digest[:-1] + "x")
    with pytest.raises(InputError, match="SHA-256 differs"):
        archives.check_official({path: wrong})


def test_a_file_that_cannot_be_read(tmp_path):
    file = archives.OfficialFile(name="x", size=None, digest="")
    with pytest.raises(InputError, match=r"x cannot be read \(No such file or directory\)"):
        archives.check_official({tmp_path / "x": file})
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        archives.check_official({tmp_path: file})
