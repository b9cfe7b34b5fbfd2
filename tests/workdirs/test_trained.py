"""Tests which checkpoint is read, and what is said about damaged ones."""

import json
import shutil

import pytest

from mcn_jax.workdirs.checkpoint import DamagedCheckpointError, saved_steps
from mcn_jax.workdirs.trained import read_trained


def test_another_checkpoint_is_named_if_one_is_damaged(digits_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(digits_run, workdir)
    steps = saved_steps(workdir / "checkpoints")
    path = workdir / "checkpoints" / str(steps[-1]) / "digests" / "metadata"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"sha256": "0" * 64}))
    other = workdir / "checkpoints" / str(steps[-2])
    with pytest.raises(DamagedCheckpointError, match=rf"is damaged: .*; name .* such as {other}$"):
        read_trained(workdir)
    assert read_trained(other).epoch["step"] == steps[-2]
    for step in steps[:-1]:
        shutil.rmtree(workdir / "checkpoints" / str(step))
    with pytest.raises(DamagedCheckpointError, match=r"; train the run again in another work dir"):
        read_trained(workdir)
