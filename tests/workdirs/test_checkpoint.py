import contextlib
import hashlib
import json
import resource
import shutil

import jax
import numpy as np
import pytest

from mcn_jax.errors import InputError
from mcn_jax.models.plan import plan_of
from mcn_jax.training.run import restore_last
from mcn_jax.training.state import saved_tree
from mcn_jax.workdirs import checkpoint
from mcn_jax.workdirs.checkpoint import (
    Checkpoints,
    DamagedCheckpointError,
    named_leaves,
    saved_steps,
)
from small_runs import digits_config, step_arguments

PLAN = plan_of(digits_config(), 10, (16, 16, 1))


@pytest.fixture
def checkpoints(tmp_path):
    opened = Checkpoints(tmp_path / "checkpoints")
    yield opened
    opened.close()


def template_of(**changes):
    return step_arguments(digits_config(**changes), quantized=True)[0]


def state_of(**changes):
    """Returns the state of a new run, as a checkpoint holds it."""
    return saved_tree(template_of(**changes))


def test_a_state_comes_back_bit_for_bit(checkpoints):
    state = state_of()
    checkpoints.save(7, state, test_accuracy=0.5)
    other = state_of(seed=1)
    restored = named_leaves(checkpoints.restore(7, other))
    for name, leaf in named_leaves(state).items():
        np.testing.assert_array_equal(restored[name], leaf)
        assert restored[name].dtype == leaf.dtype
    assert "params/conv_1/m_filters" in restored
    assert "centers/conv_1/centers" in restored


def test_the_last_two_and_the_best_are_kept_across_processes(tmp_path):
    state = {"x": np.arange(3.0)}
    for step, accuracy in [(1, 0.3), (2, 0.9), (3, 0.9), (4, 0.5), (5, 0.6), (6, 0.4)]:
        opened = Checkpoints(tmp_path)  # like another process
        opened.save(step, state, accuracy)
        steps, best = opened.steps(), opened.best_step()
        opened.close()
    assert steps == [3, 5, 6]
    assert best == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"more": np.ones(2)}, "has no more, which this model needs"),
        (lambda t: {"a": t["a"]}, "holds b/c, which this model does not have"),
        (
            lambda t: t | {"a": np.ones((2, 3))},
            r"holds a of shape \(3, 2\), this model needs \(2, 3\)",
        ),
        (
            lambda t: t | {"a": np.ones((3, 2), np.float64)},
            "holds a as float32, this model needs float64",
        ),
    ],
)
def test_another_structure_shape_or_dtype_is_refused_by_name(checkpoints, change, message):
    tree = {"a": np.ones((3, 2), np.float32), "b": {"c": np.zeros(4, np.int32)}}
    checkpoints.save(1, tree, test_accuracy=0.5)
    with pytest.raises(InputError, match=message):
        checkpoints.restore(1, change(tree))


def test_a_leaf_that_differs_from_its_digest_is_named(checkpoints):
    tree = {"a": np.ones(3, np.float32), "b": np.zeros(4, np.float32)}
    checkpoints.save(1, tree, test_accuracy=0.5)
    checkpoints.wait()
    [path] = [
        p for p in (checkpoints.directory / "1" / "digests").iterdir() if "sha256" in p.read_text()
    ]
    record = json.loads(path.read_text())
    record["leaves"]["b"]["sha256"] = "0" * 64
    path.write_text(json.dumps(record))
    with pytest.raises(DamagedCheckpointError, match=r"1 is damaged: its list of leaves differs"):
        checkpoints.restore(1, tree)
    text = json.dumps(record["leaves"], sort_keys=True)
    record["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(json.dumps(record))
    with pytest.raises(DamagedCheckpointError, match=r"1 is damaged: b differs from its digest$"):
        checkpoints.restore(1, tree)


def test_what_a_kill_left_half_written_is_removed(tmp_path):
    for _ in range(2):
        opened = Checkpoints(tmp_path)
        opened.save((opened.steps() or [0])[-1] + 1, {"x": np.arange(3.0)}, test_accuracy=0.5)
        opened.close()
        (tmp_path / "3.orbax-checkpoint-tmp").mkdir(exist_ok=True)
    reader = Checkpoints(tmp_path, read_only=True)
    reader.close()
    assert (tmp_path / "3.orbax-checkpoint-tmp").exists()
    opened = Checkpoints(tmp_path)
    assert opened.steps() == [1, 2]
    opened.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]
    (tmp_path / "3.orbax-checkpoint-tmp").touch()  # a file; only directories are removed
    with pytest.raises(InputError, match=r"tmp, .* cannot be removed: .* delete it"):
        Checkpoints(tmp_path)


def test_what_a_kill_left_of_a_removed_checkpoint_is_removed(tmp_path):
    opened = Checkpoints(tmp_path)
    for step in (1, 2):
        opened.save(step, {"x": np.arange(3.0)}, test_accuracy=0.5)
    opened.close()
    for path in (tmp_path / "1").iterdir():
        if path.name != "state":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    opened = Checkpoints(tmp_path)
    for step in (3, 4):
        opened.save(step, {"x": np.arange(3.0)}, test_accuracy=0.1 * step)
    opened.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3", "4"]


def test_an_accuracy_that_was_changed_does_not_choose_another_best_checkpoint(tmp_path):
    opened = Checkpoints(tmp_path)
    opened.save(1, {"x": np.arange(3.0)}, test_accuracy=0.9)
    opened.close()
    path = tmp_path / "1" / "metrics" / "metrics"
    path.write_text(path.read_text().replace("0.9", "0.1"))
    with pytest.raises(InputError, match=r"metrics is damaged \(its accuracy differs .*; delete"):
        Checkpoints(tmp_path)


def test_a_directory_of_another_name_is_no_step(tmp_path):
    for name in ("12", "²", "٢", "x", "3.orbax-checkpoint-tmp"):
        (tmp_path / name).mkdir()
    assert saved_steps(tmp_path) == [12]


def save_and_wait(checkpoints, tree):
    checkpoints.save(2, tree, test_accuracy=0.5)
    checkpoints.wait()


def test_a_full_disk_is_one_error_that_says_what_to_do(tmp_path):
    """A limit of 20 kB per file simulates a full disk."""
    opened = Checkpoints(tmp_path / "checkpoints")
    opened.save(1, {"x": np.zeros(10)}, test_accuracy=0.5)
    opened.wait()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = {"x": np.random.default_rng(0).normal(size=100_000)}
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        with pytest.raises(OSError, match=r"cannot be written: .*; make room, then the same"):
            save_and_wait(opened, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with contextlib.suppress(OSError):
        opened.close()
    opened = Checkpoints(tmp_path / "checkpoints")
    assert opened.steps() == [1]
    save_and_wait(opened, large)
    np.testing.assert_array_equal(opened.restore(2, large)["x"], large["x"])
    opened.close()


DAMAGES = {
    "truncated": lambda path, content: path.write_bytes(content[: len(content) // 2]),
    "emptied": lambda path, content: path.write_bytes(b""),
    "deleted": lambda path, content: path.unlink(),
    "flipped": lambda path, content: path.write_bytes(
        content[: len(content) // 2]
        + bytes([content[len(content) // 2] ^ 1])
        + content[len(content) // 2 + 1 :]
    ),
}


def with_each_file_damaged(directory, damage, copies):
    """Yields (file, copy) of a checkpoint directory with one file damaged.

    Each copy has another damaged file of the last checkpoint, starting with the largest file.
    """
    last = max((p for p in directory.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    files = [p for p in last.rglob("*") if p.is_file() and p.stat().st_size]
    for file in sorted(files, key=lambda path: -path.stat().st_size):
        copy = copies / str(len(list(copies.iterdir()))) / "checkpoints"
        shutil.copytree(directory, copy)
        path = copy / file.relative_to(directory)
        DAMAGES[damage](path, path.read_bytes())
        yield file, copy


def test_a_peer_that_is_lost_in_a_barrier_of_orbax_is_not_taken_for_a_fault_of_files(
    checkpoints, tmp_path, monkeypatch
):
    checkpoints.save(1, state_of(), test_accuracy=0.5)
    checkpoints.wait()

    def lost(*arguments, **options):
        raise ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")

    with monkeypatch.context() as patch:
        for name in ("save", "wait_until_finished", "restore"):
            patch.setattr(checkpoint._Manager, name, lost)
        for call in (
            lambda: checkpoints.save(2, state_of(), test_accuracy=0.5),
            checkpoints.wait,
            lambda: checkpoints.read(1),
        ):
            with pytest.raises(ValueError, match=r"^UNKNOWN: Gloo"):
                call()
    monkeypatch.setattr(checkpoint, "_Manager", lost)
    with pytest.raises(ValueError, match=r"^UNKNOWN: Gloo"):
        Checkpoints(tmp_path / "other")


@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damaged_file_gives_a_wrong_state_or_a_traceback(tmp_path, damage):
    tree = {"a": np.random.default_rng(0).normal(size=5000), "b": np.zeros(4)}
    original = Checkpoints(tmp_path / "original")
    original.save(1, tree, test_accuracy=0.5)
    original.close()
    messages = {}
    for file, copy in with_each_file_damaged(original.directory, damage, tmp_path):
        try:
            with contextlib.closing(Checkpoints(copy)) as damaged:
                restored = damaged.restore(1, tree) if damaged.steps() else None
        except InputError as error:
            messages[file] = str(error)
            continue
        messages[file] = ""
        if restored is not None:
            jax.tree.map(np.testing.assert_array_equal, restored, tree)
    assert next(iter(messages.values()))  # for the largest file
    assert not [message for message in messages.values() if "\n" in message]


@pytest.mark.parametrize(
    "damage",
    ["flipped", *(pytest.param(d, marks=pytest.mark.slow) for d in DAMAGES if d != "flipped")],
)
def test_a_run_goes_on_from_the_last_checkpoint_that_is_whole(tmp_path, damage):
    before, last = state_of(seed=1), state_of(seed=2)
    original = Checkpoints(tmp_path / "original")
    original.save(1, before, test_accuracy=0.5)
    original.save(2, last, test_accuracy=0.6)
    original.close()
    outcomes = {}
    for file, copy in with_each_file_damaged(original.directory, damage, tmp_path):
        try:
            with contextlib.closing(Checkpoints(copy)) as opened:
                state, progress = restore_last(opened, template_of(), PLAN)
        except InputError as error:
            outcomes[file] = str(error)
            continue
        aside = (copy.parent / "damaged_checkpoints" / "2").exists()
        outcomes[file] = "the one before" if aside else "the last"
        assert progress is None
        restored = named_leaves(saved_tree(state))
        expected = named_leaves(before if aside else last)
        assert restored.keys() == expected.keys()
        for name, leaf in restored.items():
            np.testing.assert_array_equal(leaf, expected[name], err_msg=f"{file} {name}")
    assert next(iter(outcomes.values())) == "the one before"  # for the largest file
    assert not [outcome for outcome in outcomes.values() if "\n" in outcome]
