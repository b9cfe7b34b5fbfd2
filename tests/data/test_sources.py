"""Tests that both sources give the same batches, which depend only on (seed, epoch, step)."""

import dataclasses
import importlib.util
import itertools
import json
import multiprocessing
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from mcn_jax import parallel
from mcn_jax.data import sources
from mcn_jax.data.dataset import open_dataset
from mcn_jax.errors import InputError
from mcn_jax.seeds import Purpose, epoch_order, example_generators
from mcn_jax.training.run import train_and_evaluate
from mcn_jax.workdirs.checkpoint import Checkpoints, named_leaves
from mcn_jax.workdirs.files import read_metrics
from small_runs import STEPS_PER_EPOCH, copy_after, digits_config, restored, step_arguments

TIMES = ("wall_seconds", "images_per_second")


def with_data(config, **changes):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


def examples_of(batch):
    """Returns the images and labels of (split, batch) that a step on each device uses, in order."""
    split, indices = batch
    images, labels = [], []
    for device, rows in enumerate(np.asarray(indices.indices)):
        images.append(on_device(split.images, device)[rows])
        labels.append(on_device(split.labels, device)[rows])
    return np.concatenate(images), np.concatenate(labels)


def on_device(array, device):
    """Returns what a device holds of an array with an axis of devices, without a copy."""
    return np.asarray(array.addressable_shards[device].data).reshape(array.shape[1:])


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Writes 40 JPEGs of many sizes in two classes: noise in the color of the class."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name, colour in (("red", (200, 40, 40)), ("blue", (40, 40, 200))):
        (root / name).mkdir()
        for number in range(20):
            height, width = generator.integers(30, 90, 2)
            noise = generator.integers(-40, 41, (height, width, 3))
            pixels = (noise + np.array(colour)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.jpg")
    return root


def photos_config(photos, data_dir, **changes):
    config = digits_config(data_dir, batch_size=8, eval_batch_size=3, num_epochs=3)
    return with_data(
        config, name="image_folder", root=str(photos), image_size=16, crop_padding=0, **changes
    )


def test_a_stream_without_grain_is_one_line(data_dir, monkeypatch):
    config = with_data(digits_config(data_dir), pipeline="streamed")
    monkeypatch.setattr(importlib.util, "find_spec", {"grain": None}.__getitem__)
    with pytest.raises(InputError, match=r"pipeline='streamed' streams .* or use config.*resident"):
        sources.StreamedSource(config, open_dataset(config.data))


@pytest.mark.slow
def test_both_sources_give_the_same_batches(data_dir):
    config = with_data(digits_config(data_dir, num_epochs=2), workers=1)
    dataset = open_dataset(config.data)
    resident = sources.ResidentSource(config, dataset)
    streamed = sources.StreamedSource(config, dataset)
    for epoch in range(2):
        for method, steps in (("train_batches", 44), ("test_batches", 4)):
            batches = [getattr(source, method)(epoch) for source in (resident, streamed)]
            count = 0
            for a, b in zip(*batches, strict=True):
                count += 1
                (images_a, labels_a), (images_b, labels_b) = examples_of(a), examples_of(b)
                keep = slice(None)
                if method == "test_batches":
                    np.testing.assert_array_equal(a[1].mask, b[1].mask)
                    keep = np.asarray(a[1].mask).ravel()
                else:
                    np.testing.assert_array_equal(a[1].positions, b[1].positions)
                np.testing.assert_array_equal(images_a[keep], images_b[keep])
                np.testing.assert_array_equal(labels_a[keep], labels_b[keep])
            assert count == steps
    streamed.close()


def test_batches_of_one_dispatch_are_those_of_single_steps(data_dir):
    config = digits_config(data_dir)
    dataset = open_dataset(config.data)
    single = sources.ResidentSource(config, dataset)
    several = sources.ResidentSource(dataclasses.replace(config, steps_per_dispatch=12), dataset)
    assert (single.together, several.together) == (1, 11)  # of 44 steps
    expected = iter(single.train_batches(1))
    count = 0
    for split, batches in several.train_batches(1):
        for step in range(several.together):
            batch = jax.tree.map(lambda x, step=step: np.asarray(x)[:, step], batches)
            for ours, theirs in zip(
                examples_of((split, batch)), examples_of(next(expected)), strict=True
            ):
                np.testing.assert_array_equal(ours, theirs)
            count += 1
    assert count == 44


@pytest.mark.parametrize("name", ["resident", "streamed"])
def test_an_epoch_is_its_permutation_of_the_training_split(name, data_dir):
    config = with_data(digits_config(data_dir), workers=1)
    dataset = open_dataset(config.data)
    everything = dataset.train.read_all()
    source = sources.SOURCES[name](config, dataset)
    order = epoch_order(config.seed, 1, 1437)
    for step, batch in enumerate(itertools.islice(source.train_batches(1), 3)):
        images, labels = examples_of(batch)
        rows = order[32 * step :][:32]
        np.testing.assert_array_equal(images, everything.images[rows])
        np.testing.assert_array_equal(labels, everything.labels[rows])
    source.close()


def test_every_test_image_counts_once(data_dir):
    config = digits_config(data_dir)  # batches of 100, eight devices, 360 images
    source = sources.ResidentSource(config, open_dataset(config.data))
    rows = [
        np.asarray(batch.indices)[np.asarray(batch.mask)] for _, batch in source.test_batches(0)
    ]
    assert sorted(np.concatenate(rows).tolist()) == list(range(360))


def test_the_source_is_chosen_by_size(data_dir, monkeypatch):
    config = digits_config(data_dir)
    dataset = open_dataset(config.data)
    assert sources.source_name(config, dataset) == "resident"
    size = 1437 * 32 * 32  # bytes of the larger split; eight CPU devices hold eight copies
    monkeypatch.setattr(sources, "RESIDENT_BYTES", 8 * size)
    assert sources.source_name(config, dataset) == "resident"
    monkeypatch.setattr(sources, "RESIDENT_BYTES", 8 * size - 1)
    assert sources.source_name(config, dataset) == "streamed"
    assert sources.source_name(with_data(config, pipeline="resident"), dataset) == "resident"
    monkeypatch.setattr(parallel, "local_devices", lambda: jax.local_devices()[:7])
    assert sources.source_name(config, dataset) == "resident"


@pytest.mark.slow
def test_random_parts_are_streamed_and_depend_on_seed_epoch_and_step(photos, data_dir):
    config = photos_config(photos, data_dir, min_crop_area=0.3, workers=1)
    dataset = open_dataset(config.data)
    assert sources.source_name(config, dataset) == "streamed"

    def read(epoch, **changes):
        source = sources.StreamedSource(dataclasses.replace(config, **changes), dataset)
        batches = [examples_of(batch) for batch in source.train_batches(epoch)]
        source.close()
        return batches

    first, again = read(1), read(1)
    assert len(first) == 4
    for (images, labels), (same, same_labels) in zip(first, again, strict=True):
        np.testing.assert_array_equal(images, same)
        np.testing.assert_array_equal(labels, same_labels)
    # The generator of (seed, step, position) chooses the crop.
    images, labels = first[2]
    rows = epoch_order(config.seed, 1, 32)[16:24]
    generators = example_generators(config.seed, Purpose.RANDOM_CROP, 1 * 4 + 2, np.arange(8))
    expected = dataset.train.read(rows, generators)
    np.testing.assert_array_equal(images, expected.images)
    np.testing.assert_array_equal(labels, expected.labels)
    centers = dataset.train.read(rows).images
    assert all(not np.array_equal(a, b) for a, b in zip(images, centers, strict=True))
    assert not np.array_equal(first[0][0], read(1, seed=1)[0][0])


@pytest.mark.parametrize("processes", [2, 4])
def test_the_processes_of_a_run_read_parts_that_make_the_whole(
    processes, photos, data_dir, monkeypatch, one_device
):
    config = photos_config(photos, data_dir, min_crop_area=0.3)
    dataset = open_dataset(config.data)

    def reader(process, count):
        monkeypatch.setattr(jax, "process_index", lambda: process)
        monkeypatch.setattr(jax, "process_count", lambda: count)
        return sources._BatchReader(config, dataset.train, dataset.test)

    # The size of test batches depends on the devices of all processes.
    monkeypatch.setattr(sources._BatchReader, "_all_devices", 4)
    whole = reader(0, 1)
    parts = [reader(process, processes) for process in range(processes)]
    for element in range(whole.per_epoch):
        split, batch = whole(element)
        pieces = [part(element) for part in parts]
        for name in ("images", "labels"):
            np.testing.assert_array_equal(
                np.concatenate([getattr(piece[0], name) for piece in pieces]), getattr(split, name)
            )
        second = 1  # positions of a training batch, the mask of an evaluation batch
        np.testing.assert_array_equal(
            np.concatenate([piece[1][second] for piece in pieces]), batch[second]
        )
    seen = [whole(whole.train_steps + k)[1].mask.sum() for k in range(len(whole.tests))]
    assert sum(seen) == len(dataset.test) == 8


def last_leaves(workdir, config):
    checkpoints = Checkpoints(workdir / "checkpoints")
    template, _ = step_arguments(config, quantized=True, image_size=32)
    leaves = named_leaves(restored(checkpoints, checkpoints.steps()[-1], template))
    checkpoints.close()
    return leaves


@pytest.mark.slow
def test_a_streamed_run_equals_a_resident_one_and_may_resume_it(
    data_dir, tmp_path, monkeypatch, one_device
):
    config = with_data(digits_config(data_dir), workers=2, flip=True, mixup=0.3)
    streamed = with_data(config, pipeline="streamed")
    with monkeypatch.context() as patch:
        copy_after(patch, 2 * STEPS_PER_EPOCH, tmp_path / "both")
        result = train_and_evaluate(config, tmp_path / "resident")
    assert train_and_evaluate(streamed, tmp_path / "streamed")["class_names"] == list("0123456789")
    train_and_evaluate(streamed, tmp_path / "both")
    expected = last_leaves(tmp_path / "resident", config)
    for name in ("streamed", "both"):
        for leaf, value in last_leaves(tmp_path / name, config).items():
            np.testing.assert_array_equal(value, expected[leaf], err_msg=leaf)
        written = json.loads((tmp_path / name / "result.json").read_text())
        assert all(written[k] == result[k] for k in set(result) - set(TIMES))
        records = [
            [{k: v for k, v in r.items() if k not in TIMES} for r in read_metrics(path)]
            for path in (tmp_path / name / "metrics.jsonl", tmp_path / "resident" / "metrics.jsonl")
        ]
        assert records[0] == records[1]


@pytest.fixture
def begun_batches(photos, data_dir, one_device):
    """Returns the rest of a streamed epoch after its first batch: more than is read ahead."""
    config = photos_config(photos, data_dir, min_crop_area=0.3, workers=1)
    config = dataclasses.replace(config, batch_size=1)
    source = sources.StreamedSource(config, open_dataset(config.data))
    batches = source.train_batches(0)
    next(batches)
    yield batches
    source.close()


def test_signals_to_the_whole_process_group_leave_the_workers_alone(begun_batches):
    """Ctrl-C reaches all processes, but the run still needs its workers to finish a step."""
    workers = multiprocessing.active_children()
    assert workers
    for process in workers:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(process.pid, number)
    assert len(list(begun_batches)) == 31
    assert all(process.is_alive() for process in workers)


def test_an_epoch_may_begin_inside(photos, data_dir, one_device):
    config = photos_config(photos, data_dir, min_crop_area=0.3, workers=1)
    config = dataclasses.replace(config, batch_size=8)
    source = sources.StreamedSource(config, open_dataset(config.data))
    whole = [examples_of(batch) for batch in source.train_batches(1)]
    rest = [examples_of(batch) for batch in source.train_batches(1, 2)]
    assert len(rest) == len(whole) - 2
    for expected, found in zip(whole[2:], rest, strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, expected)
    source.close()


def test_a_worker_that_is_killed_is_one_line(begun_batches):
    for process in multiprocessing.active_children():
        process.kill()
    with pytest.raises(InputError, match=r"a process that reads the data has ended .*resumes$"):
        list(begun_batches)


def test_a_record_that_a_worker_cannot_read_is_one_line(photos, tmp_path, one_device):
    config = photos_config(photos, str(tmp_path), min_crop_area=0.3, workers=1)
    dataset = open_dataset(config.data)
    source = sources.StreamedSource(config, dataset)
    [path] = tmp_path.rglob("image_folder-train.array_record*")
    content = bytearray(path.read_bytes())
    content[len(content) // 4 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 4)
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"data set image_folder in .* cannot be read") as error:
        list(source.train_batches(0))
    assert "\n" not in str(error.value)
    source.close()


PLACE = {"cwd": pathlib.Path(__file__).parents[2], "env": {**os.environ, "XLA_FLAGS": ""}}


def streamed_command(photos, directory, num_epochs):
    return [
        sys.executable, "-m", "mcn_jax.main", "--config=configs/image_folder.py",
        f"--config.data.root={photos}", f"--config.data.data_dir={directory}/data",
        "--config.data.min_crop_area=0.3", "--config.data.image_size=16",
        f"--config.num_epochs={num_epochs}", "--config.binarize.start_epoch=1",
        "--config.model.widths=(2,4)", f"--workdir={directory}/run",
    ]  # fmt: skip


def is_running(process):
    """Returns whether a process has not ended; one that nobody has waited for has."""
    try:
        return (
            pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        )
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
def test_workers_end_after_a_run_that_is_killed(photos, tmp_path):
    command = streamed_command(photos, tmp_path, num_epochs=100_000)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **PLACE) as run:
        assert any(line.startswith("epoch") for line in run.stdout)
        lists = pathlib.Path(f"/proc/{run.pid}/task").glob("*/children")
        workers = [worker for path in lists for worker in path.read_text().split()]
        assert sum(map(is_running, workers)) >= 2  # a worker, and the tracker of its memory
        run.kill()
        run.stdout.read()  # to its end, which comes when no process holds it any more
    deadline = time.monotonic() + 60
    while any(map(is_running, workers)):
        assert time.monotonic() < deadline, "a worker outlives the run"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_streamed_command_leaves_nothing_behind(photos, tmp_path):
    """Leaves no warning, shared memory or worker behind; standard error is empty."""
    before = set(os.listdir("/dev/shm"))
    result = subprocess.run(
        streamed_command(photos, tmp_path, num_epochs=2),
        capture_output=True, text=True, check=False, **PLACE,
    )  # fmt: skip
    assert result.returncode == 0
    assert result.stderr == ""
    assert re.search(r"classes +│ 2: blue, red", result.stdout)
    # Other tests that run at the same time may have shared memory, which ends with them.
    left, deadline = set(os.listdir("/dev/shm")) - before, time.monotonic() + 300
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left &= set(os.listdir("/dev/shm"))
    assert not left
