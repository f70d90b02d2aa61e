"""Whether the corpus already has what an ingest is about to read: seals of units, and facts stored under each id.

A unit that was read has a seal: a hash of its entry in the listing, and of the size, time and samples of its files. If
the seal is the same, nothing has changed, and the unit is not read. Another seal only means that something may have
changed: a touched file, a copy, a new revision, a corrected label, another data set of the same name. Then the unit is
read again, and each of its trajectories is compared with the stored one by its labels, its frames and their rate.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from robometer.corpus.formats import Unit
from robometer.corpus.formats.common import walk
from robometer.corpus.manifest import read_manifest
from robometer.corpus.storage import Storage
from robometer.trajectory import Episode

_SAMPLE = 4096
"""Bytes that are read at the beginning, in the middle and at the end of a file."""

_THREADS = 16
_CACHED_FILES = 4096


class Sealer:
    """Makes seals of units. It looks at a file once, even if many units share it."""

    def __init__(self, split: str) -> None:
        """`split` is that of trajectories whose format names none. It is part of the seal, as it is stored."""
        self._split = split
        self._look = lru_cache(maxsize=_CACHED_FILES)(_look)

    def seals(self, units: Sequence[Unit]) -> list[str]:
        """16 hex digits for each unit, wherever the data lies; empty if its files cannot be read."""
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(self._seal, units))

    def _seal(self, unit: Unit) -> str:
        entry = json.dumps([self._split, _without_folders(unit.data)], sort_keys=True)
        digest = hashlib.sha256(entry.encode())
        for file in unit.files or (unit.uri,):
            if not (look := self._look(file)):
                return ""
            digest.update(look.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()[:16]


def _without_folders(value: Any) -> Any:
    """A unit's data, with absolute paths reduced to their last part."""
    if isinstance(value, dict):
        return {key: _without_folders(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(entry) for entry in value]
    return os.path.basename(value) if isinstance(value, str) and value.startswith("/") else value


def _look(path: str) -> str:
    """Size, time of change and samples of a file, or names, sizes and times of all files below a folder.

    Empty if `path` cannot be read, as the `uri` of a user's own format may not be a file. A missing file gives "none".
    """
    try:
        if os.path.isdir(path):
            return json.dumps(sorted(_below(path)))
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            digest = hashlib.sha256()
            for start in (0, status.st_size // 2, max(0, status.st_size - _SAMPLE)):
                file.seek(start)
                digest.update(file.read(_SAMPLE))
        return f"{status.st_size} {status.st_mtime_ns} {digest.hexdigest()}"
    except (OSError, ValueError) as error:
        return "none" if isinstance(error, FileNotFoundError) and os.path.isabs(path) else ""


def _below(folder: str) -> Iterator[tuple[str, int, int]]:
    """Name, size and time of change of every file below a folder; a dangling link has size -1."""
    for path, _, names in walk(Path(folder)):
        for name in names:
            file = path / name
            try:
                status = os.stat(file)
                yield os.path.relpath(file, folder), status.st_size, status.st_mtime_ns
            except OSError:
                yield os.path.relpath(file, folder), -1, 0


def labels_hash(episode: Episode, quality: str, split: str) -> str:
    """16 hex digits over everything that is known of a trajectory except its pixels.

    Args:
        episode: the trajectory.
        quality: its normalised quality label.
        split: the split of trajectories that name none.
    """
    truth = [None if values is None else list(values) for values in (episode.env_reward, episode.env_success)]
    labels = [" ".join(episode.task.split()), episode.is_robot, quality, episode.partial_success,
              episode.split or split, episode.fps, *truth]  # fmt: skip
    return hashlib.sha256(json.dumps(labels, default=str).encode()).hexdigest()[:16]


class Facts(NamedTuple):
    """What trajectories are compared by: `labels_hash`, `content_hash` and `source_fps` of their manifest rows."""

    labels: str
    content: str
    fps: float

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Facts:
        """The facts of a row that is not stored yet, with its rate rounded as storage does."""
        return cls(record["labels_hash"], record["content_hash"], float(np.float32(record["source_fps"])))


@dataclass(frozen=True)
class StoredRows:
    """The facts stored under each id, as arrays that processes share. A lookup takes microseconds.

    Attributes:
        ids: bytes [N], sorted.
        facts: bytes [N], the hash of the labels followed by the hash of the content.
        fps: float32 [N], frames per second.
    """

    ids: np.ndarray
    facts: np.ndarray
    fps: np.ndarray

    @classmethod
    def read(cls, storage: Storage) -> StoredRows:
        """The visible rows of a corpus."""
        table = read_manifest(storage, ["id", "labels_hash", "content_hash", "source_fps"])
        labels, content = (table[name].fill_null("").to_pylist() for name in ("labels_hash", "content_hash"))
        facts = [f"{a:16}{b}" for a, b in zip(labels, content, strict=True)]
        return cls(_ascii(table["id"].to_pylist()), _ascii(facts), table["source_fps"].fill_null(0).to_numpy())

    def get(self, id: str) -> Facts | None:
        """The facts stored under `id`; None if there are none."""
        at = int(np.searchsorted(self.ids, id.encode())) if len(self.ids) else 0
        if at == len(self.ids) or self.ids[at] != id.encode():
            return None
        facts = self.facts[at].decode()
        return Facts(facts[:16].strip(), facts[16:], float(self.fps[at]))


def _ascii(texts: list[str]) -> np.ndarray:
    return np.array(texts, dtype="S") if texts else np.zeros(0, "S1")


NO_ROWS = StoredRows(np.zeros(0, "S1"), np.zeros(0, "S1"), np.zeros(0, np.float32))
"""The rows of an empty corpus."""
