"""Sources of the steps' batches: splits that stay on the devices, or a stream from workers.

Both return the same batches, as functions of (seed, epoch, step). So a run can resume at any step,
and with the other source. A streamed batch reaches the step as a small split whose rows are in
order, so the step treats both alike.
"""

import collections
import functools
import importlib.util
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from absl import flags

from mcn_jax import parallel
from mcn_jax.config import Config
from mcn_jax.data.batches import Batch, EvalBatch, Split
from mcn_jax.data.dataset import Dataset
from mcn_jax.data.examples import Examples
from mcn_jax.data.shared_memory import check_shared_memory
from mcn_jax.errors import InputError
from mcn_jax.ops.chunks import greatest_divisor
from mcn_jax.seeds import Purpose, epoch_order, example_generators

RESIDENT_BYTES = 2e9  # largest resident split, over all devices that share memory
ENDLESS = 2**48  # elements of a stream whose end no run reaches
PLACED_AHEAD = 2  # streamed batches in transfer to the devices while a step runs


class Source(Protocol):
    """Batches on the devices, as arguments of the mapped steps.

    Attributes:
        together: number of training batches per dispatch.
    """

    together: int

    def train_batches(self, epoch: int, first: int = 0) -> Iterator[tuple[Split, Batch]]:
        """Yields the full batches of an epoch from batch `first` on, `together` at a time.

        Examples after the last full batch are left out in this epoch. If `together` is more than 1,
        the arrays have an axis of steps after the axis of devices.

        Raises:
            InputError: if `first` is not a multiple of `together`.
        """

    def test_batches(self, epoch: int) -> Iterator[tuple[Split, EvalBatch]]:
        """Yields every example of the test split once, after the training of `epoch`."""

    def close(self) -> None:
        """Ends worker processes."""


def make_source(config: Config, dataset: Dataset, *, pause_steps: int = 0) -> Source:
    """Makes the source for `config.data.pipeline`; "auto" chooses by the size of the data.

    Args:
        config: the run's config.
        dataset: the data.
        pause_steps: a dispatch must end after this many steps of an epoch, and after every multiple
            of it; 0 if dispatches may end anywhere.
    """
    return SOURCES[source_name(config, dataset)](config, dataset, pause_steps)


def source_name(config: Config, dataset: Dataset) -> str:
    """Returns "resident" or "streamed"."""
    if config.data.pipeline != "auto":
        return config.data.pipeline
    copies = len(parallel.local_devices()) if jax.default_backend() == "cpu" else 1
    size = max(len(dataset.train), len(dataset.test)) * int(np.prod(dataset.image_shape))
    return "streamed" if config.data.min_crop_area or copies * size > RESIDENT_BYTES else "resident"


class ResidentSource:
    """Keeps both splits on every device as uint8; a step receives row numbers."""

    def __init__(self, config: Config, dataset: Dataset, pause_steps: int = 0):
        """Reads both splits; for `pause_steps` see `make_source`."""
        self._config = config
        self._examples = (len(dataset.train), len(dataset.test))
        self._steps = self._examples[0] // config.batch_size
        most = config.steps_per_dispatch or default_steps_per_dispatch()
        self.together = greatest_divisor(math.gcd(self._steps, pause_steps), most)
        self._train = parallel.replicate(dataset.train.read_all())
        self._test = parallel.replicate(dataset.test.read_all())

    def train_batches(self, epoch: int, first: int = 0) -> Iterator[tuple[Split, Batch]]:
        """Yields training batches; see `Source`."""
        config = self._config
        if first % self.together:
            raise InputError(
                f"the checkpoint was saved after {first} steps of its epoch, but this run takes"
                f" {self.together} steps at a time; resume with --config.steps_per_dispatch=1"
            )
        positions = np.arange(config.batch_size, dtype=np.int32)
        for dispatched in range(first, self._steps, self.together):
            batches = [
                Batch(train_rows(config, self._examples[0], epoch, dispatched + step), positions)
                for step in range(self.together)
            ]
            if self.together == 1:
                yield self._train, parallel.shard(parallel.share(batches[0]))
            else:
                stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *batches)
                yield self._train, parallel.shard(parallel.share(stacked, axis=1), axis=1)

    def test_batches(self, epoch: int) -> Iterator[tuple[Split, EvalBatch]]:
        """Yields test batches; see `Source`."""
        del epoch
        size = self._config.eval_batch_size
        for batch in eval_batches(self._examples[1], size, parallel.num_devices()):
            yield self._test, parallel.shard(parallel.share(batch))

    def close(self) -> None:
        """Does nothing, as there are no worker processes."""


class StreamedSource:
    """Streams examples that Grain's worker processes read, decode and crop.

    One stream covers everything that a run reads, including the test split after every epoch. So
    the workers start only once. If batches are requested out of sequence, the stream restarts
    there.

    With several processes, each process reads its own part of every batch.
    """

    together = 1

    def __init__(self, config: Config, dataset: Dataset, pause_steps: int = 0):
        """Prepares the stream without starting workers.

        Raises:
            InputError: if Grain is not installed, or the workers' shared memory is missing or too
                small.
        """
        del pause_steps  # every dispatch is one step
        if importlib.util.find_spec("grain") is None:
            raise InputError(
                f"config.data.pipeline={config.data.pipeline!r} streams these images with the"
                " package grain, which is not installed; install it, or use"
                " config.data.pipeline='resident'"
            )
        self._read = _BatchReader(config, dataset.train, dataset.test)
        self._workers = config.data.workers or parallel.host_cores() or 1
        check_shared_memory(self._workers, self._read.batch_bytes)
        self._next = -1
        self._stream: Any = None

    def train_batches(self, epoch: int, first: int = 0) -> Iterator[tuple[Split, Batch]]:
        """Yields training batches; see `Source`."""
        reader = self._read
        return self._placed(epoch * reader.per_epoch + first, reader.train_steps - first)

    def test_batches(self, epoch: int) -> Iterator[tuple[Split, EvalBatch]]:
        """Yields test batches; see `Source`."""
        reader = self._read
        start = epoch * reader.per_epoch + reader.train_steps
        return self._placed(start, reader.per_epoch - reader.train_steps)

    def _placed(self, start: int, count: int) -> Iterator[Any]:
        """Yields `count` elements from `start`, placed on the devices ahead of their use."""
        if start != self._next:
            self.close()
            self._stream = iter(self._elements(start))
        placed: collections.deque[Any] = collections.deque()
        for _ in range(count):
            self._next = -1  # unknown if the consumer stops early
            try:
                element = next(self._stream)
            except RuntimeError as error:  # raised by Grain itself; workers raise InputErrors
                raise InputError(
                    f"a process that reads the data has ended ({str(error).splitlines()[0]}); if"
                    " memory or /dev/shm is full, lower config.data.workers; the same command"
                    " resumes"
                ) from error
            # Copied, to release the memory shared with the workers at once.
            placed.append(parallel.shard(jax.tree.map(np.array, element)))
            if len(placed) > PLACED_AHEAD:
                yield placed.popleft()
        yield from placed
        self._next = start + count

    def _elements(self, start: int) -> Any:
        import grain  # resident data do not need it

        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read absl flags
        # Grain does not release shared memory at the end of a stream, so no run reaches the end.
        elements = grain.MapDataset.range(start, ENDLESS).map(self._read)
        # Batches are large, so each worker holds only two: one in progress and one in its buffer.
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        return elements.to_iter_dataset(options).mp_prefetch(
            grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=1),
            worker_init_fn=_live_as_long_as_the_run,
        )

    def close(self) -> None:
        """Ends worker processes; see `Source`."""
        if self._stream is not None:
            self._stream.close()
        self._stream, self._next = None, -1


def _live_as_long_as_the_run(worker: int, workers: int) -> None:
    """Makes a worker ignore signals that end a run, and end when the run's process has ended.

    Signals to the whole process group, and a closed terminal, are meant for the run, which ends its
    workers itself. If it is killed, it cannot.
    """
    del worker, workers
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_after_the_run, daemon=True).start()


def _end_after_the_run() -> None:
    run = multiprocessing.parent_process()
    assert run is not None
    run.join()
    os._exit(1)


def default_steps_per_dispatch() -> int:
    """Returns 1 on a CPU and 32 elsewhere.

    On a CPU a step takes longer than its dispatch, so there is nothing to gain.
    """
    return 1 if jax.default_backend() == "cpu" else 32


SOURCES: dict[str, Callable[[Config, Dataset, int], Source]] = {
    "resident": ResidentSource,
    "streamed": StreamedSource,
}


class _BatchReader:
    """Reads elements of the stream, in a worker.

    The elements of an epoch are its training batches, followed by the batches of the test split.
    """

    def __init__(self, config: Config, train: Examples, test: Examples):
        self.config = config
        self.train = train
        self.test = test
        self.devices = len(parallel.local_devices())
        self.processes = jax.process_count()
        self.process = jax.process_index()
        self.train_steps = len(train) // config.batch_size
        self.tests = list(eval_batches(len(test), config.eval_batch_size, self._all_devices))
        self.per_epoch = self.train_steps + len(self.tests)

    @property
    def batch_bytes(self) -> int:
        """The size of the images in the largest batch that this process reads."""
        largest = max(self.config.batch_size, len(self.tests[0].indices)) // self.processes
        return largest * int(np.prod(self.train.image_shape))

    @property
    def _all_devices(self) -> int:
        return self.devices * self.processes

    def __call__(self, element: int) -> tuple[Split, Batch | EvalBatch]:
        epoch, step = divmod(element, self.per_epoch)
        if step < self.train_steps:
            return self._train_batch(epoch, step)
        return self._test_batch(self.tests[step - self.train_steps])

    def _share(self, batch: np.ndarray) -> np.ndarray:
        """Returns the part of a global batch that this process reads."""
        return np.split(batch, self.processes)[self.process]

    def _train_batch(self, epoch: int, step: int) -> tuple[Split, Batch]:
        config = self.config
        rows = self._share(train_rows(config, len(self.train), epoch, step))
        positions = self._share(np.arange(config.batch_size, dtype=np.int32))
        generators = None
        if config.data.min_crop_area:
            run_step = epoch * self.train_steps + step
            generators = example_generators(config.seed, Purpose.RANDOM_CROP, run_step, positions)
        return self.train.read(rows, generators), Batch(self._in_order(rows), positions)

    def _test_batch(self, batch: EvalBatch) -> tuple[Split, EvalBatch]:
        rows, mask = self._share(batch.indices), self._share(batch.mask)
        images = np.zeros((len(rows), *self.test.image_shape), np.uint8)
        labels = np.zeros(len(rows), np.int32)
        if mask.any():
            images[mask], labels[mask] = self.test.read(rows[mask])
        return Split(images, labels), EvalBatch(self._in_order(rows), mask)

    def _in_order(self, rows: np.ndarray) -> np.ndarray:
        """Returns the row numbers within each device's own part."""
        return np.tile(np.arange(len(rows) // self.devices, dtype=np.int32), self.devices)


def train_rows(config: Config, num_examples: int, epoch: int, step: int) -> np.ndarray:
    """Returns the rows of a global training batch, [batch_size] int32.

    Args:
        config: config of the run.
        num_examples: size of the training split.
        epoch: epoch, from 0.
        step: step within the epoch, from 0.
    """
    order = _epoch_order(config.seed, epoch, num_examples)
    return order[step * config.batch_size :][: config.batch_size]


_epoch_order = functools.lru_cache(maxsize=1)(epoch_order)


def eval_batches(num_examples: int, batch_size: int, num_devices: int) -> Iterator[EvalBatch]:
    """Yields batches in order, all of one size; the last is padded with row 0 and mask False.

    Args:
        num_examples: size of the split, at least 1.
        batch_size: any size; rounded up to a multiple of `num_devices`.
        num_devices: number of devices that share a batch.

    Yields:
        Global batches, whose length is divisible by `num_devices`.
    """
    batch_size = -(-min(batch_size, num_examples) // num_devices) * num_devices
    for start in range(0, num_examples, batch_size):
        indices = np.arange(start, start + batch_size, dtype=np.int32)
        mask = indices < num_examples
        yield EvalBatch(np.where(mask, indices, 0).astype(np.int32), mask)
