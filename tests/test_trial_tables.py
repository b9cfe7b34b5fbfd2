"""Tests the tables of trials: gains over the usual recipe, and their standard errors."""

import json

import pytest
import record_files
import trial_tables
from comparison_tables import recorded_network
from network_sizes import sizes

ACCURACIES = {
    "usual": {0: 70.0, 1: 72.0, 2: 71.0},
    "quaternion": {0: 73.0, 1: 73.0, 2: 75.0},  # gains 3, 1 and 4
    "late": {1: 72.5},
}


@pytest.fixture
def trials(tmp_path, monkeypatch):
    """Replaces the trials by records with `ACCURACIES`; the fields are those of stored ones."""
    stored = {
        line["name"]: line
        for line in record_files.sweep_lines(record_files.RESULTS / "planes.jsonl")
    }
    path = tmp_path / "planes.jsonl"
    for name, accuracies in ACCURACIES.items():
        for seed, accuracy in accuracies.items():
            line = json.loads(json.dumps(stored[f"{name if name != 'late' else 'usual'}_seed0"]))
            line["name"] = f"{name}_seed{seed}"
            line["config"]["config"]["seed"] = line["result"]["seed"] = seed
            line["result"]["final_test_accuracy"] = accuracy / 100
            record_files.write_sweep_line(path, line)
    monkeypatch.setattr(record_files, "RESULTS", tmp_path)
    return trial_tables.planes_table().splitlines()[2:]


def test_gains_are_those_of_equal_seeds(trials):
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in trials]
    assert [row[:4] for row in cells] == [
        ["`quaternion`", "`model.plane_signs=quaternion`", "73.67 ± 1.15 (n = 3)", "+2.67 ± 0.88"],
        ["`late`", "", "72.50 (n = 1)", "+0.50"],
        ["`usual`", "", "71.00 ± 1.00 (n = 3)", ""],
    ]


def test_a_pattern_of_planes_multiplies_as_an_ordinary_layer(trials):
    """At 4-4-8-16 maps of 4 planes: 18 convolutions after the stem, and the dense layer."""
    maps = [4, 4, *5 * [4], 8, *5 * [8], 16, *5 * [16]]
    pixels = [*7 * [32 * 32], *6 * [16 * 16], *6 * [8 * 8]]
    pairs = zip([3, *maps], maps, strict=False)
    channels = [
        (16 * given * taken, size) for (given, taken), size in zip(pairs, pixels, strict=True)
    ]
    del trials
    expected = sum(9 * pair * size for pair, size in channels) + 64 * 10
    found = sizes(recorded_network("planes/quaternion_seed?"))
    assert sum(found.multiply_adds) == expected
