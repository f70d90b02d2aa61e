"""Videos with a `trajectories.jsonl` beside them: the packaged corpus, and the format to bring your own data in.

One JSON object per line. `video` (a path relative to the file) and `task` (the instruction) are required; then

    quality_label     successful (default), suboptimal or failure
    source            name of the data set (default: the folder's name); training balances and reports by it
    episode_key       names the episode within its source (default: `video`); with `view` it is its identity
    view              name of the camera (default: main); another view of an episode is a line of its own
    is_robot          true (default) or false for a human
    partial_success   0 to 1, how much of the task was done, where that was judged
    split             train or the name of an evaluation split (default: ingest.split)
    fps               frames per second, where the video's own figure is wrong
    env_reward        list of numbers, one per frame of the video, where a simulator knows it
    success           list of 0 and 1, one per frame of the video, where a simulator knows it
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from robometer.corpus.sources import Refused, SourceError, Unit
from robometer.recording import VideoFile
from robometer.trajectory import Episode

FILE = "trajectories.jsonl"
BUNDLED = "bundled"

_TYPES: dict[str, tuple[type, ...]] = {
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
    "env_reward": (list,),
    "success": (list,),
}


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The lines of a folder's `trajectories.jsonl`, of such a file, or of the packaged corpus (`bundled`).

    Raises:
        SourceError: there is no such file.
    """
    path = _listing(input)
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _unit(line, path, number, source)


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The one trajectory of a line."""
    row = unit.data
    yield Episode(
        source=unit.source,
        episode_key=row.get("episode_key", row["video"]),
        view=row.get("view", "main"),
        task=row["task"],
        recording=VideoFile(unit.uri),
        uri=unit.uri,
        raw_quality_label=row.get("quality_label", "successful"),
        is_robot=row.get("is_robot", True),
        partial_success=row.get("partial_success"),
        split=row.get("split", ""),
        env_reward=row.get("env_reward"),
        success=row.get("success"),
        fps=row.get("fps"),
    )


def _listing(input: str) -> Path:
    path = Path(str(resources.files("robometer") / "data" / "metaworld")) if input == BUNDLED else Path(input)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise SourceError(f"no {FILE} at {input}: give ingest.input a folder that holds one, or the file itself")
    return path.resolve()


def _unit(line: bytes, path: Path, number: int, source: str) -> Unit | Refused:
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError("it is not an object")
        row = {key: value for key, value in row.items() if value is not None}
        _check(row)
    except ValueError as error:
        return Refused(uri=f"{path}:{number}", error=f"line {number} of {path.name} is malformed: {error}")
    name = source or row.get("source", path.parent.name)
    key = "\x1f".join((row.get("episode_key", row["video"]), row.get("view", "main")))
    return Unit(key, name, str(path.parent / row["video"]), data=row)


def _check(row: dict[str, Any]) -> None:
    # A misspelt key would silently leave its default, and a failure would be learnt as a success.
    if unknown := sorted(row.keys() - _TYPES.keys()):
        raise ValueError(f"unknown key {unknown[0]!r}; the keys are {', '.join(_TYPES)}")
    if missing := [key for key in ("video", "task") if not row.get(key)]:
        raise ValueError(f"no {missing[0]!r}")
    for key, value in row.items():
        types = _TYPES[key]
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise ValueError(f"{key!r} is {type(value).__name__}, not {' or '.join(t.__name__ for t in types)}")
    if any(type(value) not in (int, float) or not math.isfinite(value) for value in row.get("env_reward", ())):
        raise ValueError("'env_reward' holds something that is not a number")
    if any(value not in (0, 1) for value in row.get("success", ())):
        raise ValueError("'success' holds something that is neither 0 nor 1")
    if not 0 < row.get("fps", 1) < math.inf:
        raise ValueError("'fps' is not above 0")
