"""Synthetic manifests of any size, and a small corpus with frames, for benchmarks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from robometer.corpus.config import IngestConfig
from robometer.corpus.corpus import Corpus
from robometer.corpus.encode import entries
from robometer.corpus.formats import Unit, list_units
from robometer.corpus.storage import Storage
from robometer.corpus.writer import Accepted, commit_shard
from robometer.frames.video import encode_jpeg
from robometer.trajectory import MANIFEST_SCHEMA, QUALITY_LABELS, SCHEMA_VERSION, SHARD_SCHEMA

NUM_SOURCES = 50
ROWS_PER_TASK = 20
HEIGHT, WIDTH, NUM_FRAMES = 240, 320, 32
BUNDLED = Path(__file__).resolve().parents[1] / "robometer/data/metaworld"


def manifest(count: int, seed: int = 0) -> pa.Table:
    """A manifest of `count` rows with the proportions of robot corpora.

    There are 50 sources with relative sizes 1, 1/2, 1/3, ..., each with its own tasks, some far more frequent than
    others. One row in three is unsuccessful; every tenth source has partial success in quarters. One row in ten is a
    human's, at the same tasks. Rows have 6 to 32 frames; three in four have 32, the limit of ingest.
    """
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, NUM_SOURCES + 1)
    share /= share.sum()
    source = rng.choice(NUM_SOURCES, count, p=share)
    tasks = np.maximum(2, share * count / ROWS_PER_TASK)
    task = (rng.random(count) ** 2 * tasks[source]).astype(int)  # squared: the first tasks are the frequent ones
    graded = source % 10 == 0
    grade = rng.integers(0, 5, count) / 4
    quality = np.where(graded, np.where(grade == 1, 2, 0), rng.choice(3, count, p=[0.15, 0.05, 0.8]))
    names = np.array([f"roboreward_{i}" if i % 10 == 0 else f"lab_{i}" for i in range(NUM_SOURCES)])
    columns = {
        "id": [f"{i:032x}" for i in range(count)],
        "source": names[source],
        "task": [f"do task {t} of lab {s}" for t, s in zip(task.tolist(), source.tolist(), strict=True)],
        "is_robot": rng.random(count) > 0.1,
        "quality_label": np.array(QUALITY_LABELS)[quality],
        "partial_success": np.ma.array(grade, mask=~graded),
        "split": np.full(count, "train"),
        "num_frames": np.clip(rng.lognormal(np.log(60), 0.8, count), 6, NUM_FRAMES).astype(np.int32),
    }
    fields = {field.name: field.type for field in MANIFEST_SCHEMA}
    arrays = {
        name: pa.array(columns[name], type=type) if name in columns else pa.nulls(count, type)
        for name, type in fields.items()
    }
    return pa.table(arrays, schema=MANIFEST_SCHEMA)


def corpus(folder: Path, count: int, seed: int = 0) -> Corpus:
    """Write `count` trajectories of 32 frames of 240 x 320 px as JPEG of the default quality, in shards of 64."""
    storage, rows = Storage(str(folder)), manifest(count, seed).to_pylist()
    for number, start in enumerate(range(0, count, 64)):
        commit_shard(storage, f"part-{number:03d}", map(Accepted, _records(rows[start : start + 64], seed)))
    return _complete(storage)


def bundled(folder: Path, count: int) -> Corpus:
    """About `count` of the bundled clips, of all tasks and labels, at their own 160 x 160 px, with 6 to 16 frames."""
    units = [unit for unit in list_units("mp4_jsonl", str(BUNDLED)) if isinstance(unit, Unit)]
    storage = Storage(str(folder))
    stored = entries(units[:: max(1, len(units) // count)], IngestConfig(short_edge=160))
    commit_shard(storage, "part-000", (entry for entry in stored if isinstance(entry, Accepted)))
    return _complete(storage)


def _complete(storage: Storage) -> Corpus:
    storage.write_bytes("corpus.json", json.dumps({"schema_version": SCHEMA_VERSION, "state": "complete"}).encode())
    return Corpus(storage.path)


def _records(rows: list[dict[str, Any]], seed: int) -> Iterator[dict[str, Any]]:
    for row in rows:
        frames = [encode_jpeg(frame, IngestConfig().jpeg_quality) for frame in _frames(int(row["id"], 16), seed)]
        video = {"num_frames": NUM_FRAMES, "height": HEIGHT, "width": WIDTH, "frames": frames}
        labels = {name: value for name, value in row.items() if name in SHARD_SCHEMA.names}
        place = {"frame_index": list(range(NUM_FRAMES)), "size_bytes": sum(map(len, frames))}
        yield dict.fromkeys(SHARD_SCHEMA.names) | labels | video | place


def _frames(number: int, seed: int) -> Iterator[np.ndarray]:
    """A square that moves across a textured scene, uint8 [240, 320, 3] per frame; JPEGs have a realistic size."""
    rng = np.random.default_rng([seed, number])
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    scene = cv2.resize(coarse, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    grain = rng.integers(0, 6, scene.shape, dtype=np.uint8)
    scene = np.minimum(scene, 255 - grain) + grain
    for t in range(NUM_FRAMES):
        frame = scene.copy()
        x = round(t / NUM_FRAMES * (WIDTH - 40))
        frame[100:140, x : x + 40] = (230, 80, 40)
        yield frame
