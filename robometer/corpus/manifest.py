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


class Reading(NamedTuple):
    """What the corpus has of a unit since it was read last.

    Attributes:
        stored, refused, skipped: what became of its trajectories, those included that an earlier reading has stored.
        seal: what it looked like (`identity.Sealer`); empty for one that is to be read again in any case.
        revision: of the reading; of two the higher one counts.
    """

    stored: int = 0
    refused: int = 0
    skipped: int = 0
    seal: str = ""
    revision: int = 0


Ledger = Mapping[str, Reading]
"""What became of each unit that was read, by `Unit.digest`."""


def read_manifest(storage: Storage, columns: Sequence[str] | None = None) -> pa.Table:
    """All committed rows sorted by id, or some of their columns; of rows with one id, that of the highest revision is
    kept, and of these the first shard's.

    Built column by column, each freed before the next is made, so that a large manifest is never in memory twice.
    """
    wanted = list(MANIFEST_SCHEMA.names if columns is None else columns)
    names = storage.list("manifest", ".parquet")
    parts = _each(lambda name: storage.read_parquet(name, {*wanted, "id", "revision"}, _REPEATED), names)
    hidden = _replaced(part.schema for part in parts)
    parts = [p.replace_schema_metadata() for p, name in zip(parts, names, strict=True) if _stem(name) not in hidden]
    schema = pa.schema([MANIFEST_SCHEMA.field(name) for name in wanted], MANIFEST_SCHEMA.metadata)
    if not parts:
        return schema.empty_table()
    table = pa.concat_tables(parts).unify_dictionaries()
    keys = [("id", "ascending")]
    if pc.max(table["revision"]).as_py():
        keys.append(("revision", "descending"))
    order = pc.sort_indices(table, keys)  # stable: of equal ones, the first shard's comes first
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


def ledger_in(schema: pa.Schema) -> dict[str, Reading]:
    """What became of the units of one shard, from its manifest file's schema."""
    return {digest: Reading(*values) for digest, values in _note(schema, UNITS, "{}").items()}


def units_in(schema: pa.Schema) -> dict[str, str]:
    """Seals of the units that were read for a shard, by their digests, from the shard's own schema."""
    return dict(_note(schema, UNITS, "{}"))


def replaced_in(storage: Storage) -> list[str]:
    """Shards that others have replaced, whether their files are still there or not."""
    schemas = read_schemas(storage).values()
    return sorted({name for schema in schemas for name in _note(schema, REPLACES, "[]")})


def latest(shards: Mapping[str, Ledger]) -> dict[str, tuple[Reading, str]]:
    """The last reading of each unit, and the shard that it was committed with."""
    found: dict[str, tuple[Reading, str]] = {}
    for shard, ledger in shards.items():
        for digest, read in ledger.items():
            old = found.get(digest)
            if old is None or (read.revision, read.stored, read.seal) > (old[0].revision, old[0].stored, old[0].seal):
                found[digest] = read, shard
    return found


def read_ledgers(storage: Storage) -> dict[str, Ledger]:
    """The ledger of each committed shard, by the shard's name."""
    return {name: ledger_in(schema) for name, schema in read_schemas(storage).items()}


def clashes(storage: Storage) -> list[str]:
    """Ids under which two ingests at once stored different things, of which one alone is seen."""
    names = [f"manifest/{name}.parquet" for name in read_schemas(storage)]
    columns = ["id", "revision", "labels_hash", "content_hash"]
    parts = _each(lambda name: storage.read_parquet(name, columns).replace_schema_metadata(), names)
    if not parts:
        return []
    table = pa.concat_tables(parts)
    if len(pc.unique(table["id"])) == table.num_rows:
        return []
    facts = [("labels_hash", "count_distinct"), ("content_hash", "count_distinct")]
    found = table.group_by(["id", "revision"]).aggregate(facts)
    several = pc.or_(*(pc.greater(found[f"{name}_{how}"], 1) for name, how in facts))
    return sorted(found.filter(several)["id"].to_pylist())


def read_quarantine(storage: Storage) -> pa.Table:
    """All that was refused, sorted by uri, when its unit was read last."""
    ledgers = read_ledgers(storage)
    last = latest(ledgers)
    tables = [QUARANTINE_SCHEMA.empty_table()]
    names = storage.list("quarantine", ".parquet")
    for name, table in zip(names, _each(storage.read_parquet, names), strict=True):
        # The manifest file is the commit: what a killed run refused before it does not count.
        if _stem(name).startswith(LISTING):
            tables.append(table.cast(QUARANTINE_SCHEMA))
        elif _stem(name) in ledgers:
            tables.append(refused_last(table, _stem(name), last))
    table = pa.concat_tables(tables)
    keys = ["uri", "episode_key", "view", "id", "stage", "error"]
    table = table.sort_by([(key, "ascending") for key in keys])
    return table.filter(_first(*(table[key] for key in keys)))


def refused_last(table: pa.Table, shard: str, last: Mapping[str, tuple[Reading, str]]) -> pa.Table:
    """The quarantine rows of a shard whose units were not read again since, for another one."""
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
