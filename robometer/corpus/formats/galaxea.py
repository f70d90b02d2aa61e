"""Galaxea Open-World Dataset (Galaxea R1-Lite), in its RLDS form.

    <input>/.../part1_r1_lite/<version>/       to part5_r1_lite; sample_r1_lite too
        dataset_info.json, features.json       as in `rlds`
        merge_dataset_large_r1_lite-train.tfrecord-00000-of-01024

    task      the third part of `language_instruction`, which is high level@low level Chinese@low level English; all of
              it if it has fewer parts
    quality   successful
    views     image_camera_head
    source    galaxea_<part>, e.g. galaxea_part1_r1_lite, by the folder's name

As upstream, this leaves out episodes of more than 1000 frames, and tasks with all the words return, to, initial and
position, in which the robot only moves back.
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
        FormatError: there are none.
    """
    for builder in tfds.builders(input):
        part = builder.folder.parent.name
        name = source or f"galaxea_{part}"
        if VIEW not in builder.cameras():
            yield Refused(str(builder.folder), f"it has no camera {VIEW}: it is not part of the Galaxea data set", name)
            continue
        for reason in builder.absent():
            yield Refused(str(builder.folder), reason, name, skipped=True)
        for file in builder.files():
            yield builder.unit(file, part, name, [VIEW])


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The trajectories of a record file, from the head camera."""
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
        return ""  # `episodes` refuses the record with the reason
    return f"it has {count} frames, more than {MAX_FRAMES}" if count > MAX_FRAMES else ""
