"""The stream of training batches: Ray Data plans, fetches and collates; the order is a pure function of the seed.

The stream begins as the numbers of micro-batches, in groups, which an actor pool turns into batches, each a block of
its own. With `preserve_order`, Ray Data gives block k to worker k mod W, whatever its place. A step takes the next n
micro-batches of the run. So the stream is the same for any number of workers W, and each worker knows which of a
step's micro-batches are its own (`MicroBatches`).

A group is one micro-batch, but several of a corpus in an object store: its trajectories are read side by side, while
the first micro-batches of the group are made.

The manifest and its index are made once and lie in the object store: all actors of a node read the same memory.

No stage here asks for a CPU: the workers reserve what they and their stream need together, and the stream runs on their
nodes (`BesideWorkers`). A stage with a CPU of its own would wait for ever where the workers hold them all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, DataIterator, Dataset, Datasource, ExecutionOptions, ReadTask
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data.block import BlockMetadata
from ray.train import DataConfig

from pipelines.cluster import RETRIES
from robometer.configs.loading import from_dict, to_dict
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.errors import RobometerError
from robometer.sampling.index import ManifestIndex
from robometer.sampling.plan import plan
from robometer.sampling.types import SamplePlan

if TYPE_CHECKING:
    from robometer.training.batch import Batch

GROUP_SAMPLES = 32
"""Samples in a group of a corpus in an object store; twice as many as an actor has requests under way."""


class Groups(Datasource):
    """The first and last number of each group of the numbers from 0 up to `count`, from one task that makes them."""

    def __init__(self, count: int, size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._count, self._size = count, size

    def estimate_inmemory_data_size(self) -> int:
        """16 bytes a group."""
        return 16 * math.ceil(self._count / self._size)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """The one task, whatever `parallelism` is."""
        count, size = self._count, self._size
        groups = math.ceil(count / size)
        metadata = BlockMetadata(groups, 16 * groups, exec_stats=None, input_files=None)

        def read() -> Iterator[pa.Table]:
            for first in range(0, count, size):
                yield pa.table({"first": [first], "end": [min(first + size, count)]})

        return [ReadTask(read, metadata)]


PAUSE_S = 0.02
"""Seconds for which Ray Data's loop sleeps at each step."""


class Unhurried(ExecutionCallback):
    """Pauses Ray Data's loop at each step.

    While batches wait for the workers, the loop would look without a pause whether they have been taken: half a core,
    which on a small machine is missing for the training. Each step handles all that has come meanwhile.
    """

    def on_execution_step(self, executor: object) -> None:
        """Pause."""
        time.sleep(PAUSE_S)


DEATHS = 4
"""Deaths of one data actor after which the run fails; Ray Data's own default would restart it for ever."""

Shared = tuple[pa.Table, ManifestIndex]
"""A manifest and its index."""


def share(corpus: Corpus, index: ManifestIndex) -> ray.ObjectRef[Shared]:
    """Put the manifest and its index into the object store, whose readers copy neither."""
    return ray.put((corpus.manifest, index))


def opened(config: Config, shared: ray.ObjectRef[Shared]) -> tuple[Corpus, ManifestIndex]:
    """The corpus and its index with the memory that `share` gave them: each node holds it once."""
    manifest, index = ray.get(shared)
    return Corpus(config.corpus.path, manifest), index


class Collate:
    """Data stage: turns a group of micro-batches into a row with the tensors of each."""

    def __init__(self, values: dict[str, Any], first: int, shared: ray.ObjectRef[Shared]) -> None:
        import torch

        from robometer.models.checkpoint import build_collator

        torch.set_num_threads(1)
        self.config = from_dict(values)
        corpus, self.index = opened(self.config, shared)
        self.collate = build_collator(self.config, corpus)
        self.size = self.config.train.samples_per_micro_batch
        self.first = first

    def __call__(self, block: dict[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        plans = [self._plans(number) for number in range(int(block["first"][0]), int(block["end"][0]))]
        self.collate.read_ahead([plan for part in plans for plan in part])
        for part in plans:
            yield {name: array[None] for name, array in self.collate(part).to_arrays().items()}

    def _plans(self, number: int) -> list[SamplePlan]:
        start = (self.first + number) * self.size
        samples = range(start, start + self.size)
        return [plan(self.index, self.config.sampling, self.config.train.seed, i) for i in samples]


def group_size(config: Config) -> int:
    """Number of micro-batches that a data actor makes at a time."""
    is_local = Storage(config.corpus.path).is_local
    return 1 if is_local else math.ceil(GROUP_SAMPLES / config.train.samples_per_micro_batch)


def stream(config: Config, start_step: int, shared: ray.ObjectRef[Shared]) -> Dataset:
    """Micro-batches of all workers from optimizer step `start_step` to the end of the run, and a few more.

    `streaming_split` gives every worker the same number of blocks and drops the rest, at most one for each of the other
    workers; so many extra blocks follow the last step.

    Args:
        shared: what `share` returned.
    """
    train = config.train
    count = (train.steps - start_step) * train.micro_batches + train.num_workers - 1
    source = Groups(count, group_size(config))
    numbers = ray.data.read_datasource(source, num_cpus=0, override_num_blocks=1)
    numbers.context.target_max_block_size = 1  # byte: every row is a block
    numbers.context.custom_execution_callback_classes = [Unhurried]
    batches: Dataset = numbers.map_batches(
        Collate,
        fn_constructor_args=(to_dict(config), start_step * train.micro_batches, shared),
        batch_size=None,
        num_cpus=0,
        compute=ActorPoolStrategy(size=train.data_actors),
        max_restarts=DEATHS,
        max_task_retries=RETRIES,
    )
    return batches


class BesideWorkers(DataConfig):
    """Splits a stream among the workers in the order of its blocks, and runs it on their nodes."""

    def configure(
        self,
        datasets: dict[str, Dataset],
        world_size: int,
        worker_handles: list[Any] | None,
        worker_node_ids: list[str] | None,
        **kwargs: Any,
    ) -> list[dict[str, DataIterator]]:
        """As in Ray Train."""
        nodes = ",".join(sorted(set(worker_node_ids or ())))
        options = ExecutionOptions(preserve_order=True, label_selector={"ray.io/node-id": f"in({nodes})"})
        split = DataConfig(execution_options=options)
        return split.configure(datasets, world_size, worker_handles, worker_node_ids, **kwargs)


class StreamError(RobometerError):
    """The stream does not have the micro-batches of the plan; the message says which."""


@dataclass(frozen=True)
class MicroBatch:
    """A share of a global batch.

    Attributes:
        number: counted over the whole run; dropout follows from it.
        weight: 1, or 0 for a copy that makes every worker run the same modules equally often.
    """

    number: int
    weight: float
    batch: Batch


class MicroBatches:
    """One worker's share of a stream that begins at `start_step`.

    A step has n micro-batches for W workers, so that some workers may get one less than others. These repeat one with
    weight 0, since under ZeRO 3 every worker must take part in every forward pass.
    """

    def __init__(self, shard: DataIterator, config: Config, start_step: int, rank: int, world_size: int) -> None:
        from robometer.training.batch import Batch  # torch: the process that splits the stream does without

        whole: Any = None  # a batch is a block; Ray's annotation of `batch_size` leaves this value out
        blocks = shard.iter_batches(batch_size=whole, batch_format="numpy", prefetch_batches=2)
        self._batches = (Batch.from_arrays({name: value[0] for name, value in block.items()}) for block in blocks)
        self._per_step, self._size = config.train.micro_batches, config.train.samples_per_micro_batch
        self._start, self._rank, self._world_size = start_step * self._per_step, rank, world_size
        self.rounds = math.ceil(self._per_step / world_size)

    def take(self, step: int) -> list[MicroBatch]:
        """This worker's `rounds` micro-batches of an optimizer step; steps must be taken in order.

        Raises:
            StreamError: the stream is not where it should be.
        """
        first = step * self._per_step
        own = [k for k in range(first, first + self._per_step) if (k - self._start) % self._world_size == self._rank]
        micro_batches = [self._next(k) for k in own]
        return micro_batches + [replace(micro_batches[-1], weight=0.0)] * (self.rounds - len(micro_batches))

    def close(self) -> None:
        """End the stream, so that Ray Data frees its share of the cluster now, not when a request expires."""
        self._batches.close()

    def _next(self, number: int) -> MicroBatch:
        batch = next(self._batches)
        sample, expected = int(batch.sample_index[0]), number * self._size
        if sample != expected:
            raise StreamError(f"the sample stream is out of order: got sample {sample} instead of {expected}")
        return MicroBatch(number, 1.0, batch)
