"""The manifest: what was committed, what was refused, and which units of the raw data that covers.

Each shard has a Parquet file of its rows. That file is the commit: written last, it makes the shard, its quarantine and
the units that were read for it visible at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from robometer.corpus.storage import Storage
from robometer.trajectory import MANIFEST_SCHEMA, QUARANTINE_SCHEMA

LISTING = "listing-"
"""Prefix of quarantine files of what was refused before any shard: malformed entries and units that came before."""

UNITS = b"robometer_units"
"""Key of the Parquet metadata that holds a commit's `Ledger` as JSON."""

_READERS = 8


class Counts(NamedTuple):
    """What became of the trajectories of a unit."""

    stored: int = 0
    refused: int = 0
    skipped: int = 0


Ledger = Mapping[str, Counts]
"""What became of each unit that was read, by `Unit.digest`."""


def read_manifest(storage: Storage, columns: Sequence[str] | None = None) -> pa.Table:
    """All committed rows sorted by id, or some of their columns; of rows with one id, the first shard's is kept."""
    wanted = list(MANIFEST_SCHEMA.names if columns is None else columns)
    needed = list(dict.fromkeys([*wanted, "id", "shard"]))
    schema = pa.schema([MANIFEST_SCHEMA.field(name) for name in needed], MANIFEST_SCHEMA.metadata)
    names = storage.list("manifest", ".parquet")
    tables = _read_all(storage, names, needed)
    table = pa.concat_tables([schema.empty_table(), *(t.replace_schema_metadata().cast(schema) for t in tables)])
    return unique(table.sort_by([("id", "ascending"), ("shard", "ascending")]), ["id"]).select(wanted)


def read_ledger(storage: Storage, names: Sequence[str] | None = None) -> dict[str, Counts]:
    """What became of every unit that was read (for some manifest files: `names`); a second try of one adds to it."""
    found: dict[str, Counts] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        for schema in pool.map(storage.read_parquet_schema, names or storage.list("manifest", ".parquet")):
            for digest, values in json.loads((schema.metadata or {}).get(UNITS, b"{}")).items():
                new, old = Counts(*values), found.get(digest)
                found[digest] = new if old is None else Counts(old.stored + new.stored, *map(min, old[1:], new[1:]))
    return found


def read_quarantine(storage: Storage, ledger: Ledger | None = None) -> pa.Table:
    """All that was refused, sorted by uri; without what a later try of the same unit has mended."""
    ledger = read_ledger(storage) if ledger is None else ledger
    names = [
        name
        for name in storage.list("quarantine", ".parquet")
        # The manifest file is the commit: what a killed run refused before it does not count.
        if name.startswith(f"quarantine/{LISTING}") or storage.exists(name.replace("quarantine/", "manifest/", 1))
    ]
    tables = _read_all(storage, names, None)
    table = pa.concat_tables([QUARANTINE_SCHEMA.empty_table(), *(t.cast(QUARANTINE_SCHEMA) for t in tables)])
    mended = pa.array([digest for digest, counts in ledger.items() if not counts.refused], pa.string())
    again = pc.and_(pc.is_in(table["unit"], mended), pc.not_equal(table["stage"], "skip"))
    keys = ["uri", "id", "stage", "error"]
    return unique(table.filter(pc.invert(again)).sort_by([(key, "ascending") for key in keys]), keys)


def manifest_hash(manifest: pa.Table) -> str:
    """SHA-256 over (id, content hash, settings hash) of all rows, in order of id."""
    digest = hashlib.sha256()
    for name in ("id", "content_hash", "settings_hash"):
        digest.update("\n".join(manifest[name].to_pylist()).encode())
    return digest.hexdigest()


def unique(table: pa.Table, keys: Sequence[str]) -> pa.Table:
    """The first row of each run of equal `keys` in a sorted table."""
    first = np.ones(table.num_rows, dtype=bool)
    if table.num_rows > 1:
        later = [pc.not_equal(table[key][1:], table[key][:-1]).to_numpy() for key in keys]
        first[1:] = np.logical_or.reduce(later)
    return table if first.all() else table.filter(pa.array(first))


def _read_all(storage: Storage, names: Iterable[str], columns: Sequence[str] | None) -> list[pa.Table]:
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda name: storage.read_parquet(name, columns), names))
