"""Raw data to corpus: list its units, read each on a worker, decode, thin, resize, compress and commit, a shard a task.

The shard is the unit of commitment: its name follows from the units it holds, its frames go from the decoder to storage
without touching the object store, and its manifest file, written last, makes it visible and says which units it covers.
So an ingest may be killed anywhere and run again, or run twice at once, and the corpus ends with the same rows. On a
cluster the raw data and the corpus must lie on storage that every node sees under the same path.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.exceptions import RayError

from pipelines.cluster import cause_of, connected, interactive, progress_bar, watched
from robometer.configs.schema import Config, IngestConfig
from robometer.corpus.corpus import CorpusError
from robometer.corpus.encode import (
    entries,
    isolated_entries,
    quarantine_row,
)
from robometer.corpus.manifest import (
    LISTING,
    SKIP,
    Counts,
    Ledger,
    ledger_in,
    merge_ledger,
    read_manifest,
    read_quarantine,
    read_schemas,
)
from robometer.corpus.sources import Refused, SourceError, Unit, list_units
from robometer.corpus.storage import Storage
from robometer.corpus.writer import commit_shard
from robometer.errors import RobometerError
from robometer.frames import FrameSettings
from robometer.outputs import settled
from robometer.trajectory import QUARANTINE_SCHEMA, SCHEMA_VERSION

logger = logging.getLogger(__name__)

ATTEMPTS = "attempts"
"""Folder of marks of shards that were begun. One that is there when its shard is begun again says that its process
died: then its units are read in a child process, and one that kills the child is quarantined."""


class IngestError(RobometerError):
    """An ingest that could not end well; the message says what to do."""


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did with the trajectories of its input; `quarantined` counts those refused now or before.

    `skipped` are cameras and cuts that a format leaves out by design; they are not counted in `listed`.
    """

    listed: int
    new: int
    present: int
    quarantined: int
    skipped: int
    seconds: float


@dataclass
class _Plan:
    """What there is to do: shards to make, quarantine rows of the listing, and what was done before."""

    groups: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    before: Counts = Counts()
    expected: int = 0


def run_ingest(config: Config) -> IngestReport:
    """Bring `config.ingest.input` into the corpus at `config.corpus.path`; what is there already stays untouched.

    Raises:
        SourceError: the input cannot be listed or is empty.
        CorpusError: the corpus was made with other settings.
        StorageError: the corpus cannot be written.
        IngestError: more than `ingest.max_bad_fraction` was refused (the rest is committed), or a worker failed.
    """
    started = time.monotonic()
    config = settled(config, "corpus.path")
    storage = Storage(config.corpus.path)
    _check_settings(storage, config.ingest)
    plan = _plan(storage, config.ingest)
    _write_info(storage, config.ingest, "ingesting")
    _write_refused(storage, config.ingest, plan.refused)
    _remove_stale(storage)
    now = Counts()
    if plan.groups:
        with connected(config):
            now = _run_groups(storage, plan, config.ingest)
    _remove_stale(storage)
    _remove_marks(storage)
    _write_info(storage, config.ingest, "complete")
    bad, skipped = sum(row["stage"] != SKIP for row in plan.refused), sum(row["stage"] == SKIP for row in plan.refused)
    quarantined = plan.before.refused + now.refused + bad
    report = IngestReport(
        listed=plan.before.stored + now.stored + quarantined,
        new=now.stored,
        present=plan.before.stored,
        quarantined=quarantined,
        skipped=plan.before.skipped + now.skipped + skipped,
        seconds=time.monotonic() - started,
    )
    logger.info("ingest: %s", json.dumps(dataclasses.asdict(report)))
    _check_bad_fraction(report, config)
    return report


def _plan(storage: Storage, config: IngestConfig) -> _Plan:
    """Cut the listing into shards and leave out what was read before.

    Shards are cut from the whole listing, so that a second run names the shards of a killed one as that did.
    """
    shards = {name: ledger_in(schema) for name, schema in read_schemas(storage).items()}
    ledger: dict[str, Counts] = {}
    for counts in shards.values():
        merge_ledger(ledger, counts)
    again = _Again(storage, ledger, shards) if config.retry_quarantined else None
    del shards
    plan, seen = _Plan(), set[str]()
    group: list[Unit] = []
    size = 0

    def close() -> None:
        nonlocal group, size
        _add_group(plan, group, ledger, again, config)
        group, size = [], 0

    for entry in list_units(config.source, config.input, config.data_source):
        if isinstance(entry, Refused):
            plan.refused.append(quarantine_row(entry, "", SKIP if entry.skipped else "list", entry.error))
            continue
        digest = entry.digest(config.source)
        if digest in seen:
            names = ", ".join(filter(None, entry.key.split("\x1f")))
            refused = Refused(entry.uri, f"duplicate: {names} of source {entry.source!r} came before", entry.source)
            plan.refused.append(quarantine_row(refused, "", "list", refused.error))
            continue
        seen.add(digest)
        group.append(entry)
        size += entry.count
        if size >= config.shard_size:
            close()
    close()
    if not seen and not plan.refused:
        raise SourceError(f"{config.input} lists no episode: give ingest.input data of the format {config.source}")
    if plan.before.refused and not config.retry_quarantined:
        logger.info("%d were refused before; ingest.retry_quarantined=true tries them again", plan.before.refused)
    return plan


class _Again:
    """Units that are tried again for what they were refused, and which of their trajectories are there already."""

    def __init__(self, storage: Storage, ledger: Ledger, shards: Mapping[str, Ledger]) -> None:
        self._storage = storage
        self._places: dict[str, list[str]] = {digest: [] for digest, counts in ledger.items() if counts.refused}
        for shard, counts in shards.items():
            for digest in counts.keys() & self._places.keys():
                self._places[digest].append(shard)

    def __contains__(self, digest: str) -> bool:
        return digest in self._places

    def stored(self, digests: Iterable[str]) -> list[str]:
        """Ids in the shards that these units were read for."""
        names = sorted({shard for digest in digests for shard in self._places.get(digest, ())})
        tables = (self._storage.read_parquet(f"manifest/{name}.parquet", ["id"]) for name in names)
        return [id for table in tables for id in table["id"].to_pylist()]


def _add_group(plan: _Plan, group: list[Unit], ledger: Ledger, again: _Again | None, config: IngestConfig) -> None:
    todo: dict[str, Unit] = {}
    key = [FrameSettings.of(config).hash()]
    for unit in group:
        digest = unit.digest(config.source)
        before, retried = ledger.get(digest), again is not None and digest in again
        if before is not None:
            kept = before._replace(refused=0, skipped=0) if retried else before
            plan.before = Counts(*(a + b for a, b in zip(plan.before, kept, strict=True)))
        if before is None or retried:
            todo[digest] = unit
            # A second try has a name of its own, or it would replace what the first one stored.
            key.append(digest if before is None else f"{digest}+{before.stored}")
    if todo:
        have = again.stored(todo) if again is not None else []
        payload = json.dumps({"units": [dataclasses.asdict(unit) for unit in todo.values()], "have": have})
        expected = sum(unit.count for unit in todo.values())
        name = _digest("\n".join(key))[:20]
        plan.groups.append({"name": name, "work": zlib.compress(payload.encode()), "expected": expected})
        plan.expected += expected


def _run_groups(storage: Storage, plan: _Plan, config: IngestConfig) -> Counts:
    """Make the shards on the cluster; returns what became of their trajectories."""
    show = progress_bar("ingest", plan.expected, interactive())
    expected, total = 0, Counts()
    work = partial(ingest_groups, path=storage.path, config=config)
    blocks = ray.data.from_items(plan.groups, override_num_blocks=len(plan.groups))
    dataset = blocks.map_batches(work, batch_size=1, num_cpus=1)
    try:
        for result in watched(dataset.iter_rows(), "ingest"):
            total = Counts(*(a + int(result[name]) for a, name in zip(total, Counts._fields, strict=True)))
            expected += int(result["expected"])
            show(expected, {"new": total.stored, "refused": total.refused})
    except RayError as error:
        raise IngestError(f"a worker failed: {cause_of(error)}; mend that and run the same again") from error
    return total


def ingest_groups(batch: dict[str, np.ndarray], path: str, config: IngestConfig) -> dict[str, Any]:
    """One Ray task: make the shards named in `batch`; run twice, it leaves the same files once."""
    storage = Storage(path)
    made = [
        _make_shard(storage, str(name), json.loads(zlib.decompress(work)), config)
        for name, work in zip(batch["name"], batch["work"], strict=True)
    ]
    return {
        **{name: np.array([getattr(counts, name) for counts in made]) for name in Counts._fields},
        "expected": batch["expected"],
    }


def _make_shard(storage: Storage, name: str, work: dict[str, Any], config: IngestConfig) -> Counts:
    units = [Unit(**fields) for fields in work["units"]]
    mark = f"{ATTEMPTS}/{name}"
    read = isolated_entries if storage.exists(mark) else entries
    storage.write_bytes(mark, b"")
    digests = [unit.digest(config.source) for unit in units]
    counts = commit_shard(storage, name, read(units, config, set(work["have"])), digests)
    storage.remove(mark)
    return counts


def _check_settings(storage: Storage, config: IngestConfig) -> None:
    if not storage.exists("corpus.json"):
        return
    info = json.loads(storage.read_bytes("corpus.json"))
    if info["schema_version"] != SCHEMA_VERSION:
        raise CorpusError(
            f"the corpus at {storage.path} has schema version {info['schema_version']}, not {SCHEMA_VERSION}: "
            "give another corpus.path"
        )
    made, wanted = info["settings"], FrameSettings.of(config).as_dict()
    if changed := [name for name in wanted if made.get(name) != wanted[name]]:
        name = changed[0]
        raise CorpusError(
            f"the corpus at {storage.path} was made with {name}={made.get(name)}, not {wanted[name]}: "
            f"give another corpus.path, or ingest.{name}={made.get(name)}"
        )


def _check_bad_fraction(report: IngestReport, config: Config) -> None:
    if report.quarantined > config.ingest.max_bad_fraction * report.listed:
        raise IngestError(
            f"{report.quarantined} of {report.listed} episodes of {config.ingest.input} were refused, more than "
            f"ingest.max_bad_fraction={config.ingest.max_bad_fraction}: `robometer corpus corpus.path="
            f"{config.corpus.path}` lists the reasons"
        )


def _write_info(storage: Storage, config: IngestConfig, state: str) -> None:
    sizes = read_manifest(storage, ["num_frames", "size_bytes"])
    info = {
        "schema_version": SCHEMA_VERSION,
        "state": state,
        "settings": FrameSettings.of(config).as_dict(),
        "counts": {
            "trajectories": sizes.num_rows,
            "frames": pc.sum(sizes["num_frames"]).as_py() or 0,
            "size_bytes": pc.sum(sizes["size_bytes"]).as_py() or 0,
            "quarantined": int(pc.sum(pc.not_equal(read_quarantine(storage)["stage"], SKIP)).as_py() or 0),
        },
    }
    storage.write_bytes("corpus.json", (json.dumps(info, indent=2) + "\n").encode())


def _write_refused(storage: Storage, config: IngestConfig, refused: list[dict[str, Any]]) -> None:
    """Quarantine what the listing itself refused; the next listing of the same input replaces it."""
    name = f"quarantine/{LISTING}{_digest(config.source + chr(31) + config.input)[:20]}.parquet"
    if refused or storage.exists(name):
        storage.write_parquet(name, pa.Table.from_pylist(refused, QUARANTINE_SCHEMA))


def _remove_stale(storage: Storage) -> None:
    removed = storage.remove_stale("shards", _committed(storage))
    removed += sum(storage.remove_stale(folder) for folder in ("manifest", "quarantine", ATTEMPTS, ""))
    if removed:
        logger.info("ingest: removed %d files that a crashed run had left", removed)


def _remove_marks(storage: Storage) -> None:
    """Marks of shards that were committed all the same, and old ones of shards that nobody wants any more.

    Only once all is done: until then a mark says that its shard must be made with care.
    """
    committed = _committed(storage)
    for name in storage.list(ATTEMPTS, ""):
        if Path(name).name in committed:
            storage.remove(name)
    storage.remove_stale(ATTEMPTS, keep=())


def _committed(storage: Storage) -> set[str]:
    return {Path(name).stem for name in storage.list("manifest", ".parquet")}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
