"""Data sets of TensorFlow Datasets on disk, without TensorFlow: what a version holds, and the order of reading it.

<data set>/<version>/
    dataset_info.json                      name, number of records per file
    features.json                          the features, as a tree
    <data set>-<split>.tfrecord-00000-of-01024
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from robometer.corpus.formats import FormatError, Unit, common

OBSERVATION = "steps/observation/"

_FILE = re.compile(r"(?:.*-)?(?P<split>[^-.]+)\.tfrecord(?:-(?P<number>\d+)-of-\d+)?")
_CYCLE = _BLOCK = 16  # TensorFlow Datasets reads 16 files in turn, 16 records of each


@dataclass(frozen=True)
class RecordFile:
    """A file of records: its split, its number in the split, and how many records it has, if that is recorded."""

    path: Path
    split: str
    number: int
    length: int | None


@dataclass(frozen=True)
class Builder:
    """One version of a data set.

    Attributes:
        name, version: as dataset_info.json says, or else the names of its folders.
        features: the description of each leaf, by its path (`steps/observation/image`).
        lengths: number of records of each file, by split; empty if it is not recorded.
    """

    folder: Path
    name: str
    version: str
    features: dict[str, Any]
    lengths: dict[str, list[int]]

    def files(self) -> list[RecordFile]:
        """Its record files, sorted by name."""
        paths = [(path, _FILE.fullmatch(path.name)) for path in common.files(self.folder, "*.tfrecord*")]
        return [self._file(path, name["split"], int(name["number"] or 0)) for path, name in paths if name]

    def _file(self, path: Path, split: str, number: int) -> RecordFile:
        lengths = self.lengths.get(split, [])
        return RecordFile(path, split, number, lengths[number] if number < len(lengths) else None)

    def absent(self) -> list[str]:
        """How many files of each split are recorded, but missing; a sentence each."""
        present = {(file.split, file.number) for file in self.files()}
        missing = {
            split: sum((split, number) not in present for number in range(len(lengths)))
            for split, lengths in self.lengths.items()
        }
        return [f"{n} of {len(self.lengths[s])} files of the split {s} are missing" for s, n in missing.items() if n]

    def cameras(self) -> list[str]:
        """Keys of the observation that are RGB images, sorted."""
        return sorted(path.removeprefix(OBSERVATION) for path, leaf in self.features.items() if _is_rgb(path, leaf))

    def unit(self, file: RecordFile, data_set: str, source: str, views: Sequence[str], **data: Any) -> Unit:
        """A record file with the views to take from it."""
        content = {"views": list(views), "records": file.length, **data}
        key = f"{data_set}/{self.version}/{file.path.name}"
        files = [str(file.path), str(self.folder / "features.json")]
        return Unit(key, source, str(file.path), (file.length or 1) * len(views), content, files)


def builders(input: str) -> list[Builder]:
    """All versions of data sets below a folder, by path.

    Raises:
        FormatError: there are none, or the description of one cannot be read.
    """
    what = "a folder with data sets of TensorFlow Datasets (features.json and *.tfrecord files)"
    root = common.folder(input, what)
    versions = [_builder(path.parent) for path in common.files(root, "**/features.json")]
    if not any(builder.files() for builder in versions):
        raise FormatError(f"no record files beside a features.json below {input}: give ingest.input {what}")
    return versions


def _builder(folder: Path) -> Builder:
    described = folder / "dataset_info.json"
    info = common.read_json(described) if described.is_file() else {}
    try:
        lengths = {split["name"]: [int(n) for n in split.get("shardLengths", ())] for split in info.get("splits", ())}
        name, version = str(info.get("name") or folder.parent.name), str(info.get("version") or folder.name)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{described} does not describe a data set ({type(error).__name__}: {error})") from error
    return Builder(folder, name, version, features(folder), lengths)


@lru_cache(maxsize=8)
def features(folder: Path) -> dict[str, Any]:
    """The description of each leaf of `features.json`, by its path.

    Raises:
        FormatError: the file is missing or malformed.
    """
    path = folder / "features.json"
    try:
        leaves = dict(_leaves(common.read_json(path), ""))
        for leaf in leaves.values():
            shape(leaf)
    except (AttributeError, TypeError, ValueError) as error:
        raise FormatError(f"{path} does not describe features ({type(error).__name__}: {error})") from error
    return leaves


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict):
        return
    if "sequence" in node:
        yield from _leaves(node["sequence"].get("feature"), path)
    elif "featuresDict" in node:
        for name, child in node["featuresDict"].get("features", {}).items():
            yield from _leaves(child, f"{path}/{name}".removeprefix("/"))
    else:
        yield path, node


def shape(leaf: dict[str, Any]) -> list[int]:
    """Shape of an image or a tensor; empty for a scalar, or if it is not recorded."""
    return [int(n) for n in leaf.get("image", leaf.get("tensor", {})).get("shape", {}).get("dimensions", ())]


def _is_rgb(path: str, leaf: dict[str, Any]) -> bool:
    if not path.startswith(OBSERVATION) or "depth" in path:
        return False
    kind, sizes = leaf.get("image", leaf.get("tensor", {})), shape(leaf)
    image = "image" in leaf and (not sizes or sizes[-1] == 3)
    plain = "tensor" in leaf and len(sizes) == 3 and sizes[-1] == 3 and min(sizes) > 0
    return kind.get("dtype", "uint8") == "uint8" and (image or plain)


def reading_order(lengths: Sequence[int]) -> list[list[int]]:
    """For each file of a split, the positions of its records in the order in which TensorFlow Datasets reads the split.

    It cycles through 16 slots. Each slot gives 16 records of its file, or the rest of it, and then takes the next file.
    Labels that were recorded in this order need it.
    """
    order: list[list[int]] = [[] for _ in lengths]
    waiting, place = iter(range(len(lengths))), 0
    open_files: list[int | None] = [None] * _CYCLE
    turn = 0
    while place < sum(lengths):
        file = open_files[turn] if open_files[turn] is not None else next(waiting, None)
        open_files[turn] = file
        if file is not None:
            count = min(_BLOCK, lengths[file] - len(order[file]))
            order[file] += range(place, place + count)
            place += count
            if count < _BLOCK:
                open_files[turn] = None
        turn = (turn + 1) % _CYCLE
    return order
