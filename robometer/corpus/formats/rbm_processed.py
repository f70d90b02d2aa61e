"""Upstream's processed data sets (RBM-1M as it is published), so that nobody must process the raw data again.

    <name>/processed_dataset/state.json, data-*.arrow    rows, as the library `datasets` saves them (Arrow IPC stream)
    <name>/frames/trajectory_<id>.npz                    array `frames`, uint8 [T, H, W, 3] RGB

`ingest.input` is such a folder or one that holds several (up to two levels down), a tar of one, also split
(`<name>.tar.partaa`, `<name>.tar.part-aa`, ...), or a folder of tars. Tars are read in place: nothing is extracted, and
at most one frame of a compressed array is in memory. A row gives:

    source                        data_source, else the folder's name
    episode_key                   id; a row is one view of an episode, and the view's name is not recorded (view `main`)
    task, is_robot                task; is_robot, with null as true, as upstream
    quality_label                 quality_label, including `failed` and `optimal`
    partial_success               partial_success; null for metaworld_*, whose rows all say 0, even successes

Only the file name of frames_path is used, as its folders are upstream's. The published OXE archives hold embeddings
without frames: all their rows are refused. The last source frame may be missing and cannot be recovered.
"""

from __future__ import annotations

import io
import json
import math
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, cast

import numpy as np
import pyarrow as pa

from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.formats.common import absolute, files, name_of
from robometer.frames.recording import ImageSequence
from robometer.frames.video import VideoError, first_line
from robometer.trajectory import Episode

COLUMNS = ("id", "task", "data_source", "is_robot", "quality_label", "partial_success", "frames_path", "frames",
           "num_frames")  # fmt: skip
PARTIAL_SUCCESS_IS_WRONG = "metaworld_"
LISTING_READS = ("*processed_dataset/*.arrow",)
LISTING_NEEDS_A_DISK = ("*.tar", "*.tar.part*")

_TAR = re.compile(r"(?P<name>.+)\.tar(\.part-?(?P<part>[a-z]+))?")


@dataclass(frozen=True)
class _Place:
    """A file: a whole one, or `size` bytes from `start` on in several files that are read as one."""

    paths: Sequence[str]
    start: int = 0
    size: int | None = None

    def open(self) -> BinaryIO:
        """The bytes, for reading."""
        return cast(BinaryIO, io.BufferedReader(_Window(self)))


class _Window(io.RawIOBase):
    """The content of a place, with one of its files open at a time."""

    def __init__(self, place: _Place) -> None:
        self._sizes = [Path(path).stat().st_size for path in place.paths]
        self._place, self._position = place, 0
        self._open: tuple[int, IO[bytes]] = (-1, io.BytesIO())
        rest = sum(self._sizes) - place.start
        self._size = max(0, rest if place.size is None else min(place.size, rest))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + (0, self._position, self._size)[whence])
        return self._position

    def readinto(self, buffer: Any) -> int:
        at, i = self._place.start + self._position, 0
        while i < len(self._sizes) and at >= self._sizes[i]:
            at, i = at - self._sizes[i], i + 1
        if i == len(self._sizes):
            return 0
        if self._open[0] != i:
            self._open[1].close()
            self._open = (i, open(self._place.paths[i], "rb"))  # noqa: SIM115  read on
        self._open[1].seek(at)
        content = self._open[1].read(max(0, min(len(buffer), self._size - self._position)))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

    def close(self) -> None:
        self._open[1].close()
        super().close()


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """Every row of every data set, in order.

    Raises:
        FormatError: there is no data set.
    """
    root = absolute(input)
    if not root.exists():
        raise FormatError(
            f"no file or folder {input}: give ingest.input a processed data set of upstream's, or its tar"
        )
    is_empty = True
    for folder in _folders(root):
        members = {path.relative_to(folder.parent).as_posix(): _Place([str(path)])
                   for path in files(folder, "processed_dataset/*", "frames/*.npz")}  # fmt: skip
        is_empty = False
        yield from _rows_of(name_of(folder), members, str(folder), source)
    for name, parts in _tars(root):
        is_empty = False
        yield from _of_tar(name, parts, source)
    if is_empty:
        raise FormatError(f"no processed_dataset/ and no tar at {input}: give ingest.input upstream's processed data")


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The trajectory of a row."""
    row = unit.data
    place = _Place(row["paths"], row["start"], row["size"])
    with place.open() as file:
        frames = _Frames(file)
        if row["num_frames"] not in (None, frames.count):
            raise VideoError(f"the npz holds {frames.count} frames, but its row says {row['num_frames']}")
        yield Episode(
            source=unit.source,
            episode_key=unit.key,
            view="main",
            task=row["task"],
            recording=ImageSequence(frames.count, frames.get),
            uri=unit.uri,
            raw_quality_label=row["quality_label"],
            is_robot=row["is_robot"],
            partial_success=row["partial_success"],
        )


class _Frames:
    """The array `frames` of an npz, one frame at a time. If frames are read in ascending order, it is inflated once.

    Raises:
        VideoError: it is not an npz with such an array.
    """

    def __init__(self, file: BinaryIO) -> None:
        try:
            archive = zipfile.ZipFile(file)
            self._stream = archive.open("frames.npy")
            version = np.lib.format.read_magic(self._stream)
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            self._shape, fortran, dtype = read_header[version](self._stream)
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, KeyError, NotImplementedError) as error:
            raise VideoError(f"the npz cannot be read ({type(error).__name__}: {first_line(error)})") from error
        self._start = self._stream.tell()
        sized = archive.getinfo("frames.npy").file_size - self._start == math.prod(self._shape)
        if dtype != np.uint8 or fortran or len(self._shape) != 4 or not sized:
            raise VideoError(f"the npz holds {dtype} {list(self._shape)}, not uint8 [T, H, W, 3] in full")
        self.count = int(self._shape[0])

    def get(self, frame: int) -> np.ndarray:
        size = math.prod(self._shape[1:])
        self._stream.seek(self._start + frame * size)
        content = self._stream.read(size)
        if frame == self.count - 1:
            self._stream.read(1)  # at the end the checksum is compared
        return np.frombuffer(content, np.uint8).reshape(self._shape[1:])


def _folders(root: Path) -> list[Path]:
    if (root / "processed_dataset").is_dir():
        return [root]
    tables = [path for depth in ("*", "*/*") for path in root.glob(f"{depth}/processed_dataset") if path.is_dir()]
    return sorted(path.parent for path in tables)


def _tars(root: Path) -> list[tuple[str, list[Path]]]:
    """(name, parts in order) of the tars in a folder, or of the one tar that `root` is a part of."""
    groups: dict[str, list[tuple[str, Path]]] = {}
    for path in files(root if root.is_dir() else root.parent, "*.tar", "*.tar.part*"):
        if match := _TAR.fullmatch(path.name):
            groups.setdefault(match["name"], []).append((match["part"] or "", path))
    if not root.is_dir():
        match = _TAR.fullmatch(root.name)
        groups = {match["name"]: groups[match["name"]]} if match and match["name"] in groups else {}
    return [(name, [path for _, path in sorted(parts)]) for name, parts in sorted(groups.items())]


def _of_tar(name: str, parts: list[Path], source: str) -> Iterator[Unit | Refused]:
    paths = [str(path) for path in parts]
    members: dict[str, _Place] = {}
    broken = ""
    with _Place(paths).open() as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                while member := tar.next():
                    if member.isreg():
                        members[str(PurePosixPath(member.name))] = _Place(paths, member.offset_data, member.size)
        except (tarfile.TarError, OSError, EOFError) as error:
            broken = f"the tar breaks off after {len(members)} files ({first_line(error)}): is a part missing?"
    if broken:
        yield Refused(paths[0], broken, source or name)
    if not broken or _tables(members):
        yield from _rows_of(name, members, paths[0], source)


def _tables(members: Mapping[str, _Place]) -> list[str]:
    return sorted(path for path in members if re.search(r"(^|/)processed_dataset/[^/]+\.arrow$", path))


def _rows_of(name: str, members: Mapping[str, _Place], uri: str, source: str) -> Iterator[Unit | Refused]:
    """The rows of all data sets among some files."""
    tables = _tables(members)
    if not tables:
        yield Refused(uri, "it has no processed_dataset/*.arrow", source or name)
    for table in tables:
        folder = PurePosixPath(table).parent.parent
        try:
            with members[table].open() as file, closing(pa.ipc.open_stream(file)) as batches:
                for batch in batches:
                    rows = batch.select([column for column in COLUMNS if column in batch.schema.names])
                    for row in rows.to_pylist():
                        yield _unit(row, folder, members, uri, source or row.get("data_source") or name)
        except (pa.ArrowException, OSError) as error:
            yield Refused(
                f"{uri}/{table}", f"the rest of the table cannot be read ({first_line(error)})", source or name
            )
    yield from _missing(tables, members, uri, source or name)


def _missing(tables: Sequence[str], members: Mapping[str, _Place], uri: str, source: str) -> Iterator[Refused]:
    """Tables that state.json names but that are missing."""
    for folder in sorted({PurePosixPath(table).parent for table in tables}):
        if state := members.get(str(folder / "state.json")):
            try:
                with state.open() as file:
                    listed = [str(entry["filename"]) for entry in json.load(file)["_data_files"]]
            except (ValueError, KeyError, TypeError) as error:
                yield Refused(f"{uri}/{folder}/state.json", f"it is malformed ({type(error).__name__})", source)
                continue
            for table in sorted(set(listed) - {PurePosixPath(table).name for table in tables}):
                yield Refused(f"{uri}/{folder}/{table}", "state.json names this table, but it is missing", source)


def _unit(
    row: Mapping[str, Any], folder: PurePosixPath, members: Mapping[str, _Place], uri: str, source: str
) -> Unit | Refused:
    key = str(row.get("id") or "")
    path = row.get("frames_path") or row.get("frames")
    if not key or not isinstance(path, str):
        return Refused(uri, f"a row has no {'frames_path' if key else 'id'}", source, key)
    name = str(folder / "frames" / PurePosixPath(path.replace("\\", "/")).name)
    if name not in members:
        return Refused(f"{uri}/{name}", "its row names this file, but it is missing", source, key)
    place = members[name]
    data = {
        "paths": list(place.paths),
        "start": place.start,
        "size": place.size,
        "num_frames": row.get("num_frames"),
        "task": str(row.get("task") or ""),
        "quality_label": str(row.get("quality_label") or ""),
        "is_robot": row.get("is_robot") is not False,
        "partial_success": None if source.startswith(PARTIAL_SUCCESS_IS_WRONG) else row.get("partial_success"),
    }
    uri = place.paths[0] if place.size is None else f"{place.paths[0]}/{name}"
    return Unit(key, source, uri, data=data, files=place.paths)
