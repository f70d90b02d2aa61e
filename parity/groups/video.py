"""Group g_video: which frames of the example videos are taken, and their pixels.

Recorded rewards of the public 4B weights are beside them; without those weights they cannot be computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from parity.difference import close, exact, wrong_upstream
from parity.recorded import read
from parity.recorded_set import RecordedSet
from parity.row import Row
from parity.upstream.protocol import frames_at_rate
from robometer.frames.recording import VideoFile
from robometer.frames.video import thin_positions
from robometer.sampling.config import SamplingConfig
from robometer.sampling.index import ManifestIndex
from robometer.trajectory import MANIFEST_SCHEMA, QUALITY_LABELS

GROUP = "g_video"
_LEVELS = 2.0
"""How far another decoder may be from the recorded one."""


def rows(recorded_set: RecordedSet) -> Iterator[Row]:
    """Every case of the group."""
    videos = recorded_set.shared("example_videos")
    with np.load(recorded_set.folder / GROUP / "video.npz") as arrays:
        pixels = dict(arrays)
    for recorded in read(recorded_set.folder / GROUP / "video.json"):
        yield from _video(f"{GROUP}/{recorded['video']}", videos / recorded["video"], recorded, pixels)


def _video(case: str, path: Path, recorded: dict[str, Any], pixels: Mapping[str, np.ndarray]) -> Iterator[Row]:
    yield exact(case, "file", hashlib.sha256(path.read_bytes()).hexdigest(), recorded["sha256"])
    video = VideoFile(path).read(lambda n, fps: np.arange(n))
    count, fps, name = video.num_source_frames, video.fps, recorded["video"]
    yield exact(case, "frames and rate", [count, fps], [recorded["total_frames"], recorded["native_fps"]])
    yield from _frames(case, f"{name}.all", video.frames, recorded["all_frames"], pixels)
    for rate, extract in recorded["extract"].items():
        index = frames_at_rate(count, fps, float(rate))
        yield exact(f"{case}/{rate} fps", "frames at a rate", index.tolist(), extract["indices"])
        picked = VideoFile(path).read(partial(frames_at_rate, fps=float(rate))).frames
        yield from _frames(f"{case}/{rate} fps", f"{name}.fps{rate}", picked, extract, pixels)
    for most, stored in recorded["preprocess"].items():
        yield from _stored(f"{case}/at most {most}", f"{name}.pre{most}", video.frames, int(most), stored, pixels)


def _stored(
    case: str, key: str, frames: np.ndarray, most: int, stored: dict[str, Any], pixels: Mapping[str, np.ndarray]
) -> Iterator[Row]:
    ours, theirs = thin_positions(len(frames), most).tolist(), stored["indices"]
    if theirs[-1] == len(frames) - 1:
        yield exact(case, "frames stored", ours, theirs)
    else:
        yield wrong_upstream(case, "frames stored", "the last frame, which shows success, is dropped", theirs, ours)
    yield from _frames(case, key, frames[theirs], stored, pixels)
    yield exact(case, "index of a corpus", _index(stored["row"]), stored["index_maps"])


def _frames(
    case: str, key: str, frames: np.ndarray, recorded: dict[str, Any], pixels: Mapping[str, np.ndarray]
) -> Iterator[Row]:
    """Shape and pixels: all of them by their hash (the decoder is the recorded one), and small pictures of them."""
    yield exact(case, "shape", [list(frames.shape), str(frames.dtype)], [recorded["shape"], recorded["dtype"]])
    yield exact(case, "pixels", hashlib.sha256(frames.tobytes()).hexdigest(), recorded["sha256"])
    if f"{key}.thumb16" in pixels:
        small = np.stack([cv2.resize(frame, (16, 16), interpolation=cv2.INTER_AREA) for frame in frames])
        yield close(case, "pixels at 16 x 16", small, pixels[f"{key}.thumb16"], atol=_LEVELS)
        yield close(case, "mean colour", frames.mean((1, 2)), pixels[f"{key}.mean_rgb"], atol=_LEVELS)


def _index(row: dict[str, Any]) -> dict[str, Any]:
    """Upstream's index maps of a corpus of one row, from our index."""
    columns = ("id", "task", "quality_label", "is_robot", "num_frames")
    record = {name: row[name] for name in columns} | {"source": row["data_source"], "split": "train"}
    config = SamplingConfig(min_frames_per_trajectory=1, progress=1, preference=0)
    index = ManifestIndex.from_table(pa.Table.from_pylist([record], schema=MANIFEST_SCHEMA), config)
    successes, others = index.partners.successes.group(0).tolist(), index.partners.others.group(0).tolist()
    humans, robots = (index.partners.embodied.group(kind).tolist() for kind in (0, 1))
    quality = QUALITY_LABELS[index.columns.quality[0]]
    graded = index.partners.partial.group(0).tolist()
    return {
        "robot_trajectories": robots,
        "human_trajectories": humans,
        "optimal_by_task": {row["task"]: successes},
        "suboptimal_by_task": {row["task"]: others},
        "quality_indices": {quality: [0]},
        "task_indices": {index.columns.text_of(0): [0]},
        "source_indices": {index.columns.source_of(0): [0]},
        "partial_success_indices": {row["task"]: graded} if graded else {},
    }
