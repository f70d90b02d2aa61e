"""EPIC-KITCHENS-100: people in kitchens, filmed from their heads, with a narration of every action.

    epic/
      EPIC_100_train.csv            narration_id, participant_id, video_id, narration, start_frame, stop_frame
      P01/videos/P01_01_0.MP4       clips, one per narration_id, or
      P01/videos/P01_01.MP4         whole videos, of which the clips are cuts; .mp4 too, in any folder

Each row is an episode of the data set `epic`: a human filmed from the head (view `ego`), successful. The task is the
narration. A cut has the frames from start_frame up to but not including stop_frame, counted from 0 as upstream; without
these columns it follows from start_timestamp and stop_timestamp (HH:MM:SS.ss). Clips of more than 1000 frames are left
out, as upstream.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.formats.common import files, folder
from robometer.corpus.readers.annotations import video_episodes, video_unit
from robometer.corpus.readers.tables import header, read_table
from robometer.frames.timeline import frames_at
from robometer.frames.video import probe
from robometer.trajectory import Episode

TABLE = "EPIC_100_train.csv"
MAX_FRAMES = 1000
_COLUMNS = ("narration_id", "video_id", "narration")


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The rows of the table.

    Raises:
        FormatError: the folder, the table or a column is missing.
    """
    root = folder(input, f"the folder of EPIC-KITCHENS that holds {TABLE}")
    table = root / TABLE
    missing = sorted(set(_COLUMNS) - set(header(table) or ())) if table.is_file() else [TABLE]
    if missing:
        raise FormatError(
            f"{root} has no {missing[0]}: give ingest.input the folder of EPIC-KITCHENS-100's train table"
        )
    videos = {path.stem: path.relative_to(root) for path in reversed(files(root, "**/*.MP4", "**/*.mp4"))}
    for place, number, fields in read_table(table):
        try:
            yield _unit(fields, videos, root, source or "epic")
        except ValueError as error:
            yield Refused(f"{table}:{number}", f"{place} of {TABLE}: {error}", source or "epic")


def _unit(fields: dict[str, Any] | ValueError, videos: Mapping[str, Path], root: Path, source: str) -> Unit | Refused:
    if isinstance(fields, ValueError):
        raise fields
    narration, video = fields["narration_id"].strip(), fields["video_id"].strip()
    row: dict[str, Any] = {"task": fields["narration"], "episode_key": narration, "view": "ego", "is_robot": False}
    if narration in videos:
        return video_unit({**row, "video": str(videos[narration])}, root, source)
    if video not in videos:
        raise ValueError(f"there is neither a clip {narration} nor a video {video}")
    row["video"] = str(videos[video])
    if not fields.get("start_frame"):
        times = [_seconds(fields.get(f"{end}_timestamp", "")) for end in ("start", "stop")]
        return dataclasses.replace(video_unit(row, root, source), data={**row, "times": times})
    first, stop = int(fields["start_frame"]), int(fields["stop_frame"])
    if not 0 <= first < stop:
        raise ValueError(f"its frames {first} to {stop} are not a range")
    if stop - first > MAX_FRAMES:
        return _too_long(stop - first, str(root / row["video"]), source, narration)
    return video_unit({**row, "first": first, "count": stop - first}, root, source)


def _seconds(time: str) -> float:
    parts = [float(part) for part in time.split(":")]
    return sum(part * 60.0**i for i, part in enumerate(reversed(parts)))


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The one clip of a row."""
    row = dict(unit.data)
    if "count" not in row:
        info = probe(unit.uri)
        if times := row.pop("times", None):
            first, stop = frames_at(unit.uri, times, info.fps)
            row |= {"first": first, "count": max(min(stop, info.num_frames) - first, 1)}
        count = row.get("count", info.num_frames)
        if count > MAX_FRAMES:
            yield _too_long(count, unit.uri, unit.source, row["episode_key"])
            return
    yield from video_episodes(dataclasses.replace(unit, data=row))


def _too_long(count: int, uri: str, source: str, key: str) -> Refused:
    return Refused(uri, f"the clip has {count} frames, more than {MAX_FRAMES}", source, key, "ego", skipped=True)
