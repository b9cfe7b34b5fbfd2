"""Where the steps get their batches: splits that live on the devices, or a stream of workers.

Both give the same batches as functions of (seed, epoch, step), so a run may be resumed anywhere,
and on the other one. A streamed batch reaches the step as a split of its own whose rows stand in
order; the step does not know the difference.
"""

import collections
import functools
import signal
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import grain
import jax
import numpy as np
from absl import flags

from mcn_jax import parallel
from mcn_jax.config import Config
from mcn_jax.data.batches import Batch, EvalBatch, Split
from mcn_jax.data.dataset import Dataset, Examples
from mcn_jax.errors import InputError
from mcn_jax.ops.chunks import greatest_divisor
from mcn_jax.seeds import Purpose, epoch_order, example_generators

RESIDENT_BYTES = 2e9  # of a split, on all devices that share a memory
ENDLESS = 2**48  # elements
PLACED_AHEAD = 2  # streamed batches that are on their way to the devices while a step runs


class Source(Protocol):
    """Batches on the devices, as arguments of the mapped steps.

    Attributes:
        together: training batches that are given at a time.
    """

    together: int

    def train_batches(self, epoch: int, first: int = 0) -> Iterator[tuple[Split, Batch]]:
        """The whole batches of an epoch from the `first` on; examples beyond the last one wait for
        the next epoch. Where several are given at a time, they have an axis of steps behind that of
        devices; InputError if `first` lies between two such times."""

    def test_batches(self, epoch: int) -> Iterator[tuple[Split, EvalBatch]]:
        """The test split, every example in one batch; read after the training of `epoch`."""

    def close(self) -> None:
        """Ends worker processes."""


def make_source(config: Config, dataset: Dataset) -> Source:
    """The source that `config.data.pipeline` names, or the one that fits the size of the data."""
    return SOURCES[source_name(config, dataset)](config, dataset)


def source_name(config: Config, dataset: Dataset) -> str:
    """ "resident" or "streamed"."""
    if config.data.pipeline != "auto":
        return config.data.pipeline
    copies = len(parallel.local_devices()) if jax.default_backend() == "cpu" else 1
    size = max(len(dataset.train), len(dataset.test)) * int(np.prod(dataset.image_shape))
    return "streamed" if config.data.min_crop_area or copies * size > RESIDENT_BYTES else "resident"


class ResidentSource:
    """Both splits on every device as uint8; a step gets row numbers."""

    def __init__(self, config: Config, dataset: Dataset):
        """Reads both splits."""
        self._config = config
        self._examples = (len(dataset.train), len(dataset.test))
        self._steps = self._examples[0] // config.batch_size
        most = config.steps_per_dispatch or default_steps_per_dispatch()
        self.together = greatest_divisor(self._steps, most)
        self._train = parallel.replicate(dataset.train.read_all())
        self._test = parallel.replicate(dataset.test.read_all())

    def train_batches(self, epoch: int, first: int = 0) -> Iterator[tuple[Split, Batch]]:
        """See `Source`."""
        config = self._config
        if first % self.together:
            raise InputError(
                f"the checkpoint stands after {first} steps of its epoch, which this run takes"
                f" {self.together} at a time; resume with --config.steps_per_dispatch=1"
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
        """See `Source`."""
        del epoch
        size = self._config.eval_batch_size
        for batch in eval_batches(self._examples[1], size, parallel.num_devices()):
            yield self._test, parallel.shard(parallel.share(batch))

    def close(self) -> None:
        """See `Source`."""


class StreamedSource:
    """Examples read, decoded and cropped by Grain's worker processes.

    One stream runs through all that a run reads, the test split after every epoch included, so
    that the workers start once. Asked for another place than its next, it starts anew there.
    Each process of a run on several hosts reads its own part of every batch.
    """

    together = 1

    def __init__(self, config: Config, dataset: Dataset):
        """Starts nothing yet."""
        self._config = config
        self._read = _BatchReader(config, dataset.train, dataset.test)
        self._next = -1
        self._stream: Any = None

    def train_batches(self, epoch: int, first: int = 0) -> Iterator[tuple[Split, Batch]]:
        """See `Source`."""
        reader = self._read
        return self._placed(epoch * reader.per_epoch + first, reader.train_steps - first)

    def test_batches(self, epoch: int) -> Iterator[tuple[Split, EvalBatch]]:
        """See `Source`."""
        reader = self._read
        start = epoch * reader.per_epoch + reader.train_steps
        return self._placed(start, reader.per_epoch - reader.train_steps)

    def _placed(self, start: int, count: int) -> Iterator[Any]:
        """`count` elements of the stream from `start`, placed on the devices ahead of their use."""
        if start != self._next:
            self.close()
            self._stream = iter(self._elements(start))
        placed: collections.deque[Any] = collections.deque()
        for _ in range(count):
            self._next = -1  # a consumer that stops on the way leaves the stream at no known place
            try:
                element = next(self._stream)
            except RuntimeError as error:  # of Grain, whose workers raise what is wrong with data
                raise InputError(
                    f"a process that reads the data has ended ({str(error).splitlines()[0]}); if"
                    " memory is short, lower config.data.workers; the same command resumes"
                ) from error
            # Copied, so that the memory shared with the workers is free again at once.
            placed.append(parallel.shard(jax.tree.map(np.array, element)))
            if len(placed) > PLACED_AHEAD:
                yield placed.popleft()
        yield from placed
        self._next = start + count

    def _elements(self, start: int) -> grain.IterDataset:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers read them
        # Without an end that anybody reaches: there, Grain would leave shared memory behind.
        elements = grain.MapDataset.range(start, ENDLESS).map(self._read)
        # Batches are large: each worker holds one in its hands and one in its buffer.
        options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        workers = self._config.data.workers or parallel.host_cores() or 1
        return elements.to_iter_dataset(options).mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1),
            worker_init_fn=_ignore_signals,
        )

    def close(self) -> None:
        """See `Source`."""
        if self._stream is not None:
            self._stream.close()
        self._stream, self._next = None, -1


def _ignore_signals(worker: int, workers: int) -> None:
    """In a worker: signals to the whole process group are for the run, which ends its workers."""
    del worker, workers
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def default_steps_per_dispatch() -> int:
    """On a CPU a step takes longer than to ask for it."""
    return 1 if jax.default_backend() == "cpu" else 32


SOURCES: dict[str, Callable[[Config, Dataset], Source]] = {
    "resident": ResidentSource,
    "streamed": StreamedSource,
}


class _BatchReader:
    """Reads the stream's elements, in a worker: those of an epoch are its training batches and,
    after them, the batches of the test split."""

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
    def _all_devices(self) -> int:
        return self.devices * self.processes

    def __call__(self, element: int) -> tuple[Split, Batch | EvalBatch]:
        epoch, step = divmod(element, self.per_epoch)
        if step < self.train_steps:
            return self._train_batch(epoch, step)
        return self._test_batch(self.tests[step - self.train_steps])

    def _share(self, batch: np.ndarray) -> np.ndarray:
        """The part of a global batch that this process reads."""
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
        """Row numbers of each device's own part."""
        return np.tile(np.arange(len(rows) // self.devices, dtype=np.int32), self.devices)


def train_rows(config: Config, num_examples: int, epoch: int, step: int) -> np.ndarray:
    """[batch_size] int32, the rows of a global training batch; `step` counts from the epoch's
    first."""
    order = _epoch_order(config.seed, epoch, num_examples)
    return order[step * config.batch_size :][: config.batch_size]


_epoch_order = functools.lru_cache(maxsize=1)(epoch_order)


def eval_batches(num_examples: int, batch_size: int, num_devices: int) -> Iterator[EvalBatch]:
    """Batches in order, all of one size: the last is padded with row 0 and a mask of False.

    Args:
        num_examples: of the split, at least 1.
        batch_size: any; rounded up to a multiple of the devices.
        num_devices: that share a batch.

    Yields:
        Global batches, whose length the devices divide.
    """
    batch_size = -(-min(batch_size, num_examples) // num_devices) * num_devices
    for start in range(0, num_examples, batch_size):
        indices = np.arange(start, start + batch_size, dtype=np.int32)
        mask = indices < num_examples
        yield EvalBatch(np.where(mask, indices, 0).astype(np.int32), mask)
