"""Raw data in a bucket, for formats that read files on a disk.

The driver lists an `Outline`: a folder on its disk with every name, size and time of the bucket's folder. Files that
listings read (texts, tables of contents) have their bytes there, all others are holes. A worker then has the files of
one unit at a time on its disk (`LocalUnits`), and fetches those of the next one meanwhile.
"""

from __future__ import annotations

import logging
import os
import posixpath
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from fnmatch import fnmatch
from itertools import zip_longest
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.fs as pafs

from robometer.corpus.formats import FormatError, Refused, Unit, find, list_units
from robometer.corpus.formats.common import absolute
from robometer.corpus.storage import Storage
from robometer.corpus.writer import Accepted, Present, Quarantined, ShardEntry

logger = logging.getLogger(__name__)

TEXTS = (
    *("*.json", "*.jsonl", "*.csv", "*.tsv", "*.txt", "*.yaml", "*.yml", "*.md"),
    *("*.zgroup", "*.zattrs", "*.zarray", "*.zmetadata"),
)
"""Files that a listing may read, of every format. A format names others in `LISTING_READS`, by patterns of their
names, and in `LISTING_NEEDS_A_DISK` those that it reads and that are too large to fetch for it."""

_THREADS = 16

T = TypeVar("T")


class Outline:
    """The local outline of a folder or file in a bucket.

    Attributes:
        input: its path, to be listed in the place of the URI.
    """

    def __init__(self, uri: str, format: str, scratch: Path) -> None:
        """Make it below the empty folder `scratch`.

        Raises:
            StorageError: the bucket cannot be read.
            FormatError: there is nothing at `uri`, or no folder on a disk can look like it, or the format must read
                large files to list it.
        """
        self._uri, name = _split(uri)
        bucket = Storage(self._uri)
        # With all names above it: a data set may be named after one of them.
        self._path = posixpath.join(scratch, bucket.root.strip("/"))
        self.input = posixpath.join(self._path, name)
        folder = "" if name and bucket.exists(name) else name  # an annotation file lies beside its videos
        infos = {posixpath.join(folder, file): info for file, info in bucket.tree(folder).items()}
        module = find(format)
        reads = (*TEXTS, *getattr(module, "LISTING_READS", ()))
        if not infos:
            raise FormatError(f"there is no file at {uri}: check ingest.input, and the rights of this process")
        for pattern in getattr(module, "LISTING_NEEDS_A_DISK", ()):
            if large := next((name for name in infos if fnmatch(name.lower(), pattern)), None):
                raise FormatError(
                    f"{uri} holds {large}, which ingest.format={format} must read to list what is in it: unpack it, or "
                    "mount the bucket and give the folder to ingest.input"
                )
        with ThreadPool(_THREADS) as pool:
            for _ in pool.imap_unordered(lambda file: self._put(bucket, *file, reads), infos.items(), chunksize=64):
                pass
        logger.info("ingest: %s has %d files", uri, len(infos))

    def _put(self, bucket: Storage, name: str, info: pafs.FileInfo, reads: Sequence[str]) -> None:
        path = Path(self._path, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(exist_ok=False)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise FormatError(
                f"{bucket.at(name)} has a name that no file on a disk can have beside the others ({reason}): rename it"
            ) from error
        if any(fnmatch(name.lower(), pattern) for pattern in reads):
            bucket.fetch(name, path)
        else:
            os.truncate(path, info.size)
        changed_ns = info.mtime_ns or 0
        os.utime(path, ns=(changed_ns, changed_ns))

    def to_uris(self, entry: T) -> T:
        """An entry of the listing that names the files in the bucket."""
        moved: T = relocated(entry, self._path, self._uri)
        return moved


@contextmanager
def listing(format: str, input: str, source: str) -> Iterator[tuple[Iterator[Unit | Refused], Callable[[Any], Any]]]:
    """What `input` holds in `format`, and a function that gives its entries the names of their files in the bucket.

    Until the end of the block, what the entries themselves name lies on this disk.

    Raises:
        FormatError: the format is unknown, or `input` holds no such data.
        StorageError: the bucket cannot be read.
    """
    if not is_remote(format, input):
        yield list_units(format, input, source), lambda entry: entry
        return
    with tempfile.TemporaryDirectory(prefix="robometer-listing-") as scratch:
        outline = Outline(input, format, Path(scratch))
        try:
            yield list_units(format, outline.input, source), outline.to_uris
        except FormatError as error:
            raise FormatError(outline.to_uris(str(error))) from error


def is_remote(format: str, input: str) -> bool:
    """Whether the raw data is in a bucket, and must be fetched for its format. A user's own format gets the URI."""
    return "://" in input and "." not in format and not os.path.exists(input)


def folder_of(format: str, input: str) -> str:
    """The folder that raw data lies in, as the `uri` of its trajectories begins."""
    if is_remote(format, input):
        return input.rstrip("/") if not posixpath.splitext(input)[1] else posixpath.dirname(input)
    path = absolute(input)
    return str(path.parent if path.is_file() else path)


class LocalUnits:
    """Units of a bucket with their files on this disk, one at a time. Without a bucket, the units themselves."""

    def __init__(self, units: Sequence[Unit], format: str, input: str) -> None:
        self._units, self._is_remote = units, is_remote(format, input)
        self._uri = _split(input)[0]
        self._path = ""
        self._found = dict[str, list[str]]()
        """Files of the unit that was fetched last, by the names that it has of them."""

    def __iter__(self) -> Iterator[Unit]:
        """Each unit. Its files are deleted when the next one is asked for, unless that has them too.

        Raises:
            StorageError: the bucket cannot be read.
        """
        if not self._is_remote:
            yield from self._units
            return
        bucket, here = Storage(self._uri), frozenset[str]()
        with tempfile.TemporaryDirectory(prefix="robometer-raw-") as scratch, ThreadPoolExecutor(1) as ahead:
            self._path = posixpath.join(scratch, bucket.root.strip("/"))
            following = ahead.submit(self._fetch, bucket, self._units[0], here) if self._units else None
            for unit, after in zip_longest(self._units, self._units[1:]):
                assert following is not None
                wanted = following.result()
                for file in here - wanted:
                    Path(self._path, file).unlink()
                here = wanted
                following = ahead.submit(self._fetch, bucket, after, here) if after else None
                yield relocated(unit, self._uri, self._path)

    def _fetch(self, bucket: Storage, unit: Unit, here: frozenset[str]) -> frozenset[str]:
        """Fetch the files of a unit that are not `here`; returns all of its files.

        What is missing in the bucket will be missed by the format.
        """
        paths = [path for path in unit.files or (unit.uri,) if path.startswith(f"{self._uri}/")]
        names = [path.removeprefix(self._uri).strip("/") for path in paths]
        self._found = {name: self._found.get(name) or self._below(bucket, name) for name in names}
        files = frozenset[str]().union(*self._found.values())
        for file in sorted(files - here):
            bucket.fetch(file, Path(self._path, file))
        return files

    def _below(self, bucket: Storage, name: str) -> list[str]:
        """A file itself, or all files in a folder and below it."""
        return [name] if bucket.exists(name) else [f"{name}/{file}" for file in bucket.tree(name)]

    def to_uris(self, entry: ShardEntry) -> ShardEntry:
        """What was made of a unit, with the names of its files in the bucket."""
        moved: ShardEntry = relocated(entry, self._path, self._uri) if self._is_remote else entry
        return moved


def _split(uri: str) -> tuple[str, str]:
    """The URI of the folder that a file or folder is in, and its name; of a bucket, its own URI and no name."""
    folder, _, name = uri.rstrip("/").rpartition("/")
    return (folder, name) if "://" in folder else (uri.rstrip("/"), "")


def relocated(value: Any, old: str, new: str) -> Any:
    """A value (of JSON, a unit, or what was made of one) that names the folder `new` wherever it named `old`."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, Mapping):
        return {key: relocated(entry, old, new) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(relocated(entry, old, new) for entry in value)
    if isinstance(value, Unit):
        moved = {name: relocated(getattr(value, name), old, new) for name in ("uri", "data", "files")}
        return replace(value, **moved)
    if isinstance(value, Refused):
        return replace(value, uri=relocated(value.uri, old, new), error=relocated(value.error, old, new))
    if isinstance(value, Accepted):
        return replace(value, record={**value.record, "uri": relocated(value.record["uri"], old, new)})
    if isinstance(value, Present):
        return replace(value, uri=relocated(value.uri, old, new))
    if isinstance(value, Quarantined):
        return replace(value, row=relocated(value.row, old, new))
    return value
