"""Annotations of one video as a row: the fields of `trajectories.jsonl`, to which most formats can be reduced.

A format whose episodes are videos turns its annotations into such rows (`video_unit`), and reads them with
`video_episodes`. A row travels in `Unit.data` as JSON.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from robometer.corpus.formats import Refused, Unit
from robometer.corpus.formats.common import name_of
from robometer.frames.recording import VideoFile
from robometer.trajectory import Episode

FIELDS: dict[str, tuple[type, ...]] = {
    "video": (str,),
    "task": (str,),
    "quality_label": (str,),
    "source": (str,),
    "episode_key": (str,),
    "view": (str,),
    "is_robot": (bool,),
    "partial_success": (int, float),
    "split": (str,),
    "fps": (int, float),
    "first": (int,),
    "count": (int,),
    "env_reward": (list,),
    "success": (list,),
}
"""The fields of a row and their types; `formats.mp4_jsonl` says what they mean."""


def check_row(row: Mapping[str, Any]) -> None:
    """Check the fields of a row.

    Raises:
        ValueError: a field is unknown or missing, or has a wrong value.
    """
    # A misspelt key would silently keep its default: a failure would be trained as a success.
    if unknown := sorted(row.keys() - FIELDS.keys()):
        raise ValueError(f"unknown key {unknown[0]!r}; the keys are {', '.join(FIELDS)}")
    if missing := [key for key in ("video", "task") if not row.get(key)]:
        raise ValueError(f"no {missing[0]!r}")
    for key, value in row.items():
        _check_type(key, value)
    if any(type(value) not in (int, float) or not math.isfinite(value) for value in row.get("env_reward", ())):
        raise ValueError("'env_reward' has a value that is not a number")
    if any(value not in (0, 1) for value in row.get("success", ())):
        raise ValueError("'success' has a value that is neither 0 nor 1")
    if not 0 < row.get("fps", 1) < math.inf:
        raise ValueError("'fps' must be above 0")
    if row.get("first", 0) < 0 or row.get("count", 1) < 1:
        raise ValueError("'first' is below 0 or 'count' below 1")


def _check_type(key: str, value: Any) -> None:
    types = FIELDS[key]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise ValueError(f"{key!r} is {type(value).__name__}, not {' or '.join(t.__name__ for t in types)}")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:  # it could not be stored
            raise ValueError(f"{key!r} is not UTF-8") from error


def episode_key(row: Mapping[str, Any]) -> str:
    """The row's own key, else the path of its video, followed by the cut if there is one."""
    if "first" in row or "count" in row:
        cut = f"{row['video']}@{row.get('first', 0)}+{row.get('count', '')}"
        return str(row.get("episode_key", cut))
    return str(row.get("episode_key", row["video"]))


def video_unit(row: Mapping[str, Any], root: Path, source: str) -> Unit:
    """The unit of one row, whose video lies below `root`; raises `ValueError` as `check_row`."""
    check_row(row)
    key = "\x1f".join((episode_key(row), row.get("view", "main")))
    return Unit(key, source, str(root / row["video"]), data=row)


def video_episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The one trajectory of a row."""
    row = unit.data
    yield Episode(
        source=unit.source,
        episode_key=episode_key(row),
        view=row.get("view", "main"),
        task=row["task"],
        recording=VideoFile(unit.uri, row.get("first", 0), row.get("count")),
        uri=unit.uri,
        raw_quality_label=row.get("quality_label", "successful"),
        is_robot=row.get("is_robot", True),
        partial_success=row.get("partial_success"),
        split=row.get("split", ""),
        env_reward=row.get("env_reward"),
        env_success=row.get("success"),
        fps=row.get("fps"),
    )


def from_row(
    read: Callable[[Any], Mapping[str, Any]], raw: Any, root: Path, source: str, *, place: str, uri: str
) -> Unit | Refused:
    """The unit of the row that `read` makes of `raw`, or the refusal of a malformed row.

    Args:
        read: makes a row; raises `ValueError` if it cannot.
        raw: its argument.
        root: folder of the videos.
        source: the user's name for the data set; if it is empty, the row's, else the folder's name.
        place: the row's place in its table, for the message.
        uri: the same place for quarantine.
    """
    try:
        row = {key: value for key, value in read(raw).items() if value is not None}
        return video_unit(row, root, source or row.get("source", name_of(root)))
    except (ValueError, RecursionError) as error:
        return Refused(uri, f"{place} is malformed: {error}", source)


def spaced(name: str) -> str:
    """A name as words: `_`, `-` and the word boundaries of camelCase become spaces."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", re.sub(r"[_\-\s]+", " ", name))
    return words.strip().lower() if words != name else name.strip()
