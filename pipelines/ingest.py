"""Raw data to corpus: list its units, then read, decode, thin, resize, compress and commit them, a shard in each task.

A shard is committed as a whole. Its name follows from its units. Its frames go from the decoder to storage without
touching the object store. Its manifest file, which is written last, makes it visible and names the units it covers. So
an ingest may be killed anywhere and run again, or run twice at once, and the corpus ends with the same rows. On a
cluster, the raw data and the corpus must lie on storage that every node sees at the same path.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import pickle
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import ray

from pipelines.cluster import LINE_EVERY_S, connected
from pipelines.stage import crash_mark, run_stage, run_task
from robometer.configs.schema import Config
from robometer.corpus.config import IngestConfig
from robometer.corpus.corpus import CorpusError
from robometer.corpus.encode import entries, isolated_entries, quarantine_row
from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.identity import NO_ROWS, Sealer, StoredRows
from robometer.corpus.manifest import (
    LISTING,
    SKIP,
    Reading,
    clashes,
    latest,
    read_ledgers,
    read_manifest,
    read_quarantine,
    write_snapshot,
)
from robometer.corpus.remote_input import folder_of, listing
from robometer.corpus.storage import Storage
from robometer.corpus.writer import Accepted, IngestCounts, Present, ShardEntry, ShardPlan, commit_shard
from robometer.errors import RobometerError
from robometer.frames import FrameSettings
from robometer.runs.outputs import with_absolute_paths
from robometer.trajectory import QUARANTINE_SCHEMA, SCHEMA_VERSION

logger = logging.getLogger(__name__)

ATTEMPTS = "attempts"
"""Folder of the crash marks of shards. The units of a shard that has one when it is begun are read in a child process,
and a unit that kills the child is quarantined."""


class IngestError(RobometerError):
    """The ingest failed; the message says what to do."""


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did with the trajectories of its input.

    Attributes:
        listed: all, without those that are skipped.
        new: stored now.
        updated: stored now in the place of an older row (`ingest.update`).
        present: stored before, and the same.
        differing: stored before with other labels or frames, which stay.
        quarantined: refused, now or before.
        skipped: cameras and cuts that a format leaves out by design.
    """

    listed: int
    new: int
    updated: int
    present: int
    differing: int
    quarantined: int
    skipped: int
    seconds: float


@dataclass(frozen=True)
class ShardTask:
    """A shard to make.

    Attributes:
        name: follows from its units.
        work: `ShardWork`, pickled and compressed, since a listing may have a million units.
        num_trajectories: as the listing says.
    """

    name: str
    work: bytes
    num_trajectories: int


class ShardWork(NamedTuple):
    """What a shard is made of.

    Attributes:
        units: in the order of the listing.
        seals: what each unit looks like now, by digest.
        before: the last reading of each unit, by digest.
        revision: of this reading.
    """

    units: list[Unit]
    seals: dict[str, str]
    before: dict[str, Reading]
    revision: int


@dataclass
class _Plan:
    """What an ingest has to do.

    Attributes:
        stored: the rows of the corpus.
        ledger: the last reading of each unit, by digest.
        revision: of this ingest's readings; higher than all before.
        shards: to make.
        refused: quarantine rows of the listing.
        done: outcome of the units that need not be read again.
        same: for each data set, units that look as they did.
        changed: for each data set, units that do not.
        others: for each data set, units that the corpus does not have.
    """

    stored: StoredRows
    ledger: dict[str, Reading]
    revision: int
    shards: list[ShardTask] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    done: IngestCounts = IngestCounts()  # noqa: RUF009  immutable
    same: Counter[str] = field(default_factory=Counter)
    changed: defaultdict[str, list[Unit]] = field(default_factory=lambda: defaultdict(list))
    others: Counter[str] = field(default_factory=Counter)


def run_ingest(config: Config) -> IngestReport:
    """Read `ingest.input` into the corpus at `corpus.path`. Rows that exist stay, unless they differ and
    `ingest.update` is set.

    Raises:
        FormatError: the input cannot be listed or is empty.
        CorpusError: the corpus was made with other settings.
        StorageError: the corpus cannot be written.
        IngestError: the corpus has another data set of the same name, more than `ingest.max_bad_fraction` was refused
            (the rest is committed), or a worker failed.
    """
    started = time.monotonic()
    config = with_absolute_paths(config, "corpus.path")
    storage = Storage(config.corpus.path)
    _check_settings(storage, config.ingest)
    plan = _plan(storage, config.ingest)
    with connected(config) if plan.shards else nullcontext():
        _refuse_clashes(storage, plan, config.ingest)
        _write_info(storage, config.ingest, "ingesting")
        _write_refused(storage, config.ingest, plan.refused)
        _remove_stale(storage)
        done = _make_shards(storage, plan, config.ingest)
    _remove_stale(storage)
    _remove_marks(storage)
    _write_info(storage, config.ingest, "complete")
    write_snapshot(storage)
    report = IngestReport(
        listed=sum(done) - done.skipped,
        new=done.new,
        updated=done.updated,
        present=done.present,
        differing=done.differing,
        quarantined=done.refused,
        skipped=done.skipped,
        seconds=time.monotonic() - started,
    )
    logger.info("ingest: %s", json.dumps(dataclasses.asdict(report)))
    _warn(storage, report, config.ingest)
    _check_bad_fraction(report, config)
    return report


def _plan(storage: Storage, config: IngestConfig) -> _Plan:
    """Cut the listing into shards, without the units that were read before and have not changed.

    The whole listing is cut, so that a second run gives a shard the same name as a killed run did.
    """
    # In this order: a shard that another ingest commits in between then counts as read. The other order would make it
    # again without its rows.
    stored = StoredRows.read(storage)
    ledger = {digest: read for digest, (read, _) in latest(read_ledgers(storage)).items()}
    revision = 1 + max((read.revision for read in ledger.values()), default=0)
    plan, sealer, seen = _Plan(stored, ledger, revision), Sealer(config.split), set[str]()
    group: list[Unit] = []
    size, logged_s = 0, time.monotonic()
    with listing(config.format, config.input, config.source_name) as (listed, to_uris):

        def close() -> None:
            nonlocal group, size, logged_s
            _add_shard(plan, [to_uris(unit) for unit in group], sealer.seals(group), config)
            group, size = [], 0
            if time.monotonic() - logged_s > LINE_EVERY_S:
                logged_s = time.monotonic()
                logger.info("ingest: looked at %d files or rows of %s so far", len(seen), config.input)

        for entry in listed:
            if isinstance(entry, Refused):
                refused = to_uris(entry)
                plan.refused.append(quarantine_row(refused, "", SKIP if refused.skipped else "list", refused.error))
                continue
            digest = entry.digest(config.format)
            if digest in seen:
                names = ", ".join(filter(None, entry.key.split("\x1f")))
                error = f"duplicate: {names} of source {entry.source!r} came before"
                refused = Refused(to_uris(entry).uri, error, entry.source)
                plan.refused.append(quarantine_row(refused, "", "list", error))
                continue
            seen.add(digest)
            group.append(entry)
            size += entry.count
            if size >= config.shard_size:
                close()
        close()
    if not seen and not plan.refused:
        raise FormatError(f"{config.input} lists no episode: give ingest.input data of the format {config.format}")
    if plan.done.refused and not config.retry_quarantined:
        logger.info(
            "%d trajectories were refused before. Set ingest.retry_quarantined=true to try them again.",
            plan.done.refused,
        )
    skipped = sum(row["stage"] == SKIP for row in plan.refused)
    plan.done = _sum(plan.done, IngestCounts(refused=len(plan.refused) - skipped, skipped=skipped))
    return plan


def _sum(a: IngestCounts, b: IngestCounts) -> IngestCounts:
    return IngestCounts(*(x + y for x, y in zip(a, b, strict=True)))


def _add_shard(plan: _Plan, group: list[Unit], seals: list[str], config: IngestConfig) -> None:
    """Add a shard of those units of a group that must be read."""
    todo: dict[str, tuple[Unit, str]] = {}
    # An update needs another name, since an ingest of the same units at the same time may write another content.
    key = [FrameSettings.of(config).hash(), *(["update"] if config.update else [])]
    for unit, seal in zip(group, seals, strict=True):
        digest = unit.digest(config.format)
        before = plan.ledger.get(digest)
        if before is None:
            plan.others[unit.source] += 1
            key.append(f"{digest}+{seal}")
        else:
            same = seal != "" and before.seal == seal
            plan.same[unit.source] += same
            if before.seal not in ("", seal) and before.stored:
                plan.changed[unit.source].append(unit)
            if same and not (config.retry_quarantined and before.refused):
                plan.done = _sum(plan.done, IngestCounts(0, 0, before.stored, 0, before.refused, before.skipped))
                continue
            # A second reading needs another name, or it would replace what the first one stored.
            key.append(f"{digest}+{seal}+{before}")
        todo[digest] = unit, seal
    if todo:
        units = [unit for unit, _ in todo.values()]
        readings = {digest: plan.ledger[digest] for digest in todo if digest in plan.ledger}
        work = ShardWork(
            units=units,
            seals={digest: seal for digest, (_, seal) in todo.items()},
            before=readings,
            revision=plan.revision if readings or config.update else 0,
        )
        name = _digest("\n".join(key))[:20]
        compressed = zlib.compress(pickle.dumps(work))
        plan.shards.append(ShardTask(name, compressed, sum(unit.count for unit in units)))


_SAME_FRACTION = 0.25
_PROBED_UNITS, _PROBED_EPISODES = 8, 4


def _refuse_clashes(storage: Storage, plan: _Plan, config: IngestConfig) -> None:
    """Refuse another data set that has the name of a stored one.

    Where less than a quarter of the units that a data set has in the corpus look as they did, some of the others are
    read. A moved copy or a new revision still has the stored frames; another data set has none of them.

    Raises:
        IngestError: it is another data set, and `ingest.update` is not set.
    """
    for source, units in plan.changed.items():
        if config.update or plan.same[source] >= _SAME_FRACTION * (plan.same[source] + len(units)):
            continue
        probed = units[:: max(1, len(units) // _PROBED_UNITS)][:_PROBED_UNITS]
        comparison = "the comparison with the stored frames"
        compared = run_task(comparison, IngestError, _probe, probed, config, plan.stored)
        if compared and not any(same for _, _, same in compared):
            id, uri, _ = compared[0]
            raise IngestError(
                f"the corpus has another data set {source!r}: {_stored_uri(storage, id)} and {uri} have the same name "
                f"and different frames, and so have all {len(compared)} compared trajectories. Set "
                "ingest.source_name=NAME to store this data set too, or ingest.update=true to replace the other."
            )
    fresh = sorted(plan.others.keys() - plan.same.keys() - plan.changed.keys())
    if fresh and not config.source_name:
        _warn_of_strangers(storage, fresh, folder_of(config.format, config.input))


def _warn_of_strangers(storage: Storage, sources: list[str], folder: str) -> None:
    """Warn where this input adds to a data set that came from another place and shares no unit with it."""
    rows = read_manifest(storage, ["source", "uri"])
    for source in sources:
        first = pc.index(rows["source"], source).as_py()
        if first >= 0 and not (uri := str(rows["uri"][first])).startswith(f"{folder}/"):
            logger.warning(
                "The corpus has a data set %r from another place (%s), and this input is added to it. "
                "Set ingest.source_name=NAME to keep them apart.",
                source,
                uri,
            )


def _probe(units: list[Unit], config: IngestConfig, stored: StoredRows) -> list[tuple[str, str, bool]]:
    """(id, uri, whether its frames are the stored ones) of some trajectories that the corpus has."""
    compared = []
    for unit in units:
        for entry in islice(entries([unit], replace(config, update=True), stored), _PROBED_EPISODES):
            if isinstance(entry, Present):
                compared.append((entry.id, entry.uri, True))
            elif isinstance(entry, Accepted) and (facts := stored.get(entry.record["id"])):
                same = facts.content == entry.record["content_hash"]
                compared.append((entry.record["id"], entry.record["uri"], same))
    return compared


def _stored_uri(storage: Storage, id: str) -> str:
    """Where a stored trajectory came from."""
    rows = read_manifest(storage, ["id", "uri"])
    return str(rows["uri"][pc.index(rows["id"], id).as_py()])


def _make_shards(storage: Storage, plan: _Plan, config: IngestConfig) -> IngestCounts:
    """Make the shards on the cluster; returns what became of all trajectories."""
    if not plan.shards:
        return plan.done
    total, num_logged = plan.done, 0
    # The rows of the corpus travel once to every node, whose processes share them.
    stored = ray.put(plan.stored) if len(plan.stored.ids) else None
    answers = run_stage(
        "ingest",
        plan.shards,
        partial(make_shard, storage=storage, config=config, stored=stored),
        IngestError,
        max_tasks=len(plan.shards),
        size=lambda task: task.num_trajectories,
        values=lambda: {"new": total.new, "refused": total.refused},
    )
    for outcome, differences in answers:
        total = _sum(total, outcome)
        for line in differences[: _MAX_LOGGED - num_logged]:
            logger.warning("%s", line)
            num_logged += 1
    return total


_MAX_LOGGED = 10
"""How many of the trajectories that differ from the stored ones are named in the log; all are counted."""


def make_shard(
    task: ShardTask, storage: Storage, config: IngestConfig, stored: ray.ObjectRef[StoredRows] | None = None
) -> tuple[IngestCounts, list[str]]:
    """Read the units of a shard and commit it; run twice, it leaves the same files once.

    Returns:
        What became of its trajectories, and lines for the log about the first ones that differ from the stored ones.
    """
    work: ShardWork = pickle.loads(zlib.decompress(task.work))
    rows, differences = NO_ROWS if stored is None else ray.get(stored), list[str]()
    with crash_mark(storage, f"{ATTEMPTS}/{task.name}") as crashed:
        read = entries if crashed is None else isolated_entries
        plan = ShardPlan(work.seals, work.before, work.revision)
        shard_entries = _noting(differences, read(work.units, config, rows))
        outcome = commit_shard(storage, task.name, shard_entries, plan)
    return outcome, differences


def _noting(differences: list[str], shard_entries: Iterable[ShardEntry]) -> Iterator[ShardEntry]:
    """Pass the entries on, and add a line to `differences` for the first ones that differ from the stored ones."""
    for entry in shard_entries:
        if isinstance(entry, Present) and entry.differs and len(differences) < _MAX_LOGGED:
            differences.append(f"{entry.uri}: {entry.differs}")
        yield entry


def _warn(storage: Storage, report: IngestReport, config: IngestConfig) -> None:
    """Warn of what the user may not expect."""
    if report.differing:
        logger.warning(
            "%d trajectories of %s differ from the stored ones of the same identity, which stay. Set "
            "ingest.update=true to replace these, or ingest.source_name=NAME to store another data set.",
            report.differing,
            config.input,
        )
    if ids := clashes(storage):
        logger.warning(
            "%d trajectories were stored twice with different content, by two ingests at once. Readers see one of "
            "each. Rerun the same command to see which differ.",
            len(ids),
        )


def _check_settings(storage: Storage, config: IngestConfig) -> None:
    if not storage.exists("corpus.json"):
        return
    info = json.loads(storage.read_bytes("corpus.json"))
    if info["schema_version"] != SCHEMA_VERSION:
        raise CorpusError(
            f"the corpus at {storage.path} has schema version {info['schema_version']}, not {SCHEMA_VERSION}: "
            "choose another corpus.path"
        )
    stored, settings = info["settings"], FrameSettings.of(config).as_dict()
    if changed := [name for name in settings if stored.get(name) != settings[name]]:
        name = changed[0]
        raise CorpusError(
            f"the corpus at {storage.path} was made with {name}={stored.get(name)}, not {settings[name]}: "
            f"choose another corpus.path, or set ingest.{name}={stored.get(name)}"
        )


def _check_bad_fraction(report: IngestReport, config: Config) -> None:
    if report.quarantined > config.ingest.max_bad_fraction * report.listed:
        raise IngestError(
            f"{report.quarantined} of {report.listed} episodes of {config.ingest.input} were refused, more than "
            f"ingest.max_bad_fraction={config.ingest.max_bad_fraction}: `robometer corpus show "
            f"{config.corpus.path} --refused` lists the reasons"
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
    """Quarantine what the listing refused; the next listing of the same input replaces the file."""
    name = f"quarantine/{LISTING}{_digest(config.format + chr(31) + config.input)[:20]}.parquet"
    if refused or storage.exists(name):
        storage.write_parquet(name, pa.Table.from_pylist(refused, QUARANTINE_SCHEMA))


def _remove_stale(storage: Storage) -> None:
    removed = storage.remove_stale("shards", _committed(storage))
    removed += sum(storage.remove_stale(folder) for folder in ("manifest", "quarantine", ATTEMPTS, ""))
    if removed:
        logger.info("ingest: removed %d files of a crashed run", removed)


def _remove_marks(storage: Storage) -> None:
    """Remove the crash marks of shards that are committed, and old ones of shards that are not made any more.

    Only after all shards are made: until then a mark says that its shard must be made with care.
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
