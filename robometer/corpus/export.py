"""A corpus as a LeRobot v3.0 dataset, written without the lerobot package.

Every trajectory (one view of an episode) becomes an episode with one camera, `observation.images.main`. Its video holds
the frames of the corpus as H.264, at a constant `fps`. A corpus thins its frames, so the time between two of them
differs from trajectory to trajectory: the column `robometer.source_frame_index` gives each frame's number in the
source. Frames that are smaller than the largest are padded with black on the right and below.

    per frame     timestamp, frame_index, episode_index, index, task_index, robometer.source_frame_index;
                  next.reward and next.success, each if all exported trajectories have it (LeRobot columns have no
                  gaps); robometer.progress and robometer.success if scores are given, NaN for a trajectory without
                  scores
    per episode   robometer.id, .source, .episode_key, .view, .split, .quality, .partial_success, .is_robot

`ingest.format=lerobot` reads it back with its tasks and labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from av.video.frame import PictureType

from robometer.corpus.corpus import Corpus
from robometer.errors import RobometerError
from robometer.files import atomic_folder

CAMERA = "observation.images.main"
DEFAULT_FPS = 10
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
FILES_PER_CHUNK = 1000
VIDEO_MB = 200

Scores = Mapping[str, tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]]
"""Progress [T] and success [T] by the trajectory's id, one value per stored frame."""

_COLUMNS: dict[str, pa.DataType] = {
    "timestamp": pa.float32(),
    "frame_index": pa.int64(),
    "episode_index": pa.int64(),
    "index": pa.int64(),
    "task_index": pa.int64(),
    "robometer.source_frame_index": pa.int64(),
    "next.reward": pa.float32(),
    "next.success": pa.bool_(),
    "robometer.progress": pa.float32(),
    "robometer.success": pa.float32(),
}
_DTYPES = {pa.float32(): "float32", pa.int64(): "int64", pa.bool_(): "bool"}
_TRUTH = {"next.reward": "env_reward", "next.success": "success"}
_SCORES = ("robometer.progress", "robometer.success")
_PLACE = ("chunk_index", "file_index")
_LABELS = ("id", "source", "episode_key", "view", "split", "quality_label", "partial_success", "is_robot")

_EPISODE_SCHEMA = pa.schema(
    [
        *((name, pa.int64()) for name in ("episode_index", "length", "dataset_from_index", "dataset_to_index")),
        ("tasks", pa.list_(pa.string())),
        *((f"{what}/{name}", pa.int64()) for what in ("data", f"videos/{CAMERA}", "meta/episodes") for name in _PLACE),
        *((f"videos/{CAMERA}/{name}", pa.float64()) for name in ("from_timestamp", "to_timestamp")),
        *((f"robometer.{name}", pa.string()) for name in ("id", "source", "episode_key", "view", "split", "quality")),
        ("robometer.partial_success", pa.float32()),
        ("robometer.is_robot", pa.bool_()),
    ]
)


class ExportError(RobometerError):
    """An export that is impossible. The message says why in one sentence."""


def export_lerobot(
    corpus: Corpus,
    path: str | Path,
    rows: Sequence[int] | np.ndarray | None = None,
    fps: int | None = None,
    scores: Scores | None = None,
) -> int:
    """Write trajectories of a corpus as a LeRobot v3.0 dataset, which appears whole or not at all.

    Args:
        corpus: the corpus.
        path: local folder of the dataset, which must not exist.
        rows: manifest rows in this order; None exports all.
        fps: frames per second of the videos; None means 10.
        scores: of some or all trajectories, written as per-frame columns.

    Returns:
        The number of trajectories.

    Raises:
        ExportError: there is nothing to export, the folder exists, or scores do not fit their trajectory.
    """
    chosen = [int(row) for row in (corpus.rows() if rows is None else rows)]
    rate = DEFAULT_FPS if fps is None else fps
    if not chosen:
        raise ExportError(f"{corpus.storage.path} has no trajectories to export")
    if rate < 1:
        raise ExportError(f"fps must be above 0, not {rate}")
    target = Path(path)
    if target.exists():
        raise ExportError(f"{target} exists already: give a new folder, so that nothing is overwritten")
    with atomic_folder(target, overwrite=False) as staging:
        _Export(corpus, staging, chosen, rate, scores).run()
    return len(chosen)


class _Export:
    """Writes one dataset, with one trajectory in memory at a time."""

    def __init__(self, corpus: Corpus, folder: Path, rows: Sequence[int], fps: int, scores: Scores | None) -> None:
        self._corpus, self._folder, self._rows, self._fps, self._scores = corpus, folder, rows, fps, scores
        table = corpus.manifest.take(rows)
        size = (max(table[name].to_pylist()) for name in ("height", "width"))
        self._height, self._width = (edge + edge % 2 for edge in size)
        self._tasks = {task: i for i, task in enumerate(dict.fromkeys(table["task"].to_pylist()))}
        truth = [name for name, field in _TRUTH.items() if self._all_know(field)]
        names = [name for name in _COLUMNS if name not in (*_TRUTH, *_SCORES)]
        self._names = [*names, *truth, *(_SCORES if scores is not None else ())]
        self._schema = pa.schema([(name, _COLUMNS[name]) for name in self._names])
        self._episodes = self._frames = 0
        self._statistics: dict[str, _Statistics] = {}

    def run(self) -> None:
        """Write everything."""
        left, file = list(self._rows), 0
        while left:
            left = left[self._write_file(left, file) :]
            file += 1
        self._write_meta()

    def _all_know(self, field: str) -> bool:
        return all(self._corpus.record(row)[field] is not None for row in self._rows)

    def _write_file(self, rows: Sequence[int], file: int) -> int:
        """Write data, video and episodes of as many `rows` as fit into one file each; returns how many."""
        place = dict(zip(_PLACE, divmod(file, FILES_PER_CHUNK), strict=True))
        names = (template.format(video_key=CAMERA, **place) for template in (VIDEO, DATA, EPISODES))
        video, data, meta = (self._folder / name for name in names)
        for path in (video, data, meta):
            path.parent.mkdir(parents=True, exist_ok=True)
        episodes: list[dict[str, Any]] = []
        position = size = 0
        with (
            pq.ParquetWriter(data, self._schema) as writer,
            _encoder(video, self._width, self._height, self._fps) as encode,
        ):
            for row in rows:
                record, frames = self._corpus.record(row), self._corpus.frames(row)
                for i, frame in enumerate(frames):
                    size = encode(self._padded(frame), position + i, key=i == 0)
                self._count(CAMERA, frames.reshape(-1, 3) / 255)
                writer.write_table(self._columns(record))  # a row group per episode, as LeRobot writes it
                episodes.append(self._episode(record, place, position))
                self._episodes += 1
                self._frames += len(frames)
                position += len(frames)
                if size >= VIDEO_MB * 2**20:
                    break
        pq.write_table(pa.Table.from_pylist(episodes, _EPISODE_SCHEMA), meta)
        return len(episodes)

    def _padded(self, frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        return np.pad(frame, ((0, self._height - height), (0, self._width - width), (0, 0)))

    def _columns(self, record: Mapping[str, Any]) -> pa.Table:
        count = record["num_frames"]
        frame = np.arange(count)
        values: dict[str, Any] = {
            "timestamp": frame / self._fps,
            "frame_index": frame,
            "episode_index": np.full(count, self._episodes),
            "index": self._frames + frame,
            "task_index": np.full(count, self._tasks[record["task"]]),
            "robometer.source_frame_index": np.asarray(record["frame_index"]),
            **{name: np.asarray(record[field]) for name, field in _TRUTH.items() if name in self._names},
            **self._scores_of(record),
        }
        for name in self._names:
            self._count(name, np.asarray(values[name], np.float64)[:, None])
        return pa.table(
            {name: pa.array(values[name]).cast(_COLUMNS[name]) for name in self._names}, schema=self._schema
        )

    def _scores_of(self, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
        if self._scores is None:
            return {}
        count = record["num_frames"]
        scores = self._scores.get(record["id"], ([np.nan] * count, [np.nan] * count))
        values = {name: np.asarray(score, np.float32) for name, score in zip(_SCORES, scores, strict=True)}
        if wrong := [name for name, score in values.items() if score.shape != (count,)]:
            shape = list(values[wrong[0]].shape)
            raise ExportError(f"{wrong[0]} of {record['id']} has shape {shape}, but the trajectory has {count} frames")
        return values

    def _episode(self, record: Mapping[str, Any], place: Mapping[str, int], position: int) -> dict[str, Any]:
        count = record["num_frames"]
        return {
            "episode_index": self._episodes,
            "length": count,
            "dataset_from_index": self._frames,
            "dataset_to_index": self._frames + count,
            "tasks": [record["task"]],
            **{
                f"{what}/{name}": place[name]
                for what in ("data", f"videos/{CAMERA}", "meta/episodes")
                for name in place
            },
            f"videos/{CAMERA}/from_timestamp": position / self._fps,
            f"videos/{CAMERA}/to_timestamp": (position + count) / self._fps,
            **{f"robometer.{name.removesuffix('_label')}": record[name] for name in _LABELS},
        }

    def _count(self, name: str, values: np.ndarray) -> None:
        self._statistics.setdefault(name, _Statistics(values.shape[1])).add(values)

    def _write_meta(self) -> None:
        index = pd.Index(list(self._tasks), name="task", dtype=object)  # LeRobot looks tasks up by their text
        pd.DataFrame({"task_index": range(len(index))}, index=index).to_parquet(self._folder / "meta/tasks.parquet")
        shapes = {name: (3, 1, 1) if name == CAMERA else (1,) for name in self._statistics}
        statistics = {name: column.summary(shapes[name]) for name, column in self._statistics.items()}
        for name, content in (("info", self._info()), ("stats", statistics)):
            (self._folder / f"meta/{name}.json").write_text(json.dumps(content, indent=4) + "\n")

    def _info(self) -> dict[str, Any]:
        camera = {
            "dtype": "video",
            "shape": [self._height, self._width, 3],
            "names": ["height", "width", "channels"],
            "info": {
                "video.height": self._height,
                "video.width": self._width,
                "video.codec": "h264",
                "video.pix_fmt": "yuv420p",
                "video.is_depth_map": False,
                "video.fps": self._fps,
                "video.channels": 3,
                "has_audio": False,
            },
        }
        columns = {name: {"dtype": _DTYPES[_COLUMNS[name]], "shape": [1], "names": None} for name in self._names}
        return {
            "codebase_version": "v3.0",
            "robot_type": None,
            "total_episodes": self._episodes,
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": VIDEO_MB,
            "fps": self._fps,
            "splits": {"train": f"0:{self._episodes}"},
            "data_path": DATA,
            "video_path": VIDEO,
            "features": {CAMERA: camera, **columns},
        }


class _Statistics:
    """Minimum, maximum, mean and standard deviation of the columns of arrays [N, C], added one after the other."""

    def __init__(self, columns: int) -> None:
        self._count = 0
        self._least, self._greatest = np.full(columns, np.inf), np.full(columns, -np.inf)
        self._sum, self._squares = np.zeros(columns), np.zeros(columns)

    def add(self, values: np.ndarray) -> None:
        """Add rows. Rows with NaN are skipped."""
        values = values[~np.isnan(values).any(axis=1)]
        if len(values):
            self._count += len(values)
            self._least = np.minimum(self._least, values.min(axis=0))
            self._greatest = np.maximum(self._greatest, values.max(axis=0))
            self._sum += values.sum(axis=0)
            self._squares += np.square(values).sum(axis=0)

    def summary(self, shape: tuple[int, ...]) -> dict[str, Any]:
        """The entry of LeRobot's stats.json; zeros if there were no rows."""
        count, zero = max(self._count, 1), np.zeros_like(self._sum)
        mean = self._sum / count
        values = {
            "min": self._least if self._count else zero,
            "max": self._greatest if self._count else zero,
            "mean": mean,
            "std": np.sqrt(np.maximum(self._squares / count - mean**2, 0)),
        }
        return {**{name: value.reshape(shape).tolist() for name, value in values.items()}, "count": [self._count]}


@contextmanager
def _encoder(path: Path, width: int, height: int, fps: int) -> Iterator[Any]:
    """A function that adds an RGB frame at a position to an H.264 mp4, and returns the bytes written so far."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=fps, options={"crf": "18", "preset": "medium", "forced-idr": "1"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1  # with more threads, the file depends on the machine

        written = 0

        def encode(pixels: np.ndarray, position: int, key: bool) -> int:
            nonlocal written
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = position, Fraction(1, fps)
            if key:
                frame.pict_type = PictureType.I  # so that a reader can seek to the episode
            packets = stream.encode(frame)
            output.mux(packets)
            written += sum(packet.size for packet in packets)
            return written

        yield encode
        output.mux(stream.encode(None))
