"""Tests the NumPy-only reader of model files."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from exported import random_images, random_model
from mcn_jax.deploy.model_file import read_model, write_model
from mcn_jax.deploy.predictor import of_model

READER = pathlib.Path(__file__).parents[1] / "examples" / "read_model.py"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_centers": 3, "image_size": 21},
        {"size": (12, 20), "image_size": 21},
        {"size": (12, 20)},
        {"num_centers": 4, "planes": 8, "dense": "int8"},
        {"num_centers": 9, "dense_features": 1024, "dense": "int8", "scales": "float16"},
        {"head": "linear", "dense": "float16", "scales": "float16"},
        {"input_planes": "rgbx", "channels": 3, "dense": "float16"},
        {"input_planes": "first", "channels": 3},
        {"plane_signs": "hadamard", "planes": 8},
        {"plane_signs": "quaternion", "channels": 3},
        {"plane_signs": "circulant", "num_centers": 3},
        {"conv": "mcdonnell", "channels": 3},
        {"conv": "bwn", "channels": 3, "dense": "int8", "scales": "float16"},
        {"conv": "irnet", "planes": 2},
        {"conv": "filter_map", "num_centers": 0, "widths": (32, 40), "planes": 2, "channels": 3},
        {"conv": "filter_map_sign", "widths": (32, 72), "planes": 1, "channels": 3},
        {"conv": "filter_map_kmeans", "num_centers": 3, "channels": 3},
    ],
)
def test_the_numpy_reader_agrees(fields, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(READER.parent)
    import read_model as reader

    model, _, _ = random_model(**fields)
    path = tmp_path / "model.safetensors"
    write_model(model, path)
    images = random_images(6, model)
    expected = of_model(read_model(path)).logits(images)
    logits = reader.logits(*reader.read(path), images)
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


def test_the_command_prints_a_class_an_image(tmp_path):
    model, _, _ = random_model()
    path, images = tmp_path / "model.safetensors", random_images(6, model)
    write_model(model, path)
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, READER, path, tmp_path / "images.npy"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    expected = [model.class_names[i] for i in of_model(model).logits(images).argmax(1)]
    assert printed.split() == expected


def test_the_reader_needs_numpy_alone():
    lines = READER.read_text().splitlines()
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert imports == [
        "import json", "import math", "import pathlib", "import sys", "import numpy as np"
    ]  # fmt: skip


def test_nothing_is_read_with_pickle():
    """Pickle can run code from a file, so checkpoints, models and data must load without it."""
    package = READER.parents[1]
    for directory in ("mcn_jax", "examples", "launch", "results", "benchmarks", "configs"):
        for path in (package / directory).rglob("*.py"):
            text = path.read_text()
            for word in (
                r"import pickle\b",
                r"from pickle import",
                r"\b_pickle\b",
                r"cloudpickle",
                r"\bdill\b",
                r"pickle\.load",
                r"read_pickle",
                r"allow_pickle\s*=\s*True",
                r"torch\.load",
                r"joblib",
            ):
                assert not re.search(word, text), (path, word)
