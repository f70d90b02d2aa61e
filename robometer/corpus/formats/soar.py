"""SOAR (WidowX, data that the robot gathered by itself) in its RLDS form, with success judged anew by a VLM.

    <input>/.../<data set>/<version>/
        dataset_info.json, features.json       as in `rlds`
        soar_dataset-success.tfrecord-00000-of-00128, soar_dataset-failure.tfrecord-...
    <input>/*label*.json                       the new labels: {"label_corrections": {"0": "successful", ...}}, or only
                                               what is inside
    <input>/blacklist.txt                      optional: keys of the new labels to leave out, one a line

    task      of the first step, as in `rlds`
    quality   of the split; an episode is kept only where the new label says the same. Others, such as infeasible, are
              left out
    views     image_0
    source    soar_rfm

The keys of the new labels count the episodes of the split success and then those of failure, in the order in which
TensorFlow Datasets reads a split (16 files in turn, 16 records of each). Upstream begins anew at 0 for failure, and so
judges failures by the labels of other episodes.

Upstream keeps a failure only if its task has a success. Here all are kept: preference sampling pairs a failure with a
success of its task anyway, and to know the tasks of all files, all of them would have to be read before any.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from robometer.corpus.formats import FormatError, Refused, Unit, common, rlds
from robometer.corpus.readers import tfds
from robometer.trajectory import Episode, TrajectoryError, quality_label

VIEW = "image_0"
SPLITS = {"success": "successful", "failure": "failure"}
"""Splits in the order in which the new labels count them, and the quality that they stand for."""


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The record files of both splits, with the new labels of their records.

    Raises:
        FormatError: there is no data set or more than one, or there are no new labels.
    """
    builder, *others = tfds.builders(input)
    if others:
        raise FormatError(f"{builder.folder} and {others[0].folder} are two data sets: give ingest.input one of them")
    labels, blacklist = _labels(builder.folder, common.absolute(input))
    of, first = source or "soar_rfm", 0
    files = {(file.split, file.number): file for file in builder.files()}
    for split, quality in SPLITS.items():
        lengths = builder.lengths.get(split, [])
        if not lengths:
            raise FormatError(f"{builder.folder}/dataset_info.json has no shardLengths of the split {split}")
        for number, order in enumerate(tfds.reading_order(lengths)):
            if file := files.pop((split, number), None):
                keys = [str(first + place) for place in order]
                new = [None if key in blacklist else str(labels.get(key, "")) for key in keys]
                yield builder.unit(file, builder.name, of, [VIEW], quality=quality, labels=new)
        first += sum(lengths)
    for reason in builder.absent():
        yield Refused(str(builder.folder), reason, of, skipped=True)
    for file in files.values():
        yield Refused(str(file.path), "dataset_info.json has no such file of the splits success and failure", of)


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The trajectories of a record file on whose label both judges agree."""
    for record in rlds.read(unit):
        if isinstance(record, Refused):
            yield record
        elif reason := _left_out(unit, record.number):
            yield record.refused(reason)
        else:
            yield from record.episodes(quality=unit.data["quality"])


def _left_out(unit: Unit, number: int) -> str:
    quality, labels = unit.data["quality"], unit.data["labels"]
    label = labels[number] if number < len(labels) else ""
    if label is None:
        return "it is on the blacklist"
    try:
        agrees = quality_label(label) == quality
    except TrajectoryError:
        agrees = False
    return "" if agrees else f"the new label is {label or 'missing'}, its split says {quality}"


def _labels(*folders: Path) -> tuple[dict[str, Any], set[str]]:
    """New labels by key, and the keys on the blacklist, from beside the data or from the input's folder."""
    found = sorted({path for folder in folders for path in folder.glob("*label*.json")})
    if len(found) != 1:
        there = ", ".join(path.name for path in found) or "none"
        raise FormatError(f"SOAR needs one file *label*.json with new labels in {folders[-1]}; there is {there}")
    labels = common.read_json(found[0])
    labels = labels.get("label_corrections", labels) if isinstance(labels, dict) else None
    if not isinstance(labels, dict):
        raise FormatError(f"{found[0]} is no object of labels by number")
    return labels, {word for folder in folders for word in common.read_words(folder / "blacklist.txt")}
