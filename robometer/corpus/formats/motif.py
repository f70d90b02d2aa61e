"""MotIF: the same motions by people and by a Stretch robot, each with a sentence that says what is done and how.

    motif/
      annotations/human_motion_data_info.json      [{"video_path", "task_instruction", "motion_description"}, ...]
      annotations/stretch_motion_data_info.json
      human_motion/videos_raw/*.mp4                the last part of `video_path`
      stretch_motion/videos_raw/*.mp4

Each entry is an episode of the data set `motif_rfm`, successful. The task is "task_instruction: motion_description". An
instruction without both a human's and a robot's video is left out by design. Differences from upstream: instructions
are compared without case and spaces, and the data set has the name of its success cut-off (upstream's loader writes
`motif`, for which upstream has no cut-off).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.formats.common import folder, read_json
from robometer.corpus.readers.annotations import video_episodes, video_unit
from robometer.trajectory import normalise_task

SIDES = ("human", "stretch")

episodes = video_episodes


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The entries of both annotation files.

    Raises:
        FormatError: one of them is missing, or is not a list.
    """
    root = folder(input, "the folder of MotIF, which holds `annotations`")
    name = source or "motif_rfm"
    entries = {side: list(_entries(root, side, name)) for side in SIDES}
    common = set.intersection(*({_instruction(entry) for entry in entries[side]} for side in SIDES))
    for side, other in zip(SIDES, reversed(SIDES), strict=True):
        for entry in entries[side]:
            if isinstance(entry, Unit) and _instruction(entry) not in common:
                reason = f"no {other} video shows {entry.data['task']!r}"
                yield Refused(entry.uri, reason, name, entry.data["video"], skipped=True)
            else:
                yield entry


def _entries(root: Path, side: str, source: str) -> Iterator[Unit | Refused]:
    path = root / "annotations" / f"{side}_motion_data_info.json"
    content = read_json(path)
    if not isinstance(content, list):
        raise FormatError(f"{path} must be a list of annotations")
    for number, entry in enumerate(content, start=1):
        try:
            unit = video_unit(_row(side, entry), root, source)
        except (KeyError, TypeError, ValueError) as error:
            yield Refused(f"{path}:{number}", f"entry {number} of {path.name} is malformed ({error!r})", source)
            continue
        video = unit.data["video"]
        yield unit if Path(unit.uri).is_file() else Refused(unit.uri, f"there is no file {video}", source, video)


def _row(side: str, entry: dict[str, Any]) -> dict[str, Any]:
    words = [entry["task_instruction"].strip(), entry["motion_description"].strip()]
    if not all(words):
        raise ValueError("no task text")
    video = PurePosixPath(entry["video_path"]).name
    return {
        "video": f"{side}_motion/videos_raw/{video}",
        "task": ": ".join(words),
        "is_robot": side == "stretch",
    }


def _instruction(entry: Unit | Refused) -> str | None:
    return normalise_task(entry.data["task"]) if isinstance(entry, Unit) else None
