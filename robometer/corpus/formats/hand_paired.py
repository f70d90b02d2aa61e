"""HAND paired data: the same tasks done by a robot and by a human hand, as JPEG folders.

    <input>/
      blend_carrot/                 robot; the folder's name is the task text ("blend carrot")
        traj0/
          external_imgs/im_0.jpg ...
          over_shoulder_imgs/im_0.jpg ...
      blend_carrot_hand/            human, the same task text

All are successful. Upstream writes the source `hand_paired`, but its lists of paired sources name hand_paired_human and
hand_paired_robot, which are used here. Set `ingest.source_name` to one of the two to read only that half.
"""

from __future__ import annotations

from collections.abc import Iterator

from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.formats.common import folder, numbered, subfolders
from robometer.corpus.formats.image_folders import episodes, unit_of

__all__ = ["episodes", "units"]

NAMES = {True: "hand_paired_robot", False: "hand_paired_human"}
VIEWS = {"external": "external_imgs/*.jpg", "over_shoulder": "over_shoulder_imgs/*.jpg"}


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The `traj*` folders of all tasks.

    Raises:
        FormatError: there are none.
    """
    root = folder(input, "of HAND paired data, with folders <task>/traj<n>")
    is_empty = True
    for task in subfolders(root):
        is_robot = not task.name.endswith("_hand")
        if source in NAMES.values() and source != NAMES[is_robot]:
            continue
        words = task.name.removesuffix("_hand").replace("_", " ")
        for path in numbered(path for path in subfolders(task) if path.name.startswith("traj")):
            is_empty = False
            yield unit_of(path, root, source or NAMES[is_robot], 2, task=words, is_robot=is_robot, views=VIEWS)
    if is_empty:
        raise FormatError(f"{input} has no folders <task>/traj<n>: give ingest.input the root of HAND paired data")
