"""Runs `python -m mcn_jax.data` as a user would."""

import functools

import numpy as np
import pytest
from PIL import Image

import processes
from mcn_jax.config import DataConfig
from mcn_jax.data import contact_sheet
from mcn_jax.data.dataset import open_dataset
from mcn_jax.data.facts import DATASETS

run = functools.partial(processes.run, "mcn_jax.data")


def row(output, *cells):
    """Returns whether a table has a row with these cells in this order."""
    rows = [[cell.strip() for cell in line.strip("│ ").split("│")] for line in output.splitlines()]
    return any(list(cells) == row[i : i + len(cells)] for row in rows for i in range(len(row)))


def test_digits_are_counted_and_shown(data_dir, tmp_path):
    result = run("digits", f"--data_dir={data_dir}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert row(result.stdout, "train", "1,437", "139 to 146", "0.3057", "0.3235")
    assert row(result.stdout, "test", "360", "35 to 37")
    assert row(result.stdout, "3", "3", "146", "37")
    assert "contact sheet: digits.png" in result.stdout
    with Image.open(tmp_path / "digits.png") as sheet:
        assert min(sheet.size) > 500
        assert len(sheet.convert("L").getcolors()) > 100  # not a blank page


def test_list_and_help(tmp_path):
    listed = run("--list", cwd=tmp_path).stdout
    for name, facts in DATASETS.items():
        assert row(listed, name, facts.summary)
    assert row(listed, "train 73,257, test 26,032, extra 531,131", "10", "32x32, colour")
    text = run("--help", cwd=tmp_path).stdout
    for flag in ("--archive_dir", "--data_dir", "--root", "--wnids_file", "--sheet", "--list"):
        assert flag in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digts"], "config.data.name='digts' must be one of digits,"),
        (["mnist", "--archive_dir=/nowhere/at/all"], "archive directory /nowhere/at/all does not"),
        (["digits", "--sheet=/nowhere/x.png"], "--sheet=/nowhere/x.png: there is no directory"),
        (["digits", "--sheet=x.jpg"], "--sheet=x.jpg must end in .png"),
        (["image_folder"], "config.data.root='' names no folder"),
        (["image_folder", "--root=x", "--test_fraction=2"], "--test_fraction=2.0 must lie in"),
        (["digits", "--image_size=-1"], "--image_size=-1 must not be negative"),
        (["digits", "--seed=-1"], "--seed=-1 must be from 0 to 2^32 - 1"),
        (["mnist", "--config.data.archive_dir=/nowhere"], "archive directory /nowhere does not"),
        (["digits", "--image_size=8"], "config.data.image_size=8 is smaller than the images"),
        (["digits", "--pack="], "--pack= is empty; name a directory"),
        (["digits", "--exif_orientation=no"], "'no' must be True or False"),
        ([], "name a data set: digits, mnist"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, data_dir, tmp_path):
    result = run(*arguments, f"--data_dir={data_dir}", cwd=tmp_path)
    assert result.returncode not in (0, None)
    assert "Traceback" not in result.stderr
    *before, line = result.stderr.strip().splitlines()
    assert message in line
    assert not before or line.startswith("python -m mcn_jax.data: error:")  # after the usage
    assert list(tmp_path.iterdir()) == []


def test_the_columns_of_the_sheet_are_what_the_augmentations_make(data_dir):
    dataset = open_dataset(DataConfig(data_dir=data_dir))
    labels, columns = contact_sheet.columns(dataset, seed=0)
    assert len(set(labels.tolist())) == contact_sheet.ROWS
    before = columns["as evaluated"]
    assert set(columns) == {
        "as evaluated", "crop_padding=4", "flip", "color_jitter=0.4", "cutout=16", "mixup=1",
    }  # fmt: skip
    flipped = columns["flip"]
    for image, after in zip(before, flipped, strict=True):
        same, mirrored = (np.abs(after - x).max() < 1e-6 for x in (image, image[:, ::-1]))
        assert same or mirrored
    assert not np.allclose(before, flipped)
    cut = np.abs(columns["cutout=16"] - before) > 1e-6
    assert (np.abs(columns["cutout=16"][cut] - dataset.mean[0]) < 1e-6).all()
    assert 0 < cut.mean() < 0.25
    brighter = columns["color_jitter=0.4"].mean((1, 2, 3)) / before.mean((1, 2, 3))
    assert brighter.min() < 1 < brighter.max()


@pytest.mark.slow
def test_images_of_many_sizes_have_a_column_of_random_parts(tmp_path):
    generator = np.random.default_rng(0)
    for name in ("a$_$b", "cat [old]"):  # must not be read as math text or markup
        (tmp_path / "own" / name).mkdir(parents=True)
        for number in range(6):
            pixels = generator.integers(0, 256, (40, 50 + number, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "own" / name / f"{number}.png")
    result = run(
        "image_folder", f"--root={tmp_path}/own", f"--data_dir={tmp_path}/data", "--image_size=32",
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert row(result.stdout, "train", "10", "5")
    assert row(result.stdout, "0", "a$_$b", "5", "1")
    assert row(result.stdout, "1", "cat [old]", "5", "1")
    assert "over at most 1,024 training images" in result.stdout
    config = DataConfig(
        name="image_folder", root=str(tmp_path / "own"), data_dir=str(tmp_path / "data"),
        image_size=32,
    )  # fmt: skip
    _, columns = contact_sheet.columns(open_dataset(config), seed=0)
    parts = columns[f"min_crop_area={contact_sheet.MIN_CROP_AREA}"]
    assert all(
        np.abs(part - whole).max() > 0.1
        for part, whole in zip(parts, columns["as evaluated"], strict=True)
    )
