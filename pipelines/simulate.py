"""Simulate Meta-World clips on a Ray cluster (see `robometer.simulation`).

Workers roll out, film and encode episodes. Only the driver writes, to a folder on its disk or in a bucket. A clip
exists once its mp4 has its final name and its row is in `trajectories.jsonl`; a second run makes only what is missing.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipelines.stage import run_stage
from robometer import simulation
from robometer.corpus.storage import Storage
from robometer.simulation import EpisodeSpec, SimulationError, SimulationSettings

logger = logging.getLogger(__name__)

ROWS_FILE = "trajectories.jsonl"
SETTINGS_FILE = "simulation.json"
# Settings that say which clips are made and not what one looks like. They may change between runs into one folder.
EXTENT_SETTINGS = frozenset(
    {"tasks", "qualities", "clips_per_quality", "held_out_clips_per_quality", "seen_clips_per_quality"}
)
EPISODES_PER_RAY_TASK = 9  # of one Meta-World task: enough to pay for a GL context, few enough to repeat
WRITE_EVERY_S = 10.0
# One core for each worker: software GL would otherwise start a thread for each core in every worker.
WORKER_ENVIRONMENT = {"LP_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

SimulatedClip = tuple[EpisodeSpec, bytes | None, dict[str, Any] | None]
"""Spec, mp4 and row; None where the episode did not come out as its label says."""


@dataclass(frozen=True)
class SimulationSummary:
    """What a run made, and what its folder holds now."""

    made: int
    skipped: int  # existed before
    counts: dict[str, dict[str, int]]  # task -> quality -> clips in the folder
    splits: dict[str, int]
    size_bytes: int  # of the clips
    wall_s: float
    unlabelled: list[str] = field(default_factory=list)  # keys of episodes that never came out as their label says


def simulate(settings: SimulationSettings, output: str | Path) -> SimulationSummary:
    """Make every missing clip of `settings` in the folder or URI `output`, on the connected Ray.

    Raises:
        SimulationError: `output` holds clips of other settings, or a worker failed.
        StorageError: it cannot be read or written.
    """
    started = time.monotonic()
    out = Storage(str(output))
    _check_settings(out, settings)
    specs = simulation.episodes(settings)
    sizes = {name: info.size for name, info in out.tree("").items()}
    rows = {key: row for key, row in _read_rows(out).items() if row["video"] in sizes}
    missing = [spec for spec in specs if spec.key not in rows]
    for spec in specs:  # more clips per quality move the border between train and seen
        if spec.key in rows:
            rows[spec.key]["split"] = spec.split
    unlabelled: list[str] = []
    written_s = time.monotonic()
    groups = _groups(missing)
    environment = {"env_vars": WORKER_ENVIRONMENT | {"MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")}}
    for clips in run_stage(
        "simulate",
        groups,
        roll_out_all,
        SimulationError,
        max_tasks=len(groups),
        size=len,
        runtime_env=environment,
    ):
        for spec, mp4, row in clips:
            if mp4 is None or row is None:
                unlabelled.append(spec.key)
            else:
                out.write_bytes(spec.video, mp4)
                sizes[spec.video] = len(mp4)
                rows[spec.key] = row
        if time.monotonic() - written_s > WRITE_EVERY_S:
            _write_rows(out, rows)
            written_s = time.monotonic()
    _write_rows(out, rows)
    return _summary(sizes, rows, len(missing) - len(unlabelled), len(specs) - len(missing), sorted(unlabelled), started)


def roll_out_all(specs: list[EpisodeSpec]) -> list[SimulatedClip]:
    """One Ray task: roll out, film and encode some episodes. It has no side effects, so that Ray may repeat it."""
    clips: list[SimulatedClip] = []
    for spec in specs:
        rollout = simulation.roll_out(spec)
        if rollout is None:
            clips.append((spec, None, None))
        else:
            mp4 = simulation.encode_mp4(rollout.frames, spec.fps, spec.crf)
            clips.append((spec, mp4, simulation.row(spec, rollout)))
    return clips


def _groups(specs: list[EpisodeSpec]) -> list[list[EpisodeSpec]]:
    """Groups of a few episodes of one Meta-World task, the first clips of every task first.

    So a run that is stopped leaves fewer clips of every task and quality, and not fewer tasks.
    """
    by_task: dict[str, list[EpisodeSpec]] = {}
    for spec in sorted(specs, key=lambda spec: spec.index):
        by_task.setdefault(spec.task, []).append(spec)
    size = EPISODES_PER_RAY_TASK
    longest = max((len(group) for group in by_task.values()), default=0)
    return [group[i : i + size] for i in range(0, longest, size) for group in by_task.values() if group[i : i + size]]


def _check_settings(out: Storage, settings: SimulationSettings) -> None:
    """Refuse a folder that was made with other settings; write these into a new one."""
    look = {name: value for name, value in asdict(settings).items() if name not in EXTENT_SETTINGS}
    if not out.exists(SETTINGS_FILE):
        out.write_bytes(SETTINGS_FILE, (json.dumps(look, indent=2) + "\n").encode())
    elif (stored := json.loads(out.read_bytes(SETTINGS_FILE))) != look:
        changed = ", ".join(sorted(name for name in look | stored if look.get(name) != stored.get(name)))
        raise SimulationError(f"{out.path} holds clips made with another {changed}: choose another folder or delete it")


def _read_rows(out: Storage) -> dict[str, dict[str, Any]]:
    """Rows by episode key; empty where there is no file yet."""
    lines = out.read_bytes(ROWS_FILE).decode().splitlines() if out.exists(ROWS_FILE) else []
    rows = [json.loads(line) for line in lines if line.strip()]
    return {row["episode_key"]: row for row in rows}


def _write_rows(out: Storage, rows: dict[str, dict[str, Any]]) -> None:
    """Write all rows sorted by key, so that the file does not depend on the order of the workers."""
    lines = "".join(json.dumps(rows[key], separators=(",", ":")) + "\n" for key in sorted(rows))
    out.write_bytes(ROWS_FILE, lines.encode())


def _summary(
    sizes: Mapping[str, int],
    rows: dict[str, dict[str, Any]],
    made: int,
    skipped: int,
    unlabelled: list[str],
    started: float,
) -> SimulationSummary:
    """Count what the folder holds."""
    counts: dict[str, dict[str, int]] = {}
    for key in sorted(rows):
        task, quality, _ = key.split("/")
        counts.setdefault(task, dict.fromkeys(simulation.QUALITIES, 0))[quality] += 1
    return SimulationSummary(
        made=made,
        skipped=skipped,
        counts=counts,
        splits=dict(Counter(row["split"] for row in rows.values())),
        size_bytes=sum(sizes[row["video"]] for row in rows.values()),
        wall_s=time.monotonic() - started,
        unlabelled=unlabelled,
    )
