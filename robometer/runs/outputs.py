"""Output folders: they outlast the job, and only one job at a time writes into one.

A job that wants to write into a folder puts a file there that identifies it, and renews the file every few seconds.
Then it looks for the files of other jobs: if two jobs start at once, at least one sees the other, on any filesystem and
in any bucket that lists a file as soon as it is written. A job is refused while another one is alive. On the same
machine the operating system knows whether the other is alive, so a killed job blocks nobody. On another machine the
file is watched: a job that does not renew it in time counts as dead.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from robometer.configs.loading import override, to_dict
from robometer.configs.schema import Config
from robometer.corpus.storage import Storage, StorageError
from robometer.errors import RobometerError
from robometer.files import write_atomically
from robometer.runs.paths import absolute_path, make_folder
from robometer.runs.redaction import redacted

logger = logging.getLogger(__name__)

IN_USE = ".in_use."
"""Prefix of these files' names."""

RENEWED_EVERY_S = 3.0
GONE_AFTER_S = 15.0
"""Time without renewal after which a job on another machine counts as dead. It is long because shared storage may be
slow."""

LOST = signal.SIGUSR1
"""Ends a job that has lost its folder; not SIGINT, which background jobs (`nohup`, `&`) ignore."""


class InUseError(RobometerError):
    """An output folder into which another job writes. The message names the job."""


def with_absolute_paths(config: Config, *keys: str) -> Config:
    """The configuration with these settings (paths and URIs, as `section.key`) made absolute.

    Raises:
        PathError: a path is relative in a job that was submitted with its working directory.
    """
    values = to_dict(config)
    return override(config, {key: absolute_path(key, _at(values, key)) for key in keys})


def _at(values: dict[str, Any], key: str) -> str:
    section, name = key.split(".")
    return str(values[section][name])


@contextmanager
def exclusive_folder(name: str, folder: str | Path) -> Iterator[None]:
    """Have a folder, which is created if needed, for this job alone.

    Args:
        name: of the setting with the folder, for messages.
        folder: a path or URI.

    Raises:
        InUseError: another job writes into the folder, or took it over because this job seemed dead.
        PathError: the folder cannot be created or written to.
        StorageError: the same, of a URI.
    """
    in_bucket = "://" in str(folder)
    lease = _Lease(name, _Bucket(str(folder)) if in_bucket else _Disk(make_folder(name, folder)))
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(LOST, signal.default_int_handler) if in_main else None
    try:
        yield
    except KeyboardInterrupt as error:
        if lease.lost:
            raise InUseError(lease.lost) from error
        raise
    finally:
        lease.release()
        if in_main:
            signal.signal(LOST, before or signal.SIG_DFL)


class _Disk:
    """A folder on a disk, with the files that identify jobs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __str__(self) -> str:
        return str(self._folder)

    def names(self) -> list[str]:
        """The names of these files, sorted."""
        return sorted(path.name for path in self._folder.glob(f"{IN_USE}*.json"))

    def read(self, name: str) -> str | None:
        """The content of a file; None if it does not exist (any more)."""
        with suppress(FileNotFoundError):
            return (self._folder / name).read_text()
        return None

    def create(self, name: str, text: str) -> None:
        """Write a new file."""
        write_atomically(self._folder / name, text)

    def rewrite(self, name: str, text: str) -> None:
        """Replace the content of a file, but never create it again after another job has removed it.

        Raises:
            FileNotFoundError: it does not exist any more.
        """
        file = os.open(self._folder / name, os.O_WRONLY)
        try:
            encoded = text.encode()
            os.pwrite(file, encoded, 0)
            os.ftruncate(file, len(encoded))
            os.fsync(file)
        finally:
            os.close(file)

    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""
        (self._folder / name).unlink(missing_ok=True)


class _Bucket:
    """As `_Disk`, of a URI. Here `rewrite` may create a file again that another job removes at the same moment."""

    def __init__(self, uri: str) -> None:
        self._storage = Storage(uri)

    def __str__(self) -> str:
        return redacted(self._storage.path)

    def names(self) -> list[str]:
        """See `_Disk.names`."""
        return [name for name in self._storage.hidden("") if name.startswith(IN_USE) and name.endswith(".json")]

    def read(self, name: str) -> str | None:
        """See `_Disk.read`."""
        with suppress(FileNotFoundError):
            return self._storage.read_bytes(name).decode(errors="replace")
        return None

    def create(self, name: str, text: str) -> None:
        """See `_Disk.create`."""
        self._storage.put_bytes(name, text.encode())

    def rewrite(self, name: str, text: str) -> None:
        """See `_Disk.rewrite`."""
        if not self._storage.exists(name):
            raise FileNotFoundError(name)
        self.create(name, text)

    def delete(self, name: str) -> None:
        """See `_Disk.delete`."""
        self._storage.remove(name)


class _Lease:
    """The file of a job in its folder, which a thread renews.

    Attributes:
        lost: why the job has lost its folder; empty if it has not.
    """

    def __init__(self, name: str, folder: _Disk | _Bucket) -> None:
        token = uuid.uuid4().hex
        self._name, self._folder, self._file, self.lost = name, folder, f"{IN_USE}{token}.json", ""
        self._me: dict[str, Any] = {
            "token": token,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "started": started_at(os.getpid()),
            "job": _ray_job(),
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]]),
            "since": datetime.now().isoformat(" ", "seconds"),
            "holds": False,
            "followed": [],
            "renewed": 0,
        }
        self._end, self._writing = threading.Event(), threading.Lock()
        folder.create(self._file, json.dumps(self._me))
        self._thread = threading.Thread(target=self._renew, name="output-lease", daemon=True)
        self._thread.start()
        try:
            while self._must_wait():
                time.sleep(0.05)
        except BaseException:
            self.release()
            raise
        self._me["holds"] = True
        self._write()

    def release(self) -> None:
        """Let other jobs use the folder."""
        self._end.set()
        self._thread.join()
        self._folder.delete(self._file)

    def _must_wait(self) -> bool:
        """Whether another job started at the same time and will give way.

        Raises:
            InUseError: another job has the folder, or started at the same time and comes first.
        """
        wait = False
        for file in self._folder.names():
            if file == self._file or (text := self._folder.read(file)) is None:
                continue
            if not self._is_alive(file, text):
                self._me["followed"].append(file)
                self._folder.delete(file)
                continue
            if (now := self._folder.read(file)) is None:
                continue
            other = _parsed(now)
            if other.get("holds") or file < self._file:
                raise InUseError(self._sentence(other))
            wait = True
        return wait

    def _is_alive(self, file: str, text: str) -> bool:
        other = _parsed(text)
        if other.get("machine") == self._me["machine"]:
            return bool(started_at(int(other["pid"])) == other["started"] != "")
        logger.info("%s=%s: checking whether the job on %s is alive", self._name, self._folder, other.get("host"))
        end = time.monotonic() + GONE_AFTER_S
        while time.monotonic() < end:
            time.sleep(RENEWED_EVERY_S / 3)
            if (now := self._folder.read(file)) != text:
                return now is not None
        return False

    def _renew(self) -> None:
        while not self._end.wait(RENEWED_EVERY_S):
            self._me["renewed"] += 1
            try:
                self._write()
                self._check_followers()
            except FileNotFoundError:
                others = [_parsed(self._folder.read(file) or "") for file in self._folder.names()]
                if others:
                    self.lost = f"{self._sentence(others[0])}. That job took this one for dead; this job ends"
                else:
                    self.lost = f"{self._name}={self._folder} was deleted: this job ends"
                logger.error("%s", self.lost)
                signal.pthread_kill(threading.main_thread().ident or 0, LOST)
                return
            except (OSError, StorageError) as error:  # storage may come back
                logger.warning("%s in %s cannot be renewed: %s", self._file, self._folder, error)

    def _check_followers(self) -> None:
        """Raise FileNotFoundError if another job has removed this file. In a bucket, `_write` may bring it back."""
        for file in self._folder.names():
            if file != self._file and self._file in _parsed(self._folder.read(file) or "").get("followed", []):
                self._folder.delete(self._file)
                raise FileNotFoundError(self._file)

    def _write(self) -> None:
        with self._writing:
            self._folder.rewrite(self._file, json.dumps(self._me))

    def _sentence(self, other: dict[str, Any]) -> str:
        job = f", Ray job {other['job']}" if other.get("job") else ""
        return (
            f"{self._name}={self._folder} is in use by `{other.get('command', 'another job')}` on "
            f"{other.get('host', 'another machine')} (process {other.get('pid', 'unknown')}{job}, since "
            f"{other.get('since', 'a moment ago')}): wait for it, stop it, or choose another {self._name}"
        )


def _parsed(text: str) -> dict[str, Any]:
    """A JSON object; empty while it is being written."""
    with suppress(ValueError):
        value = json.loads(text)
        return value if isinstance(value, dict) else {}
    return {}


def _machine() -> str:
    """A name for the machine or container in which process ids are unique."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def started_at(pid: int) -> str:
    """When a process of this machine started, which distinguishes it from a later one with its id; empty if it ended.

    Without /proc, only the id is checked.
    """
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return ""
        except PermissionError:
            pass
        return "unknown"
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    return ""


def _ray_job() -> str:
    """The submission id of the Ray job that this process drives; empty if there is none."""
    settings = _parsed(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", ""))
    return str((settings.get("metadata") or {}).get("job_submission_id", ""))
