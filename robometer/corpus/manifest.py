"""The manifest: what was committed, what was refused, and which units of the raw data were read.

Each shard has a Parquet file with its rows. This file is the commit: it is written last, and makes the shard, its
quarantine and its units visible at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from robometer.corpus.storage import Storage
from robometer.trajectory import MANIFEST_SCHEMA, QUARANTINE_SCHEMA

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
    names = storage.list("manifest", ".parquet")
    parts = _each(lambda name: storage.read_parquet(name, {*chosen, "id", "revision"}, _REPEATED), names)
    hidden = _replaced(part.schema for part in parts)
    parts = [p.replace_schema_metadata() for p, name in zip(parts, names, strict=True) if _stem(name) not in hidden]
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


def _each(read: Callable[[str], T], names: Sequence[str]) -> list[T]:
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(read, names))


def _replaced(schemas: Iterable[pa.Schema]) -> set[str]:
    return {name for schema in schemas for name in _note(schema, REPLACES, "[]")}


def _note(schema: pa.Schema, key: bytes, default: str) -> Any:
    return json.loads((schema.metadata or {}).get(key, default))


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].removesuffix(".parquet")
