"""How a shard is committed: first the frames, then the quarantine, then the manifest that makes both visible."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from robometer.corpus.manifest import REPLACES, SKIP, UNITS, Ledger, Reading
from robometer.corpus.storage import Storage
from robometer.trajectory import MANIFEST_SCHEMA, QUARANTINE_SCHEMA, SHARD_SCHEMA


@dataclass(frozen=True)
class Accepted:
    """A trajectory to store.

    Attributes:
        record: its row of `SHARD_SCHEMA`.
        unit: digest of the unit that it came from.
        replaces: whether it replaces a row with the same id.
    """

    record: dict[str, Any]
    unit: str = ""
    replaces: bool = False


@dataclass(frozen=True)
class Present:
    """A trajectory that the corpus has already.

    Attributes:
        id, uri: its id, and where it lies now.
        unit: digest of the unit that it came from.
        differs: how it differs from the stored one; empty if it does not.
    """

    id: str
    uri: str
    unit: str
    differs: str = ""


@dataclass(frozen=True)
class Quarantined:
    """A refused trajectory: its row of `QUARANTINE_SCHEMA`."""

    row: dict[str, Any]


ShardEntry = Accepted | Quarantined | Present
"""What an ingest makes of one trajectory."""


@dataclass(frozen=True)
class ShardPlan:
    """The units of a shard.

    Attributes:
        seals: of the units (`identity.Sealer`), by their digests.
        before: the earlier readings of these units.
        revision: above all earlier revisions if a unit is read again, or an id may exist already; else 0.
    """

    seals: Mapping[str, str] = field(default_factory=dict)
    before: Ledger = field(default_factory=dict)
    revision: int = 0


class IngestCounts(NamedTuple):
    """How many trajectories of a shard's units were new, updated, and so on."""

    new: int = 0
    updated: int = 0
    present: int = 0
    differing: int = 0
    refused: int = 0
    skipped: int = 0


@dataclass
class _ShardRows:
    """The rows and counts of a shard so far."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Trajectories by unit and field of `IngestCounts`."""

    def read(self, unit: str, plan: ShardPlan) -> Reading:
        """The reading of a unit. If something differs from the corpus, it keeps its old seal, to be read again."""
        new, updated, present, differing, refused, skipped = (self.counts[unit, name] for name in IngestCounts._fields)
        before = plan.before.get(unit, Reading())
        seal = before.seal if differing else plan.seals[unit]
        return Reading(new + updated + present + differing, refused, skipped, seal, plan.revision)

    def changed(self, unit: str, plan: ShardPlan) -> bool:
        """Whether this reading of a unit changes what the corpus has of it."""
        stored = self.counts[unit, "new"] + self.counts[unit, "updated"]
        return bool(stored) or unit not in plan.before or self.read(unit, plan)[:4] != plan.before[unit][:4]


def commit_shard(
    storage: Storage,
    name: str,
    entries: Iterable[ShardEntry],
    plan: ShardPlan = ShardPlan(),
) -> IngestCounts:
    """Write one shard of all `entries`, if they change anything. One entry is in memory at a time.

    Args:
        storage: the corpus.
        name: of the shard; a second commit with the same name replaces the first.
        entries: the trajectories of the units, in their order.
        plan: the units, including those without trajectories.
    """
    shard = _ShardRows()
    # A shard lacks some rows of a unit that is read again: without a seal, it is read anew if the manifest is lost.
    seals = {unit: "" if unit in plan.before else seal for unit, seal in plan.seals.items()}
    write_shard(storage, name, _batches(entries, name, plan, shard), seals)
    ledger = {unit: shard.read(unit, plan) for unit in plan.seals if shard.changed(unit, plan)}
    if ledger or not plan.seals:
        refused = [row for row in shard.refused if row["unit"] in ledger or not plan.seals]
        if refused:
            storage.write_parquet(f"quarantine/{name}.parquet", pa.Table.from_pylist(refused, QUARANTINE_SCHEMA))
        write_manifest(storage, name, pa.Table.from_pylist(shard.rows, MANIFEST_SCHEMA), ledger)
    else:
        storage.remove(f"shards/{name}.arrow")
    return IngestCounts(
        *(sum(n for (_, of), n in shard.counts.items() if of == field) for field in IngestCounts._fields)
    )


def _batches(entries: Iterable[ShardEntry], name: str, plan: ShardPlan, shard: _ShardRows) -> Iterator[pa.RecordBatch]:
    """The record batches of a shard, counted in `shard`."""
    for entry in entries:
        if isinstance(entry, Quarantined):
            shard.refused.append(entry.row)
            shard.counts[entry.row["unit"], "skipped" if entry.row["stage"] == SKIP else "refused"] += 1
        elif isinstance(entry, Present):
            shard.counts[entry.unit, "differing" if entry.differs else "present"] += 1
        else:
            record = {**entry.record, "revision": plan.revision}
            shard.rows.append({**{key: record[key] for key in _ROW}, "shard": name, "row": len(shard.rows)})
            shard.counts[entry.unit, "updated" if entry.replaces else "new"] += 1
            yield pa.RecordBatch.from_pylist([{**record, "unit": entry.unit}], schema=SHARD_SCHEMA)


def ledger_of(
    seals: Mapping[str, str], stored: Mapping[str, Sequence[int]], refused: Iterable[Mapping[str, Any]]
) -> Ledger:
    """The ledger of a shard whose manifest is lost.

    Args:
        seals: of the shard's units, by their digests.
        stored: revisions of each unit's trajectories in the shard.
        refused: quarantine rows of all units.
    """
    skipped, bad = Counter[str](), Counter[str]()
    for row in refused:
        (skipped if row["stage"] == SKIP else bad)[row["unit"]] += 1
    revisions = {unit: stored.get(unit, ()) for unit in seals}
    return {
        unit: Reading(len(revisions[unit]), bad[unit], skipped[unit], seal, max(revisions[unit], default=0))
        for unit, seal in seals.items()
    }


def write_shard(
    storage: Storage, name: str, batches: Iterable[pa.RecordBatch], units: Mapping[str, str] | None = None
) -> None:
    """Write record batches of `SHARD_SCHEMA`, one trajectory each, as Arrow IPC; the seals in `units` are metadata."""
    schema = SHARD_SCHEMA.with_metadata({**(SHARD_SCHEMA.metadata or {}), UNITS: json.dumps(units or {}).encode()})
    with storage.write(f"shards/{name}.arrow") as stream, pa.ipc.new_file(stream, schema) as writer:
        for batch in batches:
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))


def write_manifest(storage: Storage, name: str, rows: pa.Table, ledger: Ledger, replaces: Sequence[str] = ()) -> None:
    """Commit a shard.

    Args:
        storage: the corpus.
        name: of the shard.
        rows: of `MANIFEST_SCHEMA`.
        ledger: the readings of its units.
        replaces: shards whose rows it holds; this commit hides them.
    """
    notes = {UNITS: json.dumps(ledger).encode(), REPLACES: json.dumps(list(replaces)).encode()}
    table = rows.replace_schema_metadata({**(MANIFEST_SCHEMA.metadata or {}), **notes})
    storage.write_parquet(f"manifest/{name}.parquet", table)


def content_hash(frame_index: Sequence[int], frames: Sequence[bytes]) -> str:
    """32 hex digits of SHA-256 over a trajectory's stored frames: their indices and their JPEG bytes."""
    digest = hashlib.sha256(",".join(map(str, frame_index)).encode())
    for frame in frames:
        digest.update(len(frame).to_bytes(8, "little"))
        digest.update(frame)
    return digest.hexdigest()[:32]


_ROW = [name for name in MANIFEST_SCHEMA.names if name not in ("shard", "row")]
