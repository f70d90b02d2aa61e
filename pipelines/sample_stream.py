"""The stream of training batches: Ray Data plans, fetches and collates; order is a pure function of the seed.

The stream starts as one row per micro-batch, its number; each row is a block of its own, which an actor pool turns into
a batch. With `preserve_order`, Ray Data hands block k to worker k mod W, so that worker r's step s is block s * W + r.

The manifest and its index are made once and lie in the object store: all actors of a node read the same memory.

The numbers cost no CPU: a source that takes one for as long as the run lasts (as `range(...).repartition(...)` does)
starves on a small or shared cluster, where a run's share is just its data actors.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, DataIterator, Dataset, Datasource, ReadTask
from ray.data.block import BlockMetadata

from robometer.batch import Batch
from robometer.configs.loading import from_dict, to_dict
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.sampling import ManifestIndex, plan


class MicroBatchNumbers(Datasource):
    """The numbers 0 to `count`, a block each, from one task that makes them as they are asked for."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def estimate_inmemory_data_size(self) -> int:
        """8 bytes a number."""
        return 8 * self._count

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """The one task, whatever `parallelism` is."""
        count = self._count
        metadata = BlockMetadata(count, 8 * count, exec_stats=None, input_files=None)
        return [ReadTask(lambda: (pa.table({"id": [i]}) for i in range(count)), metadata)]


Shared = tuple[pa.Table, ManifestIndex]
"""A manifest and its index."""


def share(config: Config) -> ray.ObjectRef[Shared]:
    """Read the manifest, index it, and put both into the object store, whose readers copy neither."""
    manifest = Corpus(config.corpus.path).manifest
    return ray.put((manifest, ManifestIndex.from_table(manifest, config.sampling)))


class Collate:
    """Data stage: the number of a micro-batch in, one row out that holds the batch's tensors."""

    def __init__(self, values: dict[str, Any], first: int, shared: ray.ObjectRef[Shared]) -> None:
        import torch

        from robometer.models.checkpoint import build_collator

        torch.set_num_threads(1)
        self.config = from_dict(values)
        manifest, self.index = ray.get(shared)
        self.collate = build_collator(self.config, Corpus(self.config.corpus.path, manifest))
        self.size = self.config.train.micro_batch_size
        self.first = first

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        start = (self.first + int(block["id"][0])) * self.size
        samples = range(start, start + self.size)
        plans = [plan(self.index, self.config.sampling, self.config.train.seed, i) for i in samples]
        return {name: array[None] for name, array in self.collate(plans).to_arrays().items()}


def stream(config: Config, start_step: int) -> Dataset:
    """Micro-batches of all workers from optimizer step `start_step` to the end of the run."""
    train = config.train
    per_step = train.num_workers * train.gradient_accumulation
    source = MicroBatchNumbers((train.steps - start_step) * per_step)
    numbers = ray.data.read_datasource(source, num_cpus=0, override_num_blocks=1)
    numbers.context.target_max_block_size = 1  # byte: every row is a block
    return numbers.map_batches(
        Collate,
        fn_constructor_args=(to_dict(config), start_step * per_step, share(config)),
        batch_size=None,
        num_cpus=train.data_cpus,
        compute=ActorPoolStrategy(size=train.data_actors),
    )


def batches(shard: DataIterator, prefetch: int = 2) -> Generator[Batch, None, None]:
    """A worker's micro-batches, in order."""
    whole: Any = None  # a block as it is, which Ray's annotation of `batch_size` leaves out
    for block in shard.iter_batches(batch_size=whole, batch_format="numpy", prefetch_batches=prefetch):
        yield Batch.from_arrays({name: value[0] for name, value in block.items()})
