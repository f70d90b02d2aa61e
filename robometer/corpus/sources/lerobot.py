"""LeRobot datasets of versions 2.0, 2.1 and 3.0, read without the lerobot package.

    meta/info.json              codebase_version, fps, features, data_path and video_path (templates), chunks_size
    meta/episodes.jsonl         v2: one row per episode: episode_index, tasks, length
    meta/episodes/*/*.parquet   v3: the same, and data/chunk_index, data/file_index, and for every camera
                                videos/<key>/chunk_index, file_index, from_timestamp
    data/...parquet             v2: a file per episode; v3: files of many; a row per frame
    videos/...mp4               v2: a file per episode; v3: files of many episodes, of which each is a cut

`ingest.input` is a dataset, or a folder that holds several, up to three levels down. What is made of them:

    source          the dataset's folder name; per-episode column `robometer.source`, which our own export writes
    episode_key     episode_000004, after the dataset's path where the folder name alone does not say which is meant
    view            every feature of dtype video or image, without "observation.images."; depth maps and the next
                    step's images (`next.*`) are left out
    task            the first of the episode's `tasks` (upstream does the same)
    quality_label   the first of the per-episode columns `robometer.quality`, `quality_label`, `success` that has a
                    value, true and false meaning successful and failure; without one, the folder's name: a word
                    suboptimal, failure, failed or fail in it, as in usc_koch_p_ranking_all; otherwise successful
    partial_success, is_robot, split    per-episode columns of these names, also with "robometer." before them
    env_reward, success                 per-frame columns next.reward and next.success

Files of `data/` are needed where they hold images, rewards or successes; where they are there, their number of rows
must be the episode's length. Upstream takes at most five episodes of each folder of usc_koch_p_ranking_all, and its
camera `top` only: ours takes all.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from robometer.corpus.episode_rows import EpisodeRows
from robometer.corpus.sources import Refused, SourceError, Unit
from robometer.corpus.sources.common import files, folder, name_of, read_json
from robometer.recording import ImageSequence, Recording, VideoFile
from robometer.trajectory import Episode, TrajectoryError

INFO = "meta/info.json"
QUALITY = ("robometer.quality", "quality_label", "success")
FACTS: dict[str, tuple[type, ...]] = {"partial_success": (int, float), "is_robot": (bool,), "split": (str,)}
TRUTH = {"next.reward": "env_reward", "next.success": "success"}

_BY_WORD = {"suboptimal": "suboptimal", "failure": "failure", "failed": "failure", "fail": "failure"}


@dataclass(frozen=True)
class _Dataset:
    """What info.json says."""

    path: Path
    relative: str
    major: int
    fps: float
    features: Mapping[str, Mapping[str, Any]]
    data_path: str
    video_path: str
    chunks_size: int

    def place(self, template: str, **values: Any) -> str:
        """A path of the dataset, below its folder."""
        try:
            path = PurePosixPath(template.format(**values))
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise TrajectoryError(f"the path template {template!r} of {INFO} cannot be filled in") from error
        if path.is_absolute() or ".." in path.parts:
            raise TrajectoryError(f"the path template {template!r} of {INFO} leaves the dataset's folder")
        return str(path)


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """Every episode of a dataset, or of all datasets in a folder.

    Raises:
        SourceError: there is no dataset, or the one that was given cannot be read.
    """
    root = folder(input, f"a LeRobot dataset (with {INFO}), or a folder of several")
    found = [root] if (root / INFO).is_file() else [p.parent.parent for p in files(root, *_levels(INFO))]
    if not found:
        raise SourceError(f"no {INFO} in {input}, nor up to three folders below: give ingest.input a LeRobot dataset")
    for path in found:
        try:
            yield from _episodes_of(_read_info(path, root), source)
        except SourceError as error:
            if path == root:
                raise
            yield Refused(str(path), str(error), source or name_of(path))


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The views of one episode."""
    data, root = unit.data, Path(unit.uri)
    path = root / data["data"]
    needed = data["images"] or data["truth"] or path.is_file()
    with EpisodeRows([path] if needed else [], data["episode"]) as rows:
        if needed and len(rows) != data["length"]:
            message = f"{data['data']} has {len(rows)} rows of episode {data['episode']}, not {data['length']}"
            raise TrajectoryError(message)
        truth: dict[str, Any] = {field: rows.numbers(name) for name, field in data["truth"].items()}
        if "success" in truth:
            truth["success"] = [int(value > 0.5) for value in truth["success"]]
        recordings: dict[str, tuple[str, Recording]] = {}
        for view, (video, first) in data["videos"].items():
            file = str(root / video)
            recordings[view] = (file, VideoFile(file, first, data["length"], data["fps"]))
        for view, column in data["images"].items():
            recordings[view] = (str(path), ImageSequence(len(rows), rows.images(column), data["fps"]))
        for view, (uri, recording) in recordings.items():
            yield Episode(unit.source, unit.key, view, data["task"], recording, uri, **data["facts"], **truth)


def _levels(name: str) -> list[str]:
    return ["/".join(["*"] * depth + [name]) for depth in (1, 2, 3)]


def _read_info(path: Path, root: Path) -> _Dataset:
    info = read_json(path / INFO)
    try:
        version = str(info["codebase_version"])
        major = int(version.lstrip("v").split(".")[0])
        features = {str(key): dict(feature) for key, feature in info["features"].items()}
        fps = float(info["fps"])
        templates = str(info["data_path"]), str(info.get("video_path") or "")
        dataset = _Dataset(path, _relative(path, root), major, fps, features, *templates,
                           int(info.get("chunks_size", 1000)))  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(f"{path / INFO} is malformed ({type(error).__name__}: {error})") from error
    if major not in (2, 3):
        raise SourceError(f"{path} is a LeRobot dataset of version {version}: convert it to v2.1 or v3.0 with lerobot")
    if not (fps > 0 and math.isfinite(fps) and dataset.chunks_size > 0):
        raise SourceError(f"{path / INFO} is malformed (fps {fps}, chunks_size {dataset.chunks_size})")
    if not any(feature.get("dtype") in ("video", "image") for feature in features.values()):
        raise SourceError(f"{path} has no camera: no feature of {INFO} is of dtype video or image")
    return dataset


def _relative(path: Path, root: Path) -> str:
    """Where a dataset lies below the input; of a hub cache without its revision, which is not part of its name."""
    if path != root and name_of(path) != path.name:
        path = root / path.parent.parent.relative_to(root) if path.parent != root else root
    return path.relative_to(root).as_posix()


def _episodes_of(dataset: _Dataset, source: str) -> Iterator[Unit | Refused]:
    named = source or name_of(dataset.path)
    cameras: dict[str, str] = {}
    for key, feature in sorted(dataset.features.items()):
        if feature.get("dtype") in ("video", "image"):
            view = key.removeprefix("observation.").removeprefix("images.")
            if reason := _left_out(key, feature):
                yield Refused(str(dataset.path), reason, named, view=view, skipped=True)
            else:
                cameras[key] = view
    for where, row in _rows(dataset):
        if isinstance(row, str):
            yield Refused(where, row, named)
            continue
        try:
            yield _unit(dataset, cameras, row, source)
        except (TrajectoryError, KeyError, TypeError, ValueError) as error:
            reason = str(error) if isinstance(error, TrajectoryError) else f"{type(error).__name__}: {error}"
            yield Refused(where, f"an episode's row cannot be read ({reason})", named)


def _left_out(key: str, feature: Mapping[str, Any]) -> str:
    facts = {**(feature.get("info") or {}), **(feature.get("video_info") or {})}
    if any(facts.get(name) for name in ("is_depth_map", "video.is_depth_map")):
        return "a depth map, which is no picture"
    return "the next step's image, which is a frame of another view already" if key.startswith("next.") else ""


def _rows(dataset: _Dataset) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """(place, row of an episode, or why it cannot be read)."""
    if dataset.major == 2:
        path = dataset.path / "meta/episodes.jsonl"
        if not path.is_file():
            raise SourceError(f"no file {path}")
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            if line.strip():
                try:
                    yield f"{path}:{number}", dict(json.loads(line))
                except (ValueError, TypeError) as error:
                    yield f"{path}:{number}", f"line {number} of {path.name} is malformed ({error})"
        return
    found = files(dataset.path / "meta/episodes", "**/*.parquet")
    if not found:
        raise SourceError(f"no file meta/episodes/*/*.parquet in {dataset.path}")
    for path in found:
        try:
            with pq.ParquetFile(path) as file:
                names = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
                rows = file.read(columns=names).to_pylist()
        except (pa.ArrowException, OSError) as error:
            yield str(path), f"{path.name} is not a parquet file that can be read ({str(error).splitlines()[0]})"
            continue
        yield from ((f"{path}:{row.get('episode_index')}", row) for row in rows)


def _unit(dataset: _Dataset, cameras: Mapping[str, str], row: Mapping[str, Any], source: str) -> Unit:
    episode, length = int(row["episode_index"]), int(row["length"])
    tasks = row.get("tasks") or [""]
    videos: dict[str, tuple[str, int]] = {}
    for key in (key for key in cameras if dataset.features[key]["dtype"] == "video"):
        first = round(float(row[f"videos/{key}/from_timestamp"]) * dataset.fps) if dataset.major == 3 else 0
        place = _place(dataset, row, f"videos/{key}")
        videos[cameras[key]] = (dataset.place(dataset.video_path, video_key=key, **place), first)
    named = source or str(row.get("robometer.source") or name_of(dataset.path))
    # Folders below folders may have equal names, and all are of one source where the user gives its name.
    alone = dataset.relative == "." or (not source and "/" not in dataset.relative)
    key = f"episode_{episode:06d}" if alone else f"{dataset.relative}/episode_{episode:06d}"
    return Unit(
        key,
        named,
        str(dataset.path),
        count=len(cameras),
        data={
            "episode": episode,
            "length": length,
            "fps": dataset.fps,
            "task": str((tasks if isinstance(tasks, str) else tasks[0]) or ""),
            "facts": _facts(row, dataset),
            "data": dataset.place(dataset.data_path, **_place(dataset, row, "data")),
            "videos": videos,
            "images": {cameras[key]: key for key in cameras if dataset.features[key]["dtype"] == "image"},
            "truth": {name: field for name, field in TRUTH.items() if name in dataset.features},
        },
    )


def _place(dataset: _Dataset, row: Mapping[str, Any], what: str) -> dict[str, int]:
    """The numbers that a path template is filled in with."""
    if dataset.major == 3:
        return {name: int(row[f"{what}/{name}"]) for name in ("chunk_index", "file_index")}
    episode = int(row["episode_index"])
    return {"episode_chunk": episode // dataset.chunks_size, "episode_index": episode}


def _facts(row: Mapping[str, Any], dataset: _Dataset) -> dict[str, Any]:
    """Labels of an episode, as fields of `Episode`."""
    label = next((row[name] for name in QUALITY if row.get(name) is not None), _label_of(dataset))
    if not isinstance(label, str) and label not in (0, 1):
        raise TrajectoryError(f"its label {label!r} is neither a word nor true or false")
    facts = {"raw_quality_label": label if isinstance(label, str) else "successful" if label else "failure"}
    for name, types in FACTS.items():
        value = row.get(f"robometer.{name}", row.get(name))
        if value is not None and type(value) not in types:
            raise TrajectoryError(f"{name!r} is {type(value).__name__}, not {types[-1].__name__}")
        facts |= {} if value is None else {name: value}
    return facts


def _label_of(dataset: _Dataset) -> str:
    words = re.split(r"[^a-z]+", f"{name_of(dataset.path)}/{dataset.relative}".lower())
    return next((label for word, label in _BY_WORD.items() if word in words), "successful")
