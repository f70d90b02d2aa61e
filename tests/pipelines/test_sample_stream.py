"""The training stream: one index in shared memory, and the same micro-batches for any number of workers."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import numpy as np
import psutil
import pyarrow as pa
import pytest
import ray
import torch
from ray.data import DataIterator, ExecutionResources

from pipelines.sample_stream import Collate, MicroBatch, MicroBatches, StreamError, group_size, share, stream
from robometer.configs import Config, load
from robometer.configs.loading import to_dict
from robometer.corpus.corpus import Corpus
from robometer.sampling.index import ManifestIndex
from tests.conftest import TINY
from tests.training.test_losses import by_hand


def share_of(config: Config) -> Any:
    """The shared manifest and index of a configuration's corpus."""
    corpus = Corpus(config.corpus.path)
    return share(corpus, ManifestIndex.from_table(corpus.manifest, config.sampling))


class Peek(Collate):
    """A data actor that reports where its index is in memory."""

    def __init__(self, values: dict[str, Any], shared: list[Any]) -> None:
        super().__init__(values, 0, shared[0])  # in a list, since Ray resolves references that are arguments themselves

    def memory(self) -> dict[str, Any]:
        columns, partners = self.index.columns, self.index.partners
        arrays = [columns.task, columns.source, columns.partial_success, self.index.options, partners.successes.rows]
        return {
            "owned": [bool(array.flags.owndata) for array in arrays],
            "writeable": [bool(array.flags.writeable) for array in arrays],
            "arrow": pa.total_allocated_bytes(),
        }


def test_actors_read_one_index_in_shared_memory(tiny_corpus: str) -> None:
    config = load([*TINY, f"corpus.path={tiny_corpus}"])
    shared = share_of(config)
    manifest, index = ray.get(shared)
    actors = [ray.remote(num_cpus=0)(Peek).remote(to_dict(config), [shared]) for _ in range(2)]
    for memory in ray.get([actor.memory.remote() for actor in actors]):
        assert not any(memory["owned"]) and not any(memory["writeable"])
        assert memory["arrow"] < manifest.nbytes  # a private copy of the manifest would be that and more
    rows = [int(row) for row in index.preference_rows]
    assert len(manifest) == len(index) >= len(rows) > 0


def test_a_corpus_keeps_the_manifest_that_it_was_given(tiny_corpus: str) -> None:
    """A row number means the same in another process, whatever is ingested meanwhile."""
    part = Corpus(tiny_corpus).manifest.slice(3, 5)
    corpus = pickle.loads(pickle.dumps(Corpus(tiny_corpus, part)))
    assert corpus.manifest["id"].to_pylist() == part["id"].to_pylist() and len(corpus) == 5
    assert corpus.frames(0).shape[0] == part["num_frames"][0].as_py()
    assert len(pickle.dumps(Corpus(tiny_corpus))) < 500  # one that read its manifest reads it again


@pytest.mark.parametrize(("size", "group"), [(2, 16), (5, 7), (40, 1)])
def test_a_group_is_one_micro_batch_on_a_disk_and_32_samples_or_more_in_a_bucket(
    tiny_corpus: str, bucket: str, size: int, group: int
) -> None:
    scale = [f"train.micro_batch_size={size}", f"train.batch_size={size}"]
    assert group_size(load([*TINY, f"corpus.path={tiny_corpus}", *scale])) == 1
    assert group_size(load([*TINY, f"corpus.path={bucket}/corpus", *scale])) == group


@pytest.mark.parametrize("group", [3, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 100))])
def test_every_step_has_its_micro_batches_however_they_are_dealt(
    tiny_corpus: str, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four micro-batches a step for three workers: each gets two, and two of the six are copies with weight 0."""
    monkeypatch.setattr("pipelines.sample_stream.group_size", lambda _: group)
    scale = ["train.num_workers=3", "train.micro_batch_size=2", "train.steps=5"]
    config = load([*TINY, f"corpus.path={tiny_corpus}", *scale])
    dataset = stream(config, 2, share_of(config))
    dataset.context.execution_options.preserve_order = True
    shards = dataset.streaming_split(3, equal=True)

    def work(rank: int, shard: DataIterator) -> list[list[MicroBatch]]:
        batches = MicroBatches(shard, config, 2, rank, 3)
        return [batches.take(step) for step in range(2, 5)]

    with ThreadPoolExecutor(3) as threads:
        dealt = list(threads.map(work, range(3), shards))
    for step in range(3):
        micro_batches = [micro_batch for worker in dealt for micro_batch in worker[step]]
        assert [len(worker[step]) for worker in dealt] == [2, 2, 2]
        numbers = sorted(m.number for m in micro_batches if m.weight == 1)
        assert numbers == [4 * (step + 2) + k for k in range(4)] and sum(m.weight for m in micro_batches) == 4
        assert all(m.batch.sample_index.tolist() == [2 * m.number, 2 * m.number + 1] for m in micro_batches)


class _Dealt:
    """Every third block of a stream, as `streaming_split` gives them."""

    def __init__(self, numbers: list[int]) -> None:
        self._numbers = numbers

    def iter_batches(self, **_: Any) -> Iterator[dict[str, np.ndarray]]:
        for number in self._numbers:
            batch = replace(by_hand()[0], sample_index=torch.tensor([2 * number, 2 * number + 1]))
            yield {name: array[None] for name, array in batch.to_arrays().items()}


def test_four_micro_batches_for_three_workers_by_hand() -> None:
    """A stream from step 2 on, whose first block is number 8: they get 8, 11, 14, ...; 9, 12, ...; 10, 13, ..."""
    config = load([*TINY, "train.num_workers=3", "train.micro_batch_size=2", "train.steps=5"])
    shards = [cast(DataIterator, _Dealt(list(range(8 + rank, 20, 3)))) for rank in range(3)]
    dealt = [MicroBatches(shard, config, 2, rank, 3) for rank, shard in enumerate(shards)]
    shares = [[[(m.number, m.weight) for m in worker.take(step)] for worker in dealt] for step in (2, 3, 4)]
    assert shares == [
        [[(8, 1), (11, 1)], [(9, 1), (9, 0)], [(10, 1), (10, 0)]],
        [[(14, 1), (14, 0)], [(12, 1), (15, 1)], [(13, 1), (13, 0)]],
        [[(17, 1), (17, 0)], [(18, 1), (18, 0)], [(16, 1), (19, 1)]],
    ]


@pytest.mark.slow
def test_a_stream_that_waits_for_its_workers_leaves_the_cores_to_them(tiny_corpus: str) -> None:
    config = load([*TINY, f"corpus.path={tiny_corpus}", "train.steps=1000"])
    dataset = stream(config, 0, share_of(config))
    dataset.context.execution_options.resource_limits = ExecutionResources.for_limits(object_store_memory=2**20)
    [shard] = dataset.streaming_split(1, equal=True)
    batches = MicroBatches(shard, config, 0, 0, 1)
    batches.take(0)
    time.sleep(3)  # until all that may wait does
    [coordinator] = [p for p in psutil.process_iter(["cmdline"]) if "SplitCoordinator" in " ".join(p.info["cmdline"])]
    before = sum(coordinator.cpu_times()[:2])
    time.sleep(3)
    spent = sum(coordinator.cpu_times()[:2]) - before
    batches.close()
    assert spent < 1.9  # seconds; with the pause it takes 0.8, without it nearly all 3


def test_a_stream_that_is_not_where_it_should_be_is_an_error(tiny_corpus: str) -> None:
    config = load([*TINY, f"corpus.path={tiny_corpus}", "train.steps=3"])
    dataset = stream(config, 1, share_of(config))
    dataset.context.execution_options.preserve_order = True
    batches = MicroBatches(dataset.iterator(), config, 0, 0, 1)
    with pytest.raises(StreamError, match="out of order: got sample 8 instead of 0"):
        batches.take(0)
