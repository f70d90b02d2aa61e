"""The corpus: a manifest without pixels, and shards that hold the frames. Readers see only what was committed."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from robometer.corpus.storage import Storage
from robometer.errors import RobometerError
from robometer.scoring import Clip
from robometer.trajectory import MANIFEST_SCHEMA, QUARANTINE_SCHEMA, SCHEMA_VERSION, SHARD_SCHEMA
from robometer.video import decode_jpeg

logger = logging.getLogger(__name__)

MAX_OPEN_SHARDS = 64
LISTING = "listing-"
"""Prefix of quarantine files of what was refused before any shard: malformed entries and duplicates."""


class CorpusError(RobometerError):
    """A corpus that cannot be used; the message says why in one sentence."""


class Corpus:
    """Read access to a corpus folder; cheap to open and to pickle (it reopens in the other process).

    Attributes:
        manifest: one row per trajectory, sorted by id, in the columns of `MANIFEST_SCHEMA`.
    """

    def __init__(self, path: str) -> None:
        self.storage = Storage(path)
        if not self.storage.exists("corpus.json"):
            raise CorpusError(f"no corpus at {path}: run `robometer ingest corpus.path={path}` first")
        self.info: dict[str, Any] = json.loads(self.storage.read_bytes("corpus.json"))
        if self.info["schema_version"] != SCHEMA_VERSION:
            raise CorpusError(
                f"corpus at {path} has schema version {self.info['schema_version']}, not {SCHEMA_VERSION}"
            )
        if self.info.get("state") != "complete":
            logger.warning("corpus at %s: its last ingest did not end; run it again to complete it", path)
        self.manifest = read_manifest(self.storage)
        self._shard = lru_cache(maxsize=MAX_OPEN_SHARDS)(self.storage.open_arrow)

    def __reduce__(self) -> tuple[type[Corpus], tuple[str]]:
        return Corpus, (self.storage.path,)

    def __len__(self) -> int:
        return int(self.manifest.num_rows)

    @property
    def content_hash(self) -> str:
        """Hash of the ids and content hashes of all rows: equal for equal corpora, wherever they lie."""
        return manifest_hash(self.manifest)

    def rows(self, split: str | None = None) -> np.ndarray:
        """Row numbers of a split (all rows without one), int64 [N]."""
        if split is None:
            return np.arange(len(self))
        return np.flatnonzero(pc.equal(self.manifest["split"], split).to_numpy(zero_copy_only=False))

    def record(self, row: int) -> dict[str, Any]:
        """The shard row of a manifest row: id, frame_index, env_reward, success and frames (JPEG bytes)."""
        batch = self._batch(row)
        return {name: batch.column(name)[0].as_py() for name in batch.schema.names}

    def frames(self, row: int, positions: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Decoded frames uint8 [T, H, W, 3] RGB at `positions` (all without), in that order; each is decoded once."""
        encoded = self._batch(row).column("frames")[0]
        wanted = np.arange(len(encoded)) if positions is None else np.asarray(positions)
        decoded = {int(p): decode_jpeg(encoded[int(p)].as_py()) for p in np.unique(wanted)}
        return np.stack([decoded[int(p)] for p in wanted])

    def embeddings(self, encoder: str, row: int, positions: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Image embeddings float32 [T, D] of a row's frames.

        Raises:
            CorpusError: the corpus was not embedded with this encoder.
        """
        name = f"embeddings/{encoder}/{self.manifest['shard'][row].as_py()}.arrow"
        try:
            batch = self._shard(name).get_batch(self.manifest["row"][row].as_py())
        except (FileNotFoundError, OSError) as error:
            raise CorpusError(
                f"corpus at {self.storage.path} has no {encoder} embeddings of all its shards: "
                f"run `robometer embed embed.image_encoder={encoder}` first"
            ) from error
        if batch.column("id")[0].as_py() != self.manifest["id"][row].as_py():
            raise CorpusError(f"{name} does not belong to its shard: delete it and run `robometer embed` again")
        flat = batch.column("embedding")[0].values.to_numpy(zero_copy_only=False)
        table = flat.reshape(batch.column("num_frames")[0].as_py(), -1)
        return np.asarray(table if positions is None else table[np.asarray(positions)], dtype=np.float32)

    def text_embeddings(self, encoder: str) -> dict[str, np.ndarray]:
        """Text embedding float32 [E] of every task of the corpus, by task text."""
        tables = [self.storage.open_arrow(n).read_all() for n in self.storage.list(f"embeddings/{encoder}", ".arrow")]
        if not tables:
            raise CorpusError(
                f"corpus at {self.storage.path} has no {encoder} task embeddings: "
                f"run `robometer embed embed.text_encoder={encoder}` first"
            )
        table = pa.concat_tables(tables)
        vectors = np.stack([np.asarray(v, dtype=np.float32) for v in table["embedding"].to_pylist()])
        return dict(zip(table["task"].to_pylist(), vectors, strict=True))

    def clip(self, row: int, encoder: str | None = None) -> Clip:
        """A row as a scorer sees it; with `encoder`, its embeddings come along."""
        features = {encoder: self.embeddings(encoder, row)} if encoder else {}
        return Clip(self.frames(row), self.manifest["task"][row].as_py(), features)

    def quarantine(self) -> pa.Table:
        """What was refused, in the columns of `QUARANTINE_SCHEMA`."""
        return read_quarantine(self.storage, self.manifest["id"])

    def _batch(self, row: int) -> pa.RecordBatch:
        shard = self._shard(f"shards/{self.manifest['shard'][row].as_py()}.arrow")
        batch = shard.get_batch(self.manifest["row"][row].as_py())
        if batch.column("id")[0].as_py() != self.manifest["id"][row].as_py():
            raise CorpusError(f"shard {self.manifest['shard'][row].as_py()} does not match the manifest")
        return batch


def read_manifest(storage: Storage) -> pa.Table:
    """All committed rows sorted by id; of rows with one id, the first shard's is kept."""
    table = _concat(storage, storage.list("manifest", ".parquet"), MANIFEST_SCHEMA)
    return _unique(table.sort_by([("id", "ascending"), ("shard", "ascending")]), ["id"])


def read_quarantine(storage: Storage, committed: pa.ChunkedArray | None = None) -> pa.Table:
    """All refused episodes, sorted by uri; without those that a retry has committed since (ids in `committed`)."""
    names = [
        name
        for name in storage.list("quarantine", ".parquet")
        # The manifest file is the commit: what a killed run refused before it does not count.
        if name.startswith(f"quarantine/{LISTING}") or storage.exists(name.replace("quarantine/", "manifest/", 1))
    ]
    table = _concat(storage, names, QUARANTINE_SCHEMA)
    if committed is not None:
        retried = pc.and_(pc.is_in(table["id"], committed), pc.not_equal(table["stage"], "list"))
        table = table.filter(pc.invert(retried))
    keys = ["uri", "id", "stage", "error"]
    return _unique(table.sort_by([(key, "ascending") for key in keys]), keys[:3])


def manifest_hash(manifest: pa.Table) -> str:
    """SHA-256 over (id, content hash, settings hash) of all rows, in order of id."""
    digest = hashlib.sha256()
    for name in ("id", "content_hash", "settings_hash"):
        digest.update("\n".join(manifest[name].to_pylist()).encode())
    return digest.hexdigest()


def _concat(storage: Storage, names: Sequence[str], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables([schema.empty_table(), *(storage.read_parquet(name).cast(schema) for name in names)])


def _unique(table: pa.Table, keys: Sequence[str]) -> pa.Table:
    """The first row of each run of equal `keys` in a sorted table."""
    first = np.ones(table.num_rows, dtype=bool)
    if table.num_rows > 1:
        columns = [table[key].to_numpy(zero_copy_only=False) for key in keys]
        first[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return table.filter(pa.array(first)).combine_chunks()


@dataclass(frozen=True)
class Stored:
    """A trajectory on its way into the corpus: its shard row, and its manifest row but for `shard` and `row`."""

    record: dict[str, Any]
    row: dict[str, Any]


@dataclass(frozen=True)
class Rejected:
    """A trajectory that was refused: its quarantine row."""

    row: dict[str, Any]


def commit_shard(storage: Storage, name: str, entries: Iterable[Stored | Rejected]) -> tuple[int, int]:
    """Write one shard, then what was refused, then the manifest that makes both visible; one entry is held at a time.

    Returns:
        How many trajectories were stored, and how many refused.
    """
    rows: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []

    def records() -> Iterable[dict[str, Any]]:
        for entry in entries:
            if isinstance(entry, Rejected):
                refused.append(entry.row)
            else:
                rows.append({**entry.row, "shard": name, "row": len(rows)})
                yield entry.record

    with storage.write(f"shards/{name}.arrow") as stream:
        write_shard(stream, records())
    if refused:
        storage.write_parquet(f"quarantine/{name}.parquet", pa.Table.from_pylist(refused, QUARANTINE_SCHEMA))
    storage.write_parquet(f"manifest/{name}.parquet", pa.Table.from_pylist(rows, MANIFEST_SCHEMA))
    return len(rows), len(refused)


def write_shard(stream: Any, records: Iterable[dict[str, Any]]) -> int:
    """Write records of `SHARD_SCHEMA` as Arrow IPC, one record batch each; returns how many."""
    count = 0
    with pa.ipc.new_file(stream, SHARD_SCHEMA) as writer:
        for record in records:
            writer.write_batch(pa.RecordBatch.from_pylist([record], schema=SHARD_SCHEMA))
            count += 1
    return count
