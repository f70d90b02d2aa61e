"""Maintain a corpus on a cluster: verify and compact it, a shard (or the shards that become one) in each task."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pipelines.cluster import connected
from pipelines.stage import run_stage
from robometer.configs.schema import Config
from robometer.corpus.corpus import CorpusError
from robometer.corpus.maintenance import (
    ShardReport,
    check_shard,
    join_shards,
    plan_joins,
    remove_replaced,
)
from robometer.corpus.manifest import read_manifest, read_schemas, replaced_in, write_snapshot
from robometer.corpus.storage import Storage
from robometer.errors import RobometerError
from robometer.runs.paths import absolute_path


class MaintenanceError(RobometerError):
    """The corpus has faults or could not be maintained; the message says what to do."""


@dataclass
class VerifyReport:
    """What `run_verify` found.

    Attributes:
        shards: that were read.
        trajectories: whole rows in these.
        duplicates: rows that are stored more than once; counted where no shard has problems.
        wrong: shards with problems.
    """

    shards: int = 0
    trajectories: int = 0
    duplicates: int = 0
    wrong: list[ShardReport] = field(default_factory=list)


def run_verify(config: Config, repair: bool = False) -> VerifyReport:
    """Read every shard of the corpus again: check counts, hashes, and that the manifest agrees.

    Args:
        config: `corpus.path` names the corpus.
        repair: rebuild lost manifest files from the shards, and drop corrupt shards (an ingest makes them again).

    Raises:
        CorpusError: there is no corpus.
        MaintenanceError: a worker failed.
    """
    storage = Storage(absolute_path("corpus.path", config.corpus.path))
    shards = sorted(_stems(storage, "shards", ".arrow") | _stems(storage, "manifest", ".parquet"))
    if not shards:
        raise CorpusError(f"no corpus at {config.corpus.path}: run `robometer ingest` first")
    hidden = set(replaced_in(storage))
    shards = [shard for shard in shards if shard not in hidden]
    report = VerifyReport()
    with connected(config):
        for shard in run_stage("verify", shards, partial(check_shard, storage, repair=repair), MaintenanceError):
            report.shards += 1
            report.trajectories += shard.rows
            report.wrong += [shard] if shard.problems else []
    if not report.wrong:
        report.duplicates = report.trajectories - read_manifest(storage, ["id"]).num_rows
    return report


def run_compact(config: Config, target_mb: int = 512) -> tuple[int, int]:
    """Join small shards into larger ones of about `target_mb`; returns the number of shards before and after.

    Raises:
        CorpusError: there is no corpus.
        MaintenanceError: a worker failed.
    """
    storage = Storage(absolute_path("corpus.path", config.corpus.path))
    if not storage.exists("corpus.json"):
        raise CorpusError(f"no corpus at {config.corpus.path}: run `robometer ingest` first")
    remove_replaced(storage, replaced_in(storage))  # of a run that was killed
    before = len(read_schemas(storage))
    joins = list(plan_joins(storage, target_mb * 2**20))
    with connected(config):
        list(run_stage("compact", joins, partial(join_shards, storage), MaintenanceError))
    write_snapshot(storage)
    return before, len(read_schemas(storage))


def _stems(storage: Storage, folder: str, suffix: str) -> set[str]:
    return {Path(name).stem for name in storage.list(folder, suffix)}
