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
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.exceptions import RayError

from pipelines.cluster import LINE_EVERY_S, cause_of, connected, interactive, progress_bar, watched
from robometer.configs.schema import Config, IngestConfig
from robometer.corpus.corpus import CorpusError
from robometer.corpus.encode import (
    entries,
    isolated_entries,
    quarantine_row,
)
from robometer.corpus.formats import FormatError, Refused, Unit, list_units
from robometer.corpus.formats.common import absolute
from robometer.corpus.identity import NOTHING, Sealer, StoredRows
from robometer.corpus.manifest import (
    LISTING,
    SKIP,
    Reading,
    clashes,
    latest,
    read_ledgers,
    read_manifest,
    read_quarantine,
)
from robometer.corpus.storage import Storage
from robometer.corpus.writer import Accepted, Outcome, Present, ShardEntry, ShardPlan, commit_shard
from robometer.errors import RobometerError
from robometer.frames import FrameSettings
from robometer.runs.outputs import with_absolute_paths
from robometer.trajectory import QUARANTINE_SCHEMA, SCHEMA_VERSION

logger = logging.getLogger(__name__)

ATTEMPTS = "attempts"
"""Folder of marks of shards that were begun. One that is there when its shard is begun again says that its process
died: then its units are read in a child process, and one that kills the child is quarantined."""


class IngestError(RobometerError):
    """An ingest that could not end well; the message says what to do."""


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did with the trajectories of its input.

    Attributes:
        listed: all of them, but for those that are skipped.
        new: stored now.
        updated: stored now in place of what was there (`ingest.update`).
        present: there before, and the same.
        differing: there before, with other labels or frames, which stay.
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


@dataclass
class _Plan:
    """What there is to do: shards to make, quarantine rows of the listing, and what was done before.

    `revision` is above that of every reading before; `same` and `changed` are, for each data set, how many units look
    as they did, and those that do not.
    """

    stored: StoredRows
    ledger: dict[str, Reading]
    revision: int
    groups: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    done: Outcome = Outcome()
    expected: int = 0
    same: Counter[str] = field(default_factory=Counter)
    changed: defaultdict[str, list[Unit]] = field(default_factory=lambda: defaultdict(list))
    others: Counter[str] = field(default_factory=Counter)


def run_ingest(config: Config) -> IngestReport:
    """Bring `config.ingest.input` into the corpus at `config.corpus.path`; what is there already stays untouched,
    unless it differs and `ingest.update` says to take the new.

    Raises:
        FormatError: the input cannot be listed or is empty.
        CorpusError: the corpus was made with other settings.
        StorageError: the corpus cannot be written.
        IngestError: another data set of the same name is there, more than `ingest.max_bad_fraction` was refused (the
            rest is committed), or a worker failed.
    """
    started = time.monotonic()
    config = with_absolute_paths(config, "corpus.path")
    storage = Storage(config.corpus.path)
    _check_settings(storage, config.ingest)
    plan = _plan(storage, config.ingest)
    with connected(config) if plan.groups else nullcontext():
        _refuse_clashes(storage, plan, config.ingest)
        _write_info(storage, config.ingest, "ingesting")
        _write_refused(storage, config.ingest, plan.refused)
        _remove_stale(storage)
        done = _run_groups(storage, plan, config.ingest) if plan.groups else plan.done
    _remove_stale(storage)
    _remove_marks(storage)
    _write_info(storage, config.ingest, "complete")
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
    """Cut the listing into shards and leave out what was read before and looks as it did.

    Shards are cut from the whole listing, so that a second run names the shards of a killed one as that did.
    """
    # In this order: a shard that another ingest commits in between is known as read, and is not made again without
    # the rows that are there.
    stored = StoredRows.read(storage)
    ledger = {digest: read for digest, (read, _) in latest(read_ledgers(storage)).items()}
    revision = 1 + max((read.revision for read in ledger.values()), default=0)
    plan, sealer, seen = _Plan(stored, ledger, revision), Sealer(config.split), set[str]()
    group: list[Unit] = []
    size, told = 0, time.monotonic()

    def close() -> None:
        nonlocal group, size, told
        _add_group(plan, group, sealer.seals(group), config)
        group, size = [], 0
        if time.monotonic() - told > LINE_EVERY_S:
            told = time.monotonic()
            logger.info("ingest: %d files or rows of %s looked at so far", len(seen), config.input)

    for entry in list_units(config.format, config.input, config.source_name):
        if isinstance(entry, Refused):
            plan.refused.append(quarantine_row(entry, "", SKIP if entry.skipped else "list", entry.error))
            continue
        digest = entry.digest(config.format)
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
        raise FormatError(f"{config.input} lists no episode: give ingest.input data of the format {config.format}")
    if plan.done.refused and not config.retry_quarantined:
        logger.info("%d were refused before; ingest.retry_quarantined=true tries them again", plan.done.refused)
    skipped = sum(row["stage"] == SKIP for row in plan.refused)
    plan.done = _sum(plan.done, Outcome(refused=len(plan.refused) - skipped, skipped=skipped))
    return plan


def _sum(a: Outcome, b: Outcome) -> Outcome:
    return Outcome(*(x + y for x, y in zip(a, b, strict=True)))


def _add_group(plan: _Plan, group: list[Unit], seals: list[str], config: IngestConfig) -> None:
    todo: dict[str, tuple[Unit, str]] = {}
    # What an update stores is not what another ingest of the same units, at the same time, writes under this name.
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
                plan.done = _sum(plan.done, Outcome(0, 0, before.stored, 0, before.refused, before.skipped))
                continue
            # A second reading has a name of its own, or it would replace what the one before it stored.
            key.append(f"{digest}+{seal}+{before}")
        todo[digest] = unit, seal
    if todo:
        known = {digest: plan.ledger[digest] for digest in todo if digest in plan.ledger}
        work = {
            "units": [dataclasses.asdict(unit) for unit, _ in todo.values()],
            "seals": {digest: seal for digest, (_, seal) in todo.items()},
            "before": known,
            "revision": plan.revision if known or config.update else 0,
        }
        expected = sum(unit.count for unit, _ in todo.values())
        name = _digest("\n".join(key))[:20]
        plan.groups.append({"name": name, "work": zlib.compress(json.dumps(work).encode()), "expected": expected})
        plan.expected += expected


_MATCHING = 0.25
_PROBED_UNITS, _PROBED_EPISODES = 8, 4


def _refuse_clashes(storage: Storage, plan: _Plan, config: IngestConfig) -> None:
    """Tell another data set of the same name from a newer state of the one that is there.

    Where less than a quarter of a data set's known units look as they did, some that do not are read: a moved copy or a
    new revision still shows the stored frames, another data set shows none of them.

    Raises:
        IngestError: it is another one, and `ingest.update` does not say that it takes the old one's place.
    """
    for source, units in plan.changed.items():
        if config.update or plan.same[source] >= _MATCHING * (plan.same[source] + len(units)):
            continue
        probed = units[:: max(1, len(units) // _PROBED_UNITS)][:_PROBED_UNITS]
        task = ray.remote(num_cpus=1)(_probe).remote([dataclasses.asdict(unit) for unit in probed], config, plan.stored)
        ends = (ray.get(one) for one in [task])
        try:
            (found,) = watched(ends, "the comparison with what is stored")
        except RayError as error:
            raise IngestError(f"a worker failed: {cause_of(error)}; mend that and run the same again") from error
        if found and not any(same for _, _, same in found):
            id, uri, _ = found[0]
            raise IngestError(
                f"the corpus has another data set {source!r}: {_stored_uri(storage, id)} and {uri} have one name "
                f"and different frames, and so have all {len(found)} trajectories that were compared; give "
                "ingest.source_name=NAME to store this one too, or ingest.update=true if it takes the other's place"
            )
    fresh = sorted(plan.others.keys() - plan.same.keys() - plan.changed.keys())
    if fresh and not config.source_name:
        _warn_of_strangers(storage, fresh, absolute(config.input))


def _warn_of_strangers(storage: Storage, sources: list[str], input: Path) -> None:
    """Name the data sets that this input adds to, though they came from elsewhere and share no unit with it."""
    rows, folder = read_manifest(storage, ["source", "uri"]), input.parent if input.is_file() else input
    for source in sources:
        at = pc.index(rows["source"], source).as_py()
        if at >= 0 and not Path(there := str(rows["uri"][at])).is_relative_to(folder):
            logger.warning(
                "the corpus has a data set %r from elsewhere (%s), and this one is added to it: "
                "give ingest.source_name=NAME to keep them apart",
                source,
                there,
            )


def _probe(units: list[dict[str, Any]], config: IngestConfig, stored: StoredRows) -> list[tuple[str, str, bool]]:
    """(id, uri, whether its frames are the stored ones) of some trajectories that the corpus has."""
    found = []
    for unit in units:
        for entry in islice(entries([Unit(**unit)], replace(config, update=True), stored), _PROBED_EPISODES):
            if isinstance(entry, Present):
                found.append((entry.id, entry.uri, True))
            elif isinstance(entry, Accepted) and (facts := stored.get(entry.record["id"])):
                same = facts.content == entry.record["content_hash"]
                found.append((entry.record["id"], entry.record["uri"], same))
    return found


def _stored_uri(storage: Storage, id: str) -> str:
    """Where a stored trajectory came from."""
    rows = read_manifest(storage, ["id", "uri"])
    return str(rows["uri"][pc.index(rows["id"], id).as_py()])


def _run_groups(storage: Storage, plan: _Plan, config: IngestConfig) -> Outcome:
    """Make the shards on the cluster; returns what became of all trajectories."""
    show = progress_bar("ingest", plan.expected, interactive())
    expected, total, told = 0, plan.done, 0
    # The rows that the corpus has travel once to every node, and its processes share them.
    stored = ray.put(plan.stored) if len(plan.stored.ids) else None
    work = partial(ingest_groups, path=storage.path, config=config, stored=stored)
    blocks = ray.data.from_items(plan.groups, override_num_blocks=len(plan.groups))
    dataset = blocks.map_batches(work, batch_size=1, num_cpus=1)
    try:
        for result in watched(dataset.iter_rows(), "ingest"):
            total = _sum(total, Outcome(*(int(result[name]) for name in Outcome._fields)))
            expected += int(result["expected"])
            for line in json.loads(result["differences"])[: _TOLD - told]:
                logger.warning("%s", line)
                told += 1
            show(expected, {"new": total.new, "refused": total.refused})
    except RayError as error:
        raise IngestError(f"a worker failed: {cause_of(error)}; mend that and run the same again") from error
    return total


_TOLD = 10
"""Trajectories that differ from the stored ones are counted all, and told so many."""


def ingest_groups(
    batch: dict[str, np.ndarray], path: str, config: IngestConfig, stored: ray.ObjectRef[StoredRows] | None = None
) -> dict[str, Any]:
    """One Ray task: make the shards named in `batch`; run twice, it leaves the same files once."""
    storage, have = Storage(path), NOTHING if stored is None else ray.get(stored)
    differences: list[list[str]] = []
    made = []
    for name, work in zip(batch["name"], batch["work"], strict=True):
        differences.append([])
        made.append(_make_shard(storage, str(name), json.loads(zlib.decompress(work)), config, have, differences[-1]))
    return {
        **{name: np.array([getattr(counts, name) for counts in made]) for name in Outcome._fields},
        "differences": [json.dumps(lines) for lines in differences],
        "expected": batch["expected"],
    }


def _make_shard(
    storage: Storage, name: str, work: dict[str, Any], config: IngestConfig, have: StoredRows, differences: list[str]
) -> Outcome:
    units = [Unit(**fields) for fields in work["units"]]
    mark = f"{ATTEMPTS}/{name}"
    read = isolated_entries if storage.exists(mark) else entries
    storage.write_bytes(mark, b"")
    before = {digest: Reading(*values) for digest, values in work["before"].items()}
    job = ShardPlan(work["seals"], before, work["revision"])
    made = commit_shard(storage, name, _telling(read(units, config, have), differences), job)
    storage.remove(mark)
    return made


def _telling(found: Iterable[ShardEntry], differences: list[str]) -> Iterator[ShardEntry]:
    """`found`, with a line in `differences` for the first ones that are not as the corpus has them."""
    for entry in found:
        if isinstance(entry, Present) and entry.differs and len(differences) < _TOLD:
            differences.append(f"{entry.uri}: {entry.differs}")
        yield entry


def _warn(storage: Storage, report: IngestReport, config: IngestConfig) -> None:
    """Say what is not as the user may think."""
    if report.differing:
        logger.warning(
            "%d of %s differ from what the corpus has under the same identity, which stays: ingest.update=true takes "
            "these instead, ingest.source_name=NAME stores them as another data set",
            report.differing,
            config.input,
        )
    if found := clashes(storage):
        logger.warning(
            "%d trajectories were stored twice with different content, by two ingests at once; one of each is seen: "
            "run this again to see which differ",
            len(found),
        )


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
    name = f"quarantine/{LISTING}{_digest(config.format + chr(31) + config.input)[:20]}.parquet"
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
