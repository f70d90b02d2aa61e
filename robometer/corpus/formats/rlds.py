"""RLDS episodes as TensorFlow Datasets writes them (Open X-Embodiment, DROID, Bridge, ...), read without TensorFlow.

    <input>/.../<data set>/<version>/          the input may also be one data set, or one version of it
        dataset_info.json                      name, number of records per file
        features.json                          which features are images, and their shapes
        <data set>-<split>.tfrecord-00000-of-01024

Each record is an episode. `steps/observation/<key>` holds the encoded images (or plain uint8 tensors) of all steps.

    task      natural_language_instruction, language_instruction, instruction or language_instruction1 to 3 (DROID: _2,
              _3), in the steps' observation or beside it, else in episode_metadata or at the record's root. Rows of
              zero-padded character codes are text too. If a step has several texts (ragged ones), the first is taken.
              If an episode has several tasks, the one of two thirds of its steps; else the episode is refused
    quality   a flag such as success in episode_metadata; else a folder named success or failure in its file_path
              (DROID); else successful, since these are demonstrations
    views     each camera is a trajectory. Data sets in `VIEWS` give the cameras named there, others all cameras but
              those on a wrist or hand. A camera whose first frame is black was not connected, and is left out
    source    oxe_<data set> for the split train, oxe_<data set>_eval for any other split, whose name is kept
    caps      language_table is cut to its first 50,000 episodes, in the order of the files

A wrong checksum loses its record; a file that breaks off loses the records after that point.

Unlike upstream, data sets with only a wrist camera (berkeley_mvp, berkeley_rpt) keep it: upstream trains on them, but
its code makes nothing of them.
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
"""Data sets that have another name upstream."""

VIEWS = {
    "aloha_mobile": ("cam_high",),
    "berkeley_cable_routing": ("image",),
    "bridge_v2": ("image_0", "image_1", "image_2"),
    "droid": ("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left"),
    "robo_set": ("image_right", "image_left"),
}
"""Cameras that upstream takes, if these are not all external cameras."""

READ_BY = {"soar_dataset": "soar", "merge_dataset_large_r1_lite": "galaxea"}
"""Data sets whose labels or tasks another of our formats reads."""

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
"""Meaning of a flag, or of a folder in a path, for how the episode ended."""

_WRIST = re.compile(r"wrist|hand(?!le)|gripper")


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The record files of all data sets below a folder.

    Raises:
        FormatError: there are none, a data set has two versions, or another format reads it.
    """
    seen: dict[str, Path] = {}
    for builder in tfds.builders(input):
        name = ALIASES.get(builder.name, builder.name)
        if name in READ_BY:
            raise FormatError(f"{builder.folder} is {name}: use ingest.format={READ_BY[name]}, which reads its labels")
        if name in seen:
            raise FormatError(f"{seen[name]} and {builder.folder} are both {name}: give ingest.input one of them")
        seen[name] = builder.folder
        data_set = source or f"oxe_{name}"
        views, others = _chosen(name, builder.cameras())
        for view in others:
            reason = "a wrist camera" if _WRIST.search(view) else "a camera that is not taken from this data set"
            yield Refused(str(builder.folder), reason, data_set, view=view, skipped=True)
        for reason in builder.absent():
            yield Refused(str(builder.folder), reason, data_set, skipped=True)
        if not (views and builder.files()):
            yield Refused(str(builder.folder), "it has no *.tfrecord files, or no RGB observations", data_set)
            continue
        yield from _units(builder, name, source, views)


def _chosen(name: str, cameras: list[str]) -> tuple[list[str], list[str]]:
    """The cameras to take from a data set, and its other cameras."""
    views = [view for view in VIEWS.get(name, ()) if view in cameras]
    views = views or [view for view in cameras if not _WRIST.search(view)] or cameras
    return views, [view for view in cameras if view not in views]


def _units(builder: tfds.Builder, name: str, source: str, views: list[str]) -> Iterator[Unit | Refused]:
    left = CAPS.get(name)
    for file in builder.files():
        training = file.split == "train"
        data_set = source or f"oxe_{name}" + ("" if training else "_eval")
        most = left
        if left is not None:
            if file.length is None:
                raise FormatError(f"{builder.folder}/dataset_info.json has no shardLengths, which cap {name}")
            left -= min(left, file.length)
        if most == 0:
            reason = f"{file.length} episodes above the cap of {CAPS[name]}"
            yield Refused(str(file.path), reason, data_set, skipped=True)
            continue
        data = {"most": most, "split": "" if training else file.split, "bgr": name in BGR}
        yield builder.unit(file, name, data_set, views, **data)


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The views of the episodes of a record file."""
    for record in read(unit):
        yield from [record] if isinstance(record, Refused) else record.episodes()


@dataclass(frozen=True)
class EpisodeRecord:
    """One episode of a record file: its number in the file, and its task (empty if it has none)."""

    unit: Unit
    number: int
    task: str
    example: Example

    def episodes(self, task: str | None = None, quality: str | None = None) -> Iterator[Episode | Refused]:
        """A trajectory per camera that was connected.

        Args:
            task: instead of the record's own.
            quality: instead of the record's own outcome.
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
        """The images of a camera. Encoded images are read one by one, plain ones unpacked with the first.

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
        """The refusal of the record, or of a view of it."""
        key = _key(self.unit, self.number)
        return Refused(f"{self.unit.uri}#{self.number}", reason, self.unit.source, key, view, skipped)


def read(unit: Unit) -> Iterator[EpisodeRecord | Refused]:
    """The episodes of a record file, one record in memory at a time.

    Raises:
        FormatError: the file ends before its last record. The records before that point have been yielded.
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
        raise FormatError(f"{error}; {done} records were read before it") from error
    if expected is not None and done < expected:
        raise FormatError(f"the file ends after {done} of its {expected} records")


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
        TrajectoryError: its steps have several instructions, or one is not UTF-8.
    """
    for path in (place + name for place in _PLACES for name in _TASKS):
        counts = Counter(text for text in _texts(example, path, features) if text)
        if not counts:
            continue
        task, most = counts.most_common(1)[0]
        if 3 * most < 2 * counts.total():
            shares = ", ".join(f"{text!r} ({count})" for text, count in counts.most_common(3))
            raise TrajectoryError(
                f"its {counts.total()} steps have several tasks, and none has two thirds of them: {shares}"
            )
        if len(counts) > 1:
            logger.info("the steps of an episode have several tasks; the most frequent is used: %s", dict(counts))
        return task
    return ""


def _texts(example: Example, path: str, features: dict[str, Any]) -> list[str]:
    """The texts of a feature, one per step: the first that is not empty if a step has several."""
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
    """`successful`, `failure`, or empty if the record says neither.

    Raises:
        TrajectoryError: its path says both.
    """
    for name in (place + flag for place in ("episode_metadata/", "") for flag in _FLAGS):
        flags = [bytes(blob).decode("utf-8", "replace").strip().lower() for blob in example.blobs(name)]
        flags = flags or [str(int(value)) for value in example.numbers(name)]
        if flags and flags[-1] in _OUTCOMES:
            return _OUTCOMES[flags[-1]]
    for name in _PATHS:
        for blob in example.blobs(f"episode_metadata/{name}"):
            path = bytes(blob).decode("utf-8", "replace").lower().replace("\\", "/")
            outcomes = {_OUTCOMES[part] for part in path.split("/") if part in _OUTCOMES and part.isalpha()}
            if len(outcomes) > 1:
                raise TrajectoryError(f"its {name} names both success and failure: {path}")
            if outcomes:
                return outcomes.pop()
    return ""


def _no_task(example: Example) -> str:
    places = ", ".join(place.rstrip("/") or "the record's root" for place in _PLACES)
    names = ", ".join(sorted(name for name in example.names if "observation" not in name)[:12])
    return f"no task text: there is no {', '.join(_TASKS[:3])} ... in {places}; the record has {names}"


def _swapped(frame: np.ndarray) -> np.ndarray:
    return frame[..., ::-1]


def _is_black(frames: ImageSequence) -> bool:
    try:
        return not replace(frames, count=min(1, frames.count)).read(lambda count, fps: np.zeros(1, int)).frames.any()
    except VideoError:
        return False  # it is refused for this later
