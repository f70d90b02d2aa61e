"""SOAR (data that WidowX robots gathered by themselves) in its RLDS form, with success relabelled by a VLM.

    <input>/.../<data set>/<version>/
        dataset_info.json, features.json       as in `rlds`
        soar_dataset-success.tfrecord-00000-of-00128, soar_dataset-failure.tfrecord-...
    <input>/*label*.json                       the new labels: {"label_corrections": {"0": "successful", ...}}, or just
                                               the inner object
    <input>/blacklist.txt                      optional: keys of the new labels to leave out, one a line

    task      of the first step, as in `rlds`
    quality   of the split. Episodes whose new label differs (such as infeasible) are left out
    views     image_0
    source    soar_rfm

The keys of the new labels number the episodes of the split success and then those of failure, in the order in which
TensorFlow Datasets reads a split (16 files in turn, 16 records from each). Upstream starts at 0 again for failure, so
it applies the labels of other episodes to the failures.

Upstream keeps a failure only if its task has a success. Here all failures are kept: preference sampling needs a success
of the same task anyway, and checking this would mean to read all files first.
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
"""Quality of each split, in the order in which the new labels number them."""


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The record files of both splits, with the new labels of their records.

    Raises:
        FormatError: there is no data set or more than one, or there are no new labels.
    """
    builder, *others = tfds.builders(input)
    if others:
        raise FormatError(f"{builder.folder} and {others[0].folder} are two data sets: give ingest.input one of them")
    labels, blacklist = _labels(builder.folder, common.absolute(input))
    name, first = source or "soar_rfm", 0
    files = {(file.split, file.number): file for file in builder.files()}
    for split, quality in SPLITS.items():
        lengths = builder.lengths.get(split, [])
        if not lengths:
            raise FormatError(f"{builder.folder}/dataset_info.json has no shardLengths for the split {split}")
        for number, order in enumerate(tfds.reading_order(lengths)):
            if file := files.pop((split, number), None):
                keys = [str(first + place) for place in order]
                new = [None if key in blacklist else str(labels.get(key, "")) for key in keys]
                yield builder.unit(file, builder.name, name, [VIEW], quality=quality, labels=new)
        first += sum(lengths)
    for reason in builder.absent():
        yield Refused(str(builder.folder), reason, name, skipped=True)
    for file in files.values():
        yield Refused(str(file.path), "dataset_info.json lists no such file for the splits success and failure", name)


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The trajectories of a record file whose split and new label agree."""
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
    return "" if agrees else f"the new label is {label or 'missing'}, but its split says {quality}"


def _labels(*folders: Path) -> tuple[dict[str, Any], set[str]]:
    """New labels by key, and the keys on the blacklist, from the data's folder or the input."""
    paths = sorted({path for folder in folders for path in folder.glob("*label*.json")})
    if len(paths) != 1:
        names = ", ".join(path.name for path in paths) or "none"
        raise FormatError(f"SOAR needs exactly one file *label*.json with new labels in {folders[-1]}; it has {names}")
    labels = common.read_json(paths[0])
    labels = labels.get("label_corrections", labels) if isinstance(labels, dict) else None
    if not isinstance(labels, dict):
        raise FormatError(f"{paths[0]} must be an object of labels by number")
    return labels, {word for folder in folders for word in common.read_words(folder / "blacklist.txt")}
