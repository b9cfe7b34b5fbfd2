"""Eight CPU devices, before jax is imported by anything."""

import os
import pathlib
import signal

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# Compiled programs are kept between runs of the tests, for processes that tests start, too.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parents[1] / ".jax_cache")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# A shell has what it starts in the background ignore interrupts, and with it all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def compiled_programs():
    """Forgets those of a module after it: each maps memory several times, and a process that
    reaches the kernel's limit of mappings is killed in the middle of the next compilation."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where the tests prepare data sets, once a session."""
    return str(tmp_path_factory.mktemp("data"))


def real_archives(file):
    """The directory of real archives that MCN_JAX_ARCHIVES names, if it holds this file."""
    directory = os.environ.get("MCN_JAX_ARCHIVES", "")
    if not directory or not pathlib.Path(directory, file).is_file():
        pytest.skip(f"set MCN_JAX_ARCHIVES to a directory of official archives with {file}")
    return directory


@pytest.fixture(scope="session")
def mnist_archives():
    return real_archives("train-images-idx3-ubyte.gz")


@pytest.fixture(scope="session")
def cifar_archives():
    """Both CIFAR archives, extracted."""
    real_archives("cifar-100-binary/train.bin")
    return real_archives("cifar-10-batches-bin/test_batch.bin")


@pytest.fixture
def one_device(monkeypatch):
    """Makes `parallel` use the first device alone."""
    from mcn_jax import parallel

    monkeypatch.setattr(parallel, "local_devices", lambda: jax.local_devices()[:1])


@pytest.fixture(scope="session")
def report_runs(data_dir, tmp_path_factory):
    """{name: work directory} of small runs that reports compare, trained once a session."""
    import dataclasses

    from mcn_jax import parallel
    from mcn_jax.config import BinarizeConfig, LossConfig
    from mcn_jax.training.run import train_and_evaluate
    from small_runs import digits_config

    base = digits_config(data_dir, num_epochs=2, binarize=BinarizeConfig(start_epoch=0))
    changes = {
        "seed_0": {},
        "seed_1": {"seed": 1},
        "theta_0": {"loss": LossConfig(theta=0.0)},
        "centers_3": {"binarize": BinarizeConfig(start_epoch=0, num_centers=3)},
        "umcn": {"binarize": BinarizeConfig(start_epoch=0, enabled=False)},
    }
    root = tmp_path_factory.mktemp("report_runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "local_devices", lambda: jax.local_devices()[:1])
        for name, fields in changes.items():
            train_and_evaluate(dataclasses.replace(base, **fields), root / name)
    return {name: root / name for name in changes}
