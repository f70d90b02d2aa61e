"""RoboReward: roll-outs of Open X-Embodiment and RoboArena, graded from 1 (nothing done) to 5 (all done).

    roboreward/
      train/metadata.jsonl            {"file_name": "bridge/0001.mp4", "task": ..., "reward": 4}
      train/bridge/0001.mp4
      val/ ..., test/ ...             (ingest.input is the whole, or one of these folders)

Each line is an episode. A grade r is a partial success of (r - 1) / 4; r = 5 means successful, any other failure. The
first folder in file_name gives the data set, such as `roboreward_bridge`; `robo_arena` becomes `roboarena`, as
upstream. Episodes in `val` and `test` go to the evaluation splits of these names, those in `train` to ingest.split.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.formats.common import folder, name_of
from robometer.corpus.readers.annotations import video_episodes, video_unit
from robometer.corpus.readers.tables import read_table

FILE = "metadata.jsonl"
SPLITS = ("train", "val", "test")
SPELT = {"robo_arena": "roboarena"}

episodes = video_episodes


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The lines of the metadata of each split.

    Raises:
        FormatError: there is no metadata.jsonl.
    """
    root = folder(input, "the folder of RoboReward, which holds train, val or test")
    parts = [part for part in (root, *(root / split for split in SPLITS)) if (part / FILE).is_file()]
    if not parts:
        raise FormatError(
            f"no {FILE} in {root}, nor in its {', '.join(SPLITS)}: give ingest.input a copy of RoboReward"
        )
    for part in parts:
        for place, number, fields in read_table(part / FILE):
            try:
                yield _unit(fields, part, source)
            except ValueError as error:
                yield Refused(f"{part / FILE}:{number}", f"{place} of {FILE} is malformed: {error}", source)


def _unit(fields: dict[str, Any] | ValueError, part: Path, source: str) -> Unit:
    if isinstance(fields, ValueError):
        raise fields
    video, task, reward = (fields.get(name) for name in ("file_name", "task", "reward"))
    parts = PurePosixPath(video).parts if isinstance(video, str) else ()
    if len(parts) < 2 or ".." in parts or parts[0] == "/":
        raise ValueError(f"file_name {json.dumps(video)} must be the path of a file in a folder of its data set")
    if reward not in (1, 2, 3, 4, 5) or isinstance(reward, bool):
        raise ValueError(f"reward {reward!r} is none of 1, 2, 3, 4, 5")
    split = name_of(part)
    row = {
        "video": video,
        "task": task,
        # The split is part of the key, as two splits may have the same file name.
        "episode_key": f"{split}/{video}" if split in SPLITS else video,
        "quality_label": "successful" if reward == 5 else "failure",
        "partial_success": (reward - 1) / 4,
    }
    if split in ("val", "test"):
        row["split"] = split
    return video_unit(row, part, source or f"roboreward_{SPELT.get(parts[0], parts[0])}")
