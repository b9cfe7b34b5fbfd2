"""Tests folders of the user's own images: layouts, splits, errors, and a run."""

import functools
import json
import os

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import processes
from mcn_jax.config import DataConfig
from mcn_jax.data import image_folder
from mcn_jax.data.dataset import open_dataset
from mcn_jax.errors import InputError


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
        splits = image_folder.find_splits(str(tmp_path / "pets"), **arguments)
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
