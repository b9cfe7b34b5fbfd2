import functools
import json

import jax
import numpy as np
import pytest
from PIL import Image

from mcn_jax import export, parallel
from mcn_jax.data.sources import eval_batches
from mcn_jax.evaluate import main as command
from mcn_jax.layers.formats import FLOAT32
from mcn_jax.training.evaluation import evaluate, measures
from mcn_jax.training.steps import eval_step
from small_runs import digits_config, random_split, step_arguments


@pytest.mark.parametrize("num_examples", [360, 10000, 26032])
@pytest.mark.parametrize("batch_size", [128, 333, 1000])
@pytest.mark.parametrize("num_devices", [1, 8])
def test_every_example_is_in_exactly_one_batch(num_examples, batch_size, num_devices):
    seen = []
    lengths = set()
    for batch in eval_batches(num_examples, batch_size, num_devices):
        seen.append(batch.indices[batch.mask])
        lengths.add(len(batch.indices))
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(num_examples))
    [length] = lengths
    assert length % num_devices == 0


def test_the_batch_size_does_not_change_the_result():
    state, arguments = step_arguments(digits_config(), quantized=True)
    split = random_split(examples=61)
    step = parallel.parallel(
        functools.partial(
            eval_step,
            model=arguments["model"],
            settings=arguments["settings"],
            axis_name=parallel.AXIS,
        ),
        donate_state=False,
    )
    state, split = parallel.replicate(state), parallel.replicate(split)
    devices = len(parallel.local_devices())
    results = []
    for size in (7, 16, 61, 500):
        batches = ((split, parallel.shard(batch)) for batch in eval_batches(61, size, devices))
        results.append(evaluate(step, state, batches))
    assert {result["test_examples"] for result in results} == {61}
    assert len({result["test_accuracy"] for result in results}) == 1
    for result in results:
        np.testing.assert_allclose(result["test_loss"], results[0]["test_loss"], rtol=1e-5)


@pytest.mark.parametrize("awaits", [False, True])
def test_sums_are_read_one_batch_late_and_added_in_order(awaits, monkeypatch):
    events, losses = [], [1.0, 1e16, -1e16]  # any other order gives another sum

    def step(state, split, batch):
        events.append(("dispatch", batch))
        return {"number": batch, "loss": losses[batch], "correct": batch, "examples": 2}

    def read(sums):
        events.append(("read", sums.pop("number")))
        return {name: np.asarray(value) for name, value in sums.items()}

    monkeypatch.setattr(parallel, "must_await_steps", lambda: awaits)
    monkeypatch.setattr(parallel, "unreplicate", read)
    monkeypatch.setattr(
        jax, "block_until_ready", lambda sums: events.append(("await", sums["number"]))
    )
    result = evaluate(step, None, ((None, number) for number in range(3)))
    assert result == {"test_loss": 0.0, "test_accuracy": 0.5, "test_examples": 6}
    expected = [("dispatch", 0), ("await", 0), ("dispatch", 1), ("await", 1), ("read", 0)]
    expected += [("dispatch", 2), ("await", 2), ("read", 1), ("read", 2)]
    assert events == [event for event in expected if awaits or event[0] != "await"]


def test_measures_by_hand():
    # One of three images of class 0 is predicted as class 1, and there are none of class 2.
    logits = np.log([[0.8, 0.1, 0.1], [0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.05, 0.95, 0.0001]])
    found = measures(logits, np.array([0, 0, 0, 1]), ("a", "b", "c"))
    assert found["accuracy"] == 0.75
    assert found["confusion"].tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert [record["examples"] for record in found["classes"]] == [3, 1, 0]
    assert [record["accuracy"] for record in found["classes"]] == [2 / 3, 1.0, None]
    # Each image has a bin of its own: gaps of 0.2, 0.3, 0.6 and about 0.05.
    last = 1 - 0.95 / 1.0001
    assert found["calibration_error"] == pytest.approx((0.2 + 0.3 + 0.6 + last) / 4)


def test_calibration_is_of_bins():
    # Ten images in one bin with confidence 0.7: seven correct is perfect, five is 0.2 too low.
    logits = np.log(np.tile([0.7, 0.3], (10, 1)))
    for right, error in ((7, 0.0), (5, 0.2)):
        labels = np.array([0] * right + [1] * (10 - right))
        found = measures(logits, labels, ("a", "b"))["calibration_error"]
        assert found == pytest.approx(error, abs=1e-12)


@pytest.mark.parametrize("kind", ["run", "model.safetensors", "model.onnx"])
def test_the_command_evaluates_runs_and_files(kind, report_runs, data_dir, tmp_path, capsys):
    workdir = report_runs["seed_0"]
    path = workdir
    if kind != "run":
        export.export(workdir, tmp_path, FLOAT32, {})
        path = tmp_path / kind
    places = ["--data_dir", data_dir]
    command([str(path), *places, "--json", "--confusion", str(tmp_path / "confusion.png")])
    found = json.loads(capsys.readouterr().out)
    result = json.loads((workdir / "result.json").read_text())
    assert (found["examples"], found["accuracy"]) == (360, result["final_test_accuracy"])
    assert sum(map(sum, found["confusion"])) == 360
    with Image.open(tmp_path / "confusion.png") as picture:
        assert min(picture.size) > 300
    command([str(path), *places])
    assert "expected calibration error" in capsys.readouterr().out


def test_the_command_names_what_it_cannot_evaluate(tmp_path):
    with pytest.raises(SystemExit, match="does not exist; name a model file"):
        command([str(tmp_path / "x.onnx")])
