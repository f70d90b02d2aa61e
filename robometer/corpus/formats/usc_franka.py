"""USC Franka policy ranking: PNG frames of one camera, which is mounted at 90 degrees.

    <input>/
      fold_towel_success_3/                     <task>_<quality>_<id>
        images/camera_south_color_0.png ...     turned clockwise when read

Quality: success(ful), subopt(imal), fail(ure). Four tasks have a sentence; the others are their name in words, as
upstream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.formats.common import folder, numbered, subfolders
from robometer.corpus.formats.image_folders import episodes, refused, unit_of
from robometer.errors import RobometerError
from robometer.trajectory import quality_label

__all__ = ["episodes", "units"]

NAME = "usc_franka_policy_ranking"
TASKS = {
    "plate_in_sink": "Put the yellow plate in the sink",
    "fold_towel": "Fold the towel in half",
    "red_cube_on_gray_cube": "Stack the red cube on the gray cube",
    "put_banana_on_red_plate": "Put the banana on the red plate",
}
VIEWS = {"south": "images/camera_south_color*.png"}


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The episode folders.

    Raises:
        FormatError: there are none.
    """
    root = folder(input, "with folders <task>_<quality>_<id>")
    yield from ranked_units(root, source or NAME, TASKS, clockwise=True, views=VIEWS)


def ranked_units(root: Path, source: str, tasks: Mapping[str, str], **data: Any) -> Iterator[Unit | Refused]:
    """The folders `<task>_<quality>_<id>` in `root` as units with `data`, in the order of their numbers.

    Raises:
        FormatError: there are none.
    """
    if not (paths := numbered(subfolders(root))):
        raise FormatError(f"{root} has no folders <task>_<quality>_<id>")
    for path in paths:
        try:
            task, quality = ranked(path.name, tasks)
        except RobometerError as error:
            yield refused(path, str(error))
            continue
        yield unit_of(path, root, source, task=task, quality_label=quality, **data)


def ranked(name: str, tasks: Mapping[str, str]) -> tuple[str, str]:
    """Task text and quality label of a folder `<task>_<quality>_<id>`.

    Raises:
        FormatError, TrajectoryError: the name has another form.
    """
    task, *rest = name.rsplit("_", 2)
    if len(rest) != 2:
        raise FormatError(f"the folder's name {name} is not <task>_<quality>_<id>")
    label = quality_label({"subopt": "suboptimal"}.get(rest[0].lower(), rest[0]))
    return tasks.get(task, task.replace("_", " ").capitalize()), label
