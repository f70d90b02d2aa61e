"""Output folders: they outlast the job, and only one job at a time writes into one.

A job that wants to write into a folder puts a file there that identifies it, and renews the file every few seconds.
Then it looks for the files of other jobs: if two jobs start at once, at least one sees the other, on any filesystem. A
job is refused while another one is alive. On the same machine the operating system knows whether the other is alive, so
a killed job blocks nobody. On another machine the file is watched: a job that does not renew it in time counts as dead.
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
from robometer.errors import RobometerError
from robometer.files import write_atomically
from robometer.runs.paths import absolute_path, make_folder

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
    """Have a folder, which is created if needed, for this job alone. URIs are not protected.

    Args:
        name: of the setting with the folder, for messages.
        folder: a path or URI.

    Raises:
        InUseError: another job writes into the folder, or took it over because this job seemed dead.
        PathError: the folder cannot be created or written to.
    """
    if "://" in str(folder):
        yield
        return
    lease = _Lease(name, make_folder(name, folder))
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


class _Lease:
    """The file of a job in its folder, which a thread renews.

    Attributes:
        lost: why the job has lost its folder; empty if it has not.
    """

    def __init__(self, name: str, folder: Path) -> None:
        token = uuid.uuid4().hex
        self._name, self._folder, self._path, self.lost = name, folder, folder / f"{IN_USE}{token}.json", ""
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
            "renewed": 0,
        }
        self._end, self._writing = threading.Event(), threading.Lock()
        self._announce()
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
        self._path.unlink(missing_ok=True)

    def _must_wait(self) -> bool:
        """Whether another job started at the same time and will give way.

        Raises:
            InUseError: another job has the folder, or started at the same time and comes first.
        """
        wait = False
        for path in sorted(self._folder.glob(f"{IN_USE}*.json")):
            if path == self._path or (text := _read(path)) is None:
                continue
            if not self._is_alive(path, text):
                path.unlink(missing_ok=True)
                continue
            if (now := _read(path)) is None:
                continue
            other = _parsed(now)
            if other.get("holds") or path < self._path:
                raise InUseError(self._sentence(other))
            wait = True
        return wait

    def _is_alive(self, path: Path, text: str) -> bool:
        other = _parsed(text)
        if other.get("machine") == self._me["machine"]:
            return bool(started_at(int(other["pid"])) == other["started"] != "")
        logger.info("%s=%s: checking whether the job on %s is alive", self._name, self._folder, other.get("host"))
        end = time.monotonic() + GONE_AFTER_S
        while time.monotonic() < end:
            time.sleep(RENEWED_EVERY_S / 3)
            if (now := _read(path)) != text:
                return now is not None
        return False

    def _renew(self) -> None:
        while not self._end.wait(RENEWED_EVERY_S):
            self._me["renewed"] += 1
            try:
                self._write()
            except FileNotFoundError:
                others = [_parsed(_read(path) or "") for path in self._folder.glob(f"{IN_USE}*.json")]
                if others:
                    self.lost = f"{self._sentence(others[0])}. That job took this one for dead; this job ends"
                else:
                    self.lost = f"{self._name}={self._folder} was deleted: this job ends"
                logger.error("%s", self.lost)
                signal.pthread_kill(threading.main_thread().ident or 0, LOST)
                return
            except OSError as error:  # storage may come back
                logger.warning("%s cannot be renewed: %s", self._path, error)

    def _announce(self) -> None:
        write_atomically(self._path, json.dumps(self._me))

    def _write(self) -> None:
        """Rewrite the file, but never create it again after another job has removed it."""
        with self._writing:
            file = os.open(self._path, os.O_WRONLY)
            try:
                text = json.dumps(self._me).encode()
                os.pwrite(file, text, 0)
                os.ftruncate(file, len(text))
                os.fsync(file)
            finally:
                os.close(file)

    def _sentence(self, other: dict[str, Any]) -> str:
        job = f", Ray job {other['job']}" if other.get("job") else ""
        return (
            f"{self._name}={self._folder} is in use by `{other.get('command', 'another job')}` on "
            f"{other.get('host', 'another machine')} (process {other.get('pid', 'unknown')}{job}, since "
            f"{other.get('since', 'a moment ago')}): wait for it, stop it, or choose another {self._name}"
        )


def _read(path: Path) -> str | None:
    """The content of a file; None if it does not exist (any more)."""
    with suppress(FileNotFoundError):
        return path.read_text()
    return None


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
