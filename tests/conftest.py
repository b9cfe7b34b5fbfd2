"""Sets up eight CPU devices before anything imports jax, and shares trained runs."""

import dataclasses
import fcntl
import os
import pathlib
import shutil
import signal
from typing import NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# Caches compiled programs, down to the smallest, between test runs, for all workers and for the
# processes that tests start.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".jax_cache")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import hypothesis
import jax
import pytest

from mcn_jax import parallel
from mcn_jax.config import BinarizeConfig, DataConfig, LossConfig
from mcn_jax.data.dataset import open_dataset
from mcn_jax.training.run import train_and_evaluate
from small_runs import copy_after, digits_config

jax.config.update("jax_numpy_rank_promotion", "raise")
# The same examples each time: a test that fails by chance says nothing about the change at hand.
hypothesis.settings.register_profile("repeats", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeats")
# Background jobs of a shell ignore interrupts, and processes that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


# These more than halve the time of a compilation. At level 0, XLA computes wrong gradients.
QUICK_COMPILATION = (
    " --xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"
)
if jax.__version_info__ < (0, 11):  # later versions end at a flag that they no longer have
    QUICK_COMPILATION += " --xla_cpu_use_fusion_emitters=false"


def pytest_configure(config):
    """Compiles quickly for the fast tests, and as for users in the slow ones."""
    if config.option.markexpr != "slow":
        os.environ["XLA_FLAGS"] += QUICK_COMPILATION


@pytest.fixture(scope="module", autouse=True)
def compiled_programs():
    """Clears JAX's caches after a module if the process has many memory mappings.

    Each compiled program has several mappings, and Linux allows a process only 65,530.
    """
    yield
    mappings = pathlib.Path("/proc/self/maps")
    if not mappings.exists() or mappings.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


@pytest.fixture(scope="session")
def share(tmp_path_factory):
    """Returns a function that returns the directory `name`.

    `make(directory)` fills it once for all workers of pytest-xdist.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def shared(name, make):
        directory = root / name
        with (root / f"{name}.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not directory.exists():
                making = root / f"{name}.making"
                shutil.rmtree(making, ignore_errors=True)  # left by a killed worker
                make(making)
                making.rename(directory)
        return directory

    return shared


@pytest.fixture(scope="session")
def data_dir(share):
    """Returns the data directory with digits, where tests also prepare other data sets."""
    return str(share("data", lambda directory: open_dataset(DataConfig(data_dir=str(directory)))))


def real_archives(file):
    """Returns the directory in MCN_JAX_ARCHIVES if it contains this file."""
    directory = os.environ.get("MCN_JAX_ARCHIVES", "")
    if not directory or not pathlib.Path(directory, file).is_file():
        pytest.skip(f"set MCN_JAX_ARCHIVES to a directory of official archives with {file}")
    return directory


@pytest.fixture(scope="session")
def mnist_archives():
    return real_archives("train-images-idx3-ubyte.gz")


@pytest.fixture(scope="session")
def cifar_archives():
    """Returns the directory of both extracted CIFAR archives."""
    real_archives("cifar-100-binary/train.bin")
    return real_archives("cifar-10-batches-bin/test_batch.bin")


def use_one_device(patch):
    """Makes `parallel` use only the first device."""
    patch.setattr(parallel, "local_devices", lambda: jax.local_devices()[:1])


@pytest.fixture
def one_device(monkeypatch):
    """Makes `parallel` use only the first device."""
    use_one_device(monkeypatch)


@pytest.fixture(scope="session")
def shared_run(share):
    """Returns a function that returns the work directory of a run on one device.

    The run is trained once for all workers. Tests must copy a work directory before changing it.
    """

    def run(name, config):
        def train(directory):
            with pytest.MonkeyPatch.context() as patch:
                use_one_device(patch)
                train_and_evaluate(config, directory)

        return share(name, train)

    return run


class RunAndCopy(NamedTuple):
    """Work directories of a whole run, and of a copy that was made while it was trained."""

    whole: pathlib.Path
    copy: pathlib.Path


@pytest.fixture(scope="session")
def shared_run_and_copy(share):
    """Returns a function that trains a run on one device, once for all workers.

    Its work directory is copied once the checkpoint of step `copied_after` is written. Tests must
    copy a directory before changing it.
    """

    def run(name, config, copied_after):
        def train(directory):
            with pytest.MonkeyPatch.context() as patch:
                use_one_device(patch)
                copy_after(patch, copied_after, directory / "copy")
                train_and_evaluate(config, directory / "whole")

        directory = share(name, train)
        return RunAndCopy(directory / "whole", directory / "copy")

    return run


@pytest.fixture(scope="session")
def digits_run(shared_run, data_dir):
    """Returns the work directory of `digits_config`: four epochs, the last two binary."""
    return shared_run("digits_run", digits_config(data_dir))


@pytest.fixture(scope="session")
def report_runs(shared_run, data_dir):
    """Returns {name: work directory} of small runs that reports compare."""
    base = digits_config(data_dir, num_epochs=2, binarize=BinarizeConfig(start_epoch=0))
    changes = {
        "seed_0": {},
        "seed_1": {"seed": 1},
        "theta_0": {"loss": LossConfig(theta=0.0)},
        "centers_3": {"binarize": BinarizeConfig(start_epoch=0, num_centers=3)},
        "umcn": {"binarize": BinarizeConfig(start_epoch=0, enabled=False)},
    }
    return {
        name: shared_run(name, dataclasses.replace(base, **fields))
        for name, fields in changes.items()
    }
