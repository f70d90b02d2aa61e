"""Shared by the fixtures of all formats: roll-outs of the bundled Meta-World corpus, and the real ingest job."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pipelines.ingest import run_ingest
from robometer.configs import load
from robometer.corpus.config import IngestConfig
from robometer.corpus.corpus import Corpus
from robometer.corpus.encode import entries
from robometer.corpus.formats import FormatError, Unit, find, list_units
from robometer.corpus.manifest import read_ledgers
from robometer.corpus.remote_input import listing, relocated
from robometer.corpus.storage import Storage
from robometer.corpus.writer import ShardEntry
from robometer.frames import FrameSettings, read_frames

BUNDLED = Path(__file__).resolve().parents[3] / "robometer/data/metaworld"
SETTINGS = ("ingest.max_frames=6", "ingest.short_edge=48")


@dataclass(frozen=True)
class RollOut:
    """A simulated trajectory: its instruction, its label, its mp4 and its frames uint8 [T, H, W, 3]."""

    task: str
    quality: str
    path: Path
    frames: np.ndarray

    @property
    def mp4(self) -> bytes:
        """The encoded video."""
        return self.path.read_bytes()


@lru_cache(maxsize=1)
def _rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (BUNDLED / "trajectories.jsonl").read_text().splitlines()]


@lru_cache(maxsize=64)
def roll_out(number: int, quality: str = "successful") -> RollOut:
    """The roll-out with this number among those of a quality; consecutive numbers have different tasks."""
    by_task: dict[str, dict[str, Any]] = {}
    for row in _rows():
        if row["quality_label"] == quality:
            by_task.setdefault(row["task"], row)
    row = list(by_task.values())[number % len(by_task)]
    path = BUNDLED / row["video"]
    return RollOut(row["task"], quality, path, read_frames(path, FrameSettings(0, 0, 0)).frames)


def ingest(folder: Path, format: str, *overrides: str, input: Path | None = None) -> Corpus:
    """Run the real job on `folder / "raw"` (or `input`), and open its corpus at `folder / "corpus"`.

    The equivalent command is appended to the file named by `ROBOMETER_COMMANDS`, if any: with `--basetemp`, it adds a
    fixture to a user's corpus, to look at it.
    """
    raw = folder / "raw" if input is None else input
    if commands := os.environ.get("ROBOMETER_COMMANDS"):
        settings = [o for o in overrides if o.startswith(("ingest.source_name", "ingest.split"))]
        with Path(commands).open("a") as file:
            print("robometer ingest", f"ingest.format={format}", f"ingest.input={raw}", *settings, file=file)
    where = (f"corpus.path={folder / 'corpus'}", f"ingest.format={format}", f"ingest.input={raw}")
    config = load([*where, *SETTINGS, "ingest.max_bad_fraction=1", *overrides])
    run_ingest(config)
    _check_as_from_a_bucket(config.ingest)
    ledgers = read_ledgers(Storage(str(folder / "corpus"))).values()
    assert all(read.seal for units in ledgers for read in units.values()), "the next ingest reads it all again"
    return Corpus(str(folder / "corpus"))


def _check_as_from_a_bucket(config: IngestConfig) -> None:
    """The outline of the raw data lists the same units, and their own files are enough to read each of them."""
    root = Path(config.input).absolute()
    names = [str(path.relative_to(root)) for path in root.rglob("*")]
    if not all(name.isprintable() for name in names):
        return  # names that no bucket has
    in_bucket = replace(config)
    in_bucket.input = f"file://{root}"
    disk_only = getattr(find(config.format), "LISTING_NEEDS_A_DISK", ())
    with _without_empty_folders(root):
        here = list(list_units(config.format, config.input, config.source_name))
        if any(fnmatch(name, pattern) for pattern in disk_only for name in names):
            with pytest.raises(FormatError, match="must read to list"), listing(config.format, in_bucket.input, ""):
                pass
            there = [relocated(entry, str(root), in_bucket.input) for entry in here]
        else:
            with listing(config.format, in_bucket.input, config.source_name) as (entries_there, to_uris):
                there = [to_uris(entry) for entry in entries_there]
            _check_equal(there, here)
        here, there = ([one for one in listed if isinstance(one, Unit)] for listed in (here, there))
        _check_equal(list(entries(there, in_bucket)), list(entries(here, config)))


def _check_equal(there: list[Any], here: list[Any]) -> None:
    for one, other in zip(there, here, strict=True):
        # A message that is cut has less of a longer path.
        told, expected = (re.sub(r"(No such file or directory: ').*?(\"|$)", r"\1", str(x)) for x in (one, other))
        assert told.replace("file://", "") == expected, f"{str(one)[:1500]} is not {str(other)[:1500]}"


@contextmanager
def _without_empty_folders(root: Path) -> Iterator[None]:
    """A bucket has none."""
    empty = list[Path]()
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
            path.rmdir()
            empty.append(path)
    try:
        yield
    finally:
        for path in reversed(empty):
            path.mkdir()


def read(format: str, input: Path, **settings: Any) -> list[ShardEntry]:
    """What the job would store or reject of `input`, unit by unit; a rejection in the listing is an error."""
    units = list(list_units(format, str(input)))
    read = [unit for unit in units if isinstance(unit, Unit)]
    assert all(isinstance(unit, Unit) or unit.skipped for unit in units), units
    return list(entries(read, IngestConfig(format=format, max_frames=6, short_edge=48, **settings)))


def rows(corpus: Corpus, *columns: str) -> list[tuple[Any, ...]]:
    """Some columns of the manifest, sorted by source, episode key and view."""
    table = corpus.manifest.sort_by([(name, "ascending") for name in ("source", "episode_key", "view")])
    return list(zip(*(table[name].to_pylist() for name in columns), strict=True))


def row_of(corpus: Corpus, **values: Any) -> int:
    """The row number of the only trajectory with these values."""
    numbers = [i for i, row in enumerate(corpus.manifest.to_pylist()) if values.items() <= row.items()]
    assert len(numbers) == 1, f"{len(numbers)} rows with {values}"
    return numbers[0]


def shows(corpus: Corpus, row: int, frames: np.ndarray, tolerance: float = 12.0) -> bool:
    """Whether a stored trajectory shows `frames` (uint8 [T, H, W, 3], all raw frames), upright and in RGB.

    Compared at 8 x 8 pixels, so that resizing and compression do not matter.
    """
    stored, index = corpus.frames(row), corpus.record(row)["frame_index"]
    return all(_distance(a, frames[i]) < tolerance for a, i in zip(stored, index, strict=True))


def nearest(corpus: Corpus, row: int, frames: np.ndarray) -> list[int]:
    """For each stored frame, which one of `frames` (uint8 [T, H, W, 3]) it looks most like."""
    stored = corpus.frames(row)
    small = [cv2.resize(x, stored[0].shape[1::-1], interpolation=cv2.INTER_AREA).astype(float) for x in frames]
    return [int(np.argmin([np.abs(x - frame).mean() for x in small])) for frame in stored]


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    small = [cv2.resize(x, (8, 8), interpolation=cv2.INTER_AREA).astype(float) for x in (a, b)]
    return float(np.abs(small[0] - small[1]).mean())


def refusals(corpus: Corpus) -> Mapping[str, str]:
    """The error of each quarantined entry, by the last part of its uri (with episode and view, if any)."""
    return {
        " ".join(filter(None, (Path(row["uri"]).name, row["episode_key"], row["view"]))): row["error"]
        for row in corpus.quarantine().to_pylist()
    }


def hub_cache(folder: Path, to: Path) -> Path:
    """Copy `folder` into a hub cache at `to`: each file of the returned snapshot links to a blob without extension."""
    top = to / f"datasets--me--{folder.name}"
    snapshot = top / "snapshots" / ("ab" * 20)
    (top / "blobs").mkdir(parents=True)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        blob = top / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot
