"""Human2Robot (H2R, the HumanAndRobot data): each HDF5 file shows a person and a robot doing the same.

    tasks.json                              optional, yours: {"grab_cup_v1": "pick up the cup", ...}
    grab_cup_v1/                            at any depth
        episode_0.hdf5
            cam_data/human_camera           uint8 [T, H, W, 3], BGR
            cam_data/robot_camera           uint8 [T, H, W, 3], BGR

A file gives two trajectories with one episode key, views `human` and `robot`, both successful, in the data set h2r.

* The task is the folder's entry in `tasks.json`, else the folder's name in words without its version: "grab cup".
  Upstream has a table of 18 folders in its code and skips the others. To train on its wording, write it into
  `tasks.json`. A folder whose name has no words and that `tasks.json` does not name is refused.
* `roll` and `writing...` are skipped, as upstream (movements without a goal), unless `tasks.json` names them.
* Frames are converted from BGR to RGB, as upstream.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from robometer.corpus.formats import FormatError, Refused, Unit, common
from robometer.corpus.readers.hdf5 import Frames, dataset, opened
from robometer.trajectory import Episode, TrajectoryError

SOURCE = "h2r"
_AIMLESS = re.compile(r"(roll|writing)(_.*)?")


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The HDF5 files of all tasks.

    Raises:
        FormatError: there is no such folder, it has no HDF5 files, or `tasks.json` is malformed.
    """
    root = common.folder(input, "a folder of H2R's task folders")
    texts = common.task_texts(root)
    paths = common.files(root, "**/*.hdf5")
    if not paths:
        raise FormatError(f"no *.hdf5 file below {input}: give ingest.input a folder of H2R's task folders")
    for path in paths:
        folder, name = path.parent.name, source or SOURCE
        key = path.relative_to(root).with_suffix("").as_posix()
        task = texts.get(folder) or _words(folder)
        if folder not in texts and _AIMLESS.fullmatch(folder):
            yield Refused(str(path), f"{folder!r} has no goal: upstream leaves it out", name, key, skipped=True)
        elif not task:
            reason = f"no task text: the folder's name {folder!r} has no words, and tasks.json does not name it"
            yield Refused(str(path), reason, name, key)
        else:
            yield Unit(key, name, str(path), count=2, data={"task": task})


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The human's trajectory and the robot's."""
    with opened(unit.uri) as file:
        for view in ("human", "robot"):
            try:
                frames = dataset(file, f"cam_data/{view}_camera")
                if frames is None:
                    raise TrajectoryError(f"the file has no cam_data/{view}_camera")
            except TrajectoryError as error:
                yield Refused(unit.uri, str(error), unit.source, unit.key, view)
                continue
            yield Episode(
                source=unit.source,
                episode_key=unit.key,
                view=view,
                task=unit.data["task"],
                recording=Frames(frames, change=_rgb),
                uri=unit.uri,
                is_robot=view == "robot",
            )


def _words(folder: str) -> str:
    words = re.findall(r"[^\W\d_]+|\d+", re.sub(r"_v\d+$", "", folder))
    return " ".join(words) if any(word.isalpha() for word in words) else ""


def _rgb(frame: np.ndarray) -> np.ndarray:
    return frame[..., ::-1]
