"""Tests ImageNet-100, from class folders and from archives like the official ones.

The tests write these archives: a tar of tars, a flat tar, and a development kit with a real MATLAB
file.
"""

import copy
import dataclasses
import hashlib
import io
import pathlib
import pickle
import re
import tarfile

import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds
from PIL import Image

from mcn_jax.config import DataConfig
from mcn_jax.data import archives, imagenet100, images
from mcn_jax.data.dataset import open_dataset
from mcn_jax.errors import InputError

# wnid -> (ILSVRC2012_ID, words, color). Two classes have the same name; one class is not chosen.
CLASSES = {
    "n02012849": (3, "crane", (200, 30, 40)),
    "n01440764": (1, "tench, Tinca tinca", (20, 180, 60)),
    "n03126707": (4, "crane", (40, 60, 210)),
    "n02007558": (2, "flamingo", (240, 120, 180)),
}
CHOSEN = ["n01440764", "n02012849", "n03126707"]
TRAIN_IMAGES = 6
# Class of every validation image, in the order of the image numbers 1, 2, ...
VALIDATION = ["n02012849", "n02007558", "n01440764", "n03126707", "n02012849", "n01440764"]
TRAIN, VAL, DEVKIT = (imagenet100.FILES[key].name for key in ("train", "test", "devkit"))


def encode(image, suffix="JPEG", **options):
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def noise(wnid):
    """Returns [19, 31, 3] random pixels for a class, which only a lossless format preserves."""
    seed = int(wnid[1:])
    return np.random.default_rng(seed).integers(0, 256, (19, 31, 3)).astype(np.uint8)


def train_image(wnid, number):
    """Returns an image as in ImageNet: a color, gray or CMYK JPEG, or a PNG named .JPEG."""
    colour = CLASSES[wnid][2]
    if number == 0:
        return encode(Image.fromarray(noise(wnid)), "PNG")
    size = (53 + number, 37)
    if number == 1:
        return encode(Image.new("L", size, colour[0]), quality=95)
    mode = "CMYK" if number == 2 else "RGB"
    return encode(Image.new("RGB", size, colour).convert(mode), quality=95, subsampling=0)


def validation_image(number):
    colour = CLASSES[VALIDATION[number - 1]][2]
    return encode(Image.new("RGB", (64, 40 + number), colour), quality=95, subsampling=0)


def write_tar(path, members, mode="w"):
    """Writes a tar of members [(name, content)]; `path` may be an open file."""
    where = {"fileobj": path} if hasattr(path, "write") else {"name": path}
    with tarfile.open(**where, mode=mode) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def tar_bytes(members):
    file = io.BytesIO()
    write_tar(file, members)
    return file.getvalue()


def class_tars():
    """Returns [(name, content)] of the outer train archive, not in the order of the wnids."""
    return [
        (f"{wnid}.tar", tar_bytes((f"{wnid}_{i}.JPEG", train_image(wnid, i)) for i in range(6)))
        for wnid in CLASSES
    ]


def validation_members():
    # Out of order, to check that the number in the name counts, not the position.
    numbers = [4, 2, 6, 1, 3, 5]
    return [(f"ILSVRC2012_val_{n:08d}.JPEG", validation_image(n)) for n in numbers]


def mat(synsets, variable="synsets"):
    file = io.BytesIO()
    scipy.io.savemat(file, {variable: synsets}, do_compression=True)
    return file.getvalue()


def meta_mat(classes=CLASSES, variable="synsets"):
    """Returns meta.mat: a struct array [S, 1] with the official fields.

    The last synset is a group.
    """
    rows = [(number, wnid, words, 0) for wnid, (number, words, _) in classes.items()]
    rows.append((1001, "n00001740", "entity", 2))
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children", "children")
    synsets = np.empty((len(rows), 1), [(field, object) for field in fields])
    for row, (number, wnid, words, children) in enumerate(rows):
        values = (float(number), wnid, words, "a gloss", float(children), np.ones(children))
        synsets[row, 0] = values
    return mat(synsets, variable)


def ground_truth(wnids=VALIDATION):
    return "".join(f"{CLASSES[wnid][0]}\n" for wnid in wnids).encode()


def write_devkit(directory, meta=None, truth=None):
    members = [
        ("ILSVRC2012_devkit_t12/readme.txt", b"text"),
        (imagenet100.SYNSETS, meta_mat() if meta is None else meta),
        (imagenet100.GROUND_TRUTH, ground_truth() if truth is None else truth),
    ]
    write_tar(directory / DEVKIT, members, "w:gz")


def believe(monkeypatch, directory):
    """Registers the archives in a directory as the official ones."""
    for key, file in list(imagenet100.FILES.items()):
        path = directory / file.name
        if path.is_file():
            content = path.read_bytes()
            size = None if key == "devkit" else len(content)
            digest = hashlib.new(file.algorithm, content).hexdigest()
            official = dataclasses.replace(file, size=size, digest=digest)
            monkeypatch.setitem(imagenet100.FILES, key, official)


def write_folders(directory, *names):
    for name in names:
        for wnid in CLASSES:
            folder = directory / name / wnid
            folder.mkdir(parents=True)
            if name == "train":
                for i in range(TRAIN_IMAGES):
                    (folder / f"{wnid}_{i}.JPEG").write_bytes(train_image(wnid, i))
            else:
                for number, of in enumerate(VALIDATION, start=1):
                    if of == wnid:
                        path = folder / f"ILSVRC2012_val_{number:08d}.JPEG"
                        path.write_bytes(validation_image(number))


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """Returns an empty archive directory, and restores the table of official files afterwards."""
    monkeypatch.setattr(imagenet100, "FILES", copy.copy(imagenet100.FILES))
    monkeypatch.setattr(imagenet100, "VALIDATION_IMAGES", len(VALIDATION))
    monkeypatch.setattr(imagenet100, "VALIDATION_IMAGES_OF_A_CLASS", None)
    path = tmp_path / "archives"
    path.mkdir()
    return path


@pytest.fixture
def official(directory, monkeypatch):
    """Returns a directory with the three archives."""
    write_tar(directory / TRAIN, class_tars())
    write_tar(directory / VAL, validation_members())
    write_devkit(directory)
    believe(monkeypatch, directory)
    return directory


@pytest.fixture
def wnids_file(tmp_path):
    path = tmp_path / "wnids.txt"
    path.write_text("\n".join(CHOSEN) + "\n")
    return path


def make_config(archive_dir, tmp_path, wnids_file, **changes):
    fields = {
        "name": "imagenet100",
        "data_dir": str(tmp_path / "prepared"),
        "archive_dir": str(archive_dir),
        "wnids_file": str(wnids_file),
        "image_size": 32,
    }
    return DataConfig(**fields | changes)


def prepared_files(tmp_path):
    return [path for path in (tmp_path / "prepared").rglob("*") if path.is_file()]


def stored(dataset, split):
    """Returns the sorted (label, encoded image) pairs of a split."""
    source = getattr(dataset, split).source
    return sorted((int(source[i]["label"]), source[i]["image"]) for i in range(len(source)))


EXPECTED_TRAIN = sorted(
    (label, train_image(wnid, i)) for label, wnid in enumerate(CHOSEN) for i in range(TRAIN_IMAGES)
)
EXPECTED_TEST = sorted(
    (CHOSEN.index(wnid), validation_image(number))
    for number, wnid in enumerate(VALIDATION, start=1)
    if wnid in CHOSEN
)


@pytest.mark.parametrize("source", ["archives", "folders", "train folders"])
def test_the_files_of_the_chosen_classes_are_kept_byte_for_byte(
    directory, tmp_path, wnids_file, monkeypatch, source
):
    if source == "archives":
        write_tar(directory / TRAIN, class_tars())
    else:
        write_folders(directory, "train")
    if source == "folders":
        write_folders(directory, "val")
    else:
        write_tar(directory / VAL, validation_members())
        write_devkit(directory)
    believe(monkeypatch, directory)
    dataset = open_dataset(make_config(directory, tmp_path, wnids_file))
    assert stored(dataset, "train") == EXPECTED_TRAIN
    assert stored(dataset, "test") == EXPECTED_TEST
    assert (len(dataset.train), len(dataset.test)) == (18, 5)
    expected = ("tench", "crane n02012849", "crane n03126707")
    assert dataset.class_names == (tuple(CHOSEN) if source == "folders" else expected)
    assert not [path for path in directory.rglob("*_0.JPEG") if source == "archives"]


def test_pixels_and_labels_as_a_run_reads_them(official, tmp_path, wnids_file):
    dataset = open_dataset(make_config(official, tmp_path, wnids_file))
    test = dataset.test.read_all()
    assert test.images.shape == (5, 32, 32, 3)
    for pixels, label in zip(test.images, test.labels, strict=True):
        colour = CLASSES[CHOSEN[label]][2]
        np.testing.assert_allclose(pixels, np.broadcast_to(colour, (32, 32, 3)), atol=3)
    assert sorted(test.labels) == [0, 0, 1, 1, 2]
    assert np.bincount(dataset.train.read_all().labels).tolist() == [6, 6, 6]


def test_every_kind_of_image_is_decoded(official, tmp_path, wnids_file):
    dataset = open_dataset(make_config(official, tmp_path, wnids_file))
    modes = []
    for label, content in stored(dataset, "train"):
        wnid = CHOSEN[label]
        with Image.open(io.BytesIO(content)) as image:
            modes.append((image.format, image.mode))
        pixels = images.decode(content, images.PixelFormat(3, 255, True))
        if modes[-1][0] == "PNG":
            np.testing.assert_array_equal(pixels, noise(wnid))
            continue
        colour = CLASSES[wnid][2]
        expected = (colour[0],) * 3 if modes[-1][1] == "L" else colour
        assert pixels.shape[0] == 37
        np.testing.assert_allclose(pixels, np.broadcast_to(expected, pixels.shape), atol=4)
    assert {kind: modes.count(kind) for kind in set(modes)} == {
        ("PNG", "RGB"): 3,
        ("JPEG", "L"): 3,
        ("JPEG", "CMYK"): 3,
        ("JPEG", "RGB"): 9,
    }


def test_names_are_restored_without_the_archives(official, tmp_path, wnids_file):
    config = make_config(official, tmp_path, wnids_file)
    names = open_dataset(config).class_names
    for file in list(official.iterdir()):
        file.unlink()
    # A directory without its archives, a missing directory, and no directory.
    for archive_dir in (official, "/nowhere/at/all", ""):
        later = dataclasses.replace(config, archive_dir=str(archive_dir))
        assert open_dataset(later).class_names == names
    assert names[1] == "crane n02012849"


def test_two_lists_of_classes_are_not_mixed_up(official, tmp_path, wnids_file):
    config = make_config(official, tmp_path, wnids_file)
    three = open_dataset(config)
    other = tmp_path / "other.txt"
    other.write_text("n02007558 pink bird\nn01440764\n")
    two = open_dataset(dataclasses.replace(config, wnids_file=str(other)))
    assert two.class_names == ("pink bird", "tench")
    assert (len(two.train), len(two.test)) == (12, 3)
    expected = sorted((0, train_image("n02007558", i)) for i in range(TRAIN_IMAGES))
    assert [pair for pair in stored(two, "train") if pair[0] == 0] == expected
    assert stored(open_dataset(config), "train") == stored(three, "train") == EXPECTED_TRAIN

    renamed = tmp_path / "renamed.txt"
    renamed.write_text("n02007558 flamingo\nn01440764\n")
    third = open_dataset(dataclasses.replace(config, wnids_file=str(renamed)))
    assert third.class_names == ("flamingo", "tench")
    folders = sorted(path for path in (tmp_path / "prepared" / "imagenet100").iterdir())
    assert len(folders) == 3
    digest = hashlib.sha256(b"n02007558 flamingo\nn01440764 \n").hexdigest()[:12]
    assert (tmp_path / "prepared" / "imagenet100" / digest / "1.0.0").is_dir()


def test_a_split_can_be_sent_to_another_process(official, tmp_path, wnids_file):
    dataset = open_dataset(make_config(official, tmp_path, wnids_file))
    rows = np.arange(len(dataset.test))
    there = pickle.loads(pickle.dumps(dataset.test))
    np.testing.assert_array_equal(there.read(rows).images, dataset.test.read(rows).images)


def test_images_of_other_classes_are_not_looked_at(directory, tmp_path, wnids_file, monkeypatch):
    tars = [(n, b"no tar" if n == "n02007558.tar" else content) for n, content in class_tars()]
    write_tar(directory / TRAIN, tars)
    flamingo = "ILSVRC2012_val_00000002.JPEG"
    members = [(n, b"" if n == flamingo else content) for n, content in validation_members()]
    write_tar(directory / VAL, members)
    write_devkit(directory)
    believe(monkeypatch, directory)
    dataset = open_dataset(make_config(directory, tmp_path, wnids_file))
    assert stored(dataset, "train") == EXPECTED_TRAIN
    assert stored(dataset, "test") == EXPECTED_TEST


def replaced(members, name, content):
    """Returns the members with the content of one replaced; None removes it."""
    assert name in dict(members)
    changed = [(n, content if n == name else old) for n, old in members]
    return [(n, new) for n, new in changed if new is not None]


def inner(name, members):
    return replaced(class_tars(), f"{name}.tar", members if members is None else tar_bytes(members))


LAST = "n03126707"
LAST_IMAGES = [(f"{LAST}_{i}.JPEG", train_image(LAST, i)) for i in range(TRAIN_IMAGES)]
VAL_IMAGE = "ILSVRC2012_val_00000005.JPEG"
HALF = validation_image(5)[:300]
TRUNCATED_CLASS = replaced(class_tars(), f"{LAST}.tar", tar_bytes(LAST_IMAGES)[:4000])

# name -> (archive, its members or bytes, message). Each file is registered as the official one, so
# errors are found only by reading it.
BAD_CONTENT = {
    "train is no tar": (TRAIN, b"<html>" * 1000, "img_train.tar is truncated or damaged"),
    "train is empty": (TRAIN, b"", "img_train.tar is truncated or damaged"),
    "train is cut": (TRAIN, tar_bytes(class_tars())[:30000], r"img_train.tar(/n\d+.tar)? is trunc"),
    "class is cut": (TRAIN, TRUNCATED_CLASS, f"img_train.tar/{LAST}.tar is truncated or damaged"),
    "class is no tar": (
        TRAIN,
        replaced(class_tars(), f"{LAST}.tar", b"<html>" * 1000),
        f"img_train.tar/{LAST}.tar is truncated or damaged",
    ),
    "class is missing": (
        TRAIN,
        inner(LAST, None),
        f"img_train.tar has no {LAST}.tar; remove {LAST} from --config.data.wnids_file",
    ),
    "class is empty": (TRAIN, inner(LAST, []), f"{LAST}.tar has no images; replace .*train.tar"),
    "class has a bad image": (
        TRAIN,
        inner(LAST, replaced(LAST_IMAGES, f"{LAST}_4.JPEG", HALF)),
        f"{LAST}.tar/{LAST}_4.JPEG cannot be read as an image .*; replace or remove it",
    ),
    "train escapes": (TRAIN, [*class_tars(), ("../x", b"x")], r"train.tar holds the path '\.\./x'"),
    "train is absolute": (TRAIN, [("/x", b"x"), *class_tars()], "train.tar holds the path '/x'"),
    "class escapes": (
        TRAIN,
        inner(LAST, [*LAST_IMAGES, ("a/../../x", b"x")]),
        f"{LAST}.tar holds the path 'a/../../x'",
    ),
    "class is absolute": (
        TRAIN,
        inner(LAST, [*LAST_IMAGES, ("/tmp/x", b"x")]),
        f"{LAST}.tar holds the path '/tmp/x'",
    ),
    "val is no tar": (VAL, b"<html>" * 1000, "img_val.tar is truncated or damaged"),
    "val is cut": (VAL, tar_bytes(validation_members())[:5000], "img_val.tar is truncated or dam"),
    "val escapes": (
        VAL,
        [*validation_members(), ("../x", b"x")],
        r"val.tar holds the path '\.\./x'",
    ),
    "val image is missing": (
        VAL,
        replaced(validation_members(), VAL_IMAGE, None),
        f"img_val.tar has no {VAL_IMAGE}; replace it",
    ),
    "val image is bad": (
        VAL,
        replaced(validation_members(), VAL_IMAGE, HALF),
        f"img_val.tar/{VAL_IMAGE} cannot be read as an image .*; replace or remove it",
    ),
    "devkit is no tar": (DEVKIT, b"<html>" * 1000, "devkit_t12.tar.gz is truncated or damaged"),
    "devkit lacks its truth": (
        DEVKIT,
        [(imagenet100.SYNSETS, meta_mat())],
        "devkit_t12.tar.gz has no ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground",
    ),
}


@pytest.mark.parametrize("case", BAD_CONTENT)
def test_bad_content_is_named_and_nothing_is_left(
    official, tmp_path, wnids_file, monkeypatch, case
):
    name, content, message = BAD_CONTENT[case]
    if isinstance(content, bytes):
        (official / name).write_bytes(content)
    else:
        write_tar(official / name, content, "w:gz" if name == DEVKIT else "w")
    believe(monkeypatch, official)
    check_refused(make_config(official, tmp_path, wnids_file), message, official / name, tmp_path)


def check_refused(config, message, path, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        open_dataset(config)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    assert not prepared_files(tmp_path)


FEWER = {wnid: facts for wnid, facts in CLASSES.items() if wnid != LAST}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"meta": b"<html>" * 1000}, r"meta\.mat cannot be read as a MATLAB file .*; replace it"),
        ({"meta": meta_mat(variable="x")}, r"meta\.mat has no variable synsets; replace it"),
        ({"meta": mat(np.ones(3))}, r"meta\.mat is not a list of synsets \(.*\); replace .*\.gz"),
        ({"meta": meta_mat(FEWER)}, r"ground_truth\.txt, line 4: '4' is not the ILSVRC2012_ID"),
        (
            {"meta": meta_mat(FEWER), "truth": ground_truth(VALIDATION[:3] * 2)},
            f"gz has no validation images of {LAST}; remove {LAST} from --config.data.wnids_file",
        ),
        (
            {"truth": ground_truth(VALIDATION[:3] * 2)},
            f"gz has no validation images of {LAST}; remove {LAST} from --config.data.wnids_file",
        ),
        ({"truth": ground_truth(VALIDATION[:-1])}, r"truth\.txt has 5 lines where 6 are expected"),
        ({"truth": ground_truth([*VALIDATION, LAST])}, r"truth\.txt has 7 lines where 6 are"),
        ({"truth": ground_truth()[:-2] + b"0\n"}, r"truth\.txt, line 6: '0' is not the ILSVRC"),
        ({"truth": ground_truth()[:-2] + b"1001"}, r"truth\.txt, line 6: '1001' is not the ILSVRC"),
        ({"truth": ground_truth()[:-2] + b"\xff1"}, r"truth\.txt, line 6: '.*' is not the ILSVRC"),
    ],
)
def test_a_bad_development_kit(official, tmp_path, wnids_file, monkeypatch, files, message):
    write_devkit(official, **files)
    believe(monkeypatch, official)
    check_refused(make_config(official, tmp_path, wnids_file), message, official / DEVKIT, tmp_path)


@pytest.mark.parametrize("name", [TRAIN, VAL, DEVKIT])
@pytest.mark.parametrize("damage", ["shorter", "flipped", "missing"])
def test_files_that_are_not_the_official_ones(official, tmp_path, wnids_file, name, damage):
    path = official / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
        message = (
            f"archives has no {name} and no folder (train|val); put .*{TRAIN}.*{VAL}.*{DEVKIT}"
        )
        return check_refused(
            make_config(official, tmp_path, wnids_file), message, official, tmp_path
        )
    algorithm = "MD5" if name == DEVKIT else "SHA-256"
    message = f"{name} is not the official file: its {algorithm} differs from .*; replace it"
    if damage == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        path.write_bytes(content[: len(content) // 2])
        if name != DEVKIT:  # its official size is unknown
            size = len(content)
            message = (
                f"truncated or not the official file: it holds {size // 2} bytes where {size} "
            )
    return check_refused(make_config(official, tmp_path, wnids_file), message, path, tmp_path)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("damage", ["missing", "empty", "hidden", "bad image", "dangling link"])
def test_bad_class_folders(directory, tmp_path, wnids_file, split, damage):
    write_folders(directory, "train", "val")
    folder = directory / split / LAST
    files = sorted(folder.iterdir())
    named = folder
    if damage in ("missing", "empty", "hidden"):
        for file in files:
            file.unlink()
        message = f"class folder {folder} has no images; extract"
        if damage == "missing":
            folder.rmdir()
            message = f"class folder {folder} does not exist; .* remove it from --config.data.wnids"
        elif damage == "hidden":
            (folder / "._x.JPEG").write_bytes(b"what macOS leaves")
            (folder / "notes.txt").write_bytes(b"x")
    else:
        named = files[-1]
        if damage == "bad image":
            named.write_bytes(HALF)
            message = f"{named} cannot be read as an image .*; replace or remove it"
        else:
            named.unlink()
            named.symlink_to("/nowhere/at/all")
            message = rf"{named} cannot be read \(No such file or directory\)"
    check_refused(make_config(directory, tmp_path, wnids_file), message, named, tmp_path)


def test_no_archives_and_no_download(tmp_path, directory, wnids_file):
    config = make_config("", tmp_path, wnids_file)
    message = f"{TRAIN}, {VAL} and {DEVKIT}, .* as --config.data.archive_dir"
    check_refused(config, message, "imagenet100 has no public download", tmp_path)
    config = make_config("/nowhere/at/all", tmp_path, wnids_file)
    check_refused(config, "archive directory .* does not exist", "/nowhere/at/all", tmp_path)


def test_what_is_quick_to_see_is_found_before_hashing(official, tmp_path, wnids_file, monkeypatch):
    monkeypatch.setattr(archives, "HASHED_AT_ONCE", None)  # hashing the train archive would fail
    monkeypatch.setattr(imagenet100, "read_devkit", lambda path: imagenet100.Devkit({}, []))
    wnids_file.write_text("n01440764\nn99999999\n")
    config = make_config(official, tmp_path, wnids_file)
    check_refused(config, "img_train.tar has no n99999999.tar", official / TRAIN, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"n01440764\nn0144076\n", "line 2: 'n0144076' is not a wnid, .* n and eight digits"),
        (b"n01440764\n1440764\n", "line 2: '1440764' is not a wnid"),
        (b"n01440764,n02012849\n", "line 1: 'n01440764,n02012849' is not a wnid"),
        (b"# c\n\nn01440764\nn02012849\nn01440764 tench\n", "line 5: n01440764 is named twice"),
        (b"n01440764 tench\n", "names 1 classes, at least two are needed"),
        (b"\n# nothing\n", "names 0 classes, at least two are needed"),
        (b"\xff\xfen0", "is not UTF-8 text; write one wnid per line"),
        (None, r"cannot be read \(No such file .*pass a .* --config\.data\.wnids_file"),
    ],
)
def test_bad_lists_of_classes(official, tmp_path, wnids_file, content, message):
    wnids_file.unlink()
    if content is not None:
        wnids_file.write_bytes(content)
    check_refused(make_config(official, tmp_path, wnids_file), message, wnids_file, tmp_path)


def test_a_list_of_classes_with_comments_and_names(tmp_path):
    path = tmp_path / "wnids.txt"
    path.write_text(
        "\ufeff# mine\n\n  n02012849   white crane  \nn01440764\t# a fish\n\nn03126707 x # y\n"
    )
    expected = {"n02012849": "white crane", "n01440764": "", "n03126707": "x"}
    found = imagenet100.read_wnids(path)
    assert found == expected
    assert list(found) == list(expected)


def test_class_names_are_given_known_or_the_wnid_and_never_twice():
    classes = {"n00000001": "mine", "n00000002": "", "n00000003": "", "n00000004": ""}
    assert imagenet100.class_names(classes, {"n00000001": "x", "n00000002": "bird"}) == [
        "mine",
        "bird",
        "n00000003",
        "n00000004",
    ]
    known = {"n00000002": "mine", "n00000003": "bird", "n00000004": "bird"}
    assert imagenet100.class_names(classes, known) == [
        "mine n00000001",
        "mine n00000002",
        "bird n00000003",
        "bird n00000004",
    ]
    clash = {"n00000001": "a", "n00000002": "a", "n00000003": "a n00000001"}
    names = imagenet100.class_names(clash, {})
    assert len(set(names)) == 3
    assert names[1] == "a n00000002"


def test_the_packages_list_is_made_as_its_header_says():
    package = pathlib.Path(tfds.__file__).parent
    labels = package / "datasets" / "imagenet2012" / "labels.txt"
    wnids = sorted(labels.read_text().split())
    assert len(set(wnids)) == 1000
    rows = np.random.default_rng(0).choice(1000, 100, replace=False)
    assert list(imagenet100.read_wnids(imagenet100.WNIDS_FILE)) == sorted(wnids[i] for i in rows)
    header = [line for line in imagenet100.WNIDS_FILE.read_text().splitlines() if line[0] == "#"]
    assert re.search(r"default_rng\(0\)\.choice\(1000, 100, replace=False\)", " ".join(header))


def test_the_package_has_its_list_and_its_name():
    assert imagenet100.ImageNet100.name == "imagenet100"
    metadata = pathlib.Path(imagenet100.__file__).parents[2] / "pyproject.toml"
    assert f'"data/{imagenet100.WNIDS_FILE.name}"' in metadata.read_text()
    builder = imagenet100.ImageNet100(data_dir="/nowhere", file_format="array_record")
    assert builder.info.features["label"].num_classes == 100


def test_a_class_folder_of_validation_images_that_is_not_whole(
    directory, tmp_path, wnids_file, monkeypatch
):
    monkeypatch.setattr(imagenet100, "VALIDATION_IMAGES_OF_A_CLASS", 2)
    write_folders(directory, "train", "val")
    removed, _ = sorted((directory / "val" / "n01440764").iterdir())
    removed.unlink()
    message = "class folder .*val/n01440764 has 1 images where 2 are expected; extract"
    with pytest.raises(InputError, match=message):
        open_dataset(make_config(directory, tmp_path, wnids_file))
    assert not prepared_files(tmp_path)
