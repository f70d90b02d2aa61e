"""How a shard gets into a corpus: frames first, then what was refused, then the manifest that makes both visible."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from robometer.corpus.manifest import REPLACES, SKIP, UNITS, Counts, Ledger
from robometer.corpus.storage import Storage
from robometer.trajectory import MANIFEST_SCHEMA, QUARANTINE_SCHEMA, SHARD_SCHEMA


@dataclass(frozen=True)
class Stored:
    """A trajectory on its way into the corpus: its row of `SHARD_SCHEMA`, and the digest of the unit it came from."""

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

    def batches() -> Iterable[pa.RecordBatch]:
        for entry in entries:
            if isinstance(entry, Rejected):
                refused.append(entry.row)
            else:
                rows.append({**{key: entry.record[key] for key in _ROW}, "shard": name, "row": len(rows)})
                stored[entry.unit] += 1
                yield pa.RecordBatch.from_pylist([{**entry.record, "unit": entry.unit}], schema=SHARD_SCHEMA)

    write_shard(storage, name, batches(), units)
    if refused:
        storage.write_parquet(f"quarantine/{name}.parquet", pa.Table.from_pylist(refused, QUARANTINE_SCHEMA))
    ledger = ledger_of(units, stored, refused)
    write_manifest(storage, name, pa.Table.from_pylist(rows, MANIFEST_SCHEMA), ledger)
    return Counts(len(rows), *map(sum, zip(*((c.refused, c.skipped) for c in ledger.values()), strict=True)))


def ledger_of(units: Iterable[str], stored: Mapping[str, int], refused: Iterable[Mapping[str, Any]]) -> Ledger:
    """What became of each unit, from how many of its trajectories were stored and the quarantine rows of all."""
    skipped, bad = Counter[str](), Counter[str]()
    for row in refused:
        (skipped if row["stage"] == SKIP else bad)[row["unit"]] += 1
    return {unit: Counts(stored.get(unit, 0), bad[unit], skipped[unit]) for unit in units}


def write_shard(storage: Storage, name: str, batches: Iterable[pa.RecordBatch], units: Sequence[str] = ()) -> None:
    """Write record batches of `SHARD_SCHEMA`, one trajectory each, as Arrow IPC; `units` are kept in its metadata."""
    schema = SHARD_SCHEMA.with_metadata({**(SHARD_SCHEMA.metadata or {}), UNITS: json.dumps(list(units)).encode()})
    with storage.write(f"shards/{name}.arrow") as stream, pa.ipc.new_file(stream, schema) as writer:
        for batch in batches:
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))


def write_manifest(storage: Storage, name: str, rows: pa.Table, ledger: Ledger, replaces: Sequence[str] = ()) -> None:
    """Commit a shard.

    Args:
        storage: the corpus.
        name: of the shard.
        rows: of `MANIFEST_SCHEMA`.
        ledger: what became of the units that were read for it.
        replaces: shards that it holds the rows of; from this commit on they are not seen any more.
    """
    notes = {UNITS: json.dumps(ledger).encode(), REPLACES: json.dumps(list(replaces)).encode()}
    table = rows.replace_schema_metadata({**(MANIFEST_SCHEMA.metadata or {}), **notes})
    storage.write_parquet(f"manifest/{name}.parquet", table)


def content_hash(frame_index: Sequence[int], frames: Sequence[bytes]) -> str:
    """32 hex digits of SHA-256 over what is stored of a trajectory: which frames, and their JPEG bytes."""
    digest = hashlib.sha256(",".join(map(str, frame_index)).encode())
    for frame in frames:
        digest.update(len(frame).to_bytes(8, "little"))
        digest.update(frame)
    return digest.hexdigest()[:32]


_ROW = [name for name in MANIFEST_SCHEMA.names if name not in ("shard", "row")]
