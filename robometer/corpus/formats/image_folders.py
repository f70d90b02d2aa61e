"""Your own data as folders of images, one per episode.

    <input>/
      tasks.json                  optional: {folder: task text, or an object of the fields below}, for all below it
      any/depth/episode_7/
        0.png, 1.png, ... 10.png  frames (.png, .jpg, .jpeg) in the order of the numbers in their names
      any/depth/episode_8/
        episode.json              optional: the fields below
        task.txt                  optional: the task text alone
        front/*.png               if the folder has an episode.json or a task.txt, its subfolders are the views
        wrist/*.png

A folder with images and without subfolders is an episode with the view `main`. Fields:

    task              the instruction; required in one of these places
    quality_label     successful (default), suboptimal or failure
    partial_success   0 to 1, how much of the task was done, if somebody judged that
    is_robot          true (default) or false for a human
    fps               frames per second
    source            name of the data set (default: the name of <input>)
    split             train or the name of an evaluation split (default: ingest.split)

The modules of some data sets list their folders with `unit_of`, and read them with this module's `episodes`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.formats.common import folder, name_of, natural, numbered, read_json, subfolders, text, walk
from robometer.errors import RobometerError
from robometer.frames.recording import ImageSequence
from robometer.trajectory import Episode

SUFFIXES = (".png", ".jpg", ".jpeg")
MARKS = ("episode.json", "task.txt")

_TYPES: dict[str, tuple[type, ...]] = {
    "task": (str,),
    "quality_label": (str,),
    "partial_success": (int, float),
    "is_robot": (bool,),
    "fps": (int, float),
    "source": (str,),
    "split": (str,),
}


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The episode folders below `input`, in the order of the numbers in their names.

    Raises:
        FormatError: there is no such folder, or its tasks.json is malformed.
    """
    root = folder(input, "with one folder of .png or .jpg frames per episode")
    tasks = read_json(root / "tasks.json") if (root / "tasks.json").exists() else {}
    if not isinstance(tasks, dict):
        raise FormatError(f"{root / 'tasks.json'} must be a JSON object of folders and their tasks")
    for here, dirs, names in walk(root):
        dirs[:] = natural(name for name in dirs if not name.startswith("."))
        marked = any(mark in names for mark in MARKS)
        pictures = any(_is_image(name) for name in names)
        if pictures and dirs and not marked:
            yield refused(here, f"images lie beside folders: if this is one episode, add {' or '.join(MARKS)}")
        if not marked and (dirs or not pictures):
            if not dirs and here != root:
                yield refused(here, "neither the folder nor its subfolders hold images")
            continue
        dirs.clear()
        try:
            yield _unit(here, root, tasks, source)
        except RobometerError as error:
            yield refused(here, str(error))


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The views of one folder."""
    data, base = unit.data, Path(unit.uri)
    shared = {
        "source": unit.source,
        "episode_key": data.get("episode_key", unit.key),
        "task": data["task"],
        "raw_quality_label": data.get("quality_label", "successful"),
        "is_robot": data.get("is_robot", True),
        "partial_success": data.get("partial_success"),
        "split": data.get("split", ""),
    }
    drop, is_empty = data.get("drop", 0), True
    for view, place, paths in _views(base, data):
        is_empty = False
        try:
            utf8(place)
        except FormatError as error:
            yield refused(place, str(error))
            continue
        if paths is None:
            yield _of(unit, view, place, f"there is no folder {place.name}: this camera was not recorded", skipped=True)
        elif not paths:
            yield _of(unit, view, place, "the folder has no images")
        elif len(paths) <= drop:
            yield _of(unit, view, place, f"it has {len(paths)} images, and the first {drop} are left out")
        else:
            frames = sequence(paths[drop:], data.get("fps", 0.0), bool(data.get("clockwise")))
            yield Episode(**shared, view=view, recording=frames, uri=str(place))
    if is_empty:
        yield _of(unit, "", base, "neither the folder nor its subfolders hold images")


def unit_of(path: Path, root: Path, source: str, count: int = 1, **data: Any) -> Unit | Refused:
    """A folder below `root` as a unit that `episodes` reads.

    `data` holds the fields above, and how to read the folder, as JSON values:

        views       for each view, a pattern of its images relative to the folder (`front/*.png`)
        files       instead of views: for each view, the images relative to the folder
        drop        how many frames to leave out at the beginning
        clockwise   whether to turn each frame by 90 degrees
        episode_key if it is not the unit's key
    """
    try:
        return Unit(utf8(path.relative_to(root)), source, str(path), count, data)
    except FormatError as error:
        return refused(path, str(error))


def sequence(paths: Sequence[Path], fps: float = 0.0, clockwise: bool = False) -> ImageSequence:
    """Image files as a recording; `clockwise` turns them by 90 degrees."""
    return ImageSequence(len(paths), paths.__getitem__, fps, _clockwise if clockwise else None)


def images(place: Path, pattern: str = "*") -> list[Path]:
    """The image files in a folder, in the order of the numbers in their names."""
    return numbered(path for path in place.glob(pattern) if _is_image(path.name))


def utf8(path: Path) -> str:
    """A path as text for keys and tables.

    Raises:
        FormatError: its name is not UTF-8, which no table can hold.
    """
    try:
        path.as_posix().encode()
    except UnicodeEncodeError:
        raise FormatError("the name is not UTF-8: rename it") from None
    return path.as_posix()


def refused(path: Path, error: str) -> Refused:
    """The refusal of a path, whatever bytes its name has."""
    return Refused(os.fsencode(path).decode("utf-8", "backslashreplace"), error)


def fields_of(value: Any, place: str) -> dict[str, Any]:
    """The fields above, from a text (the task alone) or an object; `place` is where it was read.

    Raises:
        FormatError: it is neither, or has an unknown field or a field of the wrong type.
    """
    value = {"task": value} if isinstance(value, str) else value
    if not isinstance(value, dict):
        raise FormatError(f"{place} must be a text or an object of fields")
    for key, field in value.items():
        # A misspelt key would silently keep its default: a failure would be trained as a success.
        if key not in _TYPES:
            raise FormatError(f"{place} has the unknown field {key!r}; the fields are {', '.join(_TYPES)}")
        if not isinstance(field, _TYPES[key]) or (isinstance(field, bool) and key != "is_robot"):
            raise FormatError(
                f"{place}: {key} is {type(field).__name__}, not {' or '.join(t.__name__ for t in _TYPES[key])}"
            )
    if not 0 < value.get("fps", 1) < math.inf:
        raise FormatError(f"{place}: fps must be above 0")
    return value


def _views(base: Path, data: Mapping[str, Any]) -> Iterator[tuple[str, Path, list[Path] | None]]:
    """(view, its folder, its images or None if there is no folder) of a unit's folder."""
    if "files" in data:
        for view, names in data["files"].items():
            yield view, base / names[0], [base / name for name in names]
    elif "views" in data:
        for view, pattern in data["views"].items():
            place = (base / pattern).parent
            yield view, place, images(place, Path(pattern).name) if place.is_dir() else None
    else:
        if paths := images(base):
            yield "main", base, paths
        for place in subfolders(base):
            if paths := images(place):
                yield place.name, place, paths


def _unit(here: Path, root: Path, tasks: Mapping[str, Any], source: str) -> Unit:
    key = utf8(here.relative_to(root))
    fields: dict[str, Any] = {}
    for name in reversed([key, *map(str, Path(key).parents)]):
        if name in tasks:
            fields |= fields_of(tasks[name], f"tasks.json: {name}")
    if (here / "task.txt").exists():
        fields["task"] = text((here / "task.txt").read_bytes())
    if (here / "episode.json").exists():
        fields |= fields_of(read_json(here / "episode.json"), "episode.json")
    if not str(fields.get("task", "")).strip():
        raise FormatError(
            "no task text: give it in task.txt, in episode.json, or under the folder in <input>/tasks.json"
        )
    return Unit(key, source or fields.get("source", utf8(Path(name_of(root)))), str(here), data=fields)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _clockwise(frame: np.ndarray) -> np.ndarray:
    return np.rot90(frame, -1)


def _of(unit: Unit, view: str, place: Path, error: str, skipped: bool = False) -> Refused:
    key = str(unit.data.get("episode_key", unit.key))
    return Refused(str(place), error, unit.source, key, view, skipped)
