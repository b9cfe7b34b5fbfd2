"""Tests folders of the user's own images: layouts, splits, errors, and a run."""

import functools
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import types
import urllib.parse

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

import processes
from mcn_jax.config import Config, DataConfig, ModelConfig
from mcn_jax.data import __main__ as data_command
from mcn_jax.data import contact_sheet, file_digests, image_folder
from mcn_jax.data.dataset import open_dataset
from mcn_jax.deploy import predictor
from mcn_jax.errors import InputError
from mcn_jax.training import run as run_module
from mcn_jax.workdirs.files import check_workdir, write_config


def fill(folder, count, colour, suffix="png"):
    """Writes `count` images of one color in different sizes."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (9 + number, 12), colour).save(folder / f"{number}.{suffix}")


COLOURS = {"cat": (200, 0, 0), "dog": (0, 200, 0), "emu": (0, 0, 200)}


def config(root, tmp_path, **changes):
    return DataConfig(
        name="image_folder",
        root=str(root),
        data_dir=str(tmp_path / "data"),
        image_size=8,
        **changes,
    )


def colours_of(examples):
    """Returns {label: colors of its images} for all images of a split."""
    split = examples.read_all()
    assert split.images.shape[1:] == (8, 8, 3)
    seen = {}
    for image, label in zip(split.images, split.labels, strict=True):
        [colour] = {tuple(pixel) for pixel in image.reshape(-1, 3).tolist()}
        seen.setdefault(int(label), []).append(colour)
    return seen


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "val"), ("training", "validation")])
def test_train_and_test_folders(names, tmp_path):
    root = tmp_path / "pets"
    for folder, count in zip(names, (4, 2), strict=True):
        for name, colour in COLOURS.items():
            fill(root / folder / name, count, colour)
    (root / names[0] / "cat" / "notes.txt").write_text("no image")
    (root / names[0] / "cat" / ".hidden.png").write_text("no image")
    (root / names[0] / ".cache").mkdir()
    dataset = open_dataset(config(root, tmp_path))
    assert dataset.class_names == ("cat", "dog", "emu")
    for examples, count in ((dataset.train, 4), (dataset.test, 2)):
        expected = {label: [colour] * count for label, colour in enumerate(COLOURS.values())}
        assert colours_of(examples) == expected
    np.testing.assert_allclose(dataset.mean, [200 / 255 / 3] * 3, atol=1e-4)
    np.testing.assert_allclose(dataset.std, [200 / 255 * 2**0.5 / 3] * 3, atol=1e-4)


@pytest.mark.parametrize("below", ["", "train"])
def test_one_folder_is_cut_by_class_with_a_seed(below, tmp_path):
    for name, count in (("cat", 10), ("dog", 5), ("emu", 2)):
        fill(tmp_path / "pets" / below / name, count, COLOURS[name])

    def files(**changes):
        arguments = {"test_fraction": 0.2, "split_seed": 0} | changes
        splits = image_folder.find_images(str(tmp_path / "pets"), **arguments).splits
        for name in COLOURS:
            parts = [set(splits[split][name]) for split in ("train", "test")]
            assert not parts[0] & parts[1]
            assert parts[0] | parts[1] == set((tmp_path / "pets" / below / name).iterdir())
        return splits

    counts = {name: len(paths) for name, paths in files()["test"].items()}
    assert counts == {"cat": 2, "dog": 1, "emu": 1}
    half = files(test_fraction=0.5)["test"]
    assert [len(half[name]) for name in COLOURS] == [5, 2, 1]
    assert files() == files()
    assert files() != files(split_seed=1)
    dataset = open_dataset(config(tmp_path / "pets", tmp_path))
    assert {label: len(c) for label, c in colours_of(dataset.test).items()} == {0: 2, 1: 1, 2: 1}


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "bus"):
        fill(tmp_path / "vehicles" / name, 4, (10, 20, 30))
    assert open_dataset(config(tmp_path / "vehicles", tmp_path)).class_names == ("bus", "train")


def test_every_format_and_mode_is_read(tmp_path):
    for name, colour in (("a", (250, 0, 0)), ("b", (0, 250, 0))):
        folder = tmp_path / "mixed" / name
        folder.mkdir(parents=True)
        image = Image.new("RGB", (11, 13), colour)
        for suffix in ("png", "JPG", "jpeg", "bmp", "gif", "tif", "ppm", "webp"):
            image.save(folder / f"x.{suffix}")
        image.convert("L").save(folder / "gray.jpg")
        image.convert("CMYK").save(folder / "cmyk.jpg")
        image.convert("RGBA").save(folder / "alpha.png")
        image.convert("P").save(folder / "palette.png")
    dataset = open_dataset(config(tmp_path / "mixed", tmp_path, test_fraction=0.01))
    split = dataset.train.read_all()
    assert len(split.labels) == 2 * 11
    gray = 0
    for image, label in zip(split.images.astype(int), split.labels, strict=True):
        red, green, blue = image.mean((0, 1))
        if abs(red - green) < 2 and abs(green - blue) < 2:
            gray += 1
            continue
        expected = np.array([(250, 0, 0), (0, 250, 0)][label])
        np.testing.assert_allclose([red, green, blue], expected, atol=12)
    assert gray <= 2


def test_a_changed_folder_is_prepared_anew(tmp_path):
    for name, colour in COLOURS.items():
        fill(tmp_path / "pets" / name, 4, colour)
    first = config(tmp_path / "pets", tmp_path)
    assert len(open_dataset(first).train) == 9
    prepared = set((tmp_path / "data" / "image_folder").iterdir())
    assert len(open_dataset(first).train) == 9
    assert set((tmp_path / "data" / "image_folder").iterdir()) == prepared
    fill(tmp_path / "pets" / "fox", 4, (7, 7, 7))
    assert open_dataset(first).class_names == ("cat", "dog", "emu", "fox")
    for path in (tmp_path / "pets" / "cat").iterdir():
        Image.new("RGB", (50, 50), (1, 2, 3)).save(path)
    dataset = open_dataset(first)
    assert set(colours_of(dataset.train)[0] + colours_of(dataset.test)[0]) == {(1, 2, 3)}


def truncated(root):
    path = root / "cat" / "0.png"
    path.write_bytes(path.read_bytes()[:45])


def empty_class(root):
    (root / "fox").mkdir()


def one_image(root):
    fill(root / "fox", 1, (1, 1, 1))


def one_class(root):
    for name in ("dog", "emu"):
        for path in (root / name).iterdir():
            path.unlink()
        (root / name).rmdir()


def missing_partner(root):
    for name in COLOURS:
        (root / name).rename(root / f"moved_{name}")
    for split in ("train", "test"):
        for name, colour in COLOURS.items():
            fill(root / split / name, 2, colour)
    fill(root / "train" / "fox", 2, (1, 1, 1))


def flat_test_folder(root):
    missing_partner(root)
    for path in (root / "test").rglob("*.png"):
        path.rename(root / "test" / f"{path.parent.name}_{path.name}")
    for name in COLOURS:
        (root / "test" / name).rmdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flat_test_folder, r"pets/test has no class folders; put its images into .*/test/CLASS"),
        (truncated, r"pets/cat/0\.png cannot be read as an image .*; replace or remove it"),
        (empty_class, r"class folder .*pets/fox has no images .*; fill or remove it"),
        (one_image, r"class folder .*pets/fox has one image, so none is left for testing"),
        (one_class, r"pets has 1 class folders, at least two are needed"),
        (missing_partner, r"class folder .*train/fox has no partner in .*test; every class needs"),
    ],
)
def test_bad_folders_are_named_and_nothing_is_prepared(damage, message, tmp_path):
    for name, colour in COLOURS.items():
        fill(tmp_path / "pets" / name, 4, colour)
    damage(tmp_path / "pets")
    with pytest.raises(InputError, match=message) as error:
        open_dataset(config(tmp_path / "pets", tmp_path))
    assert "\n" not in str(error.value)
    assert not [p for p in (tmp_path / "data").rglob("*") if p.is_file()]


@pytest.mark.parametrize("root", ["", "/nowhere/at/all"])
def test_no_folder(root, tmp_path):
    with pytest.raises(InputError, match=f"config.data.root={root!r}"):
        open_dataset(config(root, tmp_path))


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory):
    """Writes 400 scans of digits as PNGs, with one folder per class, named in words."""
    names = "zero one two three four five six seven eight nine".split()
    root = tmp_path_factory.mktemp("own") / "digits of mine"
    digits = load_digits()
    for number, (scan, label) in enumerate(zip(digits.images[:400], digits.target, strict=False)):
        folder = root / names[label]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.round(scan * (255 / 16)).astype(np.uint8)
        Image.fromarray(pixels).resize((32, 32)).save(folder / f"{number}.png")
    return root


run = functools.partial(processes.run, "mcn_jax.main", "--config=configs/image_folder.py")


@pytest.mark.slow
def test_a_folder_of_digits_trains_with_its_root_and_nothing_else(digits_folder, tmp_path):
    arguments = (
        f"--config.data.root={digits_folder}",
        f"--config.data.data_dir={tmp_path}/data",
        f"--workdir={tmp_path}/run",
    )
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert "eight" in result.stdout
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written["class_names"] == sorted(
        "zero one two three four five six seven eight nine".split()
    )
    assert written["final_test_accuracy"] >= 0.9
    assert written["test_examples"] == 80
    # A run must not resume if its folder has changed.
    (tmp_path / "run" / "result.json").unlink()
    for path in list((digits_folder / "one").iterdir())[:10]:
        path.unlink()
    again = run(*arguments)
    assert again.returncode == 1
    [line] = again.stderr.strip().splitlines()
    assert "was written with other data: train_examples was 320 and is" in line


def test_the_description_tells_a_changed_folder_from_a_moved_one(tmp_path):
    for split in ("train", "test"):
        for name, colour in COLOURS.items():
            fill(tmp_path / "pets" / split / name, 4, colour)
    before = open_dataset(config(tmp_path / "pets", tmp_path)).description()
    (tmp_path / "pets").rename(tmp_path / "moved")
    root = tmp_path / "moved"
    assert open_dataset(config(root, tmp_path)).description() == before
    # Same number of images with the same bytes, but two labels are swapped.
    (root / "train" / "cat" / "3.png").rename(root / "train" / "dog" / "9.png")
    (root / "train" / "dog" / "3.png").rename(root / "train" / "cat" / "3.png")
    after = open_dataset(config(root, tmp_path)).description()
    assert [name for name in before if after[name] != before[name]] == ["full_name"]


def test_names_that_are_no_utf8(tmp_path):
    for name, colour in COLOURS.items():
        fill(tmp_path / "pets" / name, 4, colour)
        (tmp_path / "pets" / name / "0.png").rename(
            tmp_path / "pets" / name / os.fsdecode(b"\xff.png")
        )
    assert len(open_dataset(config(tmp_path / "pets", tmp_path)).train) == 9


def full_names(root, tmp_path, **changes):
    """Returns the full names of a folder's data set, now and as version 1.0.0 made them."""
    builder = image_folder.ImageFolder(root=str(root), data_dir=str(tmp_path / "data"), **changes)
    return builder.info.full_name, builder.earlier_name


@pytest.fixture
def pets(tmp_path):
    """Returns a folder with 7 images in each of 3 classes, with known times."""
    for name, colour in COLOURS.items():
        fill(tmp_path / "pets" / name, 7, colour)
        for number in range(7):
            os.utime(tmp_path / "pets" / name / f"{number}.png", (1_700_000_000, 1_700_000_000))
    return tmp_path / "pets"


def touched(pets):
    for path in pets.rglob("*.png"):
        path.touch()
    return pets


def copied(pets):
    for source in pets.rglob("*.png"):
        target = pets.with_name("copy") / source.relative_to(pets)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    return pets.with_name("copy")


def without_time(member):
    member.mtime = 0
    return member


def archived(pets):
    with tarfile.open(pets.with_name("pets.tar"), "w") as archive:
        archive.add(pets, "pets", filter=without_time)
    with tarfile.open(pets.with_name("pets.tar")) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # since Python 3.11.4
        archive.extractall(pets.with_name("extracted"))
    return pets.with_name("extracted") / "pets"


def checked_out(pets):
    author = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    for command in (("init", "-q"), ("add", "."), ("commit", "-qm", "images")):
        subprocess.run(["git", "-C", pets, *author, *command], check=True)
    subprocess.run(["git", "clone", "-q", pets, pets.with_name("clone")], check=True)
    return pets.with_name("clone")


def rewritten(pets):
    for path in sorted(pets.rglob("*.png"), reverse=True):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    return pets


def linked(pets):
    pets.with_name("link").symlink_to(pets)
    return pets.with_name("link")


def with_other_files(pets):
    (pets / "cat" / "notes.txt").write_text("no image")
    (pets / "cat" / ".DS_Store").write_text("no image")
    (pets / "README").write_text("no image")
    return pets


SAME = [touched, copied, archived, checked_out, rewritten, linked, with_other_files]


@pytest.mark.parametrize("change", SAME)
def test_equal_images_are_equal_data_whatever_their_times_and_place(change, pets, tmp_path):
    before, _ = full_names(pets, tmp_path)
    assert full_names(change(pets), tmp_path)[0] == before


def another_content(pets):
    """Changes a byte, but neither the size nor the time."""
    path = pets / "cat" / "0.png"
    content, status = bytearray(path.read_bytes()), path.stat()
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def another_name(pets):
    (pets / "cat" / "0.png").rename(pets / "cat" / "00.png")


def another_class(pets):
    (pets / "cat").rename(pets / "Cat")


def swapped_labels(pets):
    (pets / "cat" / "0.png").rename(pets / "other")
    (pets / "dog" / "0.png").rename(pets / "cat" / "0.png")
    (pets / "other").rename(pets / "dog" / "0.png")


def one_fewer(pets):
    (pets / "cat" / "0.png").unlink()


def one_deeper(pets):
    (pets / "cat" / "below").mkdir()
    (pets / "cat" / "0.png").rename(pets / "cat" / "below" / "0.png")


OTHER = [another_content, another_name, another_class, swapped_labels, one_fewer, one_deeper]


@pytest.mark.parametrize("change", OTHER)
def test_other_images_names_or_classes_are_other_data(change, pets, tmp_path):
    before, _ = full_names(pets, tmp_path)
    change(pets)
    assert full_names(pets, tmp_path)[0] != before


def test_another_cut_is_other_data(pets, tmp_path):
    names = {
        full_names(pets, tmp_path, **changes)[0]
        for changes in ({}, {"split_seed": 1}, {"test_fraction": 0.5})
    }
    assert len(names) == 3


def test_a_second_start_reads_no_image_again(pets, tmp_path, monkeypatch):
    monkeypatch.setattr(file_digests, "SETTLED_SECONDS", -60)
    before = open_dataset(config(pets, tmp_path)).full_name
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert open_dataset(config(pets, tmp_path)).full_name == before


def test_a_file_that_changes_during_the_preparation_is_named(pets, tmp_path, monkeypatch):
    readable = image_folder.check_readable

    def check(content, name):
        readable(content, name)
        Image.new("RGB", (5, 5), (9, 9, 9)).save(name)

    monkeypatch.setattr(image_folder, "check_readable", check)
    with pytest.raises(InputError, match=r"\.png changed while it was read; start again"):
        open_dataset(config(pets, tmp_path))
    assert not [p for p in (tmp_path / "data").rglob("*") if p.is_file()]


def test_data_of_an_earlier_version_are_recognized_while_their_times_are_the_same(pets, tmp_path):
    # Version 1.0.0 chose these images for testing, stored the others in this order, and named the
    # data by this digest.
    chosen = {"cat": 2, "dog": 1, "emu": 5}
    order = [2, 2, 1, 1, 1, 0, 0, 2, 0, 1, 1, 0, 2, 2, 0, 2, 0, 1]
    lines = [
        f"{split}/{name}/{number}.png\0{(pets / name / f'{number}.png').stat().st_size}\0"
        "1700000000000000000\n"
        for split in ("train", "test")
        for name in COLOURS
        for number in range(7)
        if (number == chosen[name]) == (split == "test")
    ]
    earlier = f"image_folder/{hashlib.sha256(''.join(lines).encode()).hexdigest()[:12]}/1.0.0"
    dataset = open_dataset(config(pets, tmp_path))
    assert dataset.earlier_name == earlier
    assert dataset.train.read_all().labels.tolist() == order
    assert dataset.is_named(earlier)
    assert dataset.is_named(dataset.full_name)
    assert not dataset.is_named("image_folder/0123456789ab/1.0.0")
    assert not dataset.is_named(None)
    description = dataset.description()
    write_config(tmp_path / "run", Config(), description | {"full_name": earlier})
    check_workdir(tmp_path / "run", Config(), description, dataset.earlier_name)
    touched(pets)
    dataset = open_dataset(config(pets, tmp_path))
    assert dataset.description() == description
    with pytest.raises(InputError, match=r"named a folder by the times .* restore the times"):
        check_workdir(tmp_path / "run", Config(), description, dataset.earlier_name)


def test_a_run_on_changed_images_is_told_that_times_do_not_count(pets, tmp_path):
    dataset = open_dataset(config(pets, tmp_path))
    write_config(tmp_path / "run", Config(), dataset.description())
    Image.new("RGB", (9, 12), (7, 7, 7)).save(pets / "cat" / "0.png")
    dataset = open_dataset(config(pets, tmp_path))
    with pytest.raises(InputError, match=r"full_name was .* times of files do not count") as error:
        check_workdir(tmp_path / "run", Config(), dataset.description(), dataset.earlier_name)
    assert "\n" not in str(error.value)


def test_a_network_is_evaluated_on_copies_of_its_images_but_not_on_others(pets, tmp_path):
    def test_images(full_name):
        member = types.SimpleNamespace(
            data=lambda: config(pets, tmp_path),
            class_names=tuple(COLOURS),
            full_name=full_name,
            images=types.SimpleNamespace(height=8, width=8, channels=3),
        )
        return len(predictor.open_test_split(member, {}))

    now, earlier = full_names(pets, tmp_path)
    assert (test_images(now), test_images(earlier)) == (3, 3)
    touched(pets)
    assert test_images(now) == 3
    with pytest.raises(InputError, match=r"trained on image_folder/.*restore the times, for"):
        test_images(earlier)
    Image.new("RGB", (9, 12), (7, 7, 7)).save(pets / "cat" / "0.png")
    with pytest.raises(InputError, match=r"trained on image_folder/.*times of files do not count"):
        test_images(now)


def damaged(root, kind, name):
    path = root / name
    if kind == "truncated":
        path.write_bytes((root / "cat" / "5.png").read_bytes()[:45])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "html":
        path.write_bytes(b"<!DOCTYPE html>")
    elif kind == "deep":
        Image.fromarray(np.zeros((5, 5), np.uint16)).save(path)
    else:
        path.write_bytes(b"\xff\xd8\xff\xe0 no more")


def test_all_bad_images_are_named_at_once(pets, tmp_path):
    kinds = {"truncated": "cat/0.png", "empty": "cat/1.png", "html": "dog/2.png",
             "deep": "dog/3.png", "garbage": "emu/4\n.jpg"}  # fmt: skip
    for kind, name in kinds.items():
        damaged(pets, kind, name)
    with pytest.raises(InputError, match=r"^5 of 22 images cannot be used: ") as error:
        open_dataset(config(pets, tmp_path))
    message = str(error.value)
    for name in kinds.values():
        assert str(pets / name).replace("\n", r"\n") in message
    assert "more than 8 bits per channel (Pillow's mode I;16)" in message
    assert message.endswith("; repair or remove them")
    assert "\n" not in message
    assert list((tmp_path / "data" / "image_folder").iterdir()) == []


@pytest.mark.parametrize(("bad", "more"), [(1, None), (2, None), (20, None), (21, 1), (30, 10)])
def test_at_most_twenty_bad_images_are_named(bad, more, pets, tmp_path):
    for number in range(bad):
        (pets / "dog" / f"bad{number:02}.jpg").write_bytes(b"no image")
    with pytest.raises(InputError, match="its format is unknown") as error:
        open_dataset(config(pets, tmp_path))
    assert str(error.value).count("its format is unknown") == min(bad, 20)
    assert (f"; and {more} more; " in str(error.value)) == (more is not None)


STRANGE_NAMES = (
    "a\nb", "a\tb", "a", "b", "a\\nb", "\u00e9", "e\u0301", " lead", "trail ", " ", "007", "7",
    "1e3", "None", "cat\u2215dog", "\u202eright to left", "\u05d0\u05d1", "\U0001f600", "%0A",
    "[red]", "\x1b[31m", "$x^2$", "a\u2028b", "\r", "x" * 255, "\u732b", "a,b", '"',
)  # fmt: skip


def test_class_names_are_any_names_of_folders(tmp_path, monkeypatch):
    root = tmp_path / "strange"
    colours = {name: (9 * number, 7, 5) for number, name in enumerate(STRANGE_NAMES)}
    for name, colour in colours.items():
        fill(root / name, 2, colour)
    dataset = open_dataset(config(root, tmp_path))
    assert dataset.class_names == tuple(sorted(STRANGE_NAMES))
    for examples in (dataset.train, dataset.test):
        found = {dataset.class_names[label]: c for label, c in colours_of(examples).items()}
        assert found == {name: [colour] for name, colour in colours.items()}
    assert all(line.isprintable() for line in dataset.findings)
    again = open_dataset(config(root, tmp_path))  # the prepared data set
    assert again.class_names == dataset.class_names
    rows = np.arange(len(STRANGE_NAMES)), {"as evaluated": np.zeros((len(STRANGE_NAMES), 2, 2, 3))}
    monkeypatch.setattr(contact_sheet, "columns", lambda dataset, seed: rows)
    contact_sheet.draw(dataset, tmp_path / "sheet.png", 0)  # would warn of characters it lacks


@pytest.mark.parametrize(
    "names",
    [("a\nb", "c"), ("a\n\nb\r\nc", "d"), (" ", "c"), ("\n", "b"), ("a", "a "), ("b", "a\nb")],
)
def test_there_are_as_many_classes_as_folders(names, tmp_path):
    for name in names:
        fill(tmp_path / "pair" / name, 2, (1, 2, 3))
    dataset = open_dataset(config(tmp_path / "pair", tmp_path))
    assert dataset.class_names == tuple(sorted(names))
    assert dataset.train.classes == dataset.test.classes == 2
    stored = tfds.builder_from_directory(str(dataset.train.path)).info.features["label"].names
    assert tuple(map(urllib.parse.unquote, stored)) == dataset.class_names  # for other readers


@pytest.mark.parametrize("name", [b"\xff", b"caf\xe9", b"a\xf0\x9f", b"\xed\xa0\x80", b"x\xc0"])
def test_a_class_name_that_is_not_utf8_is_refused_before_anything_is_written(name, pets, tmp_path):
    fill(pets / os.fsdecode(name), 2, (1, 1, 1))
    with pytest.raises(InputError, match="is not UTF-8; rename it") as error:
        open_dataset(config(pets, tmp_path))
    assert rf"\udc{name[-1]:02x}" in str(error.value)
    assert str(error.value).isprintable()
    assert not (tmp_path / "data").exists()


def test_what_was_found_and_skipped_is_said(pets, tmp_path):
    (pets / "cat" / "a.heic").write_bytes(b"?")
    (pets / "cat" / "b.heic").write_bytes(b"?")
    fill(pets / "dog" / "puppies", 2, COLOURS["dog"], "jpg")
    (pets / "emu" / ".DS_Store").write_bytes(b"?")
    (pets / "list.csv").write_text("?")
    os.mkfifo(pets / "emu" / "pipe.jpg")
    assert open_dataset(config(pets, tmp_path)).findings == [
        f"{pets} has 19 training and 4 test images (21 .png, 2 .jpg) of 3 classes",
        "class cat: 6 and 1 images",
        "class dog: 7 and 2 images",
        "class emu: 6 and 1 images",
        "skipped .heic files (2), a suffix that Pillow does not read as an image on this machine:"
        " cat/a.heic, cat/b.heic",
        "skipped files or folders (1), which are not in a class folder: list.csv",
        "skipped hidden or system files (1): emu/.DS_Store",
        "skipped pipes (1): emu/pipe.jpg",
    ]


def test_a_run_and_the_data_command_begin_with_what_was_found(pets, tmp_path, monkeypatch, capsys):
    (pets / "cat" / "a.heic").write_bytes(b"?")
    (pets / "[dog]").mkdir()
    (pets / "dog").rename(pets / "[dog]" / "x")
    expected = [
        f"{pets} has 18 training and 3 test images (21 .png) of 3 classes",
        "class [dog]: 6 and 1 images", "class cat: 6 and 1 images", "class emu: 6 and 1 images",
    ]  # fmt: skip

    class TrainingStartsError(Exception):
        pass

    def start(*arguments):
        raise TrainingStartsError

    monkeypatch.setattr(run_module, "Setup", start)
    run_config = Config(data=config(pets, tmp_path), model=ModelConfig(widths=(2,)), batch_size=8)
    with pytest.raises(TrainingStartsError):
        run_module.train_and_evaluate(run_config, tmp_path / "run")
    [preparing, *lines] = capsys.readouterr().out.splitlines()
    assert preparing.startswith("preparing image_folder in ")
    assert lines[:4] == expected
    assert lines[4].startswith("skipped .heic files (1), ")
    monkeypatch.setattr(run_module.parallel, "is_primary", lambda: False)
    with pytest.raises(TrainingStartsError):
        run_module.train_and_evaluate(run_config, tmp_path / "run")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(contact_sheet, "draw", lambda *arguments: None)
    monkeypatch.chdir(tmp_path)
    data_command.main(
        ["image_folder", f"--root={pets}", f"--data_dir={tmp_path}/data", "--image_size=8"]
    )
    assert capsys.readouterr().out.splitlines()[:5] == lines


def test_folders_beside_train_and_test_are_listed(pets, tmp_path):
    (tmp_path / "all").mkdir()
    for split in ("train", "test", "val"):
        shutil.copytree(pets, tmp_path / "all" / split)
    (tmp_path / "all" / "train" / "stray.png").write_bytes(b"?")
    findings = open_dataset(config(tmp_path / "all", tmp_path)).findings
    assert findings[0].endswith(" has 21 training and 21 test images (42 .png) of 3 classes")
    assert findings[4:] == [
        "skipped files or folders (2), which are not in a class folder: val, train/stray.png"
    ]


def test_many_classes_are_summed_up(tmp_path):
    for number in range(23):
        fill(tmp_path / "many" / f"{number:02}", 2 + number % 2, (number, 0, 0))
    findings = open_dataset(config(tmp_path / "many", tmp_path)).findings
    assert findings[20:] == ["class 19: 2 and 1 images", "3 more classes: 2 to 3 images"]


def test_a_class_without_images_says_what_it_has(pets, tmp_path):
    (pets / "fox").mkdir()
    (pets / "fox" / "a.heic").write_bytes(b"?")
    with pytest.raises(
        InputError, match=r"pets/fox has no images \(skipped \.heic files \(1\), .*\)"
    ):
        open_dataset(config(pets, tmp_path))


def test_preparation_counts_images_with_transparent_pixels(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "root" / name).mkdir(parents=True)
        for number in range(5):
            alpha = 0 if (name, number) in (("a", 0), ("b", 3), ("b", 4)) else 255
            image = Image.new("RGBA", (8, 8), (9, 9, 9, alpha))
            image.save(tmp_path / "root" / name / f"{number}.png")
    config = DataConfig(
        name="image_folder", root=str(tmp_path / "root"), data_dir=str(tmp_path), image_size=8
    )
    findings = open_dataset(config).findings
    assert [line for line in findings if "3 images have transparent pixels" in line]
