"""The manifest: what was committed, what was refused, and which units of the raw data were read.

Each shard has a Parquet file with its rows. This file is the commit: it is written last, and makes the shard, its
quarantine and its units visible at once. A snapshot of many such files, if there is one, is only their copy.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from robometer.corpus.storage import Storage
from robometer.trajectory import MANIFEST_SCHEMA, QUARANTINE_SCHEMA

logger = logging.getLogger(__name__)

LISTING = "listing-"
"""Prefix of quarantine files that belong to no shard: malformed entries of a listing, and duplicate units."""

SKIP = "skip"
"""Stage in quarantine of what was left out by design."""

UNITS = b"robometer_units"
"""Key of the Parquet metadata with a commit's `Ledger` as JSON."""

REPLACES = b"robometer_replaces"
"""Key of the Parquet metadata with the names of the shards that this one was joined from."""

_REPEATED = ("source", "view", "task", "quality_label", "raw_quality_label", "split", "uri", "settings_hash", "shard")
"""Columns whose values repeat. They are dictionary-encoded while a manifest is read."""

_READERS = 8

T = TypeVar("T")


class Reading(NamedTuple):
    """The last reading of a unit, and what the corpus has of the unit since.

    Attributes:
        stored, refused, skipped: how many of its trajectories were stored (by any reading), refused and skipped.
        seal: what the unit looked like (`identity.Sealer`); empty if it must be read again in any case.
        revision: of the reading; of two readings the higher revision counts.
    """

    stored: int = 0
    refused: int = 0
    skipped: int = 0
    seal: str = ""
    revision: int = 0


Ledger = Mapping[str, Reading]
"""The readings of units, by `Unit.digest`."""


def read_manifest(storage: Storage, columns: Sequence[str] | None = None) -> pa.Table:
    """All committed rows sorted by id, or some of their columns.

    Of rows with one id, the one with the highest revision is kept, and of these the first shard's. The table is built
    column by column, each freed before the next, so that a large manifest is never in memory twice.
    """
    chosen = list(MANIFEST_SCHEMA.names if columns is None else columns)
    parts = _parts(storage, {*chosen, "id", "revision"})
    schema = pa.schema([MANIFEST_SCHEMA.field(name) for name in chosen], MANIFEST_SCHEMA.metadata)
    if not parts:
        return schema.empty_table()
    table = pa.concat_tables(parts).unify_dictionaries()
    keys = [("id", "ascending")]
    if pc.max(table["revision"]).as_py():
        keys.append(("revision", "descending"))
    order = pc.sort_indices(table, keys)  # stable: the first shard's row comes first
    order = order.filter(_first(table["id"].take(order)))
    unsorted = dict(zip(table.column_names, table.columns, strict=True))
    del table, parts
    arrays = []
    for field in schema:
        arrays.append(unsorted.pop(field.name).take(order).cast(field.type).combine_chunks())
        pa.default_memory_pool().release_unused()
    return pa.table(arrays, schema)


def _parts(storage: Storage, columns: set[str]) -> list[pa.Table]:
    """Some columns of the rows of all shards that are visible, in the order of the shards' names."""
    stamps = storage.stamps("manifest", ".parquet")
    rows, entries = _snapshot(storage, stamps, columns)
    names = [name for name in stamps if name not in entries]
    tables = dict(zip(names, _each(lambda name: storage.read_parquet(name, columns, _REPEATED), names), strict=True))
    hidden = _replaced(table.schema for table in tables.values()).union(*(entry.replaces for entry in entries.values()))
    parts: list[pa.Table] = []
    first = end = 0  # of the snapshot's rows that are the next part
    for name in stamps:
        entry = None if _stem(name) in hidden else entries.get(name)
        if entry is None or entry.first != end:
            parts += [rows[first:end]] if end > first else []
            first = end = 0 if entry is None else entry.first
        if entry is not None:
            end = entry.first + entry.rows
        elif name in tables and _stem(name) not in hidden:
            parts.append(tables[name].replace_schema_metadata())
    return parts + ([rows[first:end]] if end > first else [])


SNAPSHOT = "manifest.parquet"
"""A copy of the rows in the shards' own files, which spares readers several requests for each of many shards."""

SNAPSHOT_OF = b"robometer_snapshot_of"
"""Key of the snapshot's metadata: for each file, in the order of the rows, its `SnapshotEntry` as JSON."""

MANY_FILES = 64
"""Number of files without a snapshot from which on a new one is made."""


class SnapshotEntry(NamedTuple):
    """Where the rows of a manifest file are in the snapshot.

    Attributes:
        stamp: of the file when it was copied (`Storage.stamps`): of a file that has changed the copy does not count.
        first, rows: the place of its rows.
        replaces: the shards that its shard replaces.
    """

    stamp: str
    first: int
    rows: int
    replaces: list[str]


def write_snapshot(storage: Storage, many: int = MANY_FILES, wait_s: float = 2.0) -> bool:
    """Make or renew the snapshot, if at least `many` files are not in it.

    It holds no file that a change might leave with the stamp it has: in a bucket, where times are whole seconds, one
    that changed within the last `wait_s` seconds.

    Returns:
        Whether it was written.
    """
    stamps = storage.stamps("manifest", ".parquet")
    if len(stamps) - len(_snapshot(storage, stamps, {"id"})[1]) < many:
        return False
    if not storage.is_local:
        time.sleep(wait_s)
        later = storage.stamps("manifest", ".parquet")
        stamps = {name: stamp for name, stamp in stamps.items() if later.get(name) == stamp}
    tables = dict(zip(stamps, _each(lambda name: storage.read_parquet(name, None, _REPEATED), stamps), strict=True))
    entries, first = dict[str, SnapshotEntry](), 0
    for name, table in tables.items():
        entries[name] = SnapshotEntry(stamps[name], first, len(table), _note(table.schema, REPLACES, "[]"))
        first += len(table)
    whole = pa.concat_tables(table.replace_schema_metadata() for table in tables.values())
    del tables
    storage.write_parquet(SNAPSHOT, whole.replace_schema_metadata({SNAPSHOT_OF: json.dumps(entries)}))
    return True


def _snapshot(
    storage: Storage, stamps: Mapping[str, str], columns: set[str]
) -> tuple[pa.Table, dict[str, SnapshotEntry]]:
    """The snapshot's rows, and where those of the files are that have not changed since; no entry without one."""
    if len(stamps) < 2:  # a file costs no more than its copy
        return MANIFEST_SCHEMA.empty_table(), {}
    try:
        table = storage.read_parquet(SNAPSHOT, columns, _REPEATED)
    except FileNotFoundError:
        return MANIFEST_SCHEMA.empty_table(), {}
    except (OSError, pa.ArrowException) as error:
        logger.warning("The manifest's copy %s cannot be read (%s): reading each shard's file.", SNAPSHOT, error)
        return MANIFEST_SCHEMA.empty_table(), {}
    entries = {name: SnapshotEntry(*values) for name, values in _note(table.schema, SNAPSHOT_OF, "{}").items()}
    current = {name: entry for name, entry in entries.items() if stamps.get(name) == entry.stamp}
    return table.replace_schema_metadata(), current


def read_schemas(storage: Storage) -> dict[str, pa.Schema]:
    """Schema, including metadata, of each committed shard's manifest file, by the shard's name."""
    names = storage.list("manifest", ".parquet")
    schemas = dict(zip(map(_stem, names), _each(storage.read_parquet_schema, names), strict=True))
    hidden = _replaced(schemas.values())
    return {name: schema for name, schema in schemas.items() if name not in hidden}


def ledger_in(schema: pa.Schema) -> dict[str, Reading]:
    """The ledger of one shard, from its manifest file's schema."""
    return {digest: Reading(*values) for digest, values in _note(schema, UNITS, "{}").items()}


def units_in(schema: pa.Schema) -> dict[str, str]:
    """Seals of a shard's units by their digests, from the shard's own schema."""
    return dict(_note(schema, UNITS, "{}"))


def replaced_in(storage: Storage) -> list[str]:
    """Shards that others have replaced, whether or not their files still exist."""
    schemas = read_schemas(storage).values()
    return sorted({name for schema in schemas for name in _note(schema, REPLACES, "[]")})


def latest(shards: Mapping[str, Ledger]) -> dict[str, tuple[Reading, str]]:
    """The last reading of each unit, and the shard that it was committed with."""
    readings: dict[str, tuple[Reading, str]] = {}
    for shard, ledger in shards.items():
        for digest, read in ledger.items():
            old = readings.get(digest)
            if old is None or (read.revision, read.stored, read.seal) > (old[0].revision, old[0].stored, old[0].seal):
                readings[digest] = read, shard
    return readings


def read_ledgers(storage: Storage) -> dict[str, Ledger]:
    """The ledger of each committed shard, by the shard's name."""
    return {name: ledger_in(schema) for name, schema in read_schemas(storage).items()}


def clashes(storage: Storage) -> list[str]:
    """Ids under which two simultaneous ingests stored different rows, of which readers see only one."""
    names = [f"manifest/{name}.parquet" for name in read_schemas(storage)]
    columns = ["id", "revision", "labels_hash", "content_hash"]
    parts = _each(lambda name: storage.read_parquet(name, columns).replace_schema_metadata(), names)
    if not parts:
        return []
    table = pa.concat_tables(parts)
    if len(pc.unique(table["id"])) == table.num_rows:
        return []
    facts = [("labels_hash", "count_distinct"), ("content_hash", "count_distinct")]
    groups = table.group_by(["id", "revision"]).aggregate(facts)
    several = pc.or_(*(pc.greater(groups[f"{name}_{how}"], 1) for name, how in facts))
    return sorted(groups.filter(several)["id"].to_pylist())


def read_quarantine(storage: Storage) -> pa.Table:
    """Everything that the last reading of its unit refused, sorted by uri."""
    ledgers = read_ledgers(storage)
    last = latest(ledgers)
    tables = [QUARANTINE_SCHEMA.empty_table()]
    names = storage.list("quarantine", ".parquet")
    for name, table in zip(names, _each(storage.read_parquet, names), strict=True):
        # The manifest file is the commit: without it, what a killed run refused does not count.
        if _stem(name).startswith(LISTING):
            tables.append(table.cast(QUARANTINE_SCHEMA))
        elif _stem(name) in ledgers:
            tables.append(refused_last(table, _stem(name), last))
    table = pa.concat_tables(tables)
    keys = ["uri", "episode_key", "view", "id", "stage", "error"]
    table = table.sort_by([(key, "ascending") for key in keys])
    return table.filter(_first(*(table[key] for key in keys)))


def refused_last(table: pa.Table, shard: str, last: Mapping[str, tuple[Reading, str]]) -> pa.Table:
    """The quarantine rows of a shard, without those of units that were read again for another shard."""
    units = pc.unique(table["unit"]).to_pylist()
    old = pa.array([unit for unit in units if unit in last and last[unit][1] != shard], pa.string())
    return table.cast(QUARANTINE_SCHEMA).filter(pc.invert(pc.is_in(table["unit"], old)))


def manifest_hash(manifest: pa.Table) -> str:
    """SHA-256 over (id, content hash, labels hash, settings hash) of all rows, in order of id."""
    digest = hashlib.sha256()
    for name in ("id", "content_hash", "labels_hash", "settings_hash"):
        digest.update("\n".join(pc.fill_null(manifest[name], "").to_pylist()).encode())
    return digest.hexdigest()


def _first(*columns: pa.ChunkedArray) -> pa.Array:
    """Mask of the first row of each run of equal values in sorted columns."""
    first = np.ones(len(columns[0]), dtype=bool)
    if len(first) > 1:
        later = [pc.not_equal(column[1:], column[:-1]).to_numpy() for column in columns]
        first[1:] = np.logical_or.reduce(later)
    return pa.array(first)


def _each(read: Callable[[str], T], names: Iterable[str]) -> list[T]:
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(read, names))


def _replaced(schemas: Iterable[pa.Schema]) -> set[str]:
    return {name for schema in schemas for name in _note(schema, REPLACES, "[]")}


def _note(schema: pa.Schema, key: bytes, default: str) -> Any:
    return json.loads((schema.metadata or {}).get(key, default))


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].removesuffix(".parquet")
