"""Maintenance of a corpus: check and repair its shards (`check_shard`), and join small ones (`join_shards`).

Both work on one shard, or on the shards that become one, so that a cluster can do many at a time. Both may be killed
and run again. No other job may write to the corpus meanwhile, or read it while shards are joined.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc

from robometer.corpus.manifest import (
    Ledger,
    latest,
    ledger_in,
    read_manifest,
    read_schemas,
    refused_last,
    units_in,
)
from robometer.corpus.storage import Storage
from robometer.corpus.writer import content_hash, ledger_of, write_manifest, write_shard
from robometer.trajectory import MANIFEST_SCHEMA, SHARD_SCHEMA, trajectory_id


@dataclass
class ShardReport:
    """The state of one shard.

    Attributes:
        shard: its name.
        rows: intact trajectories.
        problems: a sentence each; empty if the shard is intact.
        repair: what was repaired: empty for nothing, `rebuilt` (the manifest file, from the shard), or `dropped` (the
            shard is removed from the corpus, and the next ingest makes it again).
    """

    shard: str
    rows: int = 0
    problems: list[str] = field(default_factory=list)
    repair: str = ""


def check_shard(storage: Storage, shard: str, repair: bool = False) -> ShardReport:
    """Re-read one shard: check every record batch, its counts and hashes, and compare them with the manifest.

    Args:
        storage: the corpus.
        shard: name of a shard, committed or not.
        repair: rebuild a missing or wrong manifest file from the shard; drop a shard that is corrupt itself.
    """
    report = ShardReport(shard)
    rows, stored, corrupt = _read_shard(storage, shard, report)
    problem = _compare(storage, shard, rows)
    if corrupt or problem:
        report.problems += [problem] if problem and not corrupt else []
        if repair and corrupt:
            _drop(storage, shard)
            report.repair = "dropped"
        elif repair:
            write_manifest(storage, shard, pa.Table.from_pylist(rows, MANIFEST_SCHEMA), _ledger(storage, shard, stored))
            report.repair = "rebuilt"
    return report


def _read_shard(
    storage: Storage, shard: str, report: ShardReport
) -> tuple[list[dict[str, Any]], dict[str, list[int]], bool]:
    """Manifest rows of a shard, their revisions by unit, and whether something is wrong; from the shard alone."""
    rows: list[dict[str, Any]] = []
    stored: defaultdict[str, list[int]] = defaultdict(list)
    try:
        reader = storage.open_arrow(f"shards/{shard}.arrow")
        for number in range(reader.num_record_batches):
            record = reader.get_batch(number).to_pylist()[0]
            if reason := _wrong(record):
                report.problems.append(f"row {number}: {reason}")
                continue
            stored[record["unit"] or ""].append(record["revision"] or 0)
            rows.append({**{k: record[k] for k in SHARD_SCHEMA.names if k in _NAMES}, "shard": shard, "row": number})
    except (OSError, pa.ArrowException, IndexError, KeyError, ValueError) as error:  # damaged text is a ValueError
        report.problems.append(f"the shard cannot be read ({error})")
    report.rows = len(rows)
    return rows, stored, bool(report.problems)


def _wrong(record: dict[str, Any]) -> str:
    """How a shard row contradicts itself; empty if it does not."""
    frames, index = record["frames"] or [], record["frame_index"] or []
    if record["id"] != trajectory_id(record["source"], record["episode_key"], record["view"]):
        return "its id does not fit its source, episode key and view"
    if not len(frames) == len(index) == record["num_frames"]:
        return f"it has {len(frames)} frames and {len(index)} indices instead of {record['num_frames']}"
    if sum(map(len, frames)) != record["size_bytes"] or content_hash(index, frames) != record["content_hash"]:
        return "its frames have changed since they were written"
    return ""


def _compare(storage: Storage, shard: str, rows: Sequence[dict[str, Any]]) -> str:
    """How the manifest file of a shard differs from `rows`, the shard's own rows; empty if it does not."""
    name = f"manifest/{shard}.parquet"
    if not storage.exists(name):
        return "its manifest file is missing"
    try:
        table = storage.read_parquet(name).cast(MANIFEST_SCHEMA)
    except (OSError, pa.ArrowException, ValueError) as error:
        return f"its manifest file cannot be read ({str(error).splitlines()[0]})"
    same = table.equals(pa.Table.from_pylist(list(rows), MANIFEST_SCHEMA))
    return "" if same else "its manifest file differs from it"


def _ledger(storage: Storage, shard: str, stored: dict[str, list[int]]) -> Ledger:
    """The ledger of a shard whose manifest is lost. Units without any trajectory are left out, to be read again."""
    units = units_in(storage.open_arrow(f"shards/{shard}.arrow").schema)
    name = f"quarantine/{shard}.parquet"
    refused = storage.read_parquet(name).to_pylist() if storage.exists(name) else []
    return {unit: read for unit, read in ledger_of(units, stored, refused).items() if any(read[:3])}


def _drop(storage: Storage, shard: str) -> None:
    """Remove a shard from the corpus, beginning with the file that makes it visible."""
    for name in (f"manifest/{shard}.parquet", f"quarantine/{shard}.parquet", f"shards/{shard}.arrow"):
        storage.remove(name)
    for folder in storage.folders("embeddings"):
        storage.remove(f"{folder}/{shard}.arrow")


@dataclass
class Join:
    """Shards to join into one.

    Attributes:
        shards: their names.
        seen: numbers of the visible rows of each shard that also has hidden ones.
    """

    shards: list[str] = field(default_factory=list)
    seen: dict[str, list[int]] = field(default_factory=dict)


def plan_joins(storage: Storage, target_bytes: int) -> list[Join]:
    """Joins that give shards of about `target_bytes`. A larger shard stays as it is, if all its rows are visible."""
    manifest = read_manifest(storage, ["shard", "row", "size_bytes"])
    seen: dict[str, list[int]] = {shard: [] for shard in read_schemas(storage)}
    sizes = dict.fromkeys(seen, 0)
    for shard, row, size in zip(*(manifest[name].to_pylist() for name in manifest.column_names), strict=True):
        seen[shard].append(row)
        sizes[shard] += size
    counts = {shard: storage.count_rows(f"manifest/{shard}.parquet") for shard in seen}
    joins, total = [Join()], 0
    for shard, size in sorted(sizes.items()):
        stale = len(seen[shard]) < counts[shard]
        if size >= target_bytes and not stale:
            continue
        if joins[-1].shards and total + size > target_bytes:
            joins.append(Join())
            total = 0
        joins[-1].shards.append(shard)
        joins[-1].seen |= {shard: sorted(seen[shard])} if stale else {}
        total += size
    return [join for join in joins if len(join.shards) > 1 or join.seen]


def join_shards(storage: Storage, join: Join) -> str:
    """Join shards, in order, with their quarantine and embeddings. One record is in memory at a time.

    Rows that an update has replaced are dropped. The new manifest file names the shards that it replaces: from its
    commit on, readers see the new shard instead. A join that was killed before or after the commit can be run again.

    Returns:
        The new shard's name.
    """
    shards = join.shards
    name = hashlib.sha256("\n".join(shards).encode()).hexdigest()[:20]
    visible = _visible_rows(storage, join)
    last = latest({s: ledger_in(storage.read_parquet_schema(f"manifest/{s}.parquet")) for s in shards})
    ledger = {unit: read for unit, (read, _) in last.items()}
    seals = {unit: read.seal for unit, read in ledger.items()}
    write_shard(storage, name, _batches(storage, "shards", visible), seals)
    for folder in storage.folders("embeddings"):
        if all(storage.exists(f"{folder}/{shard}.arrow") for shard in shards):
            _join_embeddings(storage, folder, name, visible)
    refused = [
        refused_last(storage.read_parquet(n), s, last) for s in shards if storage.exists(n := f"quarantine/{s}.parquet")
    ]
    if refused:
        storage.write_parquet(f"quarantine/{name}.parquet", pa.concat_tables(refused))
    rows = [row for rows in visible.values() for row in rows]
    placed = [{**row, "shard": name, "row": number} for number, row in enumerate(rows)]
    write_manifest(storage, name, pa.Table.from_pylist(placed, MANIFEST_SCHEMA), ledger, shards)
    remove_replaced(storage, shards)
    return name


def remove_replaced(storage: Storage, shards: Sequence[str]) -> None:
    """Delete the files of shards that another shard has replaced."""
    for shard in shards:
        _drop(storage, shard)


def _visible_rows(storage: Storage, join: Join) -> dict[str, list[dict[str, Any]]]:
    """The visible manifest rows of each shard, in its order."""
    visible: dict[str, list[dict[str, Any]]] = {}
    for shard in join.shards:
        rows = storage.read_parquet(f"manifest/{shard}.parquet").cast(MANIFEST_SCHEMA).to_pylist()
        seen = set(join.seen.get(shard, range(len(rows))))
        visible[shard] = [row for row in rows if row["row"] in seen]
    return visible


def _batches(storage: Storage, folder: str, visible: dict[str, list[dict[str, Any]]]) -> Iterator[pa.RecordBatch]:
    for shard, rows in visible.items():
        reader = storage.open_arrow(f"{folder}/{shard}.arrow")
        for row in rows:
            yield reader.get_batch(row["row"])


def _join_embeddings(storage: Storage, folder: str, name: str, visible: dict[str, list[dict[str, Any]]]) -> None:
    schema: ipc.Schema = storage.open_arrow(f"{folder}/{next(iter(visible))}.arrow").schema
    with storage.write(f"{folder}/{name}.arrow") as stream, pa.ipc.new_file(stream, schema) as writer:
        for batch in _batches(storage, folder, visible):
            writer.write_batch(batch)


_NAMES = frozenset(MANIFEST_SCHEMA.names)
