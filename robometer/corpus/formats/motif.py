"""MotIF: the same motions by people and by a Stretch robot, each with a sentence on what is done and how.

    motif/
      annotations/human_motion_data_info.json      [{"video_path", "task_instruction", "motion_description"}, ...]
      annotations/stretch_motion_data_info.json
      human_motion/videos_raw/*.mp4                the file that `video_path` names last
      stretch_motion/videos_raw/*.mp4

One episode per entry, `motif_rfm`, successful; the task is "task_instruction: motion_description". Only instructions of
which both a human's and a robot's video are there make episodes, the others are left out by design. Differences from
upstream: instructions are compared without regard to case and spaces, and the name is that of its success cut-off
(upstream's loader writes `motif`, which its cut-offs do not know).
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
        FormatError: one of them is missing or no list.
    """
    root = folder(input, "the folder of MotIF, which holds `annotations`")
    name = source or "motif_rfm"
    found = {side: list(_entries(root, side, name)) for side in SIDES}
    common = set.intersection(*({_instruction(unit) for unit in found[side]} for side in SIDES))
    for side, other in zip(SIDES, reversed(SIDES), strict=True):
        for unit in found[side]:
            if isinstance(unit, Unit) and _instruction(unit) not in common:
                reason = f"no {other} video shows {unit.data['task']!r}"
                yield Refused(unit.uri, reason, name, unit.data["video"], skipped=True)
            else:
                yield unit


def _entries(root: Path, side: str, source: str) -> Iterator[Unit | Refused]:
    path = root / "annotations" / f"{side}_motion_data_info.json"
    content = read_json(path)
    if not isinstance(content, list):
        raise FormatError(f"{path} is no list of annotations")
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
