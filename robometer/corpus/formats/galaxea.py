"""Galaxea Open-World Dataset (Galaxea R1-Lite), in its RLDS form.

    <input>/.../part1_r1_lite/<version>/       to part5_r1_lite; sample_r1_lite too
        dataset_info.json, features.json       as in `rlds`
        merge_dataset_large_r1_lite-train.tfrecord-00000-of-01024

    task      the third part of `language_instruction`, high level@low level Chinese@low level English; all of it where
              it has fewer parts
    quality   successful
    views     image_camera_head
    source    galaxea_<part>, e.g. galaxea_part1_r1_lite, by the folder's name

As upstream does, episodes of more than 1000 frames are left out, and tasks that hold all of return, to, initial and
position: in them the robot only goes back.
"""

from __future__ import annotations

from collections.abc import Iterator

from robometer.corpus.formats import Refused, Unit, rlds
from robometer.corpus.readers import tfds
from robometer.corpus.readers.tfrecord import RecordError
from robometer.trajectory import Episode

VIEW = "image_camera_head"
MAX_FRAMES = 1000
GOING_BACK = ("return", "to", "initial", "position")


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The record files of all parts below a folder.

    Raises:
        FormatError: there is none.
    """
    for builder in tfds.builders(input):
        part = builder.folder.parent.name
        of = source or f"galaxea_{part}"
        if VIEW not in builder.cameras():
            yield Refused(str(builder.folder), f"it has no camera {VIEW}: it is no part of the Galaxea data set", of)
            continue
        for reason in builder.absent():
            yield Refused(str(builder.folder), reason, of, skipped=True)
        for file in builder.files():
            yield builder.unit(file, part, of, [VIEW])


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The head camera's trajectories of a record file."""
    for record in rlds.read(unit):
        if isinstance(record, Refused):
            yield record
            continue
        task = _english(record.task)
        if reason := _left_out(record, task):
            yield record.refused(reason)
        else:
            yield from record.episodes(task)


def _english(task: str) -> str:
    parts = task.split("@")
    return (parts[2] if len(parts) > 2 else task).strip()


def _left_out(record: rlds.EpisodeRecord, task: str) -> str:
    if all(word in task.lower() for word in GOING_BACK):
        return "in this task the robot only returns to its initial position"
    try:
        count = record.frames(VIEW).count
    except RecordError:
        return ""  # `episodes` says why
    return f"it has {count} frames, more than {MAX_FRAMES}" if count > MAX_FRAMES else ""
