"""Embed a corpus with frozen encoders: images shard by shard on a pool of actors, and each task text once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

import numpy as np
import pyarrow as pa
import torch

from pipelines.cluster import connected
from pipelines.stage import Actors, run_actors, run_task
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus, CorpusError
from robometer.corpus.storage import Storage
from robometer.errors import RobometerError
from robometer.frames.video import decode_jpeg
from robometer.models.config import EmbedConfig
from robometer.models.encoders import STORED, ImageEncoder, image_encoder, text_encoder
from robometer.runs.outputs import with_absolute_paths

logger = logging.getLogger(__name__)

IMAGE_SCHEMA = pa.schema([("id", pa.string()), ("num_frames", pa.int32()), ("embedding", pa.list_(pa.float16()))])
"""One record batch for each trajectory, in the order of its shard; `embedding` is [num_frames, D], flattened."""

TEXT_SCHEMA = pa.schema([("task", pa.string()), ("embedding", pa.list_(pa.float32()))])


class EmbedError(RobometerError):
    """The embedding run failed; the message says what to do."""


@dataclass(frozen=True)
class EmbedReport:
    """What a run embedded, without the shards and tasks that were embedded before."""

    shards: int
    frames: int
    tasks: int
    seconds: float


def run_embed(config: Config) -> EmbedReport:
    """Embed all frames and tasks of the corpus at `corpus.path` that are not embedded yet.

    Raises:
        CorpusError: there is no corpus.
        EncoderError: an encoder is not available.
        EmbedError: a worker failed.
    """
    started = time.monotonic()
    config = with_absolute_paths(config, "corpus.path")
    corpus = Corpus(config.corpus.path)
    if len(corpus) == 0:
        raise CorpusError(f"the corpus at {config.corpus.path} is empty: run `robometer ingest` first")
    tasks = _missing_tasks(corpus, config.embed.text_encoder)
    shards = _missing_shards(corpus, config.embed.image_encoder)
    frames = 0
    # Load them here first: a missing package is one sentence here, and a traceback in a worker.
    if tasks:
        text_encoder(config.embed.text_encoder)
    if shards:
        image_encoder(config.embed.image_encoder)
    if tasks or shards:
        with connected(config):
            try:
                _embed_tasks(corpus.storage, tasks, config.embed.text_encoder)
                frames = _embed_shards(corpus.storage, shards, config.embed)
            finally:  # remove the files of workers that were killed
                for encoder in (config.embed.image_encoder, config.embed.text_encoder):
                    corpus.storage.remove_stale(f"embeddings/{encoder}")
    report = EmbedReport(len(shards), frames, len(tasks), time.monotonic() - started)
    logger.info("embed: %s", json.dumps(dataclasses.asdict(report)))
    return report


@dataclass(frozen=True)
class Shard:
    """A shard without vectors, and how many frames it has."""

    name: str
    num_frames: int


class EmbedShards:
    """Holds an encoder in an actor; turns shards of frames into shards of vectors."""

    def __init__(self, path: str, config: EmbedConfig) -> None:
        torch.set_num_threads(1)  # the pool has an actor for each core; more threads than cores are very slow
        self._storage, self._batch_size = Storage(path), config.batch_size
        self._encoder = image_encoder(config.image_encoder, "cuda" if config.num_gpus > 0 else "cpu")

    def __call__(self, shard: Shard) -> int:
        """Write the vectors of one shard; returns how many."""
        reader = self._storage.open_arrow(f"shards/{shard.name}.arrow")
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
        frames = 0
        with (
            self._storage.write(f"embeddings/{self._encoder.name}/{shard.name}.arrow") as stream,
            pa.ipc.new_file(stream, IMAGE_SCHEMA) as writer,
        ):
            for id, vectors in encode_trajectories(self._encoder, _decoded(batches), self._batch_size):
                flat = pa.array(vectors.astype(STORED).ravel())
                embedding = pa.ListArray.from_arrays(pa.array([0, len(flat)], pa.int32()), flat)
                columns = [pa.array([id]), pa.array([len(vectors)], pa.int32()), embedding]
                writer.write_batch(pa.record_batch(columns, schema=IMAGE_SCHEMA))
                frames += len(vectors)
        return frames


def encode_trajectories(
    encoder: ImageEncoder, trajectories: Iterable[tuple[str, np.ndarray]], batch_size: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Vectors float32 [T, D] of each (id, frames uint8 [T, H, W, 3]), in order; a batch spans several trajectories."""
    waiting: list[tuple[str, np.ndarray]] = []
    for id, frames in trajectories:
        waiting.append((id, encoder.prepare(frames)))
        if sum(len(prepared) for _, prepared in waiting) >= batch_size:
            yield from _encode(encoder, waiting)
            waiting = []
    if waiting:
        yield from _encode(encoder, waiting)


def _encode(encoder: ImageEncoder, waiting: list[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    vectors = encoder.encode(np.concatenate([prepared for _, prepared in waiting]))
    ends = list(accumulate(len(prepared) for _, prepared in waiting))
    yield from zip((id for id, _ in waiting), np.split(vectors, ends[:-1]), strict=True)


def _decoded(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[str, np.ndarray]]:
    for batch in batches:
        frames = [decode_jpeg(data.as_py()) for data in batch.column("frames")[0]]
        yield batch.column("id")[0].as_py(), np.stack(frames)


def _embed_shards(storage: Storage, shards: list[Shard], config: EmbedConfig) -> int:
    """Embed shards on the cluster; returns how many frames."""
    if not shards:
        return 0
    start = partial(EmbedShards, storage.path, config)
    actors = Actors(config.actors, config.num_gpus)
    return sum(run_actors("embed", shards, start, EmbedError, actors, size=lambda shard: shard.num_frames))


def _missing_shards(corpus: Corpus, encoder: str) -> list[Shard]:
    """Shards without vectors of this encoder."""
    embedded = set(corpus.storage.list(f"embeddings/{encoder}", ".arrow"))
    counts = corpus.manifest.group_by("shard").aggregate([("num_frames", "sum")]).sort_by("shard")
    shards = [Shard(row["shard"], row["num_frames_sum"]) for row in counts.to_pylist()]
    return [shard for shard in shards if f"embeddings/{encoder}/{shard.name}.arrow" not in embedded]


def _encode_texts(encoder: str, texts: list[str]) -> np.ndarray:
    torch.set_num_threads(1)
    return text_encoder(encoder).encode(texts)


def _missing_tasks(corpus: Corpus, encoder: str) -> list[str]:
    """Tasks without a vector of this encoder."""
    embedded: set[str] = set()
    for name in corpus.storage.list(f"embeddings/{encoder}", ".arrow"):
        embedded.update(corpus.storage.open_arrow(name).read_all()["task"].to_pylist())
    return sorted(set(corpus.manifest["task"].to_pylist()) - embedded)


def _embed_tasks(storage: Storage, tasks: list[str], encoder: str) -> None:
    """Embed tasks into another file of the encoder's folder."""
    if not tasks:
        return
    # In a worker of one core: a driver with a thread for each core is very slow where it shares the cores.
    vectors = run_task("embed", EmbedError, _encode_texts, encoder, tasks)
    table = pa.table({"task": tasks, "embedding": list(vectors)}, schema=TEXT_SCHEMA)
    name = f"embeddings/{encoder}/tasks-{hashlib.sha256(chr(10).join(tasks).encode()).hexdigest()[:16]}.arrow"
    with storage.write(name) as stream, pa.ipc.new_file(stream, TEXT_SCHEMA) as writer:
        writer.write_table(table)
