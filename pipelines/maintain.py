"""Look after a corpus on a cluster: verify and compact, a shard (or the shards that become one) per task."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from pipelines.cluster import cause_of, connected, interactive, progress_bar, watched
from robometer.configs.schema import Config
from robometer.corpus.corpus import CorpusError
from robometer.corpus.maintenance import (
    Join,
    ShardReport,
    check_shard,
    join_shards,
    plan_joins,
    remove_replaced,
)
from robometer.corpus.manifest import read_manifest, read_schemas, replaced_in
from robometer.corpus.storage import Storage
from robometer.errors import RobometerError
from robometer.runs.paths import absolute_path

_MAX_TASKS = 1024


class MaintenanceError(RobometerError):
    """A corpus that is not in order, or could not be looked after; the message says what to do."""


@dataclass
class VerifyReport:
    """What `run_verify` found: shards and trajectories that are in order, and the shards that are not."""

    shards: int = 0
    trajectories: int = 0
    duplicates: int = 0
    wrong: list[ShardReport] = field(default_factory=list)


def run_verify(config: Config, repair: bool = False) -> VerifyReport:
    """Re-read every shard of the corpus: counts, hashes, and whether the manifest says the same.

    Args:
        config: `corpus.path` names the corpus.
        repair: make lost manifest files again from the shards, and drop corrupt shards (an ingest makes them again).

    Raises:
        CorpusError: there is no corpus.
        MaintenanceError: a worker failed.
    """
    storage = Storage(absolute_path("corpus.path", config.corpus.path))
    shards = sorted(_stems(storage, "shards", ".arrow") | _stems(storage, "manifest", ".parquet"))
    if not shards:
        raise CorpusError(f"no corpus at {config.corpus.path}: run `robometer ingest` first")
    hidden = set(replaced_in(storage))
    report = VerifyReport()
    look = partial(_check, path=storage.path, repair=repair)
    with connected(config):
        for found in _each("verify", [[shard] for shard in shards if shard not in hidden], look):
            shard = ShardReport(**found)
            report.shards += 1
            report.trajectories += shard.rows
            report.wrong += [shard] if shard.problems else []
    if not report.wrong:
        report.duplicates = report.trajectories - read_manifest(storage, ["id"]).num_rows
    return report


def _check(batch: dict[str, np.ndarray], path: str, repair: bool) -> dict[str, list[str]]:
    found = [check_shard(Storage(path), json.loads(shards)[0], repair) for shards in batch["shards"]]
    return {"result": [json.dumps(dataclasses.asdict(report)) for report in found]}


def run_compact(config: Config, target_mb: int = 512) -> tuple[int, int]:
    """Join small shards into ones of about `target_mb`; returns how many shards there were, and are.

    Raises:
        CorpusError: there is no corpus.
        MaintenanceError: a worker failed.
    """
    storage = Storage(absolute_path("corpus.path", config.corpus.path))
    if not storage.exists("corpus.json"):
        raise CorpusError(f"no corpus at {config.corpus.path}: run `robometer ingest` first")
    remove_replaced(storage, replaced_in(storage))  # of a run that was killed
    before = len(read_schemas(storage))
    joins = [dataclasses.asdict(join) for join in plan_joins(storage, target_mb * 2**20)]
    with connected(config):
        list(_each("compact", joins, partial(_join, path=storage.path)))
    return before, len(read_schemas(storage))


def _join(batch: dict[str, np.ndarray], path: str) -> dict[str, list[str]]:
    return {"result": [json.dumps(join_shards(Storage(path), Join(**json.loads(join)))) for join in batch["shards"]]}


def _stems(storage: Storage, folder: str, suffix: str) -> set[str]:
    return {Path(name).stem for name in storage.list(folder, suffix)}


def _each(name: str, groups: Sequence[Any], work: Callable[..., Any]) -> Iterator[Any]:
    """What `work` makes of each group of shards, or other JSON value, on the cluster."""
    if not groups:
        return
    show = progress_bar(name, len(groups), interactive())
    items = [{"shards": json.dumps(group)} for group in groups]
    dataset = ray.data.from_items(items, override_num_blocks=min(len(items), _MAX_TASKS))
    rows = dataset.map_batches(work, batch_size=1, num_cpus=1).iter_rows()
    try:
        for done, row in enumerate(watched(rows, name), start=1):
            show(done, {})
            yield json.loads(row["result"])
    except RayError as error:
        raise MaintenanceError(f"a worker failed: {cause_of(error)}; mend that and run the same again") from error
