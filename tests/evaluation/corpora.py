"""A small corpus for evaluation tests: a square slides across the picture, all the way, half of it, or hardly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.corpus.writer import Accepted, commit_shard
from robometer.frames.video import encode_jpeg
from robometer.trajectory import QUALITY_LABELS, SCHEMA_VERSION, SHARD_SCHEMA, trajectory_id

FRAMES = 9
REACH = {"successful": 1.0, "suboptimal": 0.5, "failure": 0.1}
TASKS = {
    "seen": ["open the drawer", "close the drawer", "press the button", "turn the dial", "push the box"],
    "held_out": ["lift the lid", "slide the door"],
}


def frames_of(task: str, quality: str, episode: int) -> np.ndarray:
    """uint8 [9, 48, 64, 3]: the task determines the background, the quality how far the square moves."""
    rng = np.random.default_rng([len(task), ord(task[0]), episode])
    frames = np.empty((FRAMES, 48, 64, 3), dtype=np.uint8)
    frames[:] = np.asarray([40 + 3 * len(task), 60 + ord(task[0]), 90], dtype=np.uint8)
    for t, frame in enumerate(frames):
        x = round((t / (FRAMES - 1)) * REACH[quality] * 46) + int(rng.integers(0, 3))
        frame[16:32, x : x + 14] = (230, 80, 40)
    return frames


def build_corpus(
    path: Path, clips_per_quality: int = 2, broken: bool = False, qualities: Sequence[str] = QUALITY_LABELS
) -> Corpus:
    """Write a corpus of both splits; with `broken`, one seen clip has a frame that is no image."""
    storage = Storage(str(path))
    records: list[dict[str, Any]] = []
    for split, tasks in TASKS.items():
        for task in tasks:
            for quality in qualities:
                for episode in range(clips_per_quality):
                    records.append(_trajectory(split, task, quality, episode))
    if broken:
        records[0]["frames"][3] = b"not an image"
    commit_shard(storage, "part-0", map(Accepted, records))
    storage.write_bytes("corpus.json", json.dumps({"schema_version": SCHEMA_VERSION, "state": "complete"}).encode())
    return Corpus(str(path))


def _trajectory(split: str, task: str, quality: str, episode: int) -> dict[str, Any]:
    key = f"{task}/{quality}/{episode}"
    moved = np.linspace(0, REACH[quality], FRAMES)
    frames = [encode_jpeg(frame, 90) for frame in frames_of(task, quality, episode)]
    id = trajectory_id("test", key, "front")
    return dict.fromkeys(SHARD_SCHEMA.names) | {
        "id": id,
        "source": "test",
        "episode_key": key,
        "view": "front",
        "task": task,
        "is_robot": True,
        "quality_label": quality,
        "raw_quality_label": quality,
        "split": split,
        "num_frames": FRAMES,
        "height": 48,
        "width": 64,
        "source_fps": 10.0,
        "source_num_frames": FRAMES,
        "size_bytes": sum(map(len, frames)),
        "uri": f"test://{key}",
        "content_hash": id,
        "settings_hash": "test",
        "frame_index": list(range(FRAMES)),
        "env_reward": (10 * moved).tolist(),
        "success": (moved > 0.95).astype(int).tolist(),
        "frames": frames,
    }
