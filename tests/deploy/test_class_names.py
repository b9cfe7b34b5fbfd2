"""Tests that class names reach model files, predictions and pictures exactly, and escaped there."""

import dataclasses
import json
import pathlib
import warnings

import numpy as np
import pytest
from PIL import Image

from exported import random_model
from mcn_jax import evaluate, predict
from mcn_jax.deploy.model_file import write_model
from mcn_jax.deploy.onnx import write_onnx
from mcn_jax.deploy.predictor import open_predictor
from mcn_jax.reports import figures
from mcn_jax.training import metrics
from mcn_jax.training.evaluation import measures

NAMES = {
    "line break": ("a\nb", "a\tb", "a", "b", "a\\nb"),
    "spelling": ("\u00e9", "e\u0301", "\u212b", "\u00c5", "A\u030a"),
    "spaces": ("a", " a", "a ", "a\xa0", " "),
    "numbers": ("007", "7", "1e3", "0x7", "-1"),
    "signs": ("\u202ea", "\x1b[2J", "\U0001f600", "\u2764\ufe0f", "\u2764"),
    "markup": ("[red]", "$x^2$", ":x:", "%0A", '"'),
}


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("suffix", ["safetensors", "onnx"])
def test_names_in_files_and_predictions_are_exact(kind, suffix, tmp_path, capsys):
    if suffix == "onnx":
        pytest.importorskip("onnxruntime")
    model, *_ = random_model(num_centers=0, widths=(1,), dense_features=4)
    model = dataclasses.replace(model, class_names=NAMES[kind])
    path = tmp_path / f"model.{suffix}"
    (write_onnx if suffix == "onnx" else write_model)(model, path)
    assert open_predictor(path).class_names == NAMES[kind]
    Image.new("L", (16, 16), 77).save(tmp_path / "x.png")
    predict.main([str(path), str(tmp_path / "x.png"), "--json"])
    [record] = map(json.loads, capsys.readouterr().out.splitlines())
    assert [NAMES[kind][entry["index"]] for entry in record["top"]] == [
        entry["class"] for entry in record["top"]
    ]
    predict.main([str(path), str(tmp_path / "x.png")])
    [line] = capsys.readouterr().out.split("\n")[:-1]
    assert line.isprintable()
    assert len({part.rpartition(" ")[0] for part in line.split(": ", 1)[1].split(", ")}) == 5


@pytest.mark.parametrize("kind", NAMES)
def test_tables_show_each_name_on_one_line(kind, capsys):
    names = NAMES[kind]
    labels = np.arange(5)
    found = measures(np.eye(5, dtype=np.float32), labels, names)
    evaluate._print(found, "title", as_json=False)
    rows = [line for line in capsys.readouterr().out.split("\n") if "100.00%" in line]
    cells = [row.split("│")[1].strip() for row in rows[:5]]
    assert len(rows) == 6
    assert len(set(cells)) == 5
    assert all(cell.isprintable() for cell in cells)
    evaluate._print(found, "title", as_json=True)
    [line] = capsys.readouterr().out.split("\n")[:-1]
    assert [record["class"] for record in json.loads(line)["classes"]] == list(names)
    result = dict.fromkeys(
        ("final_test_accuracy", "best_test_accuracy", "test_examples", "filter_bits",
         "float32_filter_bits", "wall_seconds"), 1,
    )  # fmt: skip
    metrics.print_result(result | {"class_names": list(names)}, pathlib.Path("x"))
    out = capsys.readouterr().out
    assert ", ".join(cells) in out
    assert all(line.isprintable() for line in out.split("\n"))


@pytest.mark.parametrize("kind", NAMES)
def test_names_are_drawn_without_a_warning(kind, tmp_path):
    figure = figures.confusion(np.eye(5, dtype=int), NAMES[kind])
    drawn = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(set(drawn)) == 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.save(figure, tmp_path / "confusion", formats=("png",))
