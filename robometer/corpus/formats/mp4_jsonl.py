"""Videos with a `trajectories.jsonl` beside them: the bundled corpus, and the format for your own data.

Each line is a JSON object. `video` (a path relative to the file) and `task` (the instruction) are required; then

    quality_label     successful (default), suboptimal or failure
    source            name of the data set (default: the folder's name); training and reports group by it
    episode_key       names the episode within its source (default: `video`); with `view` it identifies the trajectory
    view              name of the camera (default: main); each view of an episode is a line of its own
    is_robot          true (default) or false for a human
    partial_success   0 to 1, how much of the task was done, if somebody judged that
    split             train or the name of an evaluation split (default: ingest.split)
    fps               frames per second, if the video's own value is wrong
    first, count      a cut: `count` frames from frame `first` on (default: from frame 0 to the end)
    env_reward        the simulator's reward: a list of numbers, one per frame of the video
    success           the simulator's success flag: a list of 0 and 1, one per frame of the video

Read other tables (CSV, JSON, YAML, other names of columns) with `annotated_videos`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.formats.common import absolute
from robometer.corpus.readers.annotations import from_row, video_episodes

FILE = "trajectories.jsonl"
BUNDLED = "bundled"

episodes = video_episodes


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The lines of a folder's `trajectories.jsonl`, of such a file, or of the bundled corpus (`bundled`).

    Raises:
        FormatError: there is no such file.
    """
    path = _listing(input)
    with path.open("rb") as content:
        for number, line in enumerate(content, start=1):
            if line.strip():
                place = f"line {number} of {path.name}"
                yield from_row(_object, line, path.parent, source, place=place, uri=f"{path}:{number}")


def _listing(input: str) -> Path:
    path = Path(str(resources.files("robometer") / "data" / "metaworld")) if input == BUNDLED else absolute(input)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        if not Path(input).exists():
            raise FormatError(f"There is no folder or file {input!r}.")
        raise FormatError(f"no {FILE} at {input}: give ingest.input a folder that holds one, or the file itself")
    return path


def _object(line: bytes) -> dict[str, Any]:
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("it is not an object")
    return row
