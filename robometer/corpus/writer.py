"""How a shard gets into a corpus: frames first, then what was refused, then the manifest that makes both visible."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from robometer.corpus.manifest import UNITS, Counts
from robometer.corpus.storage import Storage
from robometer.trajectory import MANIFEST_SCHEMA, QUARANTINE_SCHEMA, SHARD_SCHEMA

SKIP = "skip"
"""Stage of what is left out by design."""


@dataclass(frozen=True)
class Stored:
    """A trajectory on its way into the corpus: its row of `SHARD_SCHEMA`, and the unit it came from."""

    record: dict[str, Any]
    unit: str = ""


@dataclass(frozen=True)
class Rejected:
    """A trajectory that was refused: its row of `QUARANTINE_SCHEMA`."""

    row: dict[str, Any]


def commit_shard(
    storage: Storage, name: str, entries: Iterable[Stored | Rejected], units: Sequence[str] = ()
) -> Counts:
    """Write one shard of all `entries`; one is held in memory at a time.

    Args:
        storage: the corpus.
        name: of the shard; a second commit of the same name replaces the first.
        entries: what the units gave, in their order.
        units: digests of all units that were read for it, also of those that gave nothing.
    """
    rows: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    stored: Counter[str] = Counter()

    def records() -> Iterable[dict[str, Any]]:
        for entry in entries:
            if isinstance(entry, Rejected):
                refused.append(entry.row)
            else:
                rows.append({**{key: entry.record[key] for key in _ROW}, "shard": name, "row": len(rows)})
                stored[entry.unit] += 1
                yield entry.record

    with storage.write(f"shards/{name}.arrow") as stream:
        write_shard(stream, records())
    if refused:
        storage.write_parquet(f"quarantine/{name}.parquet", pa.Table.from_pylist(refused, QUARANTINE_SCHEMA))
    skipped = Counter(row.get("unit") or "" for row in refused if row["stage"] == SKIP)
    bad = Counter(row.get("unit") or "" for row in refused if row["stage"] != SKIP)
    ledger = {unit: Counts(stored[unit], bad[unit], skipped[unit]) for unit in units}
    write_manifest(storage, name, pa.Table.from_pylist(rows, MANIFEST_SCHEMA), ledger)
    return Counts(len(rows), bad.total(), skipped.total())


def write_manifest(storage: Storage, name: str, rows: pa.Table, ledger: dict[str, Counts]) -> None:
    """Commit a shard: its rows of `MANIFEST_SCHEMA`, and what became of the units that were read for it."""
    metadata = {**(MANIFEST_SCHEMA.metadata or {}), UNITS: json.dumps(ledger).encode()}
    storage.write_parquet(f"manifest/{name}.parquet", rows.replace_schema_metadata(metadata))


def write_shard(stream: Any, records: Iterable[dict[str, Any]]) -> int:
    """Write records of `SHARD_SCHEMA` as Arrow IPC, one record batch each; returns how many."""
    count = 0
    with pa.ipc.new_file(stream, SHARD_SCHEMA) as writer:
        for record in records:
            writer.write_batch(pa.RecordBatch.from_pylist([record], schema=SHARD_SCHEMA))
            count += 1
    return count


def content_hash(frame_index: Sequence[int], frames: Sequence[bytes]) -> str:
    """32 hex digits of SHA-256 over what is stored of a trajectory: which frames, and their JPEG bytes."""
    digest = hashlib.sha256(",".join(map(str, frame_index)).encode())
    for frame in frames:
        digest.update(len(frame).to_bytes(8, "little"))
        digest.update(frame)
    return digest.hexdigest()[:32]


_ROW = [name for name in MANIFEST_SCHEMA.names if name not in ("shard", "row")]
