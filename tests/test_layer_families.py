"""Tests that a new layer family works in all commands as soon as it is in the table.

The toy family is a convolution with ternary weights: -1, 0 or 1 times one scale per layer.
"""

import dataclasses
import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mcn_jax import evaluate, export, inspect_checkpoint, models, parallel, predict, report
from mcn_jax.config import BinarizeConfig, Config, LossConfig, ModelConfig
from mcn_jax.data.dataset import open_dataset
from mcn_jax.deploy import predictor
from mcn_jax.layers.conv import KernelConv, kernel_multiply_adds
from mcn_jax.layers.family import WEIGHTS, Family, Tensor, float32_tensor
from mcn_jax.layers.formats import FLOAT32
from mcn_jax.layers.table import LAYERS, OTHERS
from mcn_jax.models.plan import plan_of, specs
from mcn_jax.ops.convolution import convolve
from mcn_jax.training.checks import validate
from mcn_jax.training.run import train_and_evaluate
from mcn_jax.workdirs.checkpoint import Checkpoints
from mcn_jax.workdirs.files import read_metrics
from small_runs import STEPS_PER_EPOCH, digits_config

TIMES = ("wall_seconds", "images_per_second")

# The toy family: everything that the author of a layer writes.


def ternary(weights):
    """Returns sign(w) * s where |w| exceeds 0.7 times the mean magnitude, else 0.

    s is the mean magnitude of the weights that exceed it.
    """
    kept = jnp.abs(weights) > 0.7 * jnp.mean(jnp.abs(weights))
    scale = jnp.sum(jnp.where(kept, jnp.abs(weights), 0)) / jnp.maximum(jnp.sum(kept), 1)
    return jnp.where(kept, jnp.sign(weights), 0).astype(jnp.int8), scale


class TernaryConv(nn.Module):
    """A convolution with a straight-through estimator for the quantization."""

    out_maps: int
    planes: int
    strides: int = 1
    kernel_size: int = 3
    padding: str = "SAME"
    quantized: bool = True

    @nn.compact
    def __call__(self, x):
        taps = (self.kernel_size, self.kernel_size)
        shape = (*taps, x.shape[-1], self.out_maps * self.planes)
        weights = self.param("weights", nn.initializers.he_normal(), shape)
        if self.quantized:
            codes, scale = ternary(weights)
            weights += jax.lax.stop_gradient(codes * scale - weights)
        return convolve(x, weights, (self.strides, self.strides), self.padding)


def pack(p, s, quantized):
    if not quantized:
        return {"weights": np.asarray(p["weights"])}
    codes, scale = map(np.asarray, ternary(p["weights"]))
    bits = [np.packbits(codes.ravel() == value, bitorder="little") for value in (-1, 1)]
    return {"bits": np.stack(bits), "scale": scale.reshape(1)}


def unpack(stored, layer):
    if "weights" in stored:
        return {"kernel": stored["weights"]}
    shape = layer.params["weights"]
    bits = (stored["bits"][:, :, None] >> jnp.arange(8, dtype=jnp.uint8)[None, None]) & 1
    minus, plus = bits.reshape(2, -1)[:, : np.prod(shape)].astype(jnp.float32)
    return {"kernel": ((plus - minus) * stored["scale"]).reshape(shape)}


def spec(layer, config, quantized, dtypes):
    shape = layer.params["weights"]
    if not quantized:
        return {"weights": float32_tensor(shape, "filters")}
    size = int(np.prod(shape))
    bits = Tensor("uint8", (2, -(-size // 8)), "filters", 2 * size, size)
    return {"bits": bits, "scale": Tensor("float32", (1,), "scales", 32, 0)}


TERNARY = Family(
    kind="ternary",
    module=TernaryConv,
    groups={"weights": WEIGHTS},
    pack=pack,
    unpack=unpack,
    spec=spec,
    make=lambda config, quantized: functools.partial(
        TernaryConv, planes=config.model.planes, quantized=quantized
    ),
    deployed=lambda config, quantized: functools.partial(KernelConv, planes=config.model.planes),
    multiply_adds=kernel_multiply_adds,
    filters="weights",
    quantizes=True,
)


@pytest.fixture(scope="module", autouse=True)
def toy_in_the_table():
    """Adds the one line that the author of a layer adds to the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LAYERS, "ternary", TERNARY)
        yield


def toy_config(data_dir, **changes):
    config = digits_config(data_dir, binarize=BinarizeConfig(start_epoch=1), **changes)
    model = ModelConfig(
        conv="ternary", widths=(4, 8, 16), planes=2, dense_features=32, dropout_rate=0.2
    )
    # The filter loss of MCconv must not affect the toy.
    return dataclasses.replace(config, model=model, loss=LossConfig(theta=0.5))


@pytest.fixture(scope="module")
def toy_run(data_dir, shared_run):
    """Returns the work directory of a run on digits, on one device."""
    return shared_run("ternary", toy_config(data_dir, num_epochs=12))


def result_of(workdir):
    return json.loads((workdir / "result.json").read_text())


def test_it_learns_digits_with_three_values_per_layer(toy_run, tmp_path):
    result = result_of(toy_run)
    assert result["final_test_accuracy"] > 0.95
    weights = 9 * (1 * 8 + 8 * 16 + 16 * 32)
    assert result["filter_bits"] == 2 * weights
    assert result["float32_filter_bits"] == 32 * weights
    records = read_metrics(toy_run / "metrics.jsonl")
    binarized = [record["binarized"] for record in records if record["kind"] == "epoch"]
    assert binarized == [False] + 11 * [True]
    assert "m_min" not in records[0]


@pytest.mark.slow
def test_it_resumes_bit_for_bit(data_dir, tmp_path, monkeypatch, one_device):
    config = toy_config(data_dir, num_epochs=2)
    train_and_evaluate(config, tmp_path / "whole")
    save = Checkpoints.save

    def save_and_stop(self, step, *arguments):
        save(self, step, *arguments)
        if step == STEPS_PER_EPOCH:  # the last float step
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train_and_evaluate(config, tmp_path / "stopped")
    train_and_evaluate(config, tmp_path / "stopped")
    digests = []
    for name in ("whole", "stopped"):
        checkpoints = Checkpoints(tmp_path / name / "checkpoints", read_only=True)
        digests.append(checkpoints.digests(checkpoints.steps()[-1]))
        checkpoints.close()
    assert digests[0] == digests[1]
    whole, stopped = (
        [
            {name: value for name, value in record.items() if name not in TIMES}
            for record in read_metrics(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "stopped")
    )
    assert whole == stopped


@pytest.mark.slow
def test_eight_devices_compute_what_one_computes(data_dir, tmp_path, monkeypatch):
    config = toy_config(data_dir, num_epochs=1, log_every_steps=1)
    config = dataclasses.replace(config, binarize=BinarizeConfig(start_epoch=0))
    assert len(jax.local_devices()) == 8
    train_and_evaluate(config, tmp_path / "eight")
    monkeypatch.setattr(parallel, "local_devices", lambda: jax.local_devices()[:1])
    train_and_evaluate(config, tmp_path / "one")
    eight, one = (
        {
            r["step"]: r
            for r in read_metrics(tmp_path / name / "metrics.jsonl")
            if r["kind"] == "step"
        }
        for name in ("eight", "one")
    )
    for name in ("softmax_loss", "gradient_norm", "parameter_norm"):
        assert eight[1][name] == pytest.approx(one[1][name], rel=1e-5), name
    # Sums are rounded in another order, so a weight near a threshold may get another value.
    for step in range(2, 11):
        assert eight[step]["softmax_loss"] == pytest.approx(one[step]["softmax_loss"], rel=1e-4)
        assert eight[step]["parameter_norm"] == pytest.approx(one[step]["parameter_norm"], rel=1e-5)


def test_it_is_inspected_with_its_own_bits(toy_run, tmp_path, capsys):
    inspect_checkpoint.main([str(toy_run), "--json"])
    description = json.loads(capsys.readouterr().out)
    first, *_ = description["layers"]
    assert (first["layer"], first["kind"], first["shape"]) == ("conv_1", "ternary", [3, 3, 1, 8])
    assert (first["bits"], first["multiply_adds_direct"]) == (2 * 72, 32 * 32 * 72)
    weights = 9 * (1 * 8 + 8 * 16 + 16 * 32)
    assert description["totals"]["filter_bits"] == 2 * weights
    inspect_checkpoint.main([str(toy_run), "--html", str(tmp_path / "page.html")])
    assert "Filters of conv_1" in (tmp_path / "page.html").read_text()
    array = ["--array", "conv_2/weights", str(tmp_path / "weights.npy")]
    inspect_checkpoint.main([str(toy_run), *array])
    assert np.load(tmp_path / "weights.npy").shape == (3, 3, 8, 16)
    inspect_checkpoint.main([str(toy_run), "--compare", str(toy_run)])


def test_its_files_agree_with_the_checkpoint(toy_run, tmp_path, capsys):
    out = tmp_path / "out"
    result = export.export(toy_run, out, FLOAT32, {})
    accuracy = result_of(toy_run)["final_test_accuracy"]
    for file in ("model.safetensors", "model.onnx"):
        assert result[file]["accuracy"] == accuracy
        assert result[file]["difference"] < 1e-4
    plan = plan_of(result["model"].network.config, 10, (32, 32, 1))
    held = specs(plan, *result["model"].network)
    assert held["conv_3/bits"].shape == (2, 9 * 16 * 32 // 8)
    assert len(np.unique(predictor_kernel(out, "conv_2"))) == 3

    inspect_checkpoint.main([str(out / "model.safetensors"), "--json"])
    totals = json.loads(capsys.readouterr().out)["totals"]
    assert totals["filter_bits"] == result_of(toy_run)["filter_bits"]
    evaluate.main([str(out / "model.safetensors"), "--json"])
    assert json.loads(capsys.readouterr().out)["accuracy"] == accuracy


def predictor_kernel(out, name):
    """Returns the kernel of a convolution in the network of a model file."""
    model = predictor.model_file.read_model(out / "model.safetensors")
    return np.asarray(model.unpacked(model.tensors)[name]["kernel"])


def test_it_names_what_an_image_shows(toy_run, tmp_path, capsys):
    config = toy_config("~/tensorflow_datasets")
    config = dataclasses.replace(config.data, data_dir=run_data_dir(toy_run))
    images, _ = open_dataset(config).test.read(np.arange(1))
    Image.fromarray(images[0, :, :, 0]).save(tmp_path / "digit.png")
    predict.main([str(toy_run), str(tmp_path / "digit.png"), "--json"])
    top = json.loads(capsys.readouterr().out)["top"]
    assert len(top) == 5
    assert top[0]["probability"] > 0.2


def run_data_dir(workdir):
    return json.loads((workdir / "config.json").read_text())["config"]["data"]["data_dir"]


def test_it_is_reported_beside_other_runs(toy_run, tmp_path, capsys):
    report.main([str(toy_run), "--out", str(tmp_path / "report")])
    assert "ternary" in (tmp_path / "report" / "report.md").read_text()
    assert (tmp_path / "report" / "curves.png").exists()


# Fields of small networks, where the defaults do not make one.
SMALL = {
    "maxout": {"widths": (4, 4, 4)},
    "nin": {"widths": (4,) * 8},
    "convnet": {"widths": (4, 4, 4)},
    "wide_resnet": {"depth": 8, "widths": (1, 2, 2, 3)},
    "lbcnn": {"depth": 2, "widths": (4,)},
    "resnet": {"blocks": (1, 1), "block": "bottleneck", "widths": (4, 4, 8)},
    "densenet": {"blocks": (1, 1), "growth": 4, "widths": (8,)},
}


@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_every_network_can_have_it(name):
    model = ModelConfig(
        name=name,
        conv="ternary",
        planes=1,
        head="linear",
        pointwise="ternary",
        **SMALL.get(name, {}),
    )
    config = Config(model=model)
    validate(config)
    plan = plan_of(config, num_classes=10, image_shape=(32, 32, 3))
    layers = [layer for layer in plan if layer.family is TERNARY]
    assert len(layers) >= 2
    for quantized in (False, True):
        assert specs(plan, config, quantized)


@pytest.mark.parametrize("missing", ["deployed", "filters", "multiply_adds"])
def test_a_family_that_can_be_chosen_but_not_exported_is_refused(missing):
    default = {f.name: f.default for f in dataclasses.fields(Family)}[missing]
    with pytest.raises(TypeError, match=f"'ternary' has `make`, so it needs .*{missing}"):
        dataclasses.replace(TERNARY, **{missing: default})


@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_bits_that_a_tensor_cannot_have_are_refused(factor, monkeypatch):
    def wrong(layer, config, quantized, dtypes):
        tensors = spec(layer, config, quantized, dtypes)
        return tensors | {"bits": tensors["bits"]._replace(bits=int(factor * tensors["bits"].bits))}

    config = Config(model=ModelConfig(conv="ternary", planes=2))
    monkeypatch.setitem(LAYERS, "ternary", dataclasses.replace(TERNARY, spec=wrong))
    plan = plan_of(config, num_classes=10, image_shape=(28, 28, 1))
    with pytest.raises(ValueError, match=r"'ternary' counts .* bits for the tensor bits of conv_1"):
        specs(plan, config, quantized=True)


def test_kinds_and_modules_belong_to_one_family_each():
    families = [*LAYERS.values(), *OTHERS]
    assert len({family.kind for family in families}) == len(families)
    assert len({family.module for family in families}) == len(families)
