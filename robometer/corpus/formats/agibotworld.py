"""AgiBot World (AgiBot G1): archives as they are published, or unpacked.

    <input>/task_info/task_327.json            a list of episodes: episode_id, task_name, label_info.action_config,
                                               which is a list of {start_frame, end_frame, action_text}
    <input>/observations/327/648642-685032.tar archives (WebDataset) of <episode>/videos/<camera>.mp4 and more; anywhere
    <input>/observations/327/648642/videos/    below the input if <episode>/videos/<camera>.json lies before the video
        head_color.mp4                         or the same unpacked
    <input>/cameras.txt                        optional: cameras to take besides, one a line, e.g.
                                               head_center_fisheye_color

    task      task_name of the whole episode; action_text of each of its actions, which are trajectories of their own:
              frames start_frame to end_frame (not included) of the same video
    quality   successful
    views     head_color, and what cameras.txt names
    source    agibotworld

An archive is read as a stream with one video in memory. If it breaks off, the videos before that point are kept. Other
cameras, depth and the robot's state are ignored.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from robometer.corpus.formats import FormatError, Refused, Unit, common
from robometer.frames.recording import VideoFile
from robometer.frames.video import Source, VideoError, probe
from robometer.trajectory import Episode

VIEW = "head_color"
_WHAT = "the folder of AgiBot World with task_info/ and observations/"


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The archives and the unpacked episodes below a folder, for each camera.

    Raises:
        FormatError: the folder has neither archives nor videos.
    """
    root, name = common.folder(input, _WHAT), source or "agibotworld"
    videos = {path.parent.parent for path in common.files(root, "observations/*/*/videos/*.mp4")}
    places = sorted(videos.union(common.files(root, "**/*.tar")))
    if not places:
        raise FormatError(f"{input} has neither archives (*.tar) nor videos: give ingest.input {_WHAT}")
    cameras = common.read_words(root / "cameras.txt")
    for place in places:
        for view in dict.fromkeys([VIEW, *cameras]):
            key = place.relative_to(root).as_posix() + ("" if view == VIEW else f"@{view}")
            data = {"view": view, "tasks": str(root / "task_info" / f"task_{place.parent.name}.json")}
            yield Unit(key, name, str(place), _expected(place), data, files=[str(place), data["tasks"]])


def _expected(place: Path) -> int:
    """About how many trajectories: one per 10 MB of an archive, or an episode and some actions of it."""
    return 1 + place.stat().st_size // 10_000_000 if place.suffix == ".tar" else 6


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The trajectories of an archive or an episode."""
    place, view = Path(unit.uri), unit.data["view"]
    if place.is_dir():
        path = place / "videos" / f"{view}.mp4"
        video = path if path.is_file() else None
        yield from _trajectories(unit, place.name, video, _tasks(unit.data["tasks"]).get(place.name))
        return
    done = 0
    try:
        for key, content, info in _samples(place, view):
            yield from _trajectories(unit, key, content, info or _tasks(unit.data["tasks"]).get(key))
            done += 1
    except (tarfile.TarError, EOFError, OSError) as error:
        raise FormatError(f"the archive breaks off after {done} videos ({error})") from error


def _samples(path: Path, view: str) -> Iterator[tuple[str, bytes, Any]]:
    """(episode, video, content of a JSON file of the same name before it) of an archive's members, in its order."""
    info: tuple[str, Any] = ("", None)
    with tarfile.open(path, "r|*") as archive:
        while (member := archive.next()) is not None:
            archive.members = []  # type: ignore[attr-defined]  # else it keeps the headers of all members
            stem, _, kind = member.name.removeprefix("./").rpartition(".")
            if not member.isfile() or kind not in ("mp4", "json") or stem.rsplit("/", 1)[-1] != view:
                continue
            file = archive.extractfile(member)
            content = file.read() if file else b""
            if kind == "json":
                info = stem, _parsed(content)
            else:
                episode = stem.removesuffix(f"/videos/{view}").rsplit("/", 1)[-1]
                yield episode, content, info[1] if info[0] == stem else None


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return None  # the episode is then refused because it has no task


@lru_cache(maxsize=4)
def _tasks(path: str) -> dict[str, Any]:
    """Episodes of a task file by their number."""
    rows = common.read_json(Path(path)) if Path(path).is_file() else None
    return {str(row.get("episode_id")): row for row in rows if isinstance(row, dict)} if isinstance(rows, list) else {}


def _trajectories(unit: Unit, key: str, video: Source | None, info: Any) -> Iterator[Episode | Refused]:
    """The whole episode, and each of its actions."""
    view, uri = unit.data["view"], f"{unit.uri}#{key}"
    if video is None:
        yield Refused(uri, f"it has no video of the camera {view}", unit.source, key, view)
        return
    task = info.get("task_name") if isinstance(info, dict) else None
    if not isinstance(task, str):
        reason = f"it has no task_name in task_info/{Path(unit.data['tasks']).name}, nor beside its video"
        yield Refused(uri, reason, unit.source, key, view)
        return
    yield Episode(unit.source, key, view, task, VideoFile(video), uri)
    total = _frames(video)
    for number, action in enumerate(_actions(info), start=1):
        try:
            first, end, text = int(action["start_frame"]), int(action["end_frame"]), action["action_text"]
            if not (0 <= first < min(end, total) and isinstance(text, str)):
                raise ValueError(f"frames {first} to {end} of {total}")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            reason = f"an action cannot be cut out ({type(error).__name__}: {error})"
            yield Refused(uri, reason, unit.source, f"{key}#{number}", view)
            continue
        cut = VideoFile(video, first, min(end, total) - first)  # some actions end a little after the video
        yield Episode(unit.source, f"{key}#{number}", view, text, cut, uri)


def _actions(info: dict[str, Any]) -> list[Any]:
    labels = info.get("label_info")
    actions = labels.get("action_config") if isinstance(labels, dict) else None
    return actions if isinstance(actions, list) else []


def _frames(video: Source) -> int:
    """Number of frames; 0 if it is not a video, which the refusal of the whole episode explains."""
    try:
        return probe(video).num_frames
    except VideoError:
        return 0
