"""LeRobot datasets of versions 2.0, 2.1 and 3.0, read without the lerobot package.

    meta/info.json              codebase_version, fps, features, data_path and video_path (templates), chunks_size
    meta/episodes.jsonl         v2: one row per episode: episode_index, tasks, length
    meta/episodes/*/*.parquet   v3: the same, and data/chunk_index, data/file_index, and for every camera
                                videos/<key>/chunk_index, file_index, from_timestamp
    data/...parquet             v2: a file per episode; v3: files of many episodes; a row per frame
    videos/...mp4               v2: a file per episode; v3: files of many episodes, each of which is a cut
    meta/tasks.jsonl, .parquet  the texts of the column task_index of data/

GR00T's flavour of v2.0 is read too: its rows have no frame_index and lie in order, `valid` stands among the tasks, and
the column annotation.human.action.task_description names the instruction.

`ingest.input` is a dataset, or a folder that holds several, up to three levels down. The episodes get:

    source          the name of the dataset's folder, or the per-episode column `robometer.source` of our own export
    episode_key     episode_000004, after the dataset's path if the folder's name alone is ambiguous
    view            every feature of dtype video or image, without "observation.images."; depth maps (flagged, of one
                    channel, or by name) and the next step's images (`next.*`) are left out
    task            the episode's `tasks`. If there are several, the one of at least two thirds of the frames, by the
                    task_index in data/. Without such a task the episode is refused (upstream takes the first of a list
                    that lerobot writes in any order)
    frames          the episodes of a v3 video lie one after the other by their lengths; from_timestamp gives their
                    order and the gaps. If the lengths do not add up to the video, and the timestamps do not fall on
                    frames, the episodes of the video are refused
    quality_label   the first of the per-episode columns `robometer.quality`, `quality_label`, `success` with a value;
                    true means successful, false failure. Without one, the words suboptimal, failure, failed or fail in
                    the folder's name decide, as in usc_koch_p_ranking_all; otherwise successful
    partial_success, is_robot, split    per-episode columns of these names, also with "robometer." before them
    env_reward, env_success             per-frame columns next.reward and next.success

The files of `data/` are needed if they hold images, rewards or successes. If they are there, their number of rows must
be the episode's length. Upstream takes at most five episodes from each folder of usc_koch_p_ranking_all, and only the
camera `top`; we take all.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.formats.common import files, folder, is_depth, name_of, read_json
from robometer.corpus.readers.episode_rows import EpisodeRows
from robometer.frames.recording import ImageSequence, Recording, VideoFile
from robometer.frames.video import DEPTH, VideoError, probe
from robometer.trajectory import Episode, TrajectoryError

logger = logging.getLogger(__name__)

INFO = "meta/info.json"
QUALITY = ("robometer.quality", "quality_label", "success")
FACTS: dict[str, tuple[type, ...]] = {"partial_success": (int, float), "is_robot": (bool,), "split": (str,)}
TRUTH = {"next.reward": "env_reward", "next.success": "success"}

TASKS = ("meta/tasks.jsonl", "meta/tasks.parquet")
LISTING_READS = ("*meta/*.parquet",)
TASK_COLUMNS = ("annotation.human.action.task_description", "annotation.human.task_description", "task_index")
"""Columns that name the task of a frame. GR00T's come first, because its task_index means something else."""

NO_TASKS = ("valid", "invalid")
"""Words among GR00T's tasks that are not tasks."""

DATA_PATH = {
    2: "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    3: "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
CLEAR = 0.25
"""How far, in frames, a timestamp may be from a frame if it alone says where an episode begins."""

AMBIGUOUS = 2
"""A gap of at most this many frames between two episodes may be a drift of the timestamps instead."""

_BY_WORD = {"suboptimal": "suboptimal", "failure": "failure", "failed": "failure", "fail": "failure"}


@dataclass(frozen=True)
class _Dataset:
    """The content of info.json."""

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
            path = PurePosixPath(template.format(**values).replace("\\", "/"))
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise TrajectoryError(f"the path template {template!r} of {INFO} cannot be filled in") from error
        if path.is_absolute() or ".." in path.parts:
            raise TrajectoryError(f"the path template {template!r} of {INFO} leaves the dataset's folder")
        return str(path)


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """Every episode of a dataset, or of all datasets in a folder.

    Raises:
        FormatError: there is no dataset, or `input` itself is one that cannot be read.
    """
    root = folder(input, f"a LeRobot dataset (with {INFO}), or a folder of several")
    datasets = [root] if (root / INFO).is_file() else [p.parent.parent for p in files(root, *_levels(INFO))]
    if not datasets:
        raise FormatError(f"no {INFO} in {input}, nor up to three folders below: give ingest.input a LeRobot dataset")
    for path in datasets:
        try:
            yield from _episodes_of(_read_info(path, root), source)
        except FormatError as error:
            if path == root:
                raise
            yield Refused(str(path), str(error), source or name_of(path))


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The views of one episode."""
    data, root = unit.data, Path(unit.uri)
    path = root / data["data"]
    task = data["tasks"][0] if len(data["tasks"]) == 1 else ""
    needed = data["images"] or data["truth"] or not task or path.is_file()
    with EpisodeRows([path] if needed else [], data["episode"]) as rows:
        if needed and len(rows) != data["length"]:
            message = f"{data['data']} has {len(rows)} rows of episode {data['episode']}, not {data['length']}"
            raise TrajectoryError(message)
        task = task or task_of_most(rows, root, data["tasks"])
        truth: dict[str, Any] = {column: rows.numbers(name) for name, column in data["truth"].items()}
        if flags := truth.pop("success", None):
            truth["env_success"] = [int(value > 0.5) for value in flags]
        recordings: dict[str, tuple[str, Recording]] = {}
        for view, (video, place) in data["videos"].items():
            file = str(root / video)
            try:
                recordings[view] = (file, VideoFile(file, _first(file, place), data["length"], data["fps"]))
            except (TrajectoryError, VideoError) as error:
                yield Refused(file, str(error), unit.source, unit.key, view)
        for view, column in data["images"].items():
            recordings[view] = (str(path), ImageSequence(len(rows), rows.images(column), data["fps"]))
        for view, (uri, recording) in recordings.items():
            yield Episode(unit.source, unit.key, view, task, recording, uri, **data["facts"], **truth)


def _first(file: str, place: Sequence[Any] | None) -> int:
    """The frame of a video at which an episode begins.

    Lengths of episodes are exact, while timestamps may drift. So if the lengths add up to the video, they decide. If
    they do not, because episodes were removed from the dataset but not from the video, the timestamps must fall clearly
    on frames.

    Args:
        file: the video.
        place: (frame by the lengths, frame by the timestamp, sum of all lengths, whether all timestamps are clear);
            None for a video of one episode.

    Raises:
        TrajectoryError: neither the lengths nor the timestamps decide.
    """
    if place is None:
        return 0
    by_length, by_time, total, clear = place
    count = probe(file).num_frames
    if count == total:
        return int(by_length)
    if not clear or count < total:
        raise TrajectoryError(
            f"its video has {count} frames, but the episodes in it have {total}, and the timestamps do not say which "
            "frames belong to which episode"
        )
    return int(by_time)


def task_of_most(rows: EpisodeRows, root: Path, tasks: Sequence[str]) -> str:
    """The task of at least two thirds of an episode's frames.

    Args:
        rows: the rows of the episode.
        root: the dataset, whose meta/tasks holds the instructions.
        tasks: the tasks that are listed for the episode.

    Raises:
        TrajectoryError: no task has two thirds of the frames.
    """
    column = next((name for name in TASK_COLUMNS if rows.has(name)), "")
    if not column or not len(rows):
        raise TrajectoryError(f"no task text: it lists {len(tasks)} tasks and has no column {', '.join(TASK_COLUMNS)}")
    texts = _texts(root)
    counts = Counter(texts.get(int(index), "") for index in rows.numbers(column))
    task, most = counts.most_common(1)[0]
    shares = ", ".join(f"{text!r} ({count})" for text, count in counts.most_common())
    if not task or (tasks and task not in tasks):
        raise TrajectoryError(f"no task text: its frames have the tasks {shares}, but it lists {list(tasks)}")
    if 3 * most < 2 * len(rows):
        raise TrajectoryError(f"its {len(rows)} frames have several tasks, and none has two thirds of them: {shares}")
    if len(counts) > 1:
        logger.info(
            "%s: an episode of %d frames has several tasks; the most frequent is used: %s", root, len(rows), shares
        )
    return task


def _texts(root: Path) -> dict[int, str]:
    """The instructions by `task_index`."""
    lines, table = (root / name for name in TASKS)
    if lines.is_file():
        rows = [json.loads(line) for line in lines.read_bytes().splitlines() if line.strip()]
        return {int(row["task_index"]): str(row["task"]) for row in rows}
    if not table.is_file():
        return {}
    try:
        content = pq.read_table(table)
    except (pa.ArrowException, OSError) as error:
        raise TrajectoryError(f"{table.name} cannot be read ({str(error).splitlines()[0]})") from error
    texts = next((name for name in ("task", "__index_level_0__") if name in content.column_names), "")
    if not texts or "task_index" not in content.column_names:
        raise TrajectoryError(f"{table.name} has the columns {content.column_names}, not task_index and task")
    return dict(zip(content["task_index"].to_pylist(), content[texts].to_pylist(), strict=True))


def _levels(name: str) -> list[str]:
    return ["/".join(["*"] * depth + [name]) for depth in (1, 2, 3)]


def _read_info(path: Path, root: Path) -> _Dataset:
    info = read_json(path / INFO)
    try:
        version = str(info["codebase_version"])
        major = int(version.lstrip("v").split(".")[0])
        features = {str(key): dict(feature) for key, feature in info["features"].items()}
        fps = float(info["fps"])
        templates = str(info.get("data_path") or DATA_PATH.get(major, "")), str(info.get("video_path") or "")
        dataset = _Dataset(path, _relative(path, root), major, fps, features, *templates,
                           int(info.get("chunks_size", 1000)))  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{path / INFO} is malformed ({type(error).__name__}: {error})") from error
    if major not in (2, 3):
        raise FormatError(f"{path} is a LeRobot dataset of version {version}: convert it to v2.1 or v3.0 with lerobot")
    if not (fps > 0 and math.isfinite(fps) and dataset.chunks_size > 0):
        raise FormatError(f"{path / INFO} is malformed (fps {fps}, chunks_size {dataset.chunks_size})")
    if not any(feature.get("dtype") in ("video", "image") for feature in features.values()):
        raise FormatError(f"{path} has no camera: no feature of {INFO} is of dtype video or image")
    return dataset


def _relative(path: Path, root: Path) -> str:
    """Path of a dataset below the input. In a hub's cache the revision is left out, as it is not part of the name."""
    if path != root and name_of(path) != path.name:
        path = root / path.parent.parent.relative_to(root) if path.parent != root else root
    return path.relative_to(root).as_posix()


def _episodes_of(dataset: _Dataset, source: str) -> Iterator[Unit | Refused]:
    name = source or name_of(dataset.path)
    cameras: dict[str, str] = {}
    for key, feature in sorted(dataset.features.items()):
        if feature.get("dtype") in ("video", "image"):
            view = key.removeprefix("observation.").removeprefix("images.")
            if reason := _left_out(key, feature):
                yield Refused(str(dataset.path), reason, name, view=view, skipped=True)
            else:
                cameras[key] = view
    videos = [key for key in cameras if dataset.features[key]["dtype"] == "video"]
    if len(videos) > 1 and "{video_key" not in dataset.video_path:
        raise FormatError(f"{dataset.path / INFO}: the template {dataset.video_path!r} gives all cameras one video")
    if videos and dataset.major == 2 and not re.search(r"\{(episode|file)_index", dataset.video_path):
        raise FormatError(f"{dataset.path / INFO}: the template {dataset.video_path!r} gives all episodes one video")
    cuts = _cuts(dataset, videos)
    for where, row in _rows(dataset):
        if isinstance(row, str):
            yield Refused(where, row, name)
            continue
        try:
            yield _unit(dataset, cameras, row, source, cuts)
        except (TrajectoryError, KeyError, TypeError, ValueError, OverflowError) as error:
            reason = str(error) if isinstance(error, TrajectoryError) else f"{type(error).__name__}: {error}"
            yield Refused(where, f"the row of an episode cannot be read ({reason})", name)


def _left_out(key: str, feature: Mapping[str, Any]) -> str:
    facts = {**feature, **(feature.get("info") or {}), **(feature.get("video_info") or {})}
    if any(facts.get(name) for name in ("is_depth_map", "video.is_depth_map")) or is_depth(key):
        return DEPTH
    shape = list(feature.get("shape") or ())
    if len(shape) == 2 or (len(shape) == 3 and 1 in (shape[0], shape[2])):
        return f"of one channel, shape {shape}: a depth map, or not a colour image"
    return "the next step's image, which is a frame of another view" if key.startswith("next.") else ""


def _rows(dataset: _Dataset) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """(place, row of an episode or why it cannot be read)."""
    if dataset.major == 2:
        path = dataset.path / "meta/episodes.jsonl"
        if not path.is_file():
            raise FormatError(f"no file {path}")
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            if line.strip():
                try:
                    yield f"{path}:{number}", dict(json.loads(line))
                except (ValueError, TypeError) as error:
                    yield f"{path}:{number}", f"line {number} of {path.name} is malformed ({error})"
        return
    tables = files(dataset.path / "meta/episodes", "**/*.parquet")
    if not tables:
        raise FormatError(f"no file meta/episodes/*/*.parquet in {dataset.path}")
    for path in tables:
        try:
            with pq.ParquetFile(path) as file:
                names = [name for name in file.schema_arrow.names if not name.startswith("stats/")]
                rows = file.read(columns=names).to_pylist()
        except (pa.ArrowException, OSError) as error:
            yield str(path), f"{path.name} is not a parquet file that can be read ({str(error).splitlines()[0]})"
            continue
        yield from ((f"{path}:{row.get('episode_index')}", row) for row in rows)


_Cuts = dict[tuple[str, int], tuple[int, int, int, bool]]
"""Where an episode lies in a video of several, by the video and the episode: the `place` of `_first`."""


def _cuts(dataset: _Dataset, videos: Sequence[str]) -> _Cuts:
    """Where each episode of a v3 dataset lies in its videos."""
    if dataset.major == 2:
        return {}
    by_video: defaultdict[str, list[tuple[float, int, int]]] = defaultdict(list)
    for _, row in _rows(dataset):
        if isinstance(row, str):
            continue
        for key in videos:
            try:
                begin = _seconds(row, key) * dataset.fps
                by_video[_video(dataset, row, key)].append((begin, int(row["episode_index"]), int(row["length"])))
            except (TrajectoryError, KeyError, TypeError, ValueError, OverflowError):
                continue  # the episode is refused for this
    cuts: _Cuts = {}
    for video, places in by_video.items():
        total, clear, end = sum(length for *_, length in places), True, 0
        for begin, _, length in sorted(places):
            gap = round(begin) - end
            clear &= abs(begin - round(begin)) < CLEAR and (gap == 0 or gap > AMBIGUOUS)
            end = round(begin) + length
        by_length = 0
        for begin, episode, length in sorted(places):
            cuts[video, episode] = (by_length, round(begin), total, clear)
            by_length += length
    return cuts


def _seconds(row: Mapping[str, Any], key: str) -> float:
    """Seconds at which an episode begins in a video of several."""
    name = f"videos/{key}/from_timestamp"
    if not math.isfinite(seconds := float(row[name])):
        raise TrajectoryError(f"{name} is {seconds}")
    return seconds


def _video(dataset: _Dataset, row: Mapping[str, Any], key: str) -> str:
    return dataset.place(dataset.video_path, video_key=key, **_place(dataset, row, f"videos/{key}"))


def _unit(dataset: _Dataset, cameras: Mapping[str, str], row: Mapping[str, Any], source: str, cuts: _Cuts) -> Unit:
    episode, length = int(row["episode_index"]), int(row["length"])
    tasks = row.get("tasks") or []
    tasks = [tasks] if isinstance(tasks, str) else [str(task) for task in tasks if task]
    videos: dict[str, tuple[str, Any]] = {}
    for key in (key for key in cameras if dataset.features[key]["dtype"] == "video"):
        if dataset.major == 3:
            _seconds(row, key)  # an episode without one is refused
        video = _video(dataset, row, key)
        videos[cameras[key]] = (video, cuts[video, episode] if dataset.major == 3 else None)
    place = dataset.place(dataset.data_path, **_place(dataset, row, "data"))
    name = source or str(row.get("robometer.source") or name_of(dataset.path))
    # Nested folders may have equal names, and belong to one source if the user names it.
    alone = dataset.relative == "." or (not source and "/" not in dataset.relative)
    key = f"episode_{episode:06d}" if alone else f"{dataset.relative}/episode_{episode:06d}"
    return Unit(
        key,
        name,
        str(dataset.path),
        count=len(cameras),
        data={
            "episode": episode,
            "length": length,
            "fps": dataset.fps,
            "tasks": [task for task in dict.fromkeys(tasks) if task not in NO_TASKS or len(tasks) == 1],
            "facts": _facts(row, dataset),
            "data": place,
            "videos": videos,
            "images": {cameras[key]: key for key in cameras if dataset.features[key]["dtype"] == "image"},
            "truth": {name: column for name, column in TRUTH.items() if name in dataset.features},
        },
        files=[str(dataset.path / name) for name in (place, *(video for video, _ in videos.values()), *TASKS)],
    )


def _place(dataset: _Dataset, row: Mapping[str, Any], what: str) -> dict[str, int]:
    """The numbers to fill a path template with."""
    episode = int(row["episode_index"])
    numbers = {"episode_chunk": episode // dataset.chunks_size, "episode_index": episode}
    if dataset.major == 3:
        return numbers | {name: int(row[f"{what}/{name}"]) for name in ("chunk_index", "file_index")}
    return numbers | {"chunk_index": numbers["episode_chunk"], "file_index": episode}


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
