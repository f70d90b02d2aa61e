"""The manifest: what was committed, what was refused, and which units of the raw data that covers.

Each shard has a Parquet file of its rows. That file is the commit: written last, it makes the shard, its quarantine and
the units that were read for it visible at once.
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
"""Prefix of quarantine files of what was refused before any shard: malformed entries and units that came before."""

SKIP = "skip"
"""Stage in quarantine of what is left out by design."""

UNITS = b"robometer_units"
"""Key of the Parquet metadata that holds a commit's `Ledger` as JSON."""

REPLACES = b"robometer_replaces"
"""Key of the Parquet metadata that names the shards which this one was made of."""

_REPEATED = ("source", "view", "task", "quality_label", "raw_quality_label", "split", "uri", "settings_hash", "shard")
"""Columns whose values repeat: they are held as dictionaries while a manifest is read."""

_READERS = 8

T = TypeVar("T")


class Counts(NamedTuple):
    """What became of the trajectories of a unit."""

    stored: int = 0
    refused: int = 0
    skipped: int = 0


Ledger = Mapping[str, Counts]
"""What became of each unit that was read, by `Unit.digest`."""


def read_manifest(storage: Storage, columns: Sequence[str] | None = None) -> pa.Table:
    """All committed rows sorted by id, or some of their columns; of rows with one id, the first shard's is kept.

    Built column by column, each freed before the next is made, so that a large manifest is never in memory twice.
    """
    wanted = list(MANIFEST_SCHEMA.names if columns is None else columns)
    names = storage.list("manifest", ".parquet")
    parts = _each(lambda name: storage.read_parquet(name, {*wanted, "id"}, _REPEATED), names)
    hidden = _replaced(part.schema for part in parts)
    parts = [p.replace_schema_metadata() for p, name in zip(parts, names, strict=True) if _stem(name) not in hidden]
    schema = pa.schema([MANIFEST_SCHEMA.field(name) for name in wanted], MANIFEST_SCHEMA.metadata)
    if not parts:
        return schema.empty_table()
    table = pa.concat_tables(parts).unify_dictionaries()
    order = pc.sort_indices(table["id"])  # stable: of equal ids, the first shard's comes first
    order = order.filter(_first(table["id"].take(order)))
    found = dict(zip(table.column_names, table.columns, strict=True))
    del table, parts
    done = []
    for field in schema:
        done.append(found.pop(field.name).take(order).cast(field.type).combine_chunks())
        pa.default_memory_pool().release_unused()
    return pa.table(done, schema)


def read_schemas(storage: Storage) -> dict[str, pa.Schema]:
    """Schema, with the metadata, of each committed shard's manifest file, by the shard's name."""
    names = storage.list("manifest", ".parquet")
    schemas = dict(zip(map(_stem, names), _each(storage.read_parquet_schema, names), strict=True))
    hidden = _replaced(schemas.values())
    return {name: schema for name, schema in schemas.items() if name not in hidden}


def ledger_in(schema: pa.Schema) -> dict[str, Counts]:
    """What became of the units of one shard, from its manifest file's schema."""
    return {digest: Counts(*values) for digest, values in _note(schema, UNITS, "{}").items()}


def units_in(schema: pa.Schema) -> list[str]:
    """Digests of the units that were read for a shard, from the shard's own schema."""
    return list(_note(schema, UNITS, "[]"))


def replaced_in(storage: Storage) -> list[str]:
    """Shards that others have replaced, whether their files are still there or not."""
    schemas = read_schemas(storage).values()
    return sorted({name for schema in schemas for name in _note(schema, REPLACES, "[]")})


def merge_ledger(found: dict[str, Counts], more: Ledger) -> None:
    """Add the counts of another shard to `found`: stored ones add up, and what the last try refused is what is left."""
    for digest, new in more.items():
        old = found.get(digest)
        found[digest] = new if old is None else Counts(old.stored + new.stored, *map(min, old[1:], new[1:]))


def read_quarantine(storage: Storage) -> pa.Table:
    """All that was refused, sorted by uri; without what a later try of the same unit has mended."""
    schemas, ledger = read_schemas(storage), dict[str, Counts]()
    for schema in schemas.values():
        merge_ledger(ledger, ledger_in(schema))
    # The manifest file is the commit: what a killed run refused before it does not count.
    names = [
        name
        for name in storage.list("quarantine", ".parquet")
        if _stem(name) in schemas or _stem(name).startswith(LISTING)
    ]
    tables = _each(storage.read_parquet, names)
    table = pa.concat_tables([QUARANTINE_SCHEMA.empty_table(), *(t.cast(QUARANTINE_SCHEMA) for t in tables)])
    mended = pa.array([digest for digest, counts in ledger.items() if not counts.refused], pa.string())
    again = pc.and_(pc.is_in(table["unit"], mended), pc.not_equal(table["stage"], SKIP))
    keys = ["uri", "episode_key", "view", "id", "stage", "error"]
    table = table.filter(pc.invert(again)).sort_by([(key, "ascending") for key in keys])
    return table.filter(_first(*(table[key] for key in keys)))


def manifest_hash(manifest: pa.Table) -> str:
    """SHA-256 over (id, content hash, settings hash) of all rows, in order of id."""
    digest = hashlib.sha256()
    for name in ("id", "content_hash", "settings_hash"):
        digest.update("\n".join(manifest[name].to_pylist()).encode())
    return digest.hexdigest()


def _first(*columns: pa.ChunkedArray) -> pa.Array:
    """Mask of the first row of each run of equal values, in sorted columns."""
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
