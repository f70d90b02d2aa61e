"""RoboFail: failures of a real robot at household tasks.

    robofail/
      real_data/<folder>/videos/color.mp4        putAppleBowl1, putAppleBowl2, boilWater1 ...
      tasks.json                                 optional: {"putAppleBowl": "put the apple into the bowl", ...}

Each folder is an episode of the data set `robofail`: a robot, a failure. The task is the entry of `tasks.json` for the
folder's name, with or without its number; else the name without its number, in words: "put apple bowl" (upstream has a
table of 30 sentences in its code).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.formats.common import folder, subfolders, task_texts
from robometer.corpus.readers.annotations import spaced, video_episodes, video_unit

VIDEO = "videos/color.mp4"

episodes = video_episodes


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The folders of `real_data`.

    Raises:
        FormatError: there is no such folder, or it is empty.
    """
    root = folder(input, "the folder of RoboFail, which holds `real_data`")
    folders = subfolders(root / "real_data") if (root / "real_data").is_dir() else []
    if not folders:
        raise FormatError(f"no folders in {root / 'real_data'}: give ingest.input a copy of RoboFail")
    tasks, name = task_texts(root), source or "robofail"
    for path in folders:
        kind = re.sub(r"_?\d+$", "", path.name)
        video = f"real_data/{path.name}/{VIDEO}"
        if not (root / video).is_file():
            yield Refused(str(path), f"the folder has no {VIDEO}", name, path.name)
            continue
        task = tasks.get(path.name) or tasks.get(kind) or spaced(kind)
        try:
            yield video_unit({"video": video, "task": task, "quality_label": "failure"}, root, name)
        except ValueError as error:
            yield Refused(str(path), str(error), name, path.name)
