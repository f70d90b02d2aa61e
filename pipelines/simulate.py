"""Simulate a corpus of Meta-World clips on a Ray cluster (`robometer.simulation` says what is in it).

Workers act out, film and encode episodes; the driver alone writes, so the output folder need not be shared. A clip is
there once its mp4 has its final name and its row is in `trajectories.jsonl`; a second run makes only what is missing.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

from pipelines.cluster import interactive, progress_bar, watched
from robometer import simulation
from robometer.files import write_atomically
from robometer.simulation import EpisodeSpec, SimulationError, SimulationSettings

logger = logging.getLogger(__name__)

ROWS_FILE = "trajectories.jsonl"
SETTINGS_FILE = "simulation.json"
# Settings that say which clips are made, not what one looks like: these may change between runs into one folder.
EXTENT_SETTINGS = frozenset(
    {"tasks", "qualities", "clips_per_quality", "held_out_clips_per_quality", "seen_clips_per_quality"}
)
EPISODES_PER_RAY_TASK = 9  # of one Meta-World task: long enough to pay for its GL context, short enough to lose
WRITE_EVERY_S = 10.0
# One core each: software GL would otherwise start a thread per core in every worker.
WORKER_ENVIRONMENT = {"LP_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

Clip = tuple[EpisodeSpec, bytes | None, dict[str, Any] | None]  # spec, mp4 and row; None where no label could be had


@dataclass(frozen=True)
class SimulationSummary:
    """What a run made, and what lies in its folder now."""

    made: int
    skipped: int  # were there before
    counts: dict[str, dict[str, int]]  # task -> quality -> clips in the folder
    splits: dict[str, int]
    size_bytes: int  # mp4 and rows
    wall_s: float
    unlabelled: list[str] = field(default_factory=list)  # episode keys where simulator and label never agreed


def simulate(settings: SimulationSettings, out: Path, max_in_flight: int | None = None) -> SimulationSummary:
    """Make every missing clip of `settings` under `out`, at most `max_in_flight` Ray tasks at a time (default: all).

    Raises SimulationError if `out` holds clips of other settings, or the workers cannot simulate.
    """
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    _claim(out, settings)
    specs = simulation.episodes(settings)
    rows = {key: row for key, row in _read_rows(out).items() if (out / row["video"]).is_file()}
    missing = [spec for spec in specs if spec.key not in rows]
    for spec in specs:  # more clips per quality move the border between train and seen
        if spec.key in rows:
            rows[spec.key]["split"] = spec.split
    unlabelled: list[str] = []
    written_at = time.monotonic()
    show = progress_bar("simulate", len(missing), interactive())
    for done, (spec, mp4, row) in enumerate(watched(_clips(missing, max_in_flight), "simulate"), 1):
        if mp4 is None or row is None:
            unlabelled.append(spec.key)
        else:
            write_atomically(out / spec.video, mp4)
            rows[spec.key] = row
        if time.monotonic() - written_at > WRITE_EVERY_S:
            _write_rows(out, rows)
            written_at = time.monotonic()
        show(done, {})
    _write_rows(out, rows)
    return _summary(out, rows, len(missing) - len(unlabelled), len(specs) - len(missing), sorted(unlabelled), started)


def _clips(specs: list[EpisodeSpec], max_in_flight: int | None) -> Iterator[Clip]:
    """Clips as they come, in no order; a Ray task hands back its few episodes (some 100 KB) at once."""
    waiting = _chunks(specs)
    worker_environment = WORKER_ENVIRONMENT | {"MUJOCO_GL": os.environ.get("MUJOCO_GL", "egl")}
    act_out = ray.remote(num_cpus=1, runtime_env={"env_vars": worker_environment})(_act_out)
    running: list[ray.ObjectRef[Any]] = []
    while waiting or running:
        while waiting and len(running) < (max_in_flight or len(specs)):
            running.append(act_out.remote(waiting.pop(0)))
        done, running = ray.wait(running, num_returns=1)
        try:
            yield from ray.get(done[0])
        except RayTaskError as error:
            for ref in running:
                ray.cancel(ref)
            raise SimulationError(f"a simulation worker failed: {error.cause}") from error


def _act_out(specs: list[EpisodeSpec]) -> list[Clip]:
    """One Ray task: roll out, film and encode some episodes. Pure, so Ray may run it again after a crash."""
    clips: list[Clip] = []
    for spec in specs:
        rollout = simulation.roll_out(spec)
        if rollout is None:
            clips.append((spec, None, None))
        else:
            mp4 = simulation.encode_mp4(rollout.frames, spec.fps, spec.crf)
            clips.append((spec, mp4, simulation.row(spec, rollout)))
    return clips


def _chunks(specs: list[EpisodeSpec]) -> list[list[EpisodeSpec]]:
    """A handful of one Meta-World task's episodes each; the first clips of every task come before the later ones.

    So a run that is stopped half-way leaves fewer clips of every task and quality, not fewer tasks.
    """
    by_task: dict[str, list[EpisodeSpec]] = {}
    for spec in sorted(specs, key=lambda spec: spec.index):
        by_task.setdefault(spec.task, []).append(spec)
    size = EPISODES_PER_RAY_TASK
    longest = max((len(group) for group in by_task.values()), default=0)
    return [group[i : i + size] for i in range(0, longest, size) for group in by_task.values() if group[i : i + size]]


def _claim(out: Path, settings: SimulationSettings) -> None:
    """Write down the settings the folder is made with; refuse a folder that was made with others."""
    wanted = {name: value for name, value in asdict(settings).items() if name not in EXTENT_SETTINGS}
    path = out / SETTINGS_FILE
    if path.exists():
        found = json.loads(path.read_text())
        if found != wanted:
            changed = ", ".join(sorted(name for name in wanted | found if wanted.get(name) != found.get(name)))
            raise SimulationError(f"{out} holds clips made with another {changed}; choose another folder or delete it")
    else:
        write_atomically(path, json.dumps(wanted, indent=2) + "\n")


def _read_rows(out: Path) -> dict[str, dict[str, Any]]:
    """Rows by episode key; none if there is no file yet."""
    path = out / ROWS_FILE
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return {row["episode_key"]: row for row in rows}


def _write_rows(out: Path, rows: dict[str, dict[str, Any]]) -> None:
    """All rows, sorted by key, so that the file does not depend on which worker was first."""
    lines = "".join(json.dumps(rows[key], separators=(",", ":")) + "\n" for key in sorted(rows))
    write_atomically(out / ROWS_FILE, lines)


def _summary(
    out: Path, rows: dict[str, dict[str, Any]], made: int, skipped: int, unlabelled: list[str], started: float
) -> SimulationSummary:
    """Count what lies in the folder."""
    counts: dict[str, dict[str, int]] = {}
    for key in sorted(rows):
        task, quality, _ = key.split("/")
        counts.setdefault(task, dict.fromkeys(simulation.QUALITIES, 0))[quality] += 1
    size = (out / ROWS_FILE).stat().st_size + sum((out / row["video"]).stat().st_size for row in rows.values())
    return SimulationSummary(
        made=made,
        skipped=skipped,
        counts=counts,
        splits=dict(Counter(row["split"] for row in rows.values())),
        size_bytes=size,
        wall_s=time.monotonic() - started,
        unlabelled=unlabelled,
    )
