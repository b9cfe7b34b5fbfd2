"""Tests the digests of files, and that a file is read again if it may have changed."""

import hashlib
import json
import os

import pytest

from mcn_jax.data import file_digests
from mcn_jax.data.file_digests import FileDigests
from mcn_jax.errors import InputError


@pytest.fixture
def files(tmp_path):
    """Returns three files."""
    paths = [tmp_path / name for name in ("a.png", "b\n.png", os.fsdecode(b"\xff.png"))]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 1000)
    return paths


@pytest.fixture
def reads(monkeypatch):
    """Returns the list of the files that were read."""
    read = []
    digest = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, name: read.append(file.name) or digest(file, name)
    )
    return read


def digests(tmp_path, files):
    found = FileDigests(tmp_path / "digests.json")
    values = found.of(files)
    assert values == [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    found.save()
    return values


def test_files_are_read_once_if_they_do_not_change(files, reads, tmp_path, monkeypatch):
    monkeypatch.setattr(file_digests, "SETTLED_SECONDS", -60)
    first = digests(tmp_path, files)
    assert len(reads) == 3
    assert digests(tmp_path, files) == first
    assert len(reads) == 3


def test_a_file_that_changed_just_now_is_read_again(files, reads, tmp_path):
    digests(tmp_path, files)
    digests(tmp_path, files)
    assert len(reads) == 6


def rewritten(path):
    """Changes the content, but neither the size nor the time of the last change."""
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced(path):
    status = path.stat()
    other = path.with_name("other")
    other.write_bytes(b"x" * status.st_size)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


def grown(path):
    path.write_bytes(path.read_bytes() + b"x")


def dated(path):
    os.utime(path, (1, 1))


def linked(path):
    path.unlink()
    other = path.with_name("other")
    other.write_bytes(b"x" * 1000)
    path.symlink_to(other)


@pytest.mark.parametrize("change", [rewritten, replaced, grown, dated, linked])
def test_a_changed_file_is_read_again(change, files, reads, tmp_path, monkeypatch):
    monkeypatch.setattr(file_digests, "SETTLED_SECONDS", -60)
    digests(tmp_path, files)
    change(files[1])
    digests(tmp_path, files)
    assert reads[3:] == [str(files[1])]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"a', b"\xff\x00", b'{"%s": [1]}', b'{"%s": 5}', b'{"%s": []}']
)
def test_a_damaged_file_of_digests_counts_as_empty(content, files, reads, tmp_path):
    path = tmp_path / "digests.json"
    path.write_bytes(content.replace(b"%s", os.fsencode(files[0])))
    digests(tmp_path, files)
    assert len(reads) == 3
    assert isinstance(json.loads(path.read_text()), dict)


def test_where_nothing_can_be_written_digests_are_not_kept(files, tmp_path):
    digests(tmp_path / "absent", files)
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("missing", [1, 2, 3, 30])
def test_all_files_that_cannot_be_read_are_named(missing, files, tmp_path):
    paths = [tmp_path / f"gone{number}.png" for number in range(missing)]
    with pytest.raises(InputError, match=r"No such file") as error:
        FileDigests(tmp_path / "digests.json").of([*files, *paths])
    message = str(error.value)
    assert all(str(path) in message for path in paths[:20])
    if missing > 1:
        assert f"{missing} of {missing + 3} images cannot be used" in message
    assert ("; and 10 more; repair or remove them" in message) == (missing == 30)
