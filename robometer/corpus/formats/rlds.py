"""RLDS episodes as TensorFlow Datasets writes them: Open X-Embodiment, DROID, Bridge and others; no TensorFlow needed.

    <input>/.../<data set>/<version>/          the input may also be one data set, or one version of it
        dataset_info.json                      name, number of records per file
        features.json                          which features are images, and their shapes
        <data set>-<split>.tfrecord-00000-of-01024

One record is one episode. `steps/observation/<key>` holds the encoded images (or plain uint8 tensors) of all steps.

    task      of the steps, in their observation or beside it, else in episode_metadata or at the record's root:
              natural_language_instruction, language_instruction, instruction, language_instruction1 to 3 (DROID: _2,
              _3); rows of zero-padded character codes are text too, and of several texts a step (ragged ones) the
              first is taken. Of several tasks in one episode that of two thirds of its steps, else it is refused
    quality   episode_metadata's flag success (or the like) where there is one; else the word success or failure as a
              folder in its file_path (DROID); else successful: these are demonstrations
    views     each camera is a trajectory. Of data sets in `VIEWS` those named there; of others all but those on a wrist
              or in a hand. A camera whose first frame is black was not connected, and is left out
    source    oxe_<data set> for the split train, oxe_<data set>_eval for any other; the split of these is their own
    caps      of language_table the first 50,000 episodes, in the order of the files

A checksum that is wrong costs its record; a file that breaks off costs what would follow.

Unlike upstream, data sets whose only camera is on the wrist (berkeley_mvp, berkeley_rpt) keep it: upstream's code
makes nothing of them, although it trains on them.
"""

from __future__ import annotations

import logging
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from robometer.corpus.formats import FormatError, Refused, Unit, common
from robometer.corpus.readers import tfds
from robometer.corpus.readers.tfrecord import Example, RecordError, read_records
from robometer.frames.recording import ImageSequence
from robometer.frames.video import VideoError
from robometer.trajectory import Episode, TrajectoryError

logger = logging.getLogger(__name__)

ALIASES = {"bridge_dataset": "bridge_v2", "bridge_orig": "bridge_v2", "droid_100": "droid"}
"""Data sets that upstream names otherwise."""

VIEWS = {
    "aloha_mobile": ("cam_high",),
    "berkeley_cable_routing": ("image",),
    "bridge_v2": ("image_0", "image_1", "image_2"),
    "droid": ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left"),
    "robo_set": ("image_right", "image_left"),
}
"""Cameras that upstream takes, where those are not all external ones."""

READ_BY = {"soar_dataset": "soar", "merge_dataset_large_r1_lite": "galaxea"}
"""Data sets whose labels or tasks another format of ours knows how to read."""

BGR = ("nyu_rot_dataset_converted_externally_to_rlds",)
CAPS = {"language_table": 50_000}

_TASKS = (
    "natural_language_instruction",
    "language_instruction",
    "instruction",
    *(f"language_instruction{i}" for i in ("1", "2", "3", "_1", "_2", "_3")),
)
_PLACES = (tfds.OBSERVATION, "steps/", "episode_metadata/", "")
_RAGGED, _LENGTHS = "/ragged_flat_values", "/ragged_row_lengths_0"

_FLAGS = ("success", "is_success", "successful", "task_success", "episode_success", "is_episode_successful")
_PATHS = ("file_path", "recording_folderpath", "path")
_OUTCOMES = {
    **dict.fromkeys(("success", "successes", "successful", "succeeded", "true", "1"), "successful"),
    **dict.fromkeys(("failure", "failures", "fail", "failed", "unsuccessful", "false", "0"), "failure"),
}
"""What a flag, or a folder of a path, says of how the episode ended."""

_WRIST = re.compile(r"wrist|hand(?!le)|gripper")


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The record files of all data sets below a folder.

    Raises:
        FormatError: there is none, two versions of one, or one that another format reads.
    """
    seen: dict[str, Path] = {}
    for builder in tfds.builders(input):
        name = ALIASES.get(builder.name, builder.name)
        if name in READ_BY:
            raise FormatError(f"{builder.folder} is {name}: ingest.format={READ_BY[name]} knows its labels")
        if name in seen:
            raise FormatError(f"{seen[name]} and {builder.folder} are both {name}: give ingest.input one of them")
        seen[name] = builder.folder
        of = source or f"oxe_{name}"
        views, others = _chosen(name, builder.cameras())
        for view in others:
            reason = (
                "a wrist camera" if _WRIST.search(view) else "not among the cameras that are taken of this data set"
            )
            yield Refused(str(builder.folder), reason, of, view=view, skipped=True)
        for reason in builder.absent():
            yield Refused(str(builder.folder), reason, of, skipped=True)
        if not (views and builder.files()):
            yield Refused(str(builder.folder), "it has no *.tfrecord files, or none of its observations is RGB", of)
            continue
        yield from _units(builder, name, source, views)


def _chosen(name: str, cameras: list[str]) -> tuple[list[str], list[str]]:
    """The cameras to take of a data set, and those that it has besides."""
    views = [view for view in VIEWS.get(name, ()) if view in cameras]
    views = views or [view for view in cameras if not _WRIST.search(view)] or cameras
    return views, [view for view in cameras if view not in views]


def _units(builder: tfds.Builder, name: str, source: str, views: list[str]) -> Iterator[Unit | Refused]:
    left = CAPS.get(name)
    for file in builder.files():
        training = file.split == "train"
        of = source or f"oxe_{name}" + ("" if training else "_eval")
        most = left
        if left is not None:
            if file.length is None:
                raise FormatError(f"{builder.folder}/dataset_info.json has no shardLengths, by which {name} is capped")
            left -= min(left, file.length)
        if most == 0:
            reason = f"{file.length} episodes above the cap of {CAPS[name]}"
            yield Refused(str(file.path), reason, of, skipped=True)
            continue
        data = {"most": most, "split": "" if training else file.split, "bgr": name in BGR}
        yield builder.unit(file, name, of, views, **data)


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The views of the episodes of a record file."""
    for record in read(unit):
        yield from [record] if isinstance(record, Refused) else record.episodes()


@dataclass(frozen=True)
class EpisodeRecord:
    """One episode of a file: its number in it, and its task; empty if it has none."""

    unit: Unit
    number: int
    task: str
    example: Example

    def episodes(self, task: str | None = None, quality: str | None = None) -> Iterator[Episode | Refused]:
        """A trajectory per camera that was connected.

        Args:
            task: where the format knows it better than the record.
            quality: the same; without it the record's own outcome.
        """
        task = self.task if task is None else task
        if not task.strip():
            yield self.refused(_no_task(self.example), skipped=False)
            return
        try:
            quality = quality or outcome(self.example) or "successful"
        except (RecordError, TrajectoryError) as error:
            yield self.refused(str(error), skipped=False)
            return
        for view in self.unit.data["views"]:
            try:
                frames = self.frames(view)
            except RecordError as error:
                yield self.refused(str(error), view, skipped=False)
                continue
            if _is_black(frames):
                yield self.refused("the first frame is black: the camera was not connected", view)
                continue
            yield Episode(
                source=self.unit.source,
                episode_key=_key(self.unit, self.number),
                view=view,
                task=task,
                recording=frames,
                uri=f"{self.unit.uri}#{self.number}",
                raw_quality_label=quality,
                split=self.unit.data.get("split", ""),
            )

    def frames(self, view: str) -> ImageSequence:
        """The images of a camera: encoded ones are looked at one by one, plain ones unpacked when the first is.

        Raises:
            RecordError: the record is malformed.
        """
        path = tfds.OBSERVATION + view
        blobs, leaf = self.example.blobs(path), tfds.features(Path(self.unit.uri).parent)[path]
        change = _swapped if self.unit.data.get("bgr") else None
        if "image" in leaf:
            return ImageSequence(len(blobs), lambda i: bytes(blobs[i]), change=change)
        shape = tfds.shape(leaf)
        if blobs:
            unpacked = zlib.decompress if leaf["tensor"].get("encoding") == "zlib" else bytes
            plain = lambda i: np.frombuffer(unpacked(blobs[i]), np.uint8).reshape(shape)  # noqa: E731
            return ImageSequence(len(blobs), plain, change=change)
        count = len(self.example.octets("steps/is_first"))
        array = cache(lambda: self.example.octets(path).reshape(count, *shape))
        return ImageSequence(count, lambda i: array()[i], change=change)

    def refused(self, reason: str, view: str = "", skipped: bool = True) -> Refused:
        """The record, or a view of it, as something left out."""
        key = _key(self.unit, self.number)
        return Refused(f"{self.unit.uri}#{self.number}", reason, self.unit.source, key, view, skipped)


def read(unit: Unit) -> Iterator[EpisodeRecord | Refused]:
    """The episodes of a record file, one record in memory at a time.

    Raises:
        FormatError: the file ends before its last record; those before it have been given.
    """
    expected, most, done = unit.data["records"], unit.data.get("most"), 0
    try:
        for number, content in enumerate(read_records(Path(unit.uri))):
            if number == most:
                yield Refused(unit.uri, f"{expected - most} episodes above the cap", unit.source, skipped=True)
                return
            try:
                yield _record(unit, number, content)
            except (RecordError, TrajectoryError) as error:
                yield Refused(f"{unit.uri}#{number}", str(error), unit.source, _key(unit, number))
            done = number + 1
    except RecordError as error:
        raise FormatError(f"{error}; {done} records were read before") from error
    if expected is not None and done < expected:
        raise FormatError(f"the file ends after {done} of the {expected} records that it should have")


def _record(unit: Unit, number: int, content: bytes | RecordError) -> EpisodeRecord:
    if isinstance(content, RecordError):
        raise content
    example = Example(content)
    return EpisodeRecord(unit, number, _task(example, tfds.features(Path(unit.uri).parent)), example)


def _key(unit: Unit, number: int) -> str:
    return f"{unit.key}#{number}"


def _task(example: Example, features: dict[str, Any]) -> str:
    """The instruction of an episode; empty if there is none.

    Raises:
        TrajectoryError: its steps have several, or it is not UTF-8.
    """
    for path in (place + name for place in _PLACES for name in _TASKS):
        counts = Counter(text for text in _texts(example, path, features) if text)
        if not counts:
            continue
        task, most = counts.most_common(1)[0]
        if 3 * most < 2 * counts.total():
            told = ", ".join(f"{text!r} ({count})" for text, count in counts.most_common(3))
            raise TrajectoryError(f"its {counts.total()} steps have several tasks, and none two thirds of them: {told}")
        if len(counts) > 1:
            logger.info("of the tasks of an episode's steps that of most is taken: %s", dict(counts))
        return task
    return ""


def _texts(example: Example, path: str, features: dict[str, Any]) -> list[str]:
    """The texts of a feature, one per step; of several of a step the first that is not empty."""
    texts = [common.text(bytes(blob)).strip() for blob in example.blobs(path)]
    if flat := example.blobs(path + _RAGGED):
        texts, left = [], iter(common.text(bytes(blob)).strip() for blob in flat)
        for count in example.integers(path + _LENGTHS):
            texts.append(next(filter(None, list(islice(left, count))), ""))
    length = tfds.shape(features.get(path, {}))
    if not texts and len(length) == 1:  # language_table: codes of the characters, one row per step
        codes = example.octets(path)
        rows = codes[: len(codes) // max(1, length[0]) * length[0]].reshape(-1, max(1, length[0]))
        texts = [common.text(row[row > 0].tobytes()).strip() for row in rows]
    return texts


def outcome(example: Example) -> str:
    """`successful`, `failure`, or empty where the record says neither.

    Raises:
        TrajectoryError: its path says both.
    """
    for name in (place + flag for place in ("episode_metadata/", "") for flag in _FLAGS):
        said = [bytes(blob).decode("utf-8", "replace").strip().lower() for blob in example.blobs(name)]
        said = said or [str(int(value)) for value in example.numbers(name)]
        if said and said[-1] in _OUTCOMES:
            return _OUTCOMES[said[-1]]
    for name in _PATHS:
        for blob in example.blobs(f"episode_metadata/{name}"):
            path = bytes(blob).decode("utf-8", "replace").lower().replace("\\", "/")
            found = {_OUTCOMES[part] for part in path.split("/") if part in _OUTCOMES and part.isalpha()}
            if len(found) > 1:
                raise TrajectoryError(f"its {name} names both success and failure: {path}")
            if found:
                return found.pop()
    return ""


def _no_task(example: Example) -> str:
    places = ", ".join(place.rstrip("/") or "the record's root" for place in _PLACES)
    there = ", ".join(sorted(name for name in example.names if "observation" not in name)[:12])
    return f"no task text: looked for {', '.join(_TASKS[:3])} ... in {places}; the record has {there}"


def _swapped(frame: np.ndarray) -> np.ndarray:
    return frame[..., ::-1]


def _is_black(frames: ImageSequence) -> bool:
    try:
        return not replace(frames, count=min(1, frames.count)).read(lambda count, fps: np.zeros(1, int)).frames.any()
    except VideoError:
        return False  # it is refused for that
