"""From a unit of raw data to rows of the corpus: read, check, decode, thin, resize and compress each trajectory."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pyarrow as pa

from robometer.corpus.config import IngestConfig
from robometer.corpus.formats import Refused, Unit, read_unit
from robometer.corpus.formats.common import is_depth
from robometer.corpus.identity import NO_ROWS, Facts, StoredRows, labels_hash
from robometer.corpus.manifest import SKIP
from robometer.corpus.remote_input import LocalUnits
from robometer.corpus.writer import Accepted, Present, Quarantined, ShardEntry, content_hash
from robometer.errors import RobometerError
from robometer.frames import FrameSettings, encode_frames
from robometer.frames.video import DEPTH, DepthError, VideoError, VideoLimits, first_line
from robometer.trajectory import SHARD_SCHEMA, Episode, TrajectoryError

logger = logging.getLogger(__name__)

MAX_TEXT = 2000
"""Characters of a text in quarantine: an error may quote a whole file."""


def encode_episode(episode: Episode, config: IngestConfig) -> dict[str, Any]:
    """Check, decode, thin, resize and compress one trajectory into a row of `SHARD_SCHEMA`.

    Raises:
        TrajectoryError: the labels are out of range or do not fit the video.
        VideoError: the video is corrupt, missing or beyond the limits.
    """
    label = episode.validate()
    settings, limits = FrameSettings.of(config), VideoLimits(config.max_source_frames, config.max_source_pixels)
    video = encode_frames(episode.recording, settings, limits)
    frames, index = video.frames, video.frame_index.tolist()
    truth = {
        column: _at_frames(values, column, index, video.num_source_frames)
        for column, values in (("env_reward", episode.env_reward), ("success", episode.env_success))
    }
    facts = {
        "id": episode.id,
        "source": episode.source,
        "episode_key": episode.episode_key,
        "view": episode.view,
        "task": " ".join(episode.task.split()),
        "is_robot": episode.is_robot,
        "quality_label": label,
        "raw_quality_label": episode.raw_quality_label,
        "partial_success": episode.partial_success,
        "split": episode.split or config.split,
        "num_frames": len(frames),
        "height": video.height,
        "width": video.width,
        "source_fps": video.fps if episode.fps is None else episode.fps,
        "source_num_frames": video.num_source_frames,
        "size_bytes": sum(map(len, frames)),
        "uri": episode.uri,
        "content_hash": content_hash(index, frames),
        "labels_hash": labels_hash(episode, label, config.split),
        "settings_hash": settings.hash(),
        "frame_index": index,
        **truth,
    }
    try:
        pa.RecordBatch.from_pylist([facts], schema=SHARD_SCHEMA)
    except (pa.ArrowException, UnicodeError, TypeError, ValueError, OverflowError) as error:
        raise TrajectoryError(f"a label has the wrong type, or a text is not UTF-8 ({first_line(error)})") from error
    return {**facts, "frames": frames}


def _at_frames(values: Sequence[float] | None, name: str, index: Sequence[int], count: int) -> list[float] | None:
    if values is None:
        return None
    if len(values) != count:
        raise TrajectoryError(f"{name} has {len(values)} values for a video of {count} frames")
    return [values[i] for i in index]


def entries(units: Sequence[Unit], config: IngestConfig, stored: StoredRows = NO_ROWS) -> Iterator[ShardEntry]:
    """What to do with the trajectories of some units, in their order, given the rows that the corpus has."""
    local = LocalUnits(units, config.format, config.input)
    for unit in local:
        yield from map(local.to_uris, _of_unit(unit, config, stored))


def _of_unit(unit: Unit, config: IngestConfig, stored: StoredRows) -> Iterator[ShardEntry]:
    digest = unit.digest(config.format)
    episodes, ids = read_unit(config.format, unit), set[str]()
    while True:
        try:
            episode = next(episodes, None)
        except Exception as error:  # noqa: BLE001  one odd file must not end a job of a million
            yield _unreadable(unit, digest, error)
            return
        if episode is None:
            return
        if isinstance(episode, Refused):
            yield Quarantined(quarantine_row(episode, digest, SKIP if episode.skipped else "list", episode.error))
        elif episode.id in ids:
            message = f"duplicate: {episode.episode_key}, view {episode.view} of {episode.source!r} came before"
            yield Quarantined(quarantine_row(episode, digest, "list", message))
        else:
            ids.add(episode.id)
            yield _of_episode(episode, digest, config, stored)


def _of_episode(episode: Episode, digest: str, config: IngestConfig, stored: StoredRows) -> ShardEntry:
    if is_depth(episode.view):
        return Quarantined(quarantine_row(episode, digest, SKIP, DEPTH))
    try:
        return _compared(stored.get(episode.id), episode, digest, config)
    except (TrajectoryError, VideoError) as error:
        stage = SKIP if isinstance(error, DepthError) else "video" if isinstance(error, VideoError) else "labels"
        return Quarantined(quarantine_row(episode, digest, stage, str(error)))
    except Exception as error:
        logger.exception("episode %s failed", episode.uri)
        return Quarantined(quarantine_row(episode, digest, "video", f"{type(error).__name__}: {error}"))


def _compared(facts: Facts | None, episode: Episode, digest: str, config: IngestConfig) -> Accepted | Present:
    """Compare a trajectory with the stored facts. Labels come first, as they need no decoding."""
    if facts is None:
        return Accepted(encode_episode(episode, config), digest)
    labels = labels_hash(episode, episode.validate(), config.split)
    if facts.labels != labels and not config.update:
        message = f"its labels differ from the corpus (now {episode.task!r}, {episode.raw_quality_label})"
        return Present(episode.id, episode.uri, digest, message)
    record = encode_episode(episode, config)
    now = Facts.of(record)
    if facts == now:
        return Present(episode.id, episode.uri, digest)
    if config.update:
        return Accepted(record, digest, replaces=True)
    if facts.content == now.content:
        message = f"its rate differs from the corpus (now {now.fps:g}, not {facts.fps:g} frames per second)"
        return Present(episode.id, episode.uri, digest, message)
    return Present(episode.id, episode.uri, digest, "its frames differ from the corpus")


def _unreadable(unit: Unit, digest: str, error: Exception) -> Quarantined:
    reason = str(error) if isinstance(error, RobometerError) else f"{type(error).__name__}: {error}"
    logger.warning("%s: %s", unit.uri, reason)
    return Quarantined(quarantine_row(Refused(unit.uri, reason, unit.source, unit.key), digest, "list", reason))


def isolated_entries(units: Sequence[Unit], config: IngestConfig, stored: StoredRows = NO_ROWS) -> Iterator[ShardEntry]:
    """`entries` through a child process, if one of the units may have killed the process that read it before.

    A unit that kills the child is refused. All rows of a unit are in memory together.
    """
    pool: ProcessPoolExecutor | None = None
    local = LocalUnits(units, config.format, config.input)
    try:
        for unit in local:
            pool = pool or ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
            try:
                yield from map(local.to_uris, pool.submit(_list_of_unit, unit, config, stored).result())
            except BrokenProcessPool:
                pool = None
                reason = "it killed the process that read it: it crashes a decoder, or needs too much memory"
                yield local.to_uris(_unreadable(unit, unit.digest(config.format), VideoError(reason)))
    finally:
        if pool is not None:
            pool.shutdown()


def _list_of_unit(unit: Unit, config: IngestConfig, stored: StoredRows) -> list[ShardEntry]:
    return list(_of_unit(unit, config, stored))


def quarantine_row(entry: Episode | Refused, unit: str, stage: str, error: str) -> dict[str, Any]:
    """A row of `QUARANTINE_SCHEMA`."""
    row = {
        "id": entry.id if isinstance(entry, Episode) else "",
        "source": entry.source,
        "episode_key": entry.episode_key,
        "view": entry.view,
        "uri": entry.uri,
        "unit": unit,
        "stage": stage,
        "error": error,
    }
    # A file name or a label may be refused because it is not UTF-8.
    return {key: str(value)[:MAX_TEXT].encode("utf-8", "replace").decode() for key, value in row.items()}
