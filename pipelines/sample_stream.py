"""The stream of training batches: Ray Data plans, fetches and collates; order is a pure function of the seed.

The stream starts as one row per micro-batch, its number; each row is a block of its own, which an actor pool turns into
a batch. With `preserve_order`, Ray Data hands block k to worker k mod W, so that worker r's step s is block s * W + r.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
from ray.data import ActorPoolStrategy, DataIterator, Dataset

from robometer.batch import Batch
from robometer.configs.loading import from_dict, to_dict
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.sampling import ManifestIndex, plan


class Collate:
    """Data stage: the number of a micro-batch in, one row out that holds the batch's tensors."""

    def __init__(self, values: dict[str, Any], first: int) -> None:
        import torch

        from robometer.models.checkpoint import build_collator

        torch.set_num_threads(1)
        self.config = from_dict(values)
        corpus = Corpus(self.config.corpus.path)
        self.index = ManifestIndex.from_table(corpus.manifest, self.config.sampling)
        self.collate = build_collator(self.config, corpus)
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
    numbers = ray.data.range((train.steps - start_step) * per_step, override_num_blocks=1)
    return numbers.repartition(target_num_rows_per_block=1).map_batches(
        Collate,
        fn_constructor_args=(to_dict(config), start_step * per_step),
        batch_size=None,
        num_cpus=train.data_cpus,
        compute=ActorPoolStrategy(size=train.data_actors),
    )


def batches(shard: DataIterator, prefetch: int = 2) -> Iterator[Batch]:
    """A worker's micro-batches, in order."""
    whole: Any = None  # a block as it is, which Ray's annotation of `batch_size` leaves out
    for block in shard.iter_batches(batch_size=whole, batch_format="numpy", prefetch_batches=prefetch):
        yield Batch.from_arrays({name: value[0] for name, value in block.items()})
