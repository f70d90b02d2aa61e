"""Humanoid Everyday: Unitree humanoids at 260 everyday tasks, filmed from their heads at 30 frames per second.

    humanoid_everyday/
      push_a_button.zip           one archive per task, read in place; or the same, unpacked:
        push_a_button/metadata.json                 {"description": "push a button"}
        push_a_button/episode_0/data.json           [{"image": "color/000000.jpg", ...}, ...], a frame each
        push_a_button/episode_0/color/000000.jpg
      tasks.json                  optional: {"push_a_button": "Push the button on the table"}

Each data.json is an episode of the data set `humanoid_everyday_rfm`: a robot, view `ego`, successful. The task is the
entry of the archive or task folder in `tasks.json` (upstream downloads a spreadsheet of the authors), else the
description in the nearest metadata.json, else the name in words. An archive whose videos are known to be wrong is left
out, as upstream, and so is a folder that was unpacked beside its archive.
"""

from __future__ import annotations

import json
import posixpath
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.formats.common import files, folder, task_texts
from robometer.corpus.readers.annotations import spaced
from robometer.frames.recording import ImageSequence
from robometer.trajectory import Episode, TrajectoryError

DATA, METADATA = "data.json", "metadata.json"
WRONG = frozenset({"pull_out_tissue_from_tissue_box_h1"})
FPS = 30.0
EPISODES = 40
"""Recorded per task: an archive is not opened to count them."""
MAX_BYTES = 256 * 2**20
"""Largest file that is read from an archive: a larger one is neither an image nor a list, but a zip bomb."""

_Read = Callable[[str], bytes]


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The archives, and the unpacked episodes.

    Raises:
        FormatError: there are neither archives nor episodes.
    """
    root = folder(input, "the folder that holds the archives of Humanoid Everyday")
    archives = files(root, "**/*.zip")
    # Not `**`, which would list the folders with the frames too.
    folders = [path.parent for path in files(root, *(f"{'*/' * depth}{DATA}" for depth in range(1, 5)))]
    if not archives and not folders:
        raise FormatError(f"no zip and no {DATA} in {root}: give ingest.input a copy of Humanoid Everyday")
    tasks, name = task_texts(root), source or "humanoid_everyday_rfm"
    for archive in archives:
        key = archive.relative_to(root).as_posix()
        if archive.stem in WRONG:
            yield Refused(str(archive), "its videos are known to be wrong", name, key, skipped=True)
        else:
            yield Unit(key, name, str(archive), EPISODES, {"task": tasks.get(archive.stem, ""), "name": archive.stem})
    packed = {archive.with_name(archive.name.removesuffix(".zip")) for archive in archives}
    for path in folders:
        if not packed.isdisjoint((path, *path.parents)):
            yield Refused(
                str(path), "its archive lies beside it", name, path.relative_to(root).as_posix(), skipped=True
            )
            continue
        kind = path.relative_to(root).parts[0]
        data = {"task": tasks.get(kind, ""), "name": kind, "root": str(root)}
        yield Unit(path.relative_to(root).as_posix(), name, str(path), data=data)


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The episodes of an archive, or the one episode of a folder."""
    if "root" in unit.data:
        yield from _episodes(unit, [unit.key], _folder_reader(Path(unit.data["root"])), unit.uri)
        return
    try:
        archive = zipfile.ZipFile(unit.uri)
    except (OSError, zipfile.BadZipFile) as error:
        raise TrajectoryError(f"the archive cannot be opened ({error})") from error
    with archive:
        names = (name for name in archive.namelist() if not name.startswith("__MACOSX"))
        folders = sorted(posixpath.dirname(name) for name in names if posixpath.basename(name) == DATA)
        if not folders:
            raise TrajectoryError(f"the archive holds no {DATA}")
        yield from _episodes(unit, folders, _archive_reader(archive), f"{unit.uri}:", f"{unit.key}/")


def _episodes(unit: Unit, folders: list[str], read: _Read, uri: str, prefix: str = "") -> Iterator[Episode | Refused]:
    for path in folders:
        place = uri + path if prefix else uri
        try:
            images = _images(read, path)
            task = unit.data["task"] or _description(read, path) or spaced(unit.data["name"])
        except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
            yield Refused(place, f"the episode cannot be read ({error})", unit.source, prefix + path, "ego")
            continue
        recording = ImageSequence(len(images), lambda i, images=images: read(images[i]), FPS)  # type: ignore[misc]
        yield Episode(unit.source, prefix + path, "ego", task, recording, place)


def _images(read: _Read, path: str) -> list[str]:
    """Paths of an episode's frames, in their order."""
    frames = json.loads(read(posixpath.join(path, DATA)))
    if not isinstance(frames, list) or not all(isinstance(f, dict) and isinstance(f.get("image"), str) for f in frames):
        raise ValueError(f"{DATA} must be a list of frames, each with an image")
    images = [posixpath.normpath(posixpath.join(path, frame["image"])) for frame in frames]
    if outside := [image for image in images if not image.startswith(f"{path}/" if path else "")]:
        raise ValueError(f"the image {outside[0]} lies outside the episode's folder")
    return images


def _description(read: _Read, path: str) -> str:
    """The description in the nearest metadata.json in or above an episode's folder; empty if there is none."""
    while True:
        try:
            metadata: Any = json.loads(read(posixpath.join(path, METADATA)))
        except (KeyError, FileNotFoundError):
            metadata = None
        if isinstance(metadata, dict) and isinstance(metadata.get("description"), str):
            return str(metadata["description"]).strip()
        if not path:
            return ""
        path = posixpath.dirname(path)


def _folder_reader(root: Path) -> _Read:
    def read(name: str) -> bytes:
        return (root / name).read_bytes()

    return read


def _archive_reader(archive: zipfile.ZipFile) -> _Read:
    def read(name: str) -> bytes:
        if archive.getinfo(name).file_size > MAX_BYTES:
            raise ValueError(f"{name} has {archive.getinfo(name).file_size} bytes, more than {MAX_BYTES}")
        return archive.read(name)

    return read
