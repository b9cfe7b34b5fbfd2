"""Tests every layer that MCN is compared with in whole runs on digits."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from mcn_jax import export, inspect_checkpoint, report
from mcn_jax.config import BinarizeConfig, LossConfig, ModelConfig, OptimizerConfig
from mcn_jax.deploy.model_file import read_model
from mcn_jax.errors import InputError
from mcn_jax.layers.filter_map import FAMILIES as FILTER_MAP
from mcn_jax.layers.formats import FLOAT32
from mcn_jax.layers.table import LAYERS
from mcn_jax.ops import one_bit
from mcn_jax.training.metrics import MetricsWriter
from mcn_jax.training.num_epochs import check_num_epochs
from mcn_jax.training.run import train_and_evaluate
from mcn_jax.workdirs.checkpoint import Checkpoints
from mcn_jax.workdirs.files import read_metrics
from small_runs import STEPS_PER_EPOCH, digits_config, without_times

KINDS = [name for name in LAYERS if name not in ("mcconv", "conv")]
# bwn_released subtracts the mean over input channels, which a gray image has only one of.
STEMS = {"bwn_released": "conv"}


def config_of(kind, data_dir="", num_epochs=2, **fields):
    config = digits_config(data_dir, num_epochs=num_epochs)
    model = ModelConfig(
        conv=kind, stem_conv=STEMS.get(kind, ""), widths=(8, 16, 16), planes=1, head="linear"
    )
    binarize = BinarizeConfig(start_epoch=0)
    # The mean gradient of a filter map is short.
    scale = 4.0 if kind in FILTER_MAP else 1.0
    optimizer = dataclasses.replace(config.optimizer, filter_map_rate_scale=scale)
    return dataclasses.replace(
        config, model=model, binarize=binarize, optimizer=optimizer, **fields
    )


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


EPOCHS = 12


def whole_config(kind, data_dir):
    """Returns the config of the run that all slow tests of a kind share.

    They share its compiled programs, too, because compilation is most of their time.
    """
    return config_of(kind, data_dir, num_epochs=EPOCHS, log_every_steps=1)


@pytest.fixture(scope="module")
def runs(shared_run_and_copy, data_dir, kind):
    """Returns the directories of a run on one device, and of its copy before the last epoch."""
    return shared_run_and_copy(
        f"compared_{kind}", whole_config(kind, data_dir), (EPOCHS - 1) * STEPS_PER_EPOCH
    )


@pytest.fixture(scope="module")
def run(runs):
    """Returns the work directory of a run of 12 epochs on one device."""
    return runs.whole


def filter_weights(kind):
    if kind in FILTER_MAP:  # maps of 8x4 pixels and 1, 8 and 16 channels
        return 8 * 4 * (1 + 8 + 16)
    first = 0 if kind in STEMS else 9 * 8
    return first + 9 * (8 * 16 + 16 * 16)


@pytest.mark.slow
def test_it_learns_digits(run, kind):
    result = json.loads((run / "result.json").read_text())
    # One-bit activations cost more than one-bit weights in a network this narrow.
    least = 0.85 if LAYERS[kind].takes_signs else 0.95
    assert result["final_test_accuracy"] > least
    if LAYERS[kind].quantizes:
        stem_bits = 32 * 9 * 8 if kind in STEMS else 0
        assert result["filter_bits"] == filter_weights(kind) + stem_bits
    records = read_metrics(run / "metrics.jsonl")
    assert all(r["binarized"] == LAYERS[kind].quantizes for r in records if r["kind"] == "epoch")


@pytest.mark.slow
def test_its_files_agree_with_its_checkpoint(run, kind, tmp_path, capsys):
    result = export.export(run, tmp_path / "out", FLOAT32, {})
    accuracy = json.loads((run / "result.json").read_text())["final_test_accuracy"]
    for file in ("model.safetensors", "model.onnx"):
        assert result[file]["accuracy"] == accuracy
        assert result[file]["difference"] < 1e-4
    for place in (run, tmp_path / "out" / "model.safetensors"):
        inspect_checkpoint.main([str(place), "--json"])
        layers = {one["layer"]: one for one in json.loads(capsys.readouterr().out)["layers"]}
        assert layers["conv_1"]["kind"] == LAYERS[STEMS.get(kind, kind)].kind
        assert layers["conv_2"]["kind"] == LAYERS[kind].kind
    inspect_checkpoint.main([str(run), "--html", str(tmp_path / "page.html")])
    if LAYERS[kind].quantizes:
        inspect_checkpoint.main([str(run), "--compare", str(run)])
    report.main([str(run), "--out", str(tmp_path / "report")])
    assert kind in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.slow
def test_it_resumes_bit_for_bit(runs, kind, data_dir, tmp_path, one_device):
    check_resuming(whole_config(kind, data_dir), runs, tmp_path)


def check_resuming(config, runs, tmp_path):
    """Checks that a run that was left before its last epoch ends as the uninterrupted run."""
    shutil.copytree(runs.copy, tmp_path / "resumed")
    assert not (tmp_path / "resumed" / "result.json").exists()
    train_and_evaluate(config, tmp_path / "resumed")
    digests, records = [], []
    for workdir in (runs.whole, tmp_path / "resumed"):
        checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
        last = checkpoints.steps()[-1]
        assert last == config.num_epochs * STEPS_PER_EPOCH
        digests.append(checkpoints.digests(last))
        checkpoints.close()
        records.append(without_times(read_metrics(workdir / "metrics.jsonl")))
    assert digests[0] == digests[1]
    assert records[0] == records[1]


# Layers of systems with one-bit dense layers, and their heads.
DENSE = {"binaryconnect": "one_bit_dense", "bnn": "one_bit_dense", "xnor": "one_bit_hidden"}


def dense_config(kind, data_dir, num_epochs):
    """Returns the config of a small network of BinaryConnect, BNN or XNOR-Net and its recipe."""
    is_xnor = kind == "xnor"
    model = ModelConfig(
        name="convnet", conv=kind, stem_conv="conv" if is_xnor else "", planes=1,
        widths=(16, 16, 32), head=DENSE[kind], dense_features=64,
    )  # fmt: skip
    return dataclasses.replace(
        digits_config(data_dir, num_epochs=num_epochs),
        model=model,
        binarize=BinarizeConfig(start_epoch=0),
        loss=LossConfig(data="softmax" if is_xnor else "squared_hinge"),
        optimizer=OptimizerConfig(
            name="adam", learning_rate=0.01 if is_xnor else 0.003, weight_decay=0.0,
            schedule="exponential",
        ),
    )  # fmt: skip


DENSE_EPOCHS = 8


@pytest.fixture(scope="module", params=DENSE)
def dense_runs(request, shared_run_and_copy, data_dir):
    """Returns (kind, the directories of a run on one device and of its copy)."""
    kind = request.param
    config = dense_config(kind, data_dir, DENSE_EPOCHS)
    copied_after = (DENSE_EPOCHS - 1) * STEPS_PER_EPOCH
    return kind, shared_run_and_copy(f"dense_{kind}", config, copied_after)


@pytest.fixture(scope="module")
def dense_run(dense_runs):
    """Returns (kind, work directory of a run of 8 epochs on one device)."""
    kind, runs = dense_runs
    return kind, runs.whole


@pytest.mark.slow
def test_one_bit_dense_layers_learn_digits(dense_run):
    kind, run = dense_run
    result = json.loads((run / "result.json").read_text())
    # One-bit activations cost more than one-bit weights in a network this narrow.
    assert result["final_test_accuracy"] > (0.85 if LAYERS[kind].takes_signs else 0.95)
    weights = 9 * (16 + 16 * 16 + 16 * 16 + 16 * 16 + 16 * 32 + 32 * 32)
    stem_bits = 31 * 9 * 16 if kind == "xnor" else 0
    assert result["filter_bits"] == weights + stem_bits
    records = read_metrics(run / "metrics.jsonl")
    [last] = [r for r in records if r["kind"] == "health" and r["epoch"] == 7]
    for name in ("dense_1", "dense_2"):
        assert 0 < last[f"{name}/flip_ratio"] < 0.5
    assert ("dense_3/flip_ratio" in last) == (kind != "xnor")


@pytest.mark.slow
def test_files_of_one_bit_dense_layers_agree_with_the_checkpoint(dense_run, tmp_path):
    kind, run = dense_run
    result = export.export(run, tmp_path / "out", FLOAT32, {})
    accuracy = json.loads((run / "result.json").read_text())["final_test_accuracy"]
    for file in ("model.safetensors", "model.onnx"):
        assert result[file]["accuracy"] == accuracy
        assert result[file]["difference"] < 1e-4
    tensors = read_model(tmp_path / "out" / "model.safetensors").tensors
    # Digits have 32x32 pixels, halved three times.
    weights = {"dense_1": 4 * 4 * 32 * 64, "dense_2": 64 * 64, "dense_3": 64 * 10}
    if kind == "xnor":
        assert tensors["dense_3/kernel"].shape == (64, 10)
        del weights["dense_3"]
    for name, count in weights.items():
        assert tensors[f"{name}/bits"].nbytes == count // 8
        assert tensors[f"{name}/scales"].size == (64 if kind == "xnor" else 1)
        assert f"{name}/kernel" not in tensors


@pytest.mark.slow
def test_one_bit_dense_layers_resume_bit_for_bit(dense_runs, data_dir, tmp_path, one_device):
    kind, runs = dense_runs
    check_resuming(dense_config(kind, data_dir, DENSE_EPOCHS), runs, tmp_path)


def test_the_rates_of_an_exponential_schedule_depend_on_the_number_of_epochs(tmp_path):
    config = dense_config("bnn", "", num_epochs=2)
    message = r"config.optimizer.schedule='exponential'; when it has ended, start another run"
    with pytest.raises(InputError, match=message):
        check_num_epochs(
            tmp_path, config, dataclasses.replace(config, num_epochs=3), STEPS_PER_EPOCH
        )


# Devices share gradients and batch statistics by code that all layers have in common. So one layer
# of each kind of computation and state is enough: the others differ from these only in the rule for
# the filters and their gradient, which each device follows alone and tests/ops checks.
ON_EIGHT_DEVICES = (
    "bwn", "irnet", "bnn", "xnor", "lbc", "filter_map", "filter_map_kmeans", "phc",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ON_EIGHT_DEVICES, indirect=True, scope="module")
def test_eight_devices_compute_what_one_computes(run, kind, data_dir, tmp_path, monkeypatch):
    assert len(jax.local_devices()) == 8
    write = MetricsWriter.write

    def write_and_stop(self, record):
        write(self, record)
        if record["step"] == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(MetricsWriter, "write", write_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train_and_evaluate(whole_config(kind, data_dir), tmp_path)
    eight, one = (
        [r for r in read_metrics(workdir / "metrics.jsonl") if r["kind"] == "step"][:6]
        for workdir in (tmp_path, run)
    )
    assert [r["step"] for r in eight] == [r["step"] for r in one] == [1, 2, 3, 4, 5, 6]
    # Sums are rounded in another order. So a maximum, or a sign, of activations may change.
    rel = 2e-3 if LAYERS[kind].takes_signs else 2e-4
    for name in ("softmax_loss", "gradient_norm", "parameter_norm"):
        assert eight[0][name] == pytest.approx(one[0][name], rel=rel), name
    # Later, filters may have other signs as well, which moves the loss.
    for mine, theirs in zip(eight[1:], one[1:], strict=True):
        assert mine["softmax_loss"] == pytest.approx(theirs["softmax_loss"], rel=0.05)


@pytest.mark.parametrize("kind", one_bit.STANDARDIZED)
def test_the_share_of_training_done_reaches_the_layers(kind, data_dir, tmp_path, one_device):
    config = config_of(kind, data_dir)
    train_and_evaluate(config, tmp_path)
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    last = 2 * STEPS_PER_EPOCH
    for step in (STEPS_PER_EPOCH, last):
        found = [v for name, v in checkpoints.read(step).items() if name.startswith("progress/")]
        np.testing.assert_allclose(found, 3 * [(step - 1) / last], rtol=1e-6)
    checkpoints.close()
    longer = dataclasses.replace(
        config, num_epochs=3, optimizer=dataclasses.replace(config.optimizer, schedule="step")
    )
    message = rf"would change the layers of config.model.conv='{kind}'"
    with pytest.raises(InputError, match=message):
        check_num_epochs(
            tmp_path, dataclasses.replace(longer, num_epochs=2), longer, STEPS_PER_EPOCH
        )


@pytest.mark.parametrize("changes", [{"stem_conv": "irnet", "conv": "bwn"}, {"conv": "irnet"}])
def test_only_quantized_layers_depend_on_the_number_of_epochs(changes, tmp_path):
    config = config_of("mcdonnell", num_epochs=2)
    optimizer = dataclasses.replace(config.optimizer, schedule="step")
    model = dataclasses.replace(config.model, **changes)
    config = dataclasses.replace(config, optimizer=optimizer, model=model)
    longer = dataclasses.replace(config, num_epochs=3)
    field = "stem_conv" if "stem_conv" in changes else "conv"
    with pytest.raises(
        InputError, match=f"would change the layers of config.model.{field}='irnet'"
    ):
        check_num_epochs(tmp_path, config, longer, STEPS_PER_EPOCH)
    free = dataclasses.replace(config, binarize=BinarizeConfig(enabled=False))
    check_num_epochs(tmp_path, free, dataclasses.replace(free, num_epochs=3), STEPS_PER_EPOCH)


def test_a_warm_start_takes_the_anchors_with_the_weights_that_belong_to_them(
    data_dir, tmp_path, one_device
):
    first = config_of("lbc", data_dir, num_epochs=1)
    train_and_evaluate(first, tmp_path / "first")
    config = dataclasses.replace(
        first, seed=1, init_from=str(tmp_path / "first"), data=first.data,
        optimizer=dataclasses.replace(first.optimizer, learning_rate=0.0),
    )  # fmt: skip
    train_and_evaluate(config, tmp_path / "second")
    anchors = []
    for name in ("first", "second"):
        checkpoints = Checkpoints(tmp_path / name / "checkpoints", read_only=True)
        leaves = checkpoints.read(STEPS_PER_EPOCH)
        anchors.append({k: v for k, v in leaves.items() if k.startswith("anchors/")})
        checkpoints.close()
    assert len(anchors[0]) == 3
    for name, values in anchors[0].items():
        np.testing.assert_array_equal(values, anchors[1][name])
