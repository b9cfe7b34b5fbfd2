"""Tests exporting trained networks, and predicting with the exported files."""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import shutil
import socket
import sys

import numpy as np
import pytest
from PIL import Image

from c_programs import need_compiler
from exported import random_model
from mcn_jax import evaluate, export, predict
from mcn_jax.config import BinarizeConfig, DataConfig, ModelConfig
from mcn_jax.data.dataset import open_dataset
from mcn_jax.deploy import model_file, predictor
from mcn_jax.deploy.model_file import read_model
from mcn_jax.errors import InputError
from mcn_jax.layers.formats import FLOAT32, Formats
from mcn_jax.training.run import train_and_evaluate
from mcn_jax.workdirs.trained import read_trained
from small_runs import digits_config

READER = pathlib.Path(__file__).parents[2] / "examples" / "read_model.py"


@pytest.fixture(scope="module")
def wide_resnet_run(data_dir, shared_run):
    """Returns the work directory of a small Wide-ResNet with four centers and eight planes."""
    config = digits_config(
        data_dir,
        num_epochs=2,
        model=ModelConfig(
            name="wide_resnet", depth=8, widths=(1, 1, 2, 2), planes=8, dense_features=16
        ),
        binarize=BinarizeConfig(start_epoch=1, num_centers=4),
    )
    return shared_run("wide_resnet", config)


@pytest.mark.parametrize("name", ["seed_0", "centers_3", "umcn", "wide_resnet"])
def test_trained_networks_agree_on_every_test_image(
    name, report_runs, wide_resnet_run, tmp_path, monkeypatch
):
    workdir = (report_runs | {"wide_resnet": wide_resnet_run})[name]
    result = export.export(workdir, tmp_path / "out", FLOAT32, {})
    accuracy = json.loads((workdir / "result.json").read_text())["final_test_accuracy"]
    assert result["checkpoint"]["accuracy"] == accuracy
    assert result["checkpoint"]["bytes"] == read_trained(workdir).file_bytes
    for file in ("model.safetensors", "model.onnx"):
        assert result[file]["difference"] <= 1e-4
        assert result[file]["accuracy"] == accuracy
        assert result[file]["bytes"] == (tmp_path / "out" / file).stat().st_size
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.safetensors", "model.onnx"
    }  # fmt: skip
    compare_classes(workdir, tmp_path / "out")
    if name in ("seed_0", "centers_3"):
        compare_with_numpy(workdir, tmp_path / "out" / "model.safetensors", monkeypatch)


@pytest.fixture(scope="module")
def colour_data(tmp_path_factory):
    """Returns the config of a folder of images: each class has a hue, and brightness varies."""
    root = tmp_path_factory.mktemp("colours")
    generator = np.random.default_rng(0)
    for name, hue in {"red": (200, 60, 60), "green": (60, 200, 60), "blue": (60, 60, 200)}.items():
        (root / name).mkdir()
        for number in range(40):
            pixels = hue + generator.normal(0, 60, (16, 16, 1))
            image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
            image.save(root / name / f"{number}.png")
    return DataConfig(
        name="image_folder", root=str(root), image_size=16,
        data_dir=str(tmp_path_factory.mktemp("prepared")),
    )  # fmt: skip


# Every two of the choices meet. The random networks of test_model_file.py have more combinations.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "input_planes", "planes", "num_centers", "head"),
    [
        ("simple_cnn", "rgbx", 4, 2, "dense"),
        ("simple_cnn", "copy", 8, 4, "dense"),
        ("wide_resnet", "rgbx", 4, 4, "dense"),
        ("wide_resnet", "copy", 8, 2, "dense"),
        ("simple_cnn", "copy", 4, 2, "linear"),
        ("simple_cnn", "copy", 4, 2, "conv"),
        ("wide_resnet", "copy", 4, 2, "linear"),
        ("wide_resnet", "copy", 4, 4, "conv"),
    ],
)
def test_networks_trained_on_colours_agree(
    name, input_planes, planes, num_centers, head, colour_data, tmp_path, one_device, monkeypatch
):
    widths = (1, 1, 2, 2) if name == "wide_resnet" else (2, 4)
    config = digits_config(
        batch_size=24,
        eval_batch_size=10,
        data=colour_data,
        model=ModelConfig(
            name=name, depth=8, widths=widths, planes=planes, input_planes=input_planes,
            dense_features=16, head=head,
        ),
        num_epochs=8,
        binarize=BinarizeConfig(start_epoch=1, num_centers=num_centers),
    )  # fmt: skip
    train_and_evaluate(config, tmp_path / "run")
    result = export.export(tmp_path / "run", tmp_path / "out", FLOAT32, {})
    # The network has learned something, so the comparison is not between constants.
    assert result["checkpoint"]["accuracy"] > 0.5
    for file in ("model.safetensors", "model.onnx"):
        assert result[file]["difference"] <= 1e-4
        assert result[file]["accuracy"] == result["checkpoint"]["accuracy"]
    compare_classes(tmp_path / "run", tmp_path / "out")
    if name == "simple_cnn" and head == "dense":
        compare_with_numpy(tmp_path / "run", tmp_path / "out" / "model.safetensors", monkeypatch)


def assert_same_classes(logits, expected):
    """Compares the classes of images whose two likeliest classes are not almost equal."""
    second, first = np.sort(expected, axis=1)[:, -2:].T
    clear = first - second > 1e-4 * np.abs(expected).max()
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(logits.argmax(1)[clear], expected.argmax(1)[clear])


def compare_classes(workdir, out):
    """Compares the class of every test image from both files with the checkpoint."""
    members = {
        path.name: predictor.open_predictor(path)
        for path in (workdir, out / "model.safetensors", out / "model.onnx")
    }
    examples = predictor.open_test_split(members[workdir.name], {})
    logits, _ = predictor.run_all(members, examples, 100)
    expected = logits.pop(workdir.name)
    assert np.std(expected, axis=0).min() > 1e-3  # the images matter
    assert len(logits) == 2
    for values in logits.values():
        assert_same_classes(values, expected)


def compare_with_numpy(workdir, path, monkeypatch):
    """Compares the NumPy reader with the checkpoint, on every test image."""
    monkeypatch.syspath_prepend(READER.parent)
    import read_model as reader

    member = predictor.open_predictor(workdir)
    images = predictor.open_test_split(member, {}).read_all().images
    expected = member.logits(images)
    logits = reader.logits(*reader.read(path), images)
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
    assert_same_classes(logits, expected)


@pytest.mark.slow
def test_images_that_are_padded_are_given_as_stored(data_dir, tmp_path, one_device, capsys):
    config = digits_config(data_dir, num_epochs=1, binarize=BinarizeConfig(start_epoch=0))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, image_size=37))
    train_and_evaluate(config, tmp_path / "run")
    result = export.export(tmp_path / "run", tmp_path / "out", FLOAT32, {})
    for file in ("model.safetensors", "model.onnx"):
        assert result[file]["difference"] <= 1e-4
        evaluate.main([str(tmp_path / "out" / file), "--json", "--data_dir", data_dir])
        found = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert found["accuracy"] == result["checkpoint"]["accuracy"]
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["checkpoint"]["accuracy"] == record["final_test_accuracy"]


def test_other_data_than_the_networks_are_refused(report_runs):
    member = predictor.open_predictor(report_runs["seed_0"])
    renamed = dataclasses.replace(member, class_names=tuple("abcdefghij"))
    with pytest.raises(InputError, match="the data have the classes 0, 1, 2"):
        predictor.open_test_split(renamed, {})
    changed = dataclasses.replace(member, full_name="digits/0.0.1")
    with pytest.raises(InputError, match=r"trained on digits/0.0.1, but these data are digits/"):
        predictor.open_test_split(changed, {})
    smaller = dataclasses.replace(member.images, height=28)
    message = r"takes images of 28x32x1, but those of digits/\S+ are 32x32x1; name the data"
    with pytest.raises(InputError, match=message):
        predictor.open_test_split(dataclasses.replace(member, images=smaller), {})


def test_a_checkpoint_of_an_earlier_epoch_is_a_network_too(report_runs, tmp_path):
    first, last = (report_runs["seed_0"] / "checkpoints" / step for step in ("44", "88"))
    images = random_images_of_digits()
    logits = [predictor.open_predictor(path).logits(images) for path in (first, last)]
    whole = predictor.open_predictor(report_runs["seed_0"]).logits(images)
    np.testing.assert_array_equal(logits[1], whole)
    assert np.abs(logits[0] - whole).max() > 0.1
    result = export.export(first, tmp_path, FLOAT32, {})
    assert result["model"].provenance["step"] == 44


def test_checkpoints_are_found_by_their_names(report_runs, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(report_runs["seed_0"], workdir)
    with pytest.raises(InputError, match=f"^{workdir} has no checkpoint of a whole epoch"):
        predictor.open_predictor(workdir / "checkpoints" / "99")
    # Checkpoints behind a symbolic link, and a work directory with the name of a checkpoint.
    (workdir / "checkpoints").rename(tmp_path / "elsewhere")
    (workdir / "checkpoints").symlink_to(tmp_path / "elsewhere")
    assert read_trained(workdir / "checkpoints" / "44").epoch["step"] == 44
    named = tmp_path / "checkpoints" / "44"
    named.parent.mkdir()
    workdir.rename(named)
    assert read_trained(named).epoch["step"] == 88


def test_every_image_is_computed_once_or_to_fill_up_a_chunk(report_runs):
    member = predictor.open_predictor(report_runs["seed_0"])
    examples = predictor.open_test_split(member, {})
    sizes = []
    noting = dataclasses.replace(
        member, logits=lambda batch: (sizes.append(len(batch)), member.logits(batch))[1]
    )
    logits, labels = predictor.run_all({"": noting}, examples, 1000)
    assert (len(examples), sizes) == (360, [256, 256])
    expected = member.logits(examples.read_all().images)
    np.testing.assert_allclose(logits[""], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(labels, examples.read_all().labels)


def test_large_images_are_computed_and_read_few_at_a_time(report_runs, images, monkeypatch):
    member = predictor.open_predictor(report_runs["seed_0"])
    # The first layer outputs two maps of four planes in float32; the second has fewer pixels.
    assert member.image_bytes == 32 * 32 * 2 * 4 * 4
    assert member.most_images == predictor.BATCH_BYTES // member.image_bytes
    examples = predictor.open_test_split(member, {})
    sizes = []
    large = dataclasses.replace(
        member,
        image_bytes=predictor.BATCH_BYTES // 2,
        logits=lambda batch: (sizes.append(len(batch)), member.logits(batch))[1],
    )
    paths, _ = predict.find_images([images])
    assert len(list(predict.predictions(large, paths, 64))) == 3
    assert sizes == [2, 2]
    assert dataclasses.replace(large, image_bytes=10**12).most_images == 1
    monkeypatch.setattr("mcn_jax.data.examples.CHUNK_BYTES", 32 * 32 * 100)
    assert [len(chunk.labels) for chunk in examples.chunks()] == [100, 100, 100, 60]
    sizes.clear()
    predictor.run_all({"": dataclasses.replace(large, image_bytes=1)}, examples, 1000)
    assert sizes == [100] * 4


def test_a_batch_that_is_not_full_changes_nothing(report_runs):
    member = predictor.open_predictor(report_runs["seed_0"])
    images = random_images_of_digits()
    sizes = []
    noting = dataclasses.replace(
        member, logits=lambda batch: (sizes.append(len(batch)), member.logits(batch))[1]
    )
    found = predictor.logits_of(noting, images, 8)
    np.testing.assert_allclose(found, member.logits(images), rtol=1e-4, atol=1e-4)
    assert (sizes, len(found)) == ([8], 5)


def random_images_of_digits():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1), np.uint8)


def test_a_file_tells_no_places(report_runs, tmp_path):
    export.export(report_runs["seed_0"], tmp_path, FLOAT32, {})
    provenance = read_model(tmp_path / "model.safetensors").provenance
    assert str(tmp_path.parent) not in json.dumps(provenance)
    assert provenance["data"]["name"] == "digits"


def test_sizes_add_up_to_the_file(report_runs, tmp_path):
    result = export.export(report_runs["seed_0"], tmp_path, FLOAT32, {})
    parts = model_file.parts(result["model"])
    # Layers of 2 and 4 maps have 9*4*2 and 9*8*4 weights as bits, and one M-filter each.
    assert parts["filters"] == (9 + 36, 4 * (72 + 288))
    assert parts["M-filters"] == (2 * 36 * 4, 2 * 36 * 4)
    assert parts["centers"] == (2 * 2 * 4, 0)
    header = result["parts"]["header"]["bytes"]
    content = (tmp_path / "model.safetensors").read_bytes()
    assert header == 8 + int.from_bytes(content[:8], "little")


def test_command_prints_sizes_and_accuracies(report_runs, tmp_path, capsys):
    export.main([str(report_runs["seed_0"]), str(tmp_path), "--dense", "int8"])
    lines = capsys.readouterr().out.splitlines()
    filters = next(line for line in lines if "filters" in line and "M-" not in line)
    assert "45" in filters
    assert "1,440" in filters
    assert "32.0 x" in filters
    assert sum("model.onnx" in line and "%" in line for line in lines) == 1


def test_command_prints_the_same_as_json(report_runs, tmp_path, capsys):
    export.main([str(report_runs["seed_0"]), str(tmp_path), "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["parts"]["filters"] == {"bytes": 45, "float32_bytes": 1440}
    size = (tmp_path / "model.safetensors").stat().st_size
    content = (tmp_path / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    assert record["parts"]["header"] == {"bytes": header, "float32_bytes": 0}
    assert record["model.safetensors"]["bytes"] == size
    assert record["checkpoint"]["accuracy"] == record["model.onnx"]["accuracy"]
    assert record["network"]["widths"] == [2, 4]
    assert record["provenance"]["step"] == 88


def test_a_network_is_exported_and_compared_without_its_data(
    report_runs, tmp_path, monkeypatch, capsys
):
    workdir, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(report_runs["seed_0"], workdir)
    record = json.loads((workdir / "config.json").read_text())
    record["config"]["data"]["data_dir"] = str(tmp_path / "nowhere")
    (workdir / "config.json").write_text(json.dumps(record))

    def no_data(*arguments):
        raise AssertionError("the data set is opened")

    monkeypatch.setattr(predictor, "open_dataset", no_data)
    export.main([str(workdir), str(out), "--no-evaluate"])
    text = capsys.readouterr().out
    assert "Accuracy was not measured" in text
    assert "test accuracy" not in text
    assert "64 generated images" in " ".join(text.split())
    written = {file.name: file.read_bytes() for file in out.iterdir()}
    assert written.keys() == {"model.safetensors", "model.onnx"}
    export.main([str(workdir), str(out), "--no-evaluate", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert (result["evaluated"], result["images"]) == (False, 64)
    for file in ("model.safetensors", "model.onnx"):
        assert result[file].keys() == {"bytes", "difference", "same_class"}
        assert 0 <= result[file]["difference"] <= 1e-4
        assert result[file]["same_class"] == 1.0
    assert result["checkpoint"].keys() == {"bytes"}
    # The files are those of an export with the data.
    monkeypatch.undo()
    export.export(report_runs["seed_0"], tmp_path / "with_data", FLOAT32, {})
    for name, content in written.items():
        assert (tmp_path / "with_data" / name).read_bytes() == content, name
    with pytest.raises(SystemExit, match="--root has no effect with --no-evaluate; drop one"):
        export.main([str(workdir), str(out), "--no-evaluate", "--root", "x"])


def test_a_file_that_differs_from_its_checkpoint_shows_without_data(report_runs, tmp_path):
    exact, rounded = (
        export.export(report_runs["seed_0"], tmp_path / dense, Formats(dense), {}, evaluate=False)
        for dense in ("float32", "int8")
    )
    for file in ("model.safetensors", "model.onnx"):
        assert exact[file]["difference"] < 1e-5 < 1e-3 < rounded[file]["difference"]


def test_images_of_nearly_tied_classes_say_nothing_about_a_file(tmp_path):
    tied, clear = np.array([[1.0, 1.0001, 0.0]]), np.array([[1.0, 1.1, 0.0]])
    for right, refused in ((tied, False), (clear, True)):
        logits = {"model.safetensors": right, "model.onnx": right[:, [1, 0, 2]]}
        with pytest.raises(InputError, match="to 100% of") if refused else contextlib.nullcontext():
            export._check_agreement(tmp_path, logits)


def test_a_network_of_one_class_is_exported(tmp_path, capsys):
    model, _, _ = random_model(classes=1, head="linear")
    model_file.write_model(model, tmp_path / "given.safetensors")
    export.main([str(tmp_path / "given.safetensors"), str(tmp_path), "--no-evaluate", "--json"])
    record = json.loads(capsys.readouterr().out)
    for file in ("model.safetensors", "model.onnx"):
        assert record[file]["same_class"] == 1
        assert record[file]["difference"] < 1e-5


def test_the_page_says_how_to_run_the_graph(report_runs, tmp_path, monkeypatch):
    directory = tmp_path / "exported" / "digits"
    export.export(report_runs["seed_0"], directory, FLOAT32, {}, evaluate=False)
    page = (READER.parents[1] / "docs" / "export.md").read_text()
    [code] = re.findall(r"<!-- snippet: .*? -->\n```python\n(.*?)```", page, re.DOTALL)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), np.uint8)
    names = {"images": images}
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "export.md", "exec"), names)
    expected = predictor.open_predictor(directory / "model.safetensors").logits(images)
    np.testing.assert_allclose(names["logits"], expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("file", ["model.onnx", "model.c"])
def test_a_file_that_computes_something_else_is_an_error(file, report_runs, tmp_path, monkeypatch):
    if file == "model.c":
        need_compiler("cc", "-shared", "-fPIC")
    makes = {"model.onnx": (predictor, "of_onnx"), "model.c": (export, "of_c_source")}
    make = getattr(*makes[file])

    def shifted(*arguments):
        right = make(*arguments)
        return dataclasses.replace(right, logits=lambda x: np.roll(right.logits(x), 1, axis=1))

    monkeypatch.setattr(*makes[file], shifted)
    arguments = [str(report_runs["seed_0"]), str(tmp_path), "--no-evaluate", "--c"]
    with pytest.raises(SystemExit, match=rf"{file} gives another class than .* to 100% of the"):
        export.main(arguments)


def test_a_run_that_has_no_binary_filters_yet_is_refused(data_dir, tmp_path, one_device):
    config = digits_config(data_dir, num_epochs=2, binarize=BinarizeConfig(start_epoch=1))
    workdir = tmp_path / "run"
    train_and_evaluate(config, workdir)
    trained = read_trained(workdir)
    first = read_trained(workdir, trained.epoch["step"] // 2)
    assert (first.binary, trained.binary) == (False, True)
    with pytest.raises(InputError, match="no binary filters yet, after epoch 1; they start with"):
        export.model_of(first, (32, 32, 1))
    with pytest.raises(InputError, match=r"no checkpoint of a whole epoch at step 3; .* 44, 88"):
        read_trained(workdir, 3)


def test_what_a_reader_would_refuse_is_not_written(report_runs, tmp_path):
    trained = read_trained(report_runs["seed_0"])
    names = ["\udcff", *trained.data["class_names"][1:]]
    renamed = dataclasses.replace(trained, data=trained.data | {"class_names": names})
    with pytest.raises(InputError, match=r"class_names='\\udcff' is not text of up to 300"):
        export.model_of(renamed, (32, 32, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "out"], "nowhere is not the work directory of a run: it has no config.json"),
        ([".", "out"], ". is not the work directory of a run: it has no config.json"),
    ],
)
def test_what_is_no_run_is_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        export.main(arguments)
    assert str(stopped.value).startswith(f"mcn_jax.export: error: {message}")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def images(data_dir, tmp_path_factory):
    """Returns a directory of three test digits, two of them resized, and their test rows."""
    examples = open_dataset(digits_config(data_dir).data).test
    directory = tmp_path_factory.mktemp("images")
    pixels = examples.read(np.arange(3)).images[..., 0]
    Image.fromarray(pixels[0]).save(directory / "a.png")
    (directory / "below").mkdir()
    Image.fromarray(pixels[1]).resize((64, 64)).convert("RGB").save(directory / "below" / "b.png")
    Image.fromarray(pixels[2]).resize((48, 32)).save(directory / "below" / "c.jpg")
    return directory


@pytest.fixture(scope="module")
def model(report_runs, tmp_path_factory):
    """Returns the directory of an exported model."""
    out = tmp_path_factory.mktemp("model")
    export.export(report_runs["seed_0"], out, FLOAT32, {})
    return out


@pytest.mark.parametrize("file", ["model.safetensors", "model.onnx", "checkpoint"])
def test_predictions_of_images(file, model, images, report_runs, capsys):
    path = report_runs["seed_0"] if file == "checkpoint" else model / file
    predict.main([str(path), str(images), "--json", "--batch_size", "2"])
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["image"] for record in records] == [
        str(images / name) for name in ("a.png", "below/b.png", "below/c.jpg")
    ]
    logits = read_logits(model, images / "a.png")
    expected = np.exp(logits) / np.exp(logits).sum()
    top = records[0]["top"]
    assert [entry["index"] for entry in top] == np.argsort(-expected)[:5].tolist()
    assert [entry["class"] for entry in top] == [str(entry["index"]) for entry in top]
    np.testing.assert_allclose(
        [entry["probability"] for entry in top], np.sort(expected)[::-1][:5], rtol=1e-4
    )


def read_logits(model, image):
    predictor = predict.open_predictor(model / "model.safetensors")
    return predictor.logits(np.asarray(Image.open(image))[None, ..., None])[0].astype(np.float64)


def test_predictions_as_text(model, images, capsys):
    predict.main([str(model / "model.safetensors"), str(images / "a.png")])
    line = capsys.readouterr().out
    assert line.startswith(f"{images / 'a.png'}: ")
    assert line.count("%") == 5


def test_names_of_images_are_printed_as_they_are(model, images, tmp_path, capsys):
    for name in ("a:x:b.png", "[red]c.png"):
        shutil.copy(images / "a.png", tmp_path / name)
    shutil.copy(images / "a.png", os.fsencode(tmp_path) + b"/z\xff.png")
    sys.stdout.reconfigure(errors="backslashreplace")  # as `run_command` does
    predict.main([str(model / "model.safetensors"), str(tmp_path)])
    names = [line.partition(": ")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == [f"{tmp_path}/{name}" for name in ("[red]c.png", "a:x:b.png", r"z\udcff.png")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.png", None, "x.png does not exist; name images or directories of images"),
        ("x.png", b"no image", "x.png cannot be read as an image (its format is unknown)"),
        ("folder", None, "folder has no images"),
    ],
)
def test_an_image_that_cannot_be_used_is_one_line(name, content, message, model, tmp_path):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        predict.main([str(model / "model.safetensors"), str(path)])
    assert message in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_an_image_is_cut_as_in_training(images, model):
    spec = read_model(model / "model.safetensors").images
    path = images / "below" / "c.jpg"  # 48x32 pixels; the middle 32x32 are used
    with Image.open(path) as picture:
        expected = np.asarray(picture)[:, 8:40, None]
    np.testing.assert_array_equal(predict.read_image(path, spec), expected)
    half = dataclasses.replace(spec, center_crop=0.5)
    with Image.open(images / "a.png") as picture:
        expected = picture.resize((32, 32), Image.Resampling.BILINEAR, (8, 8, 24, 24))
    cut = predict.read_image(images / "a.png", half)
    np.testing.assert_array_equal(cut, np.asarray(expected)[..., None])


def test_an_image_of_another_shape_for_a_model_that_is_not_square(model, tmp_path):
    spec = dataclasses.replace(read_model(model / "model.safetensors").images, width=16)
    Image.new("L", (32, 32)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match="does not have the model's 32x16 pixels"):
        predict.read_image(tmp_path / "x.png", spec)


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
def test_the_readable_images_of_a_folder_are_predicted(json_flag, model, images, tmp_path, capsys):
    folder = tmp_path / "folder"
    shutil.copytree(images, folder)
    (folder / "b_text.png").write_text("no image")
    Image.new("L", (32, 32)).save(folder / "e.pgm")
    (folder / "notes.txt").write_text("no image")
    os.mkfifo(folder / "c_pipe.png")
    (folder / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as served:
        with contextlib.chdir(folder):  # the path of a socket must be short
            served.bind("d_socket.jpg")
        with pytest.raises(SystemExit) as stopped:
            predict.main(
                [str(model / "model.safetensors"), str(folder), "--batch_size=2", *json_flag]
            )
    out, err = capsys.readouterr()
    lines = out.splitlines()
    if json_flag:
        named = [pathlib.Path(json.loads(line)["image"]).name for line in lines]
    else:
        named = [pathlib.Path(line.partition(": ")[0]).name for line in lines]
    assert named == ["a.png", "b.png", "c.jpg", "e.pgm"]
    # Python prints such an exit code to stderr, and exits with 1.
    [text] = str(stopped.value).splitlines()
    assert text.startswith("mcn_jax.predict: error: ")
    assert f"{folder}/b_text.png cannot be read as an image (its format is unknown)" in text
    skipped = [line for line in err.splitlines() if line.startswith("skipped ")]
    assert skipped == [
        "skipped .txt files (1), a suffix that Pillow does not read as an image on this machine:"
        " notes.txt",
        "skipped pipes (1): c_pipe.png",
        "skipped sockets (1): d_socket.jpg",
    ]


@pytest.mark.parametrize("path", ["/dev/zero", "pipe"])
def test_a_device_or_pipe_is_not_read(path, model, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    with pytest.raises(SystemExit, match=f"{path} is a pipe, socket or device") as stopped:
        predict.main([str(model / "model.safetensors"), path, str(images / "a.png")])
    assert "\n" not in str(stopped.value)
    assert capsys.readouterr().out.startswith(f"{images / 'a.png'}: ")


def test_an_image_that_is_given_twice_is_predicted_twice(model, images, capsys):
    path = str(images / "a.png")
    predict.main([str(model / "model.safetensors"), path, path])
    first, second = capsys.readouterr().out.splitlines()
    assert first == second


def test_files_say_how_images_are_decoded(model, report_runs, images, tmp_path):
    """An image with transparency, stored sideways, is predicted alike by run, file and graph."""
    path = tmp_path / "x.png"
    with Image.open(images / "a.png") as picture:
        shown = np.asarray(picture)
    upright = np.dstack([np.zeros_like(shown), 255 - shown])  # the digit is its alpha
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.ascontiguousarray(np.rot90(upright)), "LA").save(path, exif=exif)
    for place in (report_runs["seed_0"], model / "model.safetensors", model / "model.onnx"):
        member = predictor.open_predictor(place)
        assert (member.images.background, member.images.exif_orientation) == (255, True)
        found = predict.read_image(path, member.images)
        np.testing.assert_array_equal(found[..., 0], shown)
