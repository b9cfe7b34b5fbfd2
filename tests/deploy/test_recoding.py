"""Tests files whose numbers are not float32: --scales, --small, and files made from files."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from c_programs import logits_from_c, relative_difference
from exported import random_images, random_model
from mcn_jax import evaluate, export, inspect_checkpoint, predict
from mcn_jax.deploy.c_source import c_source
from mcn_jax.deploy.model_file import parts, read_model, write_model
from mcn_jax.deploy.onnx import onnx_model, write_onnx
from mcn_jax.deploy.predictor import of_model, of_onnx
from mcn_jax.deploy.recoding import Saving, recoded, savings
from mcn_jax.errors import InputError
from mcn_jax.layers.formats import FLOAT32, SMALLEST, Formats

SCALES = ("scale", "offset", "m_filters", "scales")
NETWORKS = {
    "simple_cnn": {},
    "four centers": {"num_centers": 4, "planes": 8, "head": "linear"},
    "wide_resnet": {"name": "wide_resnet", "channels": 3},
    "U-MCN": {"num_centers": 0},
    "scale per filter": {"conv": "bwn", "head": "linear", "channels": 3},
    "one scale per layer": {"conv": "mcdonnell", "channels": 3},
    "signs": {"conv": "xnor", "head": "one_bit_hidden", "planes": 2},
    "powers of two": {"conv": "irnet", "channels": 3},
    "resnet": {"name": "resnet", "conv": "bwn", "planes": 1, "head": "conv", "channels": 3},
    "lbcnn": {
        "name": "lbcnn", "widths": (4,), "depth": 2, "conv": "lbc", "num_centers": 0,
        "stem_conv": "conv", "planes": 1,
    },
}  # fmt: skip


def rounded(model):
    """Returns a model whose tensors are float32, with the values that `SMALLEST` leaves of them."""
    tensors = {}
    for name, tensor in model.tensors.items():
        layer, _, leaf = name.rpartition("/")
        if leaf in SCALES:
            tensor = tensor.astype(np.float16).astype(np.float32)
        elif leaf == "kernel" and layer.startswith("dense"):
            # As many steps as int8 has on both sides of zero.
            step = np.abs(tensor).max(axis=0) / np.float32(127)
            tensor = np.rint(tensor / step) * step
        tensors[name] = tensor
    return dataclasses.replace(model, tensors=tensors)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_smallest_file_computes_with_the_rounded_numbers(name, tmp_path):
    """What is computed with rounded numbers is computed in float32, as if they had been trained."""
    exact, _, _ = random_model(**NETWORKS[name])
    small, _, _ = random_model(**NETWORKS[name], **SMALLEST._asdict())
    images = random_images(9, exact)
    expected, before = (of_model(m).logits(images) for m in (rounded(exact), exact))
    write_model(small, tmp_path / "model.safetensors")
    read = read_model(tmp_path / "model.safetensors")
    logits = of_model(read).logits(images)
    assert relative_difference(logits, expected) <= 1e-5
    assert relative_difference(logits, before) > 1e-5  # rounding has changed something
    found = {name: tensor.dtype.name for name, tensor in read.tensors.items()}
    assert found == {name: tensor.dtype.name for name, tensor in small.tensors.items()}
    for tensor, dtype in found.items():
        leaf = tensor.rpartition("/")[2]
        assert (dtype == "float16") == (leaf in SCALES), tensor


@pytest.mark.parametrize("name", ["four centers", "wide_resnet", "scale per filter", "signs"])
def test_graphs_and_c_source_agree_with_the_smallest_file(name, tmp_path):
    pytest.importorskip("onnxruntime")
    model, _, _ = random_model(**NETWORKS[name], **SMALLEST._asdict())
    # With negative offsets, a ReLU may leave nothing.
    tensors = {n: abs(t) if n.endswith("/offset") else t for n, t in model.tensors.items()}
    model = dataclasses.replace(model, tensors=tensors)
    images = random_images(4, model)
    expected = of_model(model).logits(images)
    write_onnx(model, tmp_path / "model.onnx")
    logits = of_onnx(tmp_path / "model.onnx").logits(images)
    assert relative_difference(logits, expected) <= 1e-5
    held = {tensor.name: tensor for tensor in onnx_model(model).graph.initializer}
    for tensor in (n for n in tensors if n.rpartition("/")[2] in SCALES):
        assert len(held[tensor].raw_data) == tensors[tensor].nbytes
    logits = logits_from_c(c_source(model), tmp_path, images)
    assert relative_difference(logits, expected) <= 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_that_is_made_from_a_file_is_that_of_the_run(name):
    exact, _, _ = random_model(**NETWORKS[name])
    for formats in (FLOAT32, SMALLEST, Formats("float16")):
        expected, _, _ = random_model(**NETWORKS[name], **formats._asdict())
        for made in (recoded(exact, formats), recoded(expected, formats)):
            assert made.tensors.keys() == expected.tensors.keys()
            for tensor, value in expected.tensors.items():
                np.testing.assert_array_equal(made.tensors[tensor], value, strict=True)


def test_numbers_that_were_rounded_cannot_be_stored_otherwise():
    model, _, _ = random_model(dense="int8")
    message = "the layer dense_1 is no longer stored in float32, so its format cannot be changed"
    with pytest.raises(InputError, match=message):
        recoded(model, Formats(dense="float16"))
    assert recoded(model, FLOAT32).tensors["dense_1/kernel"].dtype == np.int8
    halved = recoded(model, Formats(scales="float16"))
    assert halved.tensors["dense_1/kernel"].dtype == np.int8
    assert halved.tensors["conv_1/m_filters"].dtype == np.float16


@pytest.mark.parametrize(
    ("name", "formats", "message"),
    [
        ("batch_norm_2/offset", Formats(scales="float16"),
         "values of a batch norm are beyond float16; use --scales=float32"),
        ("conv_1/m_filters", Formats(scales="float16"), "M-filters are beyond float16; use --sc"),
        ("dense_1/kernel", Formats(dense="float16"),
         "weights of a dense layer are beyond float16; use --dense=float32 or int8"),
    ],
)  # fmt: skip
def test_numbers_beyond_float16_are_refused(name, formats, message):
    model, _, _ = random_model()
    large = np.full_like(model.tensors[name], 70_000)
    model = dataclasses.replace(model, tensors={**model.tensors, name: large})
    with pytest.raises(InputError, match=message):
        recoded(model, formats)


def test_what_smaller_choices_save():
    exact, _, _ = random_model()  # layers of 2 and 3 maps with 4 planes; 192 and 16 features
    found = savings(exact)
    weights, outputs = 192 * 16 + 16 * 5, 16 + 5
    assert found == {
        "--dense=int8": Saving(
            ("dense layers",), 4 * (weights + outputs), weights + 4 * 2 * outputs
        ),
        "--scales=float16": Saving(
            ("M-filters", "batch norm"), 4 * (2 * 36 + 2 * 20), 2 * (2 * 36 + 2 * 20)
        ),
    }
    for option, formats in {
        "--dense=int8": Formats(dense="int8"), "--scales=float16": Formats(scales="float16")
    }.items():  # fmt: skip
        changed = recoded(exact, formats)
        sizes = {part: size for part, (size, _) in parts(changed).items()}
        assert sum(sizes[part] for part in found[option].parts) == found[option].smaller
        assert savings(changed) == {o: s for o, s in found.items() if o != option}
    assert savings(recoded(exact, SMALLEST)) == {}
    assert list(savings(recoded(exact, Formats("float16")))) == ["--scales=float16"]


def test_the_command_exports_the_smallest_files(report_runs, tmp_path, capsys):
    run = str(report_runs["seed_0"])
    export.main([run, str(tmp_path / "plain")])
    printed = capsys.readouterr().out.splitlines()
    lines = [line for line in printed if line.startswith("--")]
    dense = next(line for line in printed if "dense layers" in line and "│" in line)
    bytes_there = dense.split("│")[2].strip()
    assert lines[0].startswith("--dense=int8 would store dense layers in ")
    assert lines[0].endswith(f" bytes instead of {bytes_there}")
    assert lines[1].startswith("--scales=float16 would store M-filters and batch norm in 240 bytes")
    assert lines[2] == "--small chooses --dense=int8 and --scales=float16"

    export.main([run, str(tmp_path / "small"), "--small", "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["savings"] == {}
    assert record["parts"]["M-filters"]["bytes"] == 2 * 2 * 36
    assert record["parts"]["batch norm"]["bytes"] == 2 * 2 * (2 + 4) * 4
    # M and batch norm have an error of 2^-11, and int8 of 1/254 of a column's largest weight.
    assert 1e-5 < record["model.safetensors"]["difference"] < 0.03
    assert record["model.onnx"]["accuracy"] == record["model.safetensors"]["accuracy"]
    assert abs(record["checkpoint"]["accuracy"] - record["model.safetensors"]["accuracy"]) <= 0.01
    model = read_model(tmp_path / "small/model.safetensors")
    assert model.tensors["dense_1/kernel"].dtype == np.int8
    assert model.tensors["batch_norm_1/scale"].dtype == np.float16

    export.main([run, str(tmp_path / "half"), "--small", "--dense=float16", "--no-evaluate"])
    half = read_model(tmp_path / "half/model.safetensors")
    assert half.tensors["dense_1/kernel"].dtype == half.tensors["conv_1/m_filters"].dtype
    capsys.readouterr()


def test_a_file_is_exported_again(report_runs, tmp_path, monkeypatch, capsys):
    # A file does not say where its data lie. In a new home, a command prepares them first.
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run = str(report_runs["seed_0"])
    export.main([run, str(tmp_path / "plain"), "--no-evaluate"])
    export.main([run, str(tmp_path / "small"), "--small", "--no-evaluate"])
    capsys.readouterr()
    given = tmp_path / "plain" / "model.safetensors"
    export.main([str(given), str(tmp_path / "again"), "--small", "--json"])
    printed = capsys.readouterr()
    assert printed.err.startswith("preparing digits in ")
    record = json.loads(printed.out)
    again, small = (tmp_path / name / "model.safetensors" for name in ("again", "small"))
    assert again.read_bytes() == small.read_bytes()
    assert record["given file"]["bytes"] == given.stat().st_size
    assert record["given file"]["accuracy"] == record["provenance"]["test_accuracy"]
    for name in ("model.safetensors", "model.onnx"):
        assert 1e-5 < record[name]["difference"] < 0.03
    monkeypatch.setenv("HOME", str(tmp_path / "other_home"))
    evaluate.main([str(given), "--json"])
    printed = capsys.readouterr()
    assert printed.err.startswith("preparing digits in ")
    assert json.loads(printed.out)["accuracy"] == record["given file"]["accuracy"]
    export.main([str(given), str(tmp_path / "random"), "--no-evaluate"])
    assert "compared with the given file on 64 generated" in " ".join(
        capsys.readouterr().out.split()
    )
    with pytest.raises(SystemExit, match="would be overwritten; name another directory"):
        export.main([str(given), str(tmp_path / "plain")])
    with pytest.raises(SystemExit, match="the layer dense_1 is no longer stored in float32"):
        export.main([str(small), str(tmp_path / "other"), "--dense=float16"])
    assert not (tmp_path / "other").exists()


def test_a_file_of_an_older_version_is_exported_as_a_new_one(tmp_path, capsys):
    old = "tests/fixtures/v0_1/mcn_export/model.safetensors"
    export.main([old, str(tmp_path), "--no-evaluate", "--json"])
    record = json.loads(capsys.readouterr().out)
    before, after = read_model(old), read_model(tmp_path / "model.safetensors")
    assert record["model.safetensors"]["difference"] == 0
    assert record["model.safetensors"]["bytes"] < record["given file"]["bytes"]
    assert before.tensors.keys() == after.tensors.keys()
    for name, tensor in before.tensors.items():
        np.testing.assert_array_equal(after.tensors[name], tensor, strict=True)
    assert before.images == after.images
    assert before.network == after.network


def test_commands_take_the_smallest_file(tmp_path, capsys):
    model, _, _ = random_model(**SMALLEST._asdict())
    path = tmp_path / "model.safetensors"
    write_model(model, path)
    inspect_checkpoint.main([str(path), "--json"])
    description = json.loads(capsys.readouterr().out)
    first = description["layers"][0]
    m_filters = model.tensors["conv_1/m_filters"].astype(np.float32)
    assert first["m_min"] == pytest.approx(float(m_filters.min()))
    assert first["m_and_center_bits"] == 16 * 36 + 32 * 2
    assert description["totals"]["bits"] == sum(
        8 * t.nbytes if not name.endswith("/bits") else {"conv_1": 72, "conv_2": 216}[name[:6]]
        for name, t in model.tensors.items()
    )
    inspect_checkpoint.main([str(path), "--html", str(tmp_path / "page.html")])
    inspect_checkpoint.main([str(path), "--compare", str(path)])
    capsys.readouterr()
    image = tmp_path / "image.png"
    Image.fromarray(random_images(1, model)[0, ..., 0]).save(image)
    predict.main([str(path), str(image), "--json"])
    top = json.loads(capsys.readouterr().out)["top"]
    logits = of_model(model).logits(random_images(1, model))[0]
    assert top[0]["index"] == int(logits.argmax())
