"""Raw data to corpus: list, decode, thin, resize, compress and commit, a shard per task.

The shard is the unit of work: its name follows from what it holds, its frames go from the decoder to storage without
touching the object store, and its manifest file, written last, makes it visible. So an ingest may be killed anywhere
and run again, or run twice at once, and the corpus ends with the same rows. On a cluster the raw data and the corpus
must lie on storage that every node sees under the same path.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import RayTaskError

from pipelines.cluster import connected, interactive, progress_bar
from robometer.configs.schema import Config, IngestConfig
from robometer.corpus.corpus import (
    LISTING,
    CorpusError,
    Rejected,
    Stored,
    commit_shard,
    read_manifest,
    read_quarantine,
)
from robometer.corpus.sources import Refused, SourceError, list_episodes
from robometer.corpus.storage import Storage
from robometer.errors import RobometerError
from robometer.trajectory import QUARANTINE_SCHEMA, SCHEMA_VERSION, Episode, TrajectoryError
from robometer.video import VideoError, VideoLimits, decode_video, encode_jpeg, thin, verify

logger = logging.getLogger(__name__)

PIXEL_SETTINGS = ("max_frames", "short_edge", "jpeg_quality")
"""The settings that change what is stored; one corpus is made with one choice of them."""


class IngestError(RobometerError):
    """An ingest that could not end well; the message says what to do."""


@dataclass(frozen=True)
class IngestReport:
    """What an ingest did with the entries of its input; `quarantined` counts those refused now or before."""

    listed: int
    new: int
    present: int
    quarantined: int
    seconds: float


@dataclass(frozen=True)
class _Listing:
    """The input in its own order: trajectories without repeats, and quarantine rows of what is none."""

    episodes: list[Episode]
    refused: list[dict[str, Any]]


def run_ingest(config: Config) -> IngestReport:
    """Bring `config.ingest.input` into the corpus at `config.corpus.path`; what is there already stays untouched.

    Raises:
        SourceError: the input cannot be listed or is empty.
        CorpusError: the corpus was made with other settings.
        IngestError: more than `ingest.max_bad_fraction` was refused (the rest is committed), or storage failed.
    """
    started = time.monotonic()
    storage = Storage(config.corpus.path)
    _check_settings(storage, config.ingest)
    listing = _list(config.ingest)
    _write_info(storage, config.ingest, "ingesting")
    _write_refused(storage, config.ingest, listing.refused)
    groups, present = _groups(storage, listing.episodes, config.ingest)
    _remove_stale(storage)
    new = 0
    if groups:
        with connected(config):
            new = _run_groups(storage, groups, config.ingest)
    _write_info(storage, config.ingest, "complete")
    listed = len(listing.episodes) + len(listing.refused)
    quarantined = listed - present - new
    report = IngestReport(listed, new, present, quarantined, time.monotonic() - started)
    logger.info("ingest: %s", json.dumps(dataclasses.asdict(report)))
    _check_bad_fraction(report, config)
    return report


def settings_hash(config: IngestConfig) -> str:
    """16 hex digits over the settings that change the stored pixels."""
    return _digest(json.dumps(_pixel_settings(config)))[:16]


def encode_episode(episode: Episode, config: IngestConfig) -> Stored:
    """Check, decode, thin, resize and compress one trajectory.

    Raises:
        TrajectoryError: labels that are out of range or do not fit the video.
        VideoError: a video that is corrupt, missing or beyond the limits.
    """
    label = episode.validate()
    limits = VideoLimits(config.max_source_frames, config.max_source_pixels)
    if config.verify_video:
        verify(episode.uri, limits)
    video = decode_video(
        episode.uri, lambda n, fps: thin(n, config.max_frames), short_edge=config.short_edge, limits=limits
    )
    frames = [encode_jpeg(frame, config.jpeg_quality) for frame in video.frames]
    truth = {
        name: _at_frames(getattr(episode, name), name, video.frame_index, video.num_source_frames)
        for name in ("env_reward", "success")
    }
    row = {
        "id": episode.id,
        "source": episode.source,
        "episode_key": episode.episode_key,
        "view": episode.view,
        "task": " ".join(episode.task.split()),
        "is_robot": episode.is_robot,
        "quality_label": label,
        "raw_quality_label": episode.raw_quality_label,
        "partial_success": episode.partial_success,
        "split": episode.split,
        "num_frames": len(frames),
        "height": video.frames.shape[1],
        "width": video.frames.shape[2],
        "source_fps": episode.extra.get("fps", video.fps),
        "source_num_frames": video.num_source_frames,
        "size_bytes": sum(map(len, frames)),
        "uri": episode.uri,
        "content_hash": _file_hash(episode.uri),
        "settings_hash": settings_hash(config),
    }
    return Stored({"id": episode.id, "frame_index": video.frame_index, "frames": frames, **truth}, row)


def _at_frames(values: Sequence[float] | None, name: str, index: np.ndarray, num_frames: int) -> list[float] | None:
    if values is None:
        return None
    if len(values) != num_frames:
        raise TrajectoryError(f"{name} has {len(values)} values for a video of {num_frames} frames")
    return [values[int(i)] for i in index]


def _list(config: IngestConfig) -> _Listing:
    seen: set[str] = set()
    listing = _Listing([], [])
    for entry in list_episodes(config.source, config.input):
        if isinstance(entry, Refused):
            row = {"id": "", "source": entry.source, "episode_key": entry.episode_key, "uri": entry.uri}
            listing.refused.append({**row, "stage": "list", "error": entry.error})
        elif entry.id in seen:
            key = f"source {entry.source!r}, episode {entry.episode_key!r}, view {entry.view!r}"
            listing.refused.append(_quarantine_row(entry, "list", f"duplicate id: {key} came before"))
        else:
            seen.add(entry.id)
            listing.episodes.append(entry)
    if not listing.episodes and not listing.refused:
        raise SourceError(f"{config.input} lists no episode: give ingest.input data of the format {config.source}")
    return listing


def _groups(storage: Storage, episodes: Sequence[Episode], config: IngestConfig) -> tuple[list[dict[str, Any]], int]:
    """Shards to make, as {name, episodes (JSON)}, and how many episodes are there already.

    Groups are cut from the whole listing, so that a second run names the shards of a killed one as that did.
    """
    manifest = read_manifest(storage)
    committed = set(manifest["id"].to_pylist())
    refused = {r["id"] for r in read_quarantine(storage).to_pylist() if r["stage"] != "list"} - committed
    if refused and not config.retry_quarantined:
        logger.info("ingest: %d refused before; ingest.retry_quarantined=true tries them again", len(refused))
    done = committed if config.retry_quarantined else committed | refused
    groups = []
    for start in range(0, len(episodes), config.shard_size):
        remaining = [e for e in episodes[start : start + config.shard_size] if e.id not in done]
        if remaining:
            name = _digest("\n".join([settings_hash(config), *(e.id for e in remaining)]))[:20]
            encoded = json.dumps([dataclasses.asdict(e) for e in remaining])
            groups.append({"name": name, "episodes": encoded, "count": len(remaining)})
    return groups, sum(e.id in committed for e in episodes)


def _run_groups(storage: Storage, groups: list[dict[str, Any]], config: IngestConfig) -> int:
    """Make the shards on the cluster; returns how many trajectories were committed."""
    total = sum(group["count"] for group in groups)
    show = progress_bar("ingest", total, interactive())
    done = new = 0
    work = partial(ingest_groups, path=storage.path, config=config)
    blocks = ray.data.from_items(groups, override_num_blocks=len(groups))
    dataset = blocks.map_batches(work, batch_size=1, num_cpus=1)
    try:
        for result in dataset.iter_rows():
            new += int(result["new"])
            done += int(result["new"]) + int(result["refused"])
            show(done, {"new": new, "refused": done - new})
    except RayTaskError as error:
        raise IngestError(f"a worker of the ingest failed ({error.cause}); mend it and run the same again") from error
    return new


def ingest_groups(batch: dict[str, np.ndarray], path: str, config: IngestConfig) -> dict[str, np.ndarray]:
    """One Ray task: make the shards named in `batch`; run twice, it leaves the same files once."""
    storage = Storage(path)
    counts = []
    for name, encoded in zip(batch["name"], batch["episodes"], strict=True):
        episodes = [Episode(**fields) for fields in json.loads(str(encoded))]
        counts.append(commit_shard(storage, str(name), _encode_all(episodes, config)))
    return {"new": np.array([new for new, _ in counts]), "refused": np.array([bad for _, bad in counts])}


def _encode_all(episodes: Sequence[Episode], config: IngestConfig) -> Iterator[Stored | Rejected]:
    for episode in episodes:
        try:
            entry: Stored | Rejected = encode_episode(episode, config)
        except (TrajectoryError, VideoError) as error:
            stage = "video" if isinstance(error, VideoError) else "labels"
            entry = Rejected(_quarantine_row(episode, stage, str(error)))
        except Exception as error:  # one odd episode must not end a job of a million
            logger.exception("episode %s failed", episode.uri)
            entry = Rejected(_quarantine_row(episode, "video", f"{type(error).__name__}: {error}"))
        yield entry


def _quarantine_row(episode: Episode, stage: str, error: str) -> dict[str, Any]:
    return {
        "id": episode.id,
        "source": episode.source,
        "episode_key": episode.episode_key,
        "uri": episode.uri,
        "stage": stage,
        "error": error,
    }


def _check_settings(storage: Storage, config: IngestConfig) -> None:
    if not storage.exists("corpus.json"):
        return
    made = json.loads(storage.read_bytes("corpus.json"))["settings"]
    wanted = _pixel_settings(config)
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
    manifest = read_manifest(storage)
    info = {
        "schema_version": SCHEMA_VERSION,
        "state": state,
        "settings": _pixel_settings(config),
        "counts": {
            "trajectories": manifest.num_rows,
            "frames": int(np.sum(manifest["num_frames"].to_numpy())),
            "size_bytes": int(np.sum(manifest["size_bytes"].to_numpy())),
            "quarantined": read_quarantine(storage, manifest["id"]).num_rows,
        },
    }
    storage.write_bytes("corpus.json", (json.dumps(info, indent=2) + "\n").encode())


def _write_refused(storage: Storage, config: IngestConfig, refused: list[dict[str, Any]]) -> None:
    """Quarantine what the listing itself refused; the next listing of the same input replaces it."""
    name = f"quarantine/{LISTING}{_digest(config.source + chr(31) + config.input)[:20]}.parquet"
    if refused or storage.exists(name):
        storage.write_parquet(name, pa.Table.from_pylist(refused, QUARANTINE_SCHEMA))


def _remove_stale(storage: Storage) -> None:
    committed = {Path(name).stem for name in storage.list("manifest", ".parquet")}
    removed = storage.remove_stale("shards", committed) + storage.remove_stale("manifest") + storage.remove_stale("")
    removed += storage.remove_stale("quarantine")
    if removed:
        logger.info("ingest: removed %d files that a crashed run had left", removed)


def _pixel_settings(config: IngestConfig) -> dict[str, int]:
    return {name: getattr(config, name) for name in PIXEL_SETTINGS}


def _file_hash(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
