"""The corpus: a manifest without pixels, and shards with the frames. Readers see only what was committed."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from itertools import pairwise
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from robometer.corpus.manifest import manifest_hash, read_manifest, read_quarantine
from robometer.corpus.storage import Storage
from robometer.errors import RobometerError
from robometer.frames import FrameSettings
from robometer.frames.video import decode_jpeg
from robometer.scoring import Clip
from robometer.trajectory import SCHEMA_VERSION

logger = logging.getLogger(__name__)

MAX_OPEN_SHARDS = 64
"""Shards that a process has mapped at a time."""

MAX_OPEN_OBJECTS = 4096
"""Shards of an object store that a process has open at a time: opening one takes requests, keeping it kilobytes."""

READERS = 16
"""Requests that `Corpus.read_ahead` has under way at a time."""


class CorpusError(RobometerError):
    """A corpus that cannot be used. The message says why in one sentence."""


_Place = tuple[str, int]
"""Name of an Arrow file, and number of a record batch in it."""


class Corpus:
    """Read access to a corpus folder. It is cheap to open, and cheap to pickle: the other process opens it again.

    Attributes:
        manifest: one row per trajectory, sorted by id, in the columns of `MANIFEST_SCHEMA`.
    """

    def __init__(self, path: str, manifest: pa.Table | None = None) -> None:
        """Open a corpus.

        Args:
            path: folder of the corpus, or its URI.
            manifest: the manifest, if another process has read it already. It is pickled with the corpus, so that row
                numbers mean the same in both processes, and its buffers can be shared.

        Raises:
            CorpusError: there is no corpus, or it has another schema version.
        """
        self.storage = Storage(path)
        if not self.storage.exists("corpus.json"):
            raise CorpusError(f"no corpus at {path}: run `robometer ingest --corpus {path}` first")
        self.info: dict[str, Any] = json.loads(self.storage.read_bytes("corpus.json"))
        if self.info["schema_version"] != SCHEMA_VERSION:
            raise CorpusError(
                f"the corpus at {path} has schema version {self.info['schema_version']}, not {SCHEMA_VERSION}: "
                "ingest the raw data again, under another corpus.path"
            )
        if self.info.get("state") != "complete":
            logger.warning("the last ingest into %s did not finish: run it again to complete the corpus", path)
        self._shared_manifest = manifest
        self.manifest = read_manifest(self.storage) if manifest is None else manifest
        most = MAX_OPEN_SHARDS if self.storage.is_local else MAX_OPEN_OBJECTS
        self._shard = lru_cache(maxsize=most)(self.storage.open_arrow)
        self._locks = dict[str, Lock]()
        self._readers: ThreadPoolExecutor | None = None
        self._ahead = dict[_Place, Future[dict[int, pa.RecordBatch]]]()

    def __reduce__(self) -> tuple[type[Corpus], tuple[str, pa.Table | None]]:
        return Corpus, (self.storage.path, self._shared_manifest)

    def __len__(self) -> int:
        return int(self.manifest.num_rows)

    @property
    def content_hash(self) -> str:
        """Hash of the ids and content hashes of all rows. Equal corpora have equal hashes, wherever they are stored."""
        return manifest_hash(self.manifest)

    @property
    def frame_settings(self) -> FrameSettings:
        """How recordings became the stored frames."""
        return FrameSettings.from_dict(self.info["settings"])

    def rows(self, split: str | None = None) -> np.ndarray:
        """Row numbers of a split (of all rows if it is None), int64 [N]."""
        if split is None:
            return np.arange(len(self))
        return np.flatnonzero(pc.equal(self.manifest["split"], split).to_numpy(zero_copy_only=False))

    def record(self, row: int) -> dict[str, Any]:
        """The shard row of a manifest row, by column of `SHARD_SCHEMA`; its frames are JPEG bytes."""
        batch = self._batch(row)
        return {name: batch.column(name)[0].as_py() for name in batch.schema.names}

    def encoded_frames(self, row: int) -> Sequence[memoryview]:
        """JPEG bytes of all frames of a row, as views of the shard: nothing is copied, or read before its use."""
        values = self._batch(row).column("frames").values  # a batch holds one trajectory
        _, offsets, data = values.buffers()
        ends = np.frombuffer(offsets, np.int32)[values.offset : values.offset + len(values) + 1].tolist()
        whole = memoryview(data)
        return [whole[first:last] for first, last in pairwise(ends)]

    def frames(self, row: int, positions: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Decoded frames uint8 [T, H, W, 3] RGB at `positions`, in that order; all frames if it is None."""
        encoded = self.encoded_frames(row)
        chosen = np.arange(len(encoded)) if positions is None else np.asarray(positions)
        decoded = {int(p): decode_jpeg(encoded[int(p)]) for p in np.unique(chosen)}  # each once
        return np.stack([decoded[int(p)] for p in chosen])

    def embeddings(self, encoder: str, row: int, positions: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Image embeddings float32 [T, D] of a row's frames.

        Raises:
            CorpusError: the corpus has no embeddings by this encoder.
        """
        name, number = self._place(row, encoder)
        try:
            batch = self._read(name, number)
        except (FileNotFoundError, OSError) as error:
            raise CorpusError(
                f"the corpus at {self.storage.path} lacks {encoder} embeddings of some shards: "
                f"run `robometer embed embed.image_encoder={encoder}` first"
            ) from error
        if batch.column("id")[0].as_py() != self.manifest["id"][row].as_py():
            raise CorpusError(f"{name} does not belong to its shard: delete it and run `robometer embed` again")
        flat = batch.column("embedding")[0].values.to_numpy(zero_copy_only=False)
        table = flat.reshape(batch.column("num_frames")[0].as_py(), -1)
        return np.asarray(table if positions is None else table[np.asarray(positions)], dtype=np.float32)

    def text_embeddings(self, encoder: str) -> dict[str, np.ndarray]:
        """Text embedding float32 [E] of every task of the corpus, by task text.

        Raises:
            CorpusError: the corpus has no task embeddings by this encoder.
        """
        tables = [self.storage.open_arrow(n).read_all() for n in self.storage.list(f"embeddings/{encoder}", ".arrow")]
        if not tables:
            raise CorpusError(
                f"the corpus at {self.storage.path} has no {encoder} task embeddings: "
                f"run `robometer embed embed.text_encoder={encoder}` first"
            )
        table = pa.concat_tables(tables)
        vectors = np.stack([np.asarray(v, dtype=np.float32) for v in table["embedding"].to_pylist()])
        return dict(zip(table["task"].to_pylist(), vectors, strict=True))

    def clip(self, row: int, encoder: str | None = None) -> Clip:
        """A row as a scorer sees it, with its embeddings if an `encoder` is named."""
        features = {encoder: self.embeddings(encoder, row)} if encoder else {}
        return Clip(self.frames(row), self.manifest["task"][row].as_py(), features)

    def quarantine(self) -> pa.Table:
        """What was refused, in the columns of `QUARANTINE_SCHEMA`."""
        return read_quarantine(self.storage)

    def read_ahead(self, rows: Iterable[int], encoder: str = "") -> None:
        """Begin to read trajectories side by side for the calls that follow: their embeddings by `encoder`, or frames.

        Of an object store, which answers after milliseconds, many trajectories come so in the time of a few, while
        calls work on those that have come. They stay in memory until a call wants others. On a disk, where shards are
        mapped, nothing is done.
        """
        if self.storage.is_local:
            return
        wanted = dict.fromkeys(self._place(int(row), encoder) for row in rows)
        if wanted.keys() <= self._ahead.keys():
            return
        self._ahead = {place: self._ahead[place] for place in wanted if place in self._ahead}
        self._readers = self._readers or ThreadPoolExecutor(READERS, thread_name_prefix="read-ahead")
        by_shard = defaultdict[str, list[int]](list)
        for name, number in wanted:
            if (name, number) not in self._ahead:
                by_shard[name].append(number)
        for name, numbers in by_shard.items():
            reading = self._readers.submit(self._read_shard, name, numbers)
            self._ahead |= {(name, number): reading for number in numbers}

    def _read_shard(self, name: str, numbers: Sequence[int]) -> dict[int, pa.RecordBatch]:
        """Those of the record batches that can be read: the call that needs another one will say what is wrong."""
        batches: dict[int, pa.RecordBatch] = {}
        with suppress(OSError, pa.ArrowException):
            for number in numbers:
                batches[number] = self._get(name, number)
        return batches

    def _get(self, name: str, number: int) -> pa.RecordBatch:
        with self._locks.setdefault(name, Lock()):  # a shard's reader is in one thread at a time
            return self._shard(name).get_batch(number)

    def _place(self, row: int, encoder: str = "") -> _Place:
        folder = f"embeddings/{encoder}" if encoder else "shards"
        return f"{folder}/{self.manifest['shard'][row].as_py()}.arrow", self.manifest["row"][row].as_py()

    def _read(self, name: str, number: int) -> pa.RecordBatch:
        reading = self._ahead.get((name, number))
        batch = None if reading is None else reading.result().get(number)
        return self._get(name, number) if batch is None else batch

    def _batch(self, row: int) -> pa.RecordBatch:
        batch = self._read(*self._place(row))
        if batch.column("id")[0].as_py() != self.manifest["id"][row].as_py():
            raise CorpusError(
                f"shard {self.manifest['shard'][row].as_py()} does not match the manifest: "
                "run `robometer corpus verify`"
            )
        return batch
