"""Files that appear whole or not at all, on any filesystem that pyarrow opens.

A file is written under a temporary name, then moved. In a bucket the move is a copy and a deletion, and the copy
appears whole. Writing there under the final name would not do: pyarrow completes an upload when its stream is closed or
dropped, so an error in the middle would leave half a file that readers see.
"""

from __future__ import annotations

import io
import os
import posixpath
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

from robometer.errors import RobometerError
from robometer.files import atomic_folder
from robometer.runs.redaction import redacted

_HOST = socket.gethostname().replace(".", "-")

_CHUNK = 2**24

STALE_AFTER_S = 600.0
"""Age at which a temporary file counts as left by a crashed run. A younger one may belong to a running process, unless
its name says that it was written by a process of this machine that has ended."""


class StorageError(RobometerError):
    """Storage that cannot be opened or written to. The message says what failed."""


class Storage:
    """A folder on a pyarrow filesystem: a local path, or a URI such as s3://bucket/corpus or gs://bucket/corpus.

    Raises:
        StorageError: no filesystem can open the URI.
    """

    def __init__(self, path: str) -> None:
        self.path = path if "://" in path else os.path.abspath(path)
        self.fs: pafs.FileSystem = pafs.LocalFileSystem()
        self.root: str = self.path
        if "://" in path:
            try:
                # A small file then takes one request to S3, instead of the three of an upload in parts.
                options = "?allow_delayed_open=true" if path.startswith("s3://") else ""
                self.fs, self.root = pafs.FileSystem.from_uri(path + options)
            except (OSError, ValueError, ImportError) as error:
                reason = redacted(" ".join(str(error).split()))[:300]
                raise StorageError(
                    f"{redacted(path)} cannot be opened ({reason}): check the address, the credentials and the "
                    "filesystem's library, or give a path on a disk"
                ) from error

    @property
    def is_local(self) -> bool:
        """Whether it is a folder on a disk."""
        return isinstance(self.fs, pafs.LocalFileSystem)

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return Storage, (self.path,)

    def full(self, name: str) -> str:
        """Path of `name` in this folder, as the filesystem expects it."""
        return posixpath.join(self.root, name)

    def at(self, name: str) -> str:
        """The path or URI of a file or folder in this folder."""
        return f"{self.path.rstrip('/')}/{name}"

    def exists(self, name: str) -> bool:
        """Whether there is a committed file with this name."""
        with self._reading():
            return bool(self.fs.get_file_info(self.full(name)).type == pafs.FileType.File)

    def list(self, folder: str, suffix: str) -> Sequence[str]:
        """Sorted names (relative to the root) of the committed files in a folder, without temporary ones."""
        return list(self.stamps(folder, suffix))

    def stamps(self, folder: str, suffix: str) -> dict[str, str]:
        """For each file that `list` gives, in its order, a text that changes with the file: its size and its time.

        It comes with the listing. The times of S3 are whole seconds.
        """
        infos = sorted(self._files(folder), key=lambda info: info.base_name)
        return {
            f"{folder}/{info.base_name}": f"{info.size} {info.mtime_ns}"
            for info in infos
            if info.base_name.endswith(suffix) and not info.base_name.startswith(".")
        }

    def hidden(self, folder: str) -> Sequence[str]:
        """Sorted names (within the folder) of the files in a folder whose names start with a dot."""
        return sorted(info.base_name for info in self._files(folder) if info.base_name.startswith("."))

    def folders(self, folder: str) -> Sequence[str]:
        """Sorted names (relative to the root) of the folders in a folder."""
        infos = self._infos(folder)
        return sorted(f"{folder}/{info.base_name}" for info in infos if info.type == pafs.FileType.Directory)

    def is_empty(self) -> bool:
        """Whether there is nothing in this folder but hidden files, or no such folder."""
        return all(info.base_name.startswith(".") for info in self._infos(""))

    def tree(self, folder: str) -> dict[str, pafs.FileInfo]:
        """All files in a folder and below it, by their names within the folder.

        Raises:
            StorageError: it cannot be read, or a name leads out of the folder.
        """
        path = self.full(folder).rstrip("/")
        with self._reading():
            infos = self.fs.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=True))
        files = {info.path[len(path) + 1 :]: info for info in infos if info.type == pafs.FileType.File}
        if outside := [name for name in files if ".." in name.split("/")]:
            raise StorageError(f"{path} has a file whose name leads out of it: {outside[0]}")
        return files

    def stamp(self, name: str) -> str:
        """A text that changes with the content of a file: its entity tag, where the filesystem has one, and its time.

        The times of S3 are whole seconds.
        """
        with self._reading(), self.fs.open_input_file(self.full(name)) as source:
            tag = {key.lower(): value for key, value in (source.metadata() or {}).items()}.get("etag", b"")
            return f"{self.fs.get_file_info(self.full(name)).mtime} {tag.decode()}"

    def remove_stale(self, folder: str, keep: Container[str] | None = None, age_s: float = STALE_AFTER_S) -> int:
        """Delete the files that crashed runs left in a folder, and return how many.

        These are temporary files whose process has ended, or that are `age_s` seconds old. With `keep`, they are also
        committed files of this age whose stem is not in `keep`.
        """
        stale = []
        for info in self._files(folder):
            orphan = keep is not None and info.base_name.rsplit(".", 1)[0] not in keep
            temporary = info.base_name.startswith(".") and info.base_name.endswith(".tmp")
            old = info.mtime is not None and time.time() - info.mtime.timestamp() > age_s
            if (temporary and (old or _owner_is_gone(info.base_name))) or (orphan and not temporary and old):
                stale.append(info.path)
        for path in stale:
            self._delete(path)
        return len(stale)

    def remove(self, name: str) -> None:
        """Delete a file, if it exists."""
        self._delete(self.full(name))

    def remove_folder(self, name: str) -> None:
        """Delete a folder with all that is in it, if it exists."""
        with suppress(FileNotFoundError):
            self.fs.delete_dir(self.full(name))

    def _delete(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self.fs.delete_file(path)

    def _files(self, folder: str) -> Sequence[pafs.FileInfo]:
        return [info for info in self._infos(folder) if info.type == pafs.FileType.File]

    def _infos(self, folder: str) -> Sequence[pafs.FileInfo]:
        path = self.full(folder).rstrip("/")
        with self._reading():
            return list(self.fs.get_file_info(pafs.FileSelector(path, allow_not_found=True)))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Storage that refuses us, or does not answer, is an error that names it."""
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{redacted(self.path)} cannot be read ({redacted(' '.join(str(error).split()))[:300]}): check the "
                "address, and the rights of this process"
            ) from error

    @contextmanager
    def write(self, name: str) -> Iterator[Any]:
        """A stream to a file that becomes `name` if the block ends without an error, and is deleted otherwise.

        Raises:
            StorageError: the disk is full, or the file cannot be written for another reason.
        """
        folder, base = posixpath.split(self.full(name))
        temporary = posixpath.join(folder, f".{base}.{_HOST}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            if self.fs.type_name != "s3":  # which has no folders, and would be asked about the bucket each time
                self.fs.create_dir(folder, recursive=True)
            with self.fs.open_output_stream(temporary) as stream:
                yield stream
            self.fs.move(temporary, self.full(name))
        except BaseException as error:
            self._delete(temporary)
            if isinstance(error, OSError):
                raise StorageError(f"cannot write {self.full(name)}: {error}") from error
            raise

    def read_bytes(self, name: str) -> bytes:
        """Content of a file."""
        with self.fs.open_input_stream(self.full(name)) as stream:
            return bytes(stream.read())

    def write_bytes(self, name: str, data: bytes) -> None:
        """Replace a file's content in one step."""
        with self.write(name) as stream:
            stream.write(data)

    def put_bytes(self, name: str, data: bytes) -> None:
        """Replace a file's content in one request, for content that nobody trusts: an error may leave half of it."""
        try:
            with self.fs.open_output_stream(self.full(name)) as stream:
                stream.write(data)
        except OSError as error:
            raise StorageError(f"cannot write {self.full(name)}: {error}") from error

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        """A file or folder on a disk: itself, or a copy for the duration of the block.

        Raises:
            FileNotFoundError: it does not exist.
            StorageError: it cannot be copied.
        """
        if self.is_local:
            yield Path(self.full(name))
            return
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch, posixpath.basename(name))
            names = {name} if self.exists(name) else {f"{name}/{file}" for file in self.tree(name)}
            if not names:
                raise FileNotFoundError(self.full(name))
            for file in names:
                self.fetch(file, copy / file[len(name) + 1 :])
            yield copy

    def fetch(self, name: str, path: Path) -> None:
        """Copy a file to a disk.

        Raises:
            StorageError: it cannot be copied.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._reading(), self.fs.open_input_stream(self.full(name)) as source, path.open("wb") as target:
            shutil.copyfileobj(source, target, _CHUNK)

    @contextmanager
    def write_folder(self, name: str, last: Container[str]) -> Iterator[Path]:
        """The path of a folder to make on a disk; it takes the place of `name` if the block ends without an error.

        Args:
            name: of the folder.
            last: names of files without which nobody can use the folder. In a bucket, where no folder can be moved,
                they are deleted before and written after all other files.

        Raises:
            StorageError: it cannot be written.
        """
        if self.is_local:
            with atomic_folder(self.full(name)) as staging:
                yield staging
            return
        with tempfile.TemporaryDirectory() as scratch:
            staging = Path(scratch, "new")
            yield staging
            new = [str(path.relative_to(staging)) for path in sorted(staging.rglob("*")) if path.is_file()]
            for file in sorted(self.tree(name), key=lambda file: file not in last):
                self.remove(f"{name}/{file}")
            for file in sorted(new, key=lambda file: file in last):
                with self.write(f"{name}/{file}") as stream, (staging / file).open("rb") as source:
                    shutil.copyfileobj(source, stream, _CHUNK)

    def write_parquet(self, name: str, table: pa.Table) -> None:
        """Write a table that fits in memory."""
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        self.write_bytes(name, buffer.getvalue())

    def read_parquet(
        self, name: str, columns: Iterable[str] | None = None, dictionaries: Sequence[str] = ()
    ) -> pa.Table:
        """Read a table, or some of its columns; the columns in `dictionaries` stay dictionary-encoded."""
        with self.fs.open_input_file(self.full(name)) as source:
            chosen = None if columns is None else list(columns)
            return pq.read_table(source, columns=chosen, read_dictionary=list(dictionaries))

    def read_parquet_schema(self, name: str) -> pa.Schema:
        """Schema and metadata of a table."""
        with self.fs.open_input_file(self.full(name)) as source:
            return pq.read_schema(source)

    def count_rows(self, name: str) -> int:
        """Number of rows of a table, from its footer."""
        with self.fs.open_input_file(self.full(name)) as source:
            return int(pq.read_metadata(source).num_rows)

    def open_arrow(self, name: str) -> ipc.RecordBatchFileReader:
        """Reader of an Arrow IPC file: memory-mapped on a local filesystem, by ranged reads elsewhere."""
        source = pa.memory_map(self.full(name)) if self.is_local else self.fs.open_input_file(self.full(name))
        return ipc.open_file(source)


def _owner_is_gone(temporary: str) -> bool:
    """Whether the process that wrote a temporary file ran on this machine and has ended."""
    host, pid = temporary.rsplit(".", 4)[-4:-2]
    if host != _HOST or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
