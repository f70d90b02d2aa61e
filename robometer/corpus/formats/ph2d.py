"""PH2D: people and humanoids doing the same tasks, in HDF5 files with an encoded image per frame and eye.

    ph2d_metadata.json                      per_task_attributes: {"104-grasping_...": {"embodiment_type": "human_avp"}}
    104-grasping_.../
        processed_episode_0.hdf5            attribute description: the task
            observation.image.right         [T] encoded images, or uint8 [T, N] with zeros after each image
            observation.image.left          the same; one of the two may be missing

Each eye of a file is a trajectory of the data set ph2d: views `right` and `left` of one episode, successful, with
partial_success 1. The folder's embodiment says who acts: people (human_...) or robots (h1_..., and any other).

* Upstream decodes with OpenCV and treats its BGR as RGB; here frames are RGB.
* A folder that `ph2d_metadata.json` does not name is refused, as it is unknown who acts in it. Upstream never opens it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from robometer.corpus.formats import FormatError, Refused, Unit, common
from robometer.corpus.readers.hdf5 import attribute, dataset, encoded_frames, opened
from robometer.trajectory import Episode, TrajectoryError

SOURCE = "ph2d"
LISTING = "ph2d_metadata.json"
_HUMAN = re.compile(r"human(_.*)?")  # not humanoid


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The HDF5 files of all listed folders, and a refusal for each folder that is not listed, or is empty.

    Raises:
        FormatError: there is no such folder, or its listing is missing or malformed.
    """
    root = common.folder(input, f"the folder of PH2D's {LISTING}")
    if not (root / LISTING).is_file():
        raise FormatError(f"no {LISTING} in {input}: give ingest.input the downloaded folder of PH2D, which holds it")
    listing = common.read_json(root / LISTING)
    tasks = listing.get("per_task_attributes") if isinstance(listing, dict) else None
    if not isinstance(tasks, dict):
        raise FormatError(f"{root / LISTING} has no per_task_attributes: it is not from PH2D")
    name = source or SOURCE
    files = {path.name: common.files(path, "*.hdf5") for path in common.subfolders(root)}
    for folder in sorted(tasks.keys() | {folder for folder, paths in files.items() if paths}):
        attributes, paths = tasks.get(folder), files.get(folder, [])
        who = attributes.get("embodiment_type") if isinstance(attributes, dict) else None
        if not isinstance(who, str) or not who:
            reason = f"{LISTING} names no embodiment_type for it: it is unknown whether humans or robots act"
            yield Refused(str(root / folder), reason, name, folder)
        elif not paths:
            yield Refused(str(root / folder), f"{LISTING} names it, but it holds no *.hdf5 file", name, folder)
        else:
            data = {"is_robot": _HUMAN.fullmatch(who) is None}
            yield from (Unit(f"{folder}/{path.stem}", name, str(path), count=2, data=data) for path in paths)


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The trajectory of each eye that the file has."""
    with opened(unit.uri) as file:
        task = attribute(file, "description")
        views = [view for view in ("right", "left") if f"observation.image.{view}" in file]
        if not views:
            raise FormatError("the file has neither observation.image.right nor observation.image.left")
        for view in views:
            images = dataset(file, f"observation.image.{view}")
            if images is None or not images.shape:
                raise TrajectoryError(f"observation.image.{view} is not an array")
            yield Episode(
                source=unit.source,
                episode_key=unit.key,
                view=view,
                task=task,
                recording=encoded_frames(images),
                uri=unit.uri,
                is_robot=unit.data["is_robot"],
                partial_success=1.0,
            )
