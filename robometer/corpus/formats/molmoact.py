"""MolmoAct: a LeRobot v2 dataset of a Franka arm whose frames are images in the parquet files.

    <household or tabletop>/meta/episodes.jsonl     episode_index, tasks, length
    <household or tabletop>/**/*.parquet            a row per frame: episode_index, frame_index, first_view, second_view

`ingest.input` is one such folder, or one that holds several, up to three levels down. A folder with household or
tabletop in its name becomes molmoact_dataset_household or molmoact_dataset_tabletop. The task is the episode's; if it
has several, the one of most frames, as in `lerobot`. All episodes are successful, with the views first_view and
second_view. The wrist camera is left out, as upstream, and so is every tabletop episode with "load the bowl" in its
task.

Upstream reads the files in the order of a glob, twice, and assumes that the rows of an episode lie together. Here rows
are found by `episode_index` and sorted by `frame_index`, in whatever files they lie. Read versions of this dataset with
videos by `ingest.format=lerobot ingest.source_name=molmoact_dataset_...`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.formats.common import files, folder, name_of
from robometer.corpus.formats.lerobot import TASKS, task_of_most
from robometer.corpus.readers.episode_rows import EpisodeRows, open_parquet, ranges
from robometer.frames.recording import ImageSequence
from robometer.trajectory import Episode, TrajectoryError

EPISODES = "meta/episodes.jsonl"
LISTING_NEEDS_A_DISK = ("*.parquet",)
PARTS = ("household", "tabletop")
VIEWS = ("first_view", "second_view")
LEFT_OUT = {"molmoact_dataset_tabletop": "load the bowl"}


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """Every episode of the folders that hold one of the two parts.

    Raises:
        FormatError: there is no such folder.
    """
    root = folder(input, f"a MolmoAct folder (with {EPISODES} and parquet files)")
    depths = range(1) if (root / EPISODES).is_file() else range(1, 4)
    listings = files(root, *("/".join(["*"] * depth + [EPISODES]) for depth in depths))
    if not listings:
        raise FormatError(f"no {EPISODES} in {input}, nor up to three folders below: give ingest.input MolmoAct")
    for path in (listing.parent.parent for listing in listings):
        relative = path.relative_to(root).as_posix()
        part = next((part for part in PARTS if part in f"{relative}/{name_of(path)}".lower()), "")
        if part or source:
            yield from _episodes_of(path, source or f"molmoact_dataset_{part}")
        else:
            yield Refused(str(path), "its name has neither household nor tabletop in it: give ingest.source_name")


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The two views of one episode."""
    root, data = Path(unit.uri), unit.data
    paths = [root / name for name in data["files"]]
    with EpisodeRows(paths, data["episode"]) as rows:
        if len(rows) != data["length"]:
            raise TrajectoryError(f"episode {data['episode']} has {len(rows)} rows, not {data['length']}")
        tasks = data["tasks"]
        task = tasks[0] if len(tasks) == 1 else task_of_most(rows, root, tasks)
        for view in VIEWS:
            recording = ImageSequence(len(rows), rows.images(view), data["fps"])
            yield Episode(unit.source, unit.key, view, task, recording, str(paths[0]))


def _episodes_of(path: Path, source: str) -> Iterator[Unit | Refused]:
    where: defaultdict[int, list[str]] = defaultdict(list)
    for file in files(path, "**/*.parquet"):
        name = file.relative_to(path).as_posix()
        try:
            with open_parquet(file) as opened:
                for episode in _episodes_in(opened):
                    where[episode].append(name)
        except TrajectoryError as error:
            yield Refused(str(file), str(error), source)
    fps = _fps(path)
    for number, line in enumerate((path / EPISODES).read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            episode, length = int(row["episode_index"]), int(row["length"])
            tasks = list(dict.fromkeys(str(task) for task in row.get("tasks") or () if task))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            message = f"line {number} of {EPISODES} is malformed ({type(error).__name__}: {error})"
            yield Refused(f"{path / EPISODES}:{number}", message, source)
            continue
        key, names = f"{name_of(path)}/episode_{episode:06d}", where.pop(episode, [])
        if (words := LEFT_OUT.get(source)) and any(words in task.lower() for task in tasks):
            yield Refused(str(path), f"tasks with {words!r} are left out, as upstream", source, key, skipped=True)
        elif not names:
            yield Refused(str(path), f"no parquet file holds rows of episode {episode}", source, key)
        else:
            data = {"episode": episode, "length": length, "tasks": tasks, "files": names, "fps": fps}
            yield Unit(key, source, str(path), len(VIEWS), data, files=[str(path / name) for name in (*names, *TASKS)])
    for episode in sorted(where):
        yield Refused(
            str(path), f"episode {episode} is not in {EPISODES}", source, f"{name_of(path)}/episode_{episode:06d}"
        )


def _episodes_in(file: pq.ParquetFile) -> list[int]:
    """The episodes of a file, from its footer, and from the rows of row groups that hold several."""
    episodes: set[int] = set()
    for group, (least, greatest) in enumerate(ranges(file)):
        if least == greatest:
            episodes.add(least)
        elif least < greatest:
            column = file.read_row_group(group, columns=["episode_index"])["episode_index"]
            episodes.update(pc.unique(column).to_pylist())
    return sorted(episodes)


def _fps(path: Path) -> float:
    try:
        info: Any = json.loads((path / "meta/info.json").read_bytes())
        return float(info["fps"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0.0  # only recorded: nothing depends on it
