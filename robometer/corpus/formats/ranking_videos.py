"""Roll-outs of policies and demonstrations, whose labels stand in the names of files and folders.

Each layout below has the name of its data set; {x} is any name:

    rfm_new_mit_franka_rfm[_nowrist]          {task}/{success|suboptimal|failure}/{episode}_{ext|wrist}.mp4
    mit_franka_p-rank                         {any}/{task}_metadata.json: [{"filename", "instruction", "success"}, ...]
    utd_so101_clean_policy_ranking_{top|wrist}  {quality}/{any}/episode_{n}_{top|wrist}.gif (or mp4), and beside them
                                              vla_task.json: the instructions, a list by n; closs_succ is suboptimal
    utd_so101_policy_ranking, utd_so101_human {task}_{quality}_{n}.mp4; those of the human are all successful
    usc_koch_rewind                           {task}/{episode}.mp4 or {task}_{n}.mp4, all successful
    usc_koch_human_robot_paired_human         human/recordings/{episode}.mp4 and .json {"notes": the instruction}

`ingest.source_name` names the layout. If it is empty, or a name of your own, the first layout that fits a video of the
folder is used, and the data set gets the layout's name or yours. A {task} is looked up in an optional `tasks.json`
({"foldtowel": "Fold the towel in half"}; upstream has such tables in its code), else it is the name in words. Cameras
that a layout does not take are skipped. The views of an episode share its key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.formats.common import files, folder, read_json, task_texts
from robometer.corpus.readers.annotations import spaced, video_episodes, video_unit

_QUALITY = (
    ("suboptimal", re.compile(r"(?<![a-z])(clos[se]_?succ|subopt)")),
    ("failure", re.compile(r"(?<![a-z])fail")),
    ("successful", re.compile(r"(?<![a-z])succ")),
)
"""Quality labels, and how names with this meaning begin; the first that fits counts."""

episodes = video_episodes


@dataclass(frozen=True)
class Layout:
    """How a data set names its files, and what the names mean.

    Attributes:
        pattern: of a video's path, with any of the groups `task`, `quality`, `view` and `number`.
        task: gives a video's instruction from its path, its match and `tasks.json`.
        view: the only view to take; empty takes all.
        is_robot: false for humans.
        always: quality label of all videos; empty reads it from the group `quality`.
        inside: folder of the data set that holds the videos.
    """

    pattern: re.Pattern[str]
    task: Callable[[Path, re.Match[str], Mapping[str, str]], str]
    view: str = ""
    is_robot: bool = True
    always: str = ""
    inside: str = "."


def _by_name(video: Path, match: re.Match[str], tasks: Mapping[str, str]) -> str:
    name = next(filter(None, (match[group] for group in match.re.groupindex if group.startswith("task"))))
    return tasks.get(name) or spaced(name)


def _by_number(video: Path, match: re.Match[str], tasks: Mapping[str, str]) -> str:
    listed, number = read_json(video.parent / "vla_task.json"), int(match["number"])
    if not isinstance(listed, list) or number >= len(listed):
        raise ValueError(f"vla_task.json has no instruction for episode {number}")
    return str(listed[number])


def _by_notes(video: Path, match: re.Match[str], tasks: Mapping[str, str]) -> str:
    notes = read_json(video.with_suffix(".json"))
    return str(notes.get("notes") or "") if isinstance(notes, dict) else ""


_MIT = re.compile(r"(?P<task>[^/]+)/(?P<quality>[^/]+)/[^/]+_(?P<view>ext|wrist)\.mp4")
_UTD = re.compile(r"(?P<quality>[^/]+)/(?:[^/]+/)?episode_(?P<number>\d+)_(?P<view>top|wrist)\.(?:gif|mp4)")
_FLAT = re.compile(r"(?:[^/]+/)?(?P<task>[^/]+)_(?P<quality>(?:succ|subopt|fail)[a-z]*)_\d+\.mp4", re.IGNORECASE)
_NOTES = re.compile(r"[^/]+\.mp4")
_TASK = re.compile(r"(?P<task>[^/]+)/(?:[^/]+/)*[^/]+\.mp4|(?P<task_flat>[^/]+)_\d+\.mp4")

LAYOUTS = {
    "rfm_new_mit_franka_rfm": Layout(_MIT, _by_name),
    "rfm_new_mit_franka_rfm_nowrist": Layout(_MIT, _by_name, view="ext"),
    "utd_so101_clean_policy_ranking_top": Layout(_UTD, _by_number, view="top"),
    "utd_so101_clean_policy_ranking_wrist": Layout(_UTD, _by_number, view="wrist"),
    "utd_so101_policy_ranking": Layout(_FLAT, _by_name),
    "utd_so101_human": Layout(_FLAT, _by_name, is_robot=False, always="successful"),
    "usc_koch_human_robot_paired_human": Layout(
        _NOTES, _by_notes, is_robot=False, always="successful", inside="human/recordings"
    ),
    "usc_koch_rewind": Layout(_TASK, _by_name, always="successful"),
}
"""Layouts by data set. If the user names none, the first that fits is used: the strictest patterns come first."""

METADATA = "mit_franka_p-rank"
"""The data set whose labels stand in metadata files."""


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The videos of a folder.

    Raises:
        FormatError: there are no videos, or none fits the layout, or any layout.
    """
    root = folder(input, "a folder of videos in one of the layouts of ranking_videos")
    if source == METADATA or (source not in LAYOUTS and files(root, "*_metadata.json", "*/*_metadata.json")):
        yield from _from_metadata(root, source or METADATA)
        return
    names = [source] if source in LAYOUTS else list(LAYOUTS)
    fitting = next((name for name in names if any(_fits(LAYOUTS[name], *place) for place in _videos(root, name))), None)
    if fitting is None:
        raise FormatError(f"no video in {root} is named as in {', '.join(names)}: see the layouts of ranking_videos")
    layout, tasks, name = LAYOUTS[fitting], task_texts(root), source or fitting
    for base, video in _videos(root, fitting):
        try:
            yield _unit(video, layout, tasks, base, name)
        except (ValueError, FormatError) as error:
            yield Refused(str(base / video), str(error), name, video)


def _videos(root: Path, name: str) -> list[tuple[Path, str]]:
    """(folder, path in it) of all videos of a layout."""
    inside = root / LAYOUTS[name].inside
    base = inside if inside.is_dir() else root
    return [(base, path.relative_to(base).as_posix()) for path in files(base, "**/*.mp4", "**/*.gif")]


def _fits(layout: Layout, root: Path, video: str) -> bool:
    fits = layout.pattern.fullmatch(video) is not None
    return fits and (layout.task is not _by_notes or (root / video).with_suffix(".json").is_file())


def _unit(video: str, layout: Layout, tasks: Mapping[str, str], root: Path, source: str) -> Unit | Refused:
    match = layout.pattern.fullmatch(video)
    if match is None:
        raise ValueError(f"its name does not fit the layout of {source}")
    groups = match.groupdict()
    view, key = groups.get("view") or "main", video.rpartition(".")[0]
    if layout.view and view != layout.view:
        return Refused(str(root / video), f"not the {layout.view} camera", source, key, view, skipped=True)
    row = {
        "video": video,
        "task": layout.task(root / video, match, tasks),
        "episode_key": key.removesuffix(f"_{view}"),
        "view": view,
        "quality_label": layout.always or _quality(groups["quality"]),
        "is_robot": layout.is_robot,
    }
    return video_unit(row, root, source)


def _quality(name: str) -> str:
    for label, words in _QUALITY:
        if words.search(name.lower()):
            return label
    raise ValueError(f"{name!r} says neither success, suboptimal nor failure")


def _from_metadata(root: Path, source: str) -> Iterator[Unit | Refused]:
    tables = files(root, "*_metadata.json", "*/*_metadata.json")
    if not tables:
        raise FormatError(f"no *_metadata.json in {root}: give ingest.input a copy of {METADATA}")
    for path in tables:
        content = read_json(path)
        if not isinstance(content, list):
            raise FormatError(f"{path} must be a list of episodes")
        for number, entry in enumerate(content, start=1):
            try:
                yield _from_entry(entry, path.parent, root, source)
            except ValueError as error:
                yield Refused(f"{path}:{number}", f"entry {number} of {path.name} is malformed: {error}", source)


def _from_entry(entry: Any, beside: Path, root: Path, source: str) -> Unit:
    if not isinstance(entry, dict) or not isinstance(entry.get("filename"), str):
        raise ValueError("it must be an object with a filename")
    path = Path(os.path.normpath(beside / entry["filename"]))
    if not path.is_relative_to(root):
        raise ValueError(f"{entry['filename']} lies outside {root.name}")
    video = path.relative_to(root).as_posix()
    return video_unit(
        {"video": video, "task": entry.get("instruction"), "quality_label": _quality(str(entry.get("success")))},
        root,
        source,
    )
