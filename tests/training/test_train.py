import dataclasses
import functools
import gzip
import itertools
import json
import os
import re
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from mcn_jax import parallel
from mcn_jax.config import BinarizeConfig, LossConfig, ModelConfig, OptimizerConfig
from mcn_jax.data.dataset import open_dataset
from mcn_jax.errors import InputError
from mcn_jax.layers import binary_filters
from mcn_jax.ops.mcconv import FORMS
from mcn_jax.training import checks, metrics
from mcn_jax.training.profiling import FIRST, LAST, StepTrace
from mcn_jax.training.run import train_and_evaluate
from mcn_jax.training.setup import Setup
from mcn_jax.training.stopping import Stopped
from mcn_jax.workdirs.checkpoint import Checkpoints, named_leaves, saved_steps
from mcn_jax.workdirs.files import locked, read_metrics
from small_runs import (
    STEPS_PER_EPOCH,
    TIMES,
    digits_config,
    restored,
    step_arguments,
    without_times,
)


def last_state(workdir, config, step=None):
    checkpoints = Checkpoints(workdir / "checkpoints")
    template, _ = step_arguments(config, quantized=True, image_size=32)
    state = restored(checkpoints, step or checkpoints.steps()[-1], template)
    checkpoints.close()
    return state


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_dispatch", [1, 22])
def test_a_run_compiles_its_steps_twice_once_for_float_and_once_for_binary_filters(
    steps_per_dispatch, data_dir, tmp_path, monkeypatch
):
    traces, compiled, saves = [], [], []
    original, save = parallel.parallel, Checkpoints.save

    def counted(step, **options):
        def traced(*arguments):
            traces.append(step)
            return step(*arguments)

        return original(traced, **options)

    def save_and_count(self, *arguments, **options):
        saves.append(len(compiled))
        save(self, *arguments, **options)

    def listen(event, duration, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    monkeypatch.setattr(parallel, "parallel", counted)
    monkeypatch.setattr(Checkpoints, "save", save_and_count)
    jax.monitoring.register_event_duration_secs_listener(listen)
    # The centers are computed before both binary epochs.
    binarize = BinarizeConfig(start_epoch=2, refresh_epochs=1)
    config = digits_config(data_dir, binarize=binarize, steps_per_dispatch=steps_per_dispatch)
    train_and_evaluate(config, tmp_path)
    # Training and evaluation, with float filters and with binary ones.
    assert len(traces) == 4
    # Epochs 1 and 3 compile their steps; epochs 2 and 4 compile nothing.
    one, two, three, four = saves
    assert one == two
    assert two < three == four


@pytest.mark.parametrize(
    ("quantized", "steps_per_dispatch"),
    [
        (False, 1),
        (True, 22),
        pytest.param(False, 22, marks=pytest.mark.slow),
        pytest.param(True, 1, marks=pytest.mark.slow),
    ],
)
def test_the_state_before_a_step_is_given_up_to_it(
    quantized, steps_per_dispatch, data_dir, one_device
):
    config = digits_config(data_dir, steps_per_dispatch=steps_per_dispatch)
    setup = Setup(config, open_dataset(config.data))
    before = parallel.replicate(setup.initial_state())
    split, batch = next(setup.source.train_batches(0))
    after, _ = setup.phase(quantized).train(before, split, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((after, split)))


@pytest.mark.slow
def test_a_run_stopped_after_any_epoch_ends_where_the_uninterrupted_one_ends(
    data_dir, tmp_path, monkeypatch, one_device
):
    loss = LossConfig(theta=1e-3, center_loss_weight=1e-3)
    config = digits_config(data_dir, loss=loss)
    save = Checkpoints.save
    stopped = []

    def save_and_copy(self, step, *arguments):
        # A run that stops before saving leaves a record of the epoch, but no checkpoint.
        for saved in (False, True):
            if saved:
                save(self, step, *arguments)
            self.wait()
            stopped.append(tmp_path / f"stopped_{step}_{saved}")
            shutil.copytree(self.directory.parent, stopped[-1])

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save_and_copy)
        result = train_and_evaluate(config, tmp_path / "whole")
    expected = named_leaves(last_state(tmp_path / "whole", config))
    assert len(stopped) == 8
    for workdir in stopped:
        assert not (workdir / "result.json").exists()
        # A kill between the record and the next checkpoint leaves this behind.
        with (workdir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"kind": "step", "step": 10**6, "epoch": 9}) + '\n{"kind": "st')
        resumed = train_and_evaluate(config, workdir)
        for name, leaf in named_leaves(last_state(workdir, config)).items():
            np.testing.assert_array_equal(leaf, expected[name], err_msg=name)
        for name in set(result) - set(TIMES):
            assert resumed[name] == result[name], name
        assert without_times(read_metrics(workdir / "metrics.jsonl")) == without_times(
            read_metrics(tmp_path / "whole" / "metrics.jsonl")
        )


@pytest.mark.slow
def test_a_run_stopped_by_signals_inside_epochs_ends_where_the_uninterrupted_one_ends(
    data_dir, tmp_path, monkeypatch, one_device
):
    config = digits_config(data_dir, log_every_steps=3)
    result = train_and_evaluate(config, tmp_path / "whole")
    workdir = tmp_path / "stopped"
    # Stops in the first step, twice in one epoch, in its last step, and before and after
    # binarization starts.
    steps = [1, 20, 24, STEPS_PER_EPOCH, 2 * STEPS_PER_EPOCH - 1, 2 * STEPS_PER_EPOCH + 2, 130]
    step_done = metrics.ProgressBar.step
    seen = itertools.count(1)

    def send_signal(self, *arguments):
        step_done(self, *arguments)
        if next(seen) in steps:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(metrics.ProgressBar, "step", send_signal)
    config = dataclasses.replace(config, checkpoint_every_steps=17)
    for _ in steps:
        with pytest.raises(Stopped, match=r"stopped by SIGTERM after step \d+, which is saved"):
            train_and_evaluate(config, workdir)
    resumed = train_and_evaluate(config, workdir)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    expected = named_leaves(last_state(tmp_path / "whole", config))
    for name, leaf in named_leaves(last_state(workdir, config)).items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)
    for name in set(result) - set(TIMES):
        assert resumed[name] == result[name], name
    records = read_metrics(workdir / "metrics.jsonl")
    assert without_times(records) == without_times(
        read_metrics(tmp_path / "whole" / "metrics.jsonl")
    )
    seconds = [record["wall_seconds"] for record in records if record["kind"] == "epoch"]
    assert seconds == sorted(seconds)


def test_an_epoch_is_saved_before_it_is_printed(data_dir, tmp_path, one_device, monkeypatch):
    def no_reader(self, record):
        raise BrokenPipeError

    monkeypatch.setattr(metrics.ProgressBar, "epoch", no_reader)
    with pytest.raises(BrokenPipeError):
        train_and_evaluate(digits_config(data_dir), tmp_path)
    assert saved_steps(tmp_path / "checkpoints") == [STEPS_PER_EPOCH]
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] == STEPS_PER_EPOCH


def test_a_run_that_began_with_a_field_that_no_layer_reads_still_resumes(
    data_dir, tmp_path, monkeypatch, one_device
):
    config = digits_config(
        data_dir, num_epochs=1, binarize=BinarizeConfig(start_epoch=0, estimator="ede"),
        model=ModelConfig(conv="mcdonnell", widths=(2,), planes=1, dense_features=8),
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(checks, "OF_LAYERS", ())  # as in earlier versions
        result = train_and_evaluate(config, tmp_path / "earlier")
    assert train_and_evaluate(config, tmp_path / "earlier") == result
    with pytest.raises(InputError, match="estimator='ede' is read only by mcconv, irnet and recu"):
        train_and_evaluate(config, tmp_path / "new")


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    digits_run, data_dir, tmp_path, one_device, caplog
):
    config = digits_config(data_dir)
    result = json.loads((digits_run / "result.json").read_text())
    expected = named_leaves(last_state(digits_run, config))

    def damage(workdir, step):
        """Flips a bit of a leaf like a bad disk; Orbax still reads the files without an error."""
        saved = Checkpoints(workdir / "checkpoints", read_only=True)
        leaves = saved.read(step)
        saved.close()
        flipped = leaves["params/conv_2/m_filters"].copy()
        flipped.view(np.uint32).flat[0] ^= 1
        other = Checkpoints(tmp_path / "other" / workdir.name / str(step))
        other.save(step, leaves | {"params/conv_2/m_filters": flipped}, test_accuracy=0.5)
        other.close()
        state = workdir / "checkpoints" / str(step) / "state"
        shutil.rmtree(state)
        shutil.copytree(other.directory / str(step) / "state", state)

    workdir = tmp_path / "one"
    shutil.copytree(digits_run, workdir)
    (workdir / "result.json").unlink()
    last = 4 * STEPS_PER_EPOCH
    damage(workdir, last)
    with caplog.at_level(logging.WARNING, logger="absl"):
        resumed = train_and_evaluate(config, workdir)
    [message] = [
        r.getMessage()
        for r in caplog.records
        if r.name == "absl" and "checkpoint" in r.getMessage()
    ]
    assert re.search(
        rf"{last} is damaged: params/conv_2/m_filters differs from its digest; moved it to"
        rf" \S+/{last}; resuming from step {last - STEPS_PER_EPOCH}",
        message,
    )
    assert (workdir / "damaged_checkpoints" / str(last)).is_dir()
    assert resumed["final_test_accuracy"] == result["final_test_accuracy"]
    for name, leaf in named_leaves(last_state(workdir, config)).items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)

    workdir = tmp_path / "all"
    shutil.copytree(digits_run, workdir)
    (workdir / "result.json").unlink()
    steps = [int(path.name) for path in (workdir / "checkpoints").iterdir()]
    for step in steps:
        damage(workdir, step)
    with pytest.raises(InputError, match=rf"{last} .*damaged.*; use another --workdir"):
        train_and_evaluate(config, workdir)
    assert sorted(int(path.name) for path in (workdir / "checkpoints").iterdir()) == sorted(steps)


def test_a_directory_in_use_is_refused_with_the_name_of_its_process(data_dir, tmp_path, one_device):
    config = digits_config(data_dir, num_epochs=3)
    with locked(tmp_path / "run"):
        before = sorted((tmp_path / "run").iterdir())
        with pytest.raises(
            InputError, match=rf"run is in use by process {os.getpid()} on \S+; wait"
        ):
            train_and_evaluate(config, tmp_path / "run")
        assert sorted((tmp_path / "run").iterdir()) == before
    with locked(tmp_path / "run"):
        pass


@pytest.mark.slow
def test_several_steps_in_one_program_are_the_same_steps(data_dir, tmp_path, one_device, caplog):
    binarize = BinarizeConfig(enabled=False)
    config = digits_config(data_dir, num_epochs=1, log_every_steps=5, binarize=binarize)
    # XLA may compile them differently, and rounding differences grow with every step. In float64
    # they stay below the tolerances of this test.
    config = dataclasses.replace(config, dtype="float64", param_dtype="float64")
    records, states = [], []
    for steps in (1, 5):  # 44 steps per epoch leave a group of four
        workdir = tmp_path / str(steps)
        config = dataclasses.replace(config, steps_per_dispatch=steps)
        with jax.enable_x64(True):
            train_and_evaluate(config, workdir, profile=steps == 1)
            states.append(named_leaves(last_state(workdir, config)))
        records.append(without_times(read_metrics(workdir / "metrics.jsonl")))
    assert [r["step"] for r in records[0] if r["kind"] == "step"] == list(range(5, 44, 5))
    for single, several in zip(*records, strict=True):
        assert single.keys() == several.keys()
        for name, value in single.items():
            same = pytest.approx(value, rel=1e-6) if isinstance(value, float) else value
            assert several[name] == same, name
    for name, leaf in states[0].items():
        np.testing.assert_allclose(states[1][name], leaf, rtol=1e-6, atol=1e-9, err_msg=name)

    with caplog.at_level("WARNING"), jax.enable_x64(True):
        train_and_evaluate(config, tmp_path / "5", profile=True)
    assert "has ended, so no steps are traced" in caplog.text
    assert not (tmp_path / "5" / "profile").exists()
    [trace] = (tmp_path / "1" / "profile" / "float").rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert any("dot" in event.get("name", "") for event in events)


@pytest.mark.slow
@pytest.mark.parametrize("num_centers", [2, 3])
def test_every_step_keeps_m_non_negative_and_every_forward_pass_is_binary(
    num_centers, data_dir, tmp_path, monkeypatch, one_device
):
    recorded = []

    def recording_forward(forward, spec, features, filters, m_filters):
        def record(f, m):
            recorded.append((np.unique(f), m.min()))

        jax.debug.callback(record, filters, m_filters)
        return forward(spec, features, filters, m_filters)

    auto = FORMS["auto"]
    forward = functools.partial(recording_forward, auto.forward)
    monkeypatch.setitem(FORMS, "auto", auto._replace(forward=forward))
    config = digits_config(
        data_dir,
        num_epochs=3,
        log_every_steps=1,
        binarize=BinarizeConfig(start_epoch=1, num_centers=num_centers),
        # Large enough to push M to zero.
        optimizer=OptimizerConfig(learning_rate=0.05, m_learning_rate=0.5, schedule="constant"),
    )
    train_and_evaluate(config, tmp_path)
    jax.effects_barrier()
    seen = list(recorded)  # `last_state` below adds two more passes
    state = last_state(tmp_path, config)
    centers = [
        set(state.layer_state["centers"][name]["centers"].tolist()) for name in ("conv_1", "conv_2")
    ]
    assert [len(c) for c in centers] == [num_centers] * 2
    binary = [f for f, _ in seen if len(f) <= num_centers]
    # Per layer: one epoch with latent filters, two epochs with binary filters, and the pass that
    # creates the first state before k-means. An epoch also has 4 batches of evaluation.
    assert len(seen) - len(binary) == 2 * (STEPS_PER_EPOCH + 4)
    assert len(binary) == 2 * 2 * (STEPS_PER_EPOCH + 4) + 2
    elsewhere = [f for f in binary if not any(set(f.tolist()) <= c for c in centers)]
    assert len(elsewhere) == 2
    assert min(m for _, m in seen) >= 0
    steps = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "step"]
    assert [r["step"] for r in steps] == list(range(1, 3 * STEPS_PER_EPOCH + 1))
    assert min(r["m_min"] for r in steps) >= 0
    assert min(r["m_min"] for r in steps) < 0.05
    filters = binary_filters(state.params, state.layer_state["centers"])
    assert set(np.unique(filters["conv_2"]).tolist()) == centers[1]


def test_files_of_a_run_and_what_they_say(digits_run, data_dir, tmp_path, one_device):
    config = digits_config(data_dir)
    shutil.copytree(digits_run, tmp_path, dirs_exist_ok=True)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["test_examples"] == 360
    weights = 9 * (4 * 2 + 8 * 4)
    assert (result["filter_bits"], result["float32_filter_bits"]) == (weights, 32 * weights)
    epochs = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "epoch"]
    assert [r["binarized"] for r in epochs] == [False, False, True, True]
    assert result["final_test_accuracy"] == epochs[-1]["test_accuracy"]
    # Epochs before binarization do not count for the best accuracy of an MCN.
    assert result["best_test_accuracy"] == max(r["test_accuracy"] for r in epochs[2:])
    assert epochs[-1]["train_loss"] < 0.9 * epochs[0]["train_loss"]
    health = [r for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "health"]
    assert [r["epoch"] for r in health] == [2, 3]
    assert ["flip_ratio" in r for r in epochs] == [False, False, True, True]
    state = last_state(tmp_path, config)
    before = last_state(tmp_path, config, step=3 * STEPS_PER_EPOCH)
    for layer in ("conv_1", "conv_2"):
        middle = state.layer_state["centers"][layer]["centers"].mean()
        is_higher = state.params[layer]["latent_filters"] >= middle
        was_higher = before.params[layer]["latent_filters"] >= middle
        assert health[-1][f"{layer}/share_1"] == pytest.approx(is_higher.mean())
        assert health[-1][f"{layer}/flip_ratio"] == pytest.approx((is_higher != was_higher).mean())
        m_filters = state.params[layer]["m_filters"]
        assert health[-1][f"{layer}/m_max"] == m_filters.max()
        spread = np.sqrt(m_filters.var(axis=-1).mean()) / m_filters.mean()
        assert health[-1][f"{layer}/m_spread"] == pytest.approx(spread, rel=1e-5)
        binary = state.layer_state["centers"][layer]["centers"][is_higher.astype(int)]
        q = binary[..., None] * m_filters[:, :, None, None]
        q = q / np.sqrt(np.sum(q**2, axis=(0, 1, 2), keepdims=True))
        cosines = np.einsum("abchk,abchl->hkl", q, q)
        mean = cosines[:, *np.triu_indices(4, 1)].mean()
        assert health[-1][f"{layer}/plane_correlation"] == pytest.approx(mean, rel=1e-5)
        effective = np.mean(16 / np.sum(cosines**2, axis=(1, 2)))
        assert health[-1][f"{layer}/effective_planes"] == pytest.approx(effective, rel=1e-5)
    assert all(0 < epoch["flip_ratio"] < 0.3 for epoch in epochs[2:])
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["config"]["loss"]["theta"] == 1e-3
    assert record["versions"]["jax"] == jax.__version__
    steps = saved_steps(tmp_path / "checkpoints")
    assert steps[-2:] == [3 * STEPS_PER_EPOCH, 4 * STEPS_PER_EPOCH]

    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert train_and_evaluate(config, tmp_path) == result  # a finished run stays unchanged
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_workdir_of_another_run_is_refused_and_left_alone(
    digits_run, data_dir, tmp_path, one_device
):
    config = digits_config(data_dir)
    shutil.copytree(digits_run, tmp_path, dirs_exist_ok=True)
    (tmp_path / "result.json").unlink()
    (tmp_path / "lock").unlink()  # it names the process that used the directory last
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    wider = dataclasses.replace(config, model=dataclasses.replace(config.model, widths=(3, 4)))
    with pytest.raises(InputError, match=r"config.model.widths=\(2, 4\), this run has \(3, 4\)"):
        train_and_evaluate(wider, tmp_path)
    # If config.json was replaced, too, the leaves of the checkpoint show the difference.
    record = json.loads((tmp_path / "config.json").read_text())
    record["config"]["model"]["widths"] = [3, 4]
    (tmp_path / "config.json").write_text(json.dumps(record))
    message = r"holds batch_stats/batch_norm_1/mean of shape \(8,\), .* needs \(12,\)"
    with pytest.raises(InputError, match=message):
        train_and_evaluate(wider, tmp_path)
    for path, content in before.items():
        if path.name != "config.json":
            assert path.read_bytes() == content, path


@pytest.mark.parametrize("batch_size", [32, pytest.param(1437, marks=pytest.mark.slow)])
def test_a_run_that_diverges_stops_and_saves_nothing_of_it(
    batch_size, data_dir, tmp_path, one_device
):
    optimizer = OptimizerConfig(learning_rate=1e38, schedule="constant")
    config = digits_config(data_dir, optimizer=optimizer, batch_size=batch_size)
    where = (
        r"at step \d+; ((batch_stats|params)/\S+ is now the first of \d+ leaves with values"
        r" that are not finite"
        r"|the largest value is now \S+e\+3\d, in params/\S+); training stops"
    )
    with pytest.raises(FloatingPointError, match=rf"(loss|norm) is .* {where}"):
        train_and_evaluate(config, tmp_path)
    assert not (tmp_path / "result.json").exists()
    assert read_metrics(tmp_path / "metrics.jsonl") == []
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.steps() == []
    checkpoints.close()


def test_a_run_that_lost_its_metrics_is_refused(digits_run, data_dir, tmp_path, one_device):
    config = digits_config(data_dir)
    shutil.copytree(digits_run, tmp_path, dirs_exist_ok=True)
    (tmp_path / "result.json").unlink()
    whole = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text("not json\n" + whole)
    with pytest.raises(InputError, match=r"metrics.jsonl, line 1, is damaged"):
        train_and_evaluate(config, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == "not json\n" + whole
    *others, last = [line for line in whole.splitlines() if '"kind": "epoch"' in line]
    assert json.loads(last)["step"] == 176
    for left in ("", "\n".join(others) + "\n"):
        (tmp_path / "metrics.jsonl").write_text(left)
        with pytest.raises(InputError, match=r"has no record of the epoch that ended at step 176"):
            train_and_evaluate(config, tmp_path)


def test_a_batch_larger_than_the_split_is_refused_before_data_are_prepared(tmp_path, one_device):
    config = digits_config(str(tmp_path / "data"), batch_size=2000)
    with pytest.raises(InputError, match="batch_size=2000 exceeds the 1437 training images"):
        train_and_evaluate(config, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_float64_without_the_64_bit_mode(data_dir, tmp_path):
    with pytest.raises(InputError, match="JAX_ENABLE_X64=1"):
        train_and_evaluate(
            digits_config(data_dir, dtype="float64", param_dtype="float64"), tmp_path
        )


@pytest.mark.slow
def test_eight_devices_train_to_the_same_accuracy_as_one(data_dir, tmp_path, monkeypatch):
    from mcn_jax import parallel

    config = digits_config(data_dir, num_epochs=3)
    eight = train_and_evaluate(config, tmp_path / "eight")
    monkeypatch.setattr(parallel, "local_devices", lambda: jax.local_devices()[:1])
    one = train_and_evaluate(config, tmp_path / "one")
    assert one["final_test_accuracy"] > 0.3  # far above chance, so the comparison means something
    assert abs(eight["final_test_accuracy"] - one["final_test_accuracy"]) <= 0.05
    assert eight["test_examples"] == one["test_examples"] == 360


@pytest.mark.slow
@pytest.mark.parametrize(
    ("planes", "num_centers", "optimizer"),
    [
        (8, 2, OptimizerConfig(learning_rate=0.05, schedule="constant", warmup_epochs=1)),
        (3, 8, OptimizerConfig(learning_rate=0.05, schedule="constant", warmup_epochs=1)),
        (4, 2, OptimizerConfig(name="adadelta", learning_rate=1.0, schedule="constant")),
    ],
    ids=["K=8", "K=3, U=8", "adadelta"],
)
def test_other_planes_centers_and_optimizers_learn(
    planes, num_centers, optimizer, data_dir, tmp_path, one_device
):
    config = digits_config(
        data_dir,
        num_epochs=3,
        model=ModelConfig(widths=(2, 4), planes=planes, dense_features=32, dropout_rate=0.2),
        binarize=BinarizeConfig(start_epoch=1, num_centers=num_centers),
        optimizer=optimizer,
    )
    result = train_and_evaluate(config, tmp_path)
    assert result["final_test_accuracy"] > 0.6  # ten classes
    state = last_state(tmp_path, config)
    assert state.params["conv_2"]["m_filters"].shape == (3, 3, planes)
    filters = binary_filters(state.params, state.layer_state["centers"])["conv_2"]
    assert filters.shape == (3, 3, 2 * planes, 4)
    assert len(np.unique(filters)) == num_centers


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_dispatch", [22, 44])
def test_an_epoch_of_one_or_two_dispatches_is_traced(
    steps_per_dispatch, data_dir, tmp_path, one_device
):
    config = digits_config(
        data_dir,
        num_epochs=2,
        binarize=BinarizeConfig(start_epoch=1),
        steps_per_dispatch=steps_per_dispatch,
    )
    train_and_evaluate(config, tmp_path, profile=True)
    for phase in ("float", "binary"):
        [trace] = (tmp_path / "profile" / phase).rglob("perfetto_trace.json.gz")
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
        assert any("dot" in event.get("name", "") for event in events)


def test_a_trace_ends_with_an_exception(tmp_path):
    def fail():
        with StepTrace(tmp_path / "first") as trace:
            trace.before(FIRST, LAST, jnp.zeros(()))
            raise FloatingPointError

    with pytest.raises(FloatingPointError):
        fail()
    with StepTrace(tmp_path / "second") as trace:  # only one trace can run at a time
        trace.before(FIRST, LAST, jnp.zeros(()))
    assert list((tmp_path / "second").rglob("perfetto_trace.json.gz"))
