"""Tests the sizes and the rows of the tables that compare layers."""

import dataclasses
import pathlib

import comparison_tables
import pytest
import record_files
from comparison_tables import DIGITS, EQUAL_CHANNELS, RATES
from network_sizes import MultiplyAdds, multiply_adds, network_not_run, network_of_record, sizes

from exported import random_model
from mcn_jax import export
from mcn_jax.config import BinarizeConfig, Config, DataConfig, ModelConfig
from mcn_jax.deploy.model_file import write_model
from mcn_jax.layers.formats import FLOAT32
from mcn_jax.layers.table import LAYERS
from mcn_jax.models.plan import plan_of
from mcn_jax.workdirs.files import read_json, read_metrics
from mcn_jax.workdirs.trained import read_trained

FIXTURES = pathlib.Path(__file__).parent / "fixtures/v0_1"

# Of a network on 8x8 gray pixels: pixels x taps x inputs x outputs of both convolutions, and
# inputs x outputs of the dense layer.
FIRST, SECOND, DENSE = 64 * 9 * 1 * 4, 16 * 9 * 4 * 6, 24 * 10
SIGNED = MultiplyAdds(DENSE, FIRST + SECOND, 0)
SIGNS = MultiplyAdds(DENSE, FIRST, SECOND)


def counted(conv, num_centers=2, enabled=True, **fields):
    model = ModelConfig(**{"conv": conv, "widths": (2, 3), "planes": 2, "head": "linear"} | fields)
    binarize = BinarizeConfig(enabled=enabled, num_centers=num_centers)
    config = Config(model=model, binarize=binarize)
    return multiply_adds(plan_of(config, 10, (8, 8, 1)), config, enabled)


@pytest.mark.parametrize("conv", ["binaryconnect", "mcdonnell", "bwn", "irnet"])
def test_layers_with_one_bit_weights_multiply_floats_by_signs(conv):
    assert counted(conv) == SIGNED
    assert counted(conv, stem_conv="conv") == MultiplyAdds(DENSE + FIRST, SECOND, 0)
    assert counted(conv, enabled=False) == MultiplyAdds(DENSE + FIRST + SECOND, 0, 0)


@pytest.mark.parametrize("conv", ["bnn", "xnor", "xnor_without_k"])
def test_layers_that_take_signs_multiply_them_apart_from_the_image(conv):
    assert counted(conv) == SIGNS
    assert counted(conv, stem_conv="conv") == MultiplyAdds(DENSE + FIRST, 0, SECOND)
    assert counted(conv, enabled=False) == MultiplyAdds(DENSE + FIRST + SECOND, 0, 0)


def test_an_mcconv_multiplies_by_centers_once_per_map_and_then_by_m():
    # Two planes of the gray image enter, and each map has two planes.
    products = 64 * 9 * 2 * 2 + 16 * 9 * 4 * 3
    mix = 64 * 9 * 2 * 2 + 16 * 9 * 2 * 3
    assert counted("mcconv") == MultiplyAdds(DENSE + mix, products, 0)
    floats = MultiplyAdds(DENSE + mix + products, 0, 0)
    assert counted("mcconv", enabled=False) == counted("mcconv", num_centers=4) == floats


def test_anchors_count_as_signs_and_the_learned_convolution_as_float():
    learned = 64 * 4 * 4 + 16 * 6 * 6
    assert counted("lbc") == MultiplyAdds(DENSE + learned, FIRST + SECOND, 0)


def test_one_bit_dense_layers_multiply_by_signs():
    fields = {"head": "one_bit_dense", "dense_features": 5}
    dense = 24 * 5 + 5 * 5 + 5 * 10
    assert counted("bwn", **fields) == MultiplyAdds(0, FIRST + SECOND + dense, 0)
    assert counted("bnn", **fields) == MultiplyAdds(0, FIRST, SECOND + dense)
    # The last layer of XNOR-Net is float.
    hidden = fields | {"head": "one_bit_hidden"}
    assert counted("xnor", **hidden) == MultiplyAdds(50, FIRST, SECOND + dense - 50)


def test_filter_maps_count_as_the_filters_that_are_cut_out_of_them():
    fields = {"widths": (16, 16), "planes": 1}
    adds, dense = 64 * 9 * 16 + 16 * 9 * 16 * 16, 64 * 10
    floats = MultiplyAdds(dense + adds, 0, 0)
    for kind in ("filter_map_sign", "filter_map_kmeans"):
        assert counted(kind, **fields) == MultiplyAdds(dense, adds, 0)
        assert counted(kind, enabled=False, **fields) == floats
    assert counted("filter_map", **fields) == floats
    assert counted("filter_map_kmeans", num_centers=4, **fields) == floats


def test_an_ordinary_network_multiplies_floats():
    assert counted("conv") == MultiplyAdds(DENSE + FIRST + SECOND, 0, 0)


def test_the_sizes_of_the_networks_of_equal_bits():
    mcn, mcdonnell = (
        sizes(comparison_tables.recorded_network(f"equal_bits/{name}_seed?"))
        for name in ("mcn", "mcdonnell")
    )
    for found in (mcn, mcdonnell):
        assert found.activation_bits == 32
        stored = found.filter_bits + found.scale_bits + found.other_bits
        assert 8 * found.file_bytes > stored  # the header comes on top
    # The stem takes four planes of three colors. Then there are three stages of six layers.
    products, pixels = 0, 32 * 32
    for size, before, maps in ((pixels, 4, 4), (pixels // 4, 4, 8), (pixels // 16, 8, 16)):
        products += size * 9 * 4 * (before * maps + 5 * maps * maps)
    products += pixels * 9 * (3 * 4) * 4
    mix = 9 * 4 * (pixels * 4 * 7 + pixels // 4 * 8 * 6 + pixels // 16 * 16 * 6)
    assert mcn.multiply_adds == MultiplyAdds(mix + 64 * 10, products, 0)
    assert (mcn.filter_bits, mcn.channels) == (67_248, "16-16-32-64")
    assert (mcdonnell.filter_bits, mcdonnell.channels) == (67_032, "8-8-16-32")
    assert mcdonnell.scale_bits == 19 * 32
    assert mcdonnell.multiply_adds.floats == 32 * 10


def test_bnn_has_one_bit_activations_and_its_float_form_does_not():
    [bnn] = [one for one in EQUAL_CHANNELS if one.system == "bnn"]
    network = comparison_tables.planned_network(bnn)
    assert sizes(network).activation_bits == 1
    epoch = network.epoch | {"binarized": False}
    assert sizes(dataclasses.replace(network, epoch=epoch)).activation_bits == 32


@pytest.mark.parametrize("row", EQUAL_CHANNELS[1:], ids=lambda row: row.system)
def test_layers_of_one_row_have_the_same_sizes(row):
    found = []
    for name in row.system.split(", "):
        fields = {**row.fields, "model.conv": name}
        found.append(sizes(comparison_tables.planned_network(row._replace(fields=fields))))
    for size in found:
        # Files contain the name of the layer.
        assert size.file_bytes == pytest.approx(found[0].file_bytes, abs=16)
        assert size._replace(file_bytes=0) == found[0]._replace(file_bytes=0)


@pytest.mark.parametrize("name", ["mcn", "umcn"])
def test_the_bytes_are_those_of_the_exported_file(name, tmp_path):
    run = FIXTURES / name
    export.export(run, tmp_path, FLOAT32, {}, evaluate=False)
    metrics = read_metrics(run / "metrics.jsonl")
    network = network_of_record(read_json(run / "config.json"), metrics)
    assert network.epoch == read_trained(run).epoch
    assert sizes(network).file_bytes == (tmp_path / "model.safetensors").stat().st_size


DATA = {
    "full_name": "cifar10/1.0.0", "image_shape": [32, 32, 3], "train_examples": 50_000,
    "mean": [0.3, 0.4, 0.5], "std": [0.2, 0.3, 0.4], "class_names": list("abcde"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYERS)
def test_the_bytes_of_a_network_that_was_not_run_are_those_of_its_file(kind, tmp_path):
    num_centers = 2 if LAYERS[kind].quantizes else 0
    model, _, config = random_model(num_centers, channels=3, size=(32, 32), conv=kind)
    network = network_not_run(dataclasses.replace(config, data=DataConfig(name="cifar10")), DATA)
    provenance = {
        "epoch": 200, "step": 200 * 390, "test_accuracy": None, "git_revision": None,
        "data": {
            "name": "cifar10", "train_split": "train", "test_split": "test", "test_fraction": 0.2,
            "split_seed": 0, "full_name": "cifar10/1.0.0",
        },
    }  # fmt: skip
    images = dataclasses.replace(model.images, background=255, exif_orientation=True)
    model = dataclasses.replace(model, provenance=provenance, images=images)
    write_model(model, tmp_path / "model.safetensors")
    assert sizes(network).file_bytes == (tmp_path / "model.safetensors").stat().st_size


def rows(table):
    """Returns {first cell: other cells} of a table in Markdown."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return {first.strip("`"): others for first, *others in lines}


def test_every_layer_has_a_row_on_digits():
    found = rows(comparison_tables.digits_table())
    assert list(found) == list(LAYERS)
    recorded = {kind for kind in LAYERS if record_files.has_run(f"{DIGITS}/{kind}_*")}
    assert {kind for kind, cells in found.items() if "not run" not in cells} == recorded


def test_a_new_layer_has_not_run_on_digits(monkeypatch):
    monkeypatch.setitem(LAYERS, "new", LAYERS["conv"])
    assert "not run" in rows(comparison_tables.digits_table())["new"]


RECORDED = sorted(
    {line["name"].split("_seed")[0] for line in record_files.sweep_lines(
        record_files.RESULTS / f"{DIGITS}.jsonl") if "_seed" in line["name"]}
)  # fmt: skip


@pytest.mark.parametrize("kind", RECORDED)
def test_a_layer_learns_digits_at_the_rate_that_validation_chose(kind):
    runs = record_files.stored_runs(f"{DIGITS}/{kind}_seed?")
    assert sorted(run.config["seed"] for run in runs) == [0, 1, 2]
    trials = {
        rate: record_files.stored_runs(f"{DIGITS}/{kind}_validation_{rate}")[0] for rate in RATES
    }
    best = max(trials, key=lambda rate: trials[rate].result["final_test_accuracy"])
    for run in runs:
        assert run.result["final_test_accuracy"] >= 0.97
        assert run.result["test_examples"] == 360
        # Apart from its data, its seed and its rate, it is the run of each trial.
        for rate, trial in trials.items():
            data = {"data.train_split": "train[:90%]", "data.test_split": "train[90%:]"}
            expected = run.config | data | {"seed": 0, "optimizer.learning_rate": float(rate)}
            assert trial.config == expected
        assert run.config["optimizer.learning_rate"] == float(best)
        assert (run.config["model.conv"], run.config["data.test_split"]) == (kind, "test")
