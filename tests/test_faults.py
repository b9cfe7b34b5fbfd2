"""Tests that the seeded faults of the mutation check still fit the code."""

import pathlib
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FAULTS = tomllib.loads((ROOT / "tests" / "mutation" / "faults.toml").read_text())


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_changes_a_line_that_exists_once_and_names_tests_that_exist(name):
    fault = FAULTS[name]
    assert (ROOT / fault["file"]).read_text().count(fault["old"]) == 1
    assert fault["old"] != fault["new"]
    assert all((ROOT / tests).is_file() for tests in fault["tests"])
