"""Output folders: places that outlast the job, and that one job at a time writes into.

A job that wants to write into a folder puts a file there that says who it is, and renews it every few seconds. Then it
looks for the files of others: of two that start at once each sees the other's or is seen, on any filesystem. It is
refused while another lives. On one machine that is asked of the operating system, so that who was killed is followed at
once; from another machine the file is watched, and who does not renew it in time is gone.
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
"""What the names of these files start with."""

RENEWED_EVERY_S = 3.0
GONE_AFTER_S = 15.0
"""Without renewal, seen from another machine. Far above the other, since storage that nodes share may be slow."""

LOST = signal.SIGUSR1
"""Ends a job whose folder is lost; not SIGINT, which a job in the background (`nohup`, `&`) ignores."""


class InUseError(RobometerError):
    """An output folder that another job writes into; the message names that job."""


def with_absolute_paths(config: Config, *keys: str) -> Config:
    """The configuration with these settings (paths and URIs, as `section.key`) made absolute.

    Raises:
        PathError: one is relative, in a job that was submitted with its working directory.
    """
    values = to_dict(config)
    return override(config, {key: absolute_path(key, _at(values, key)) for key in keys})


def _at(values: dict[str, Any], key: str) -> str:
    section, name = key.split(".")
    return str(values[section][name])


@contextmanager
def exclusive_folder(name: str, folder: str | Path) -> Iterator[None]:
    """Write into a folder, which is made where it is not there, while nobody else does; URIs are not held.

    Args:
        name: of the setting that names the folder, for messages.

    Raises:
        InUseError: another job writes into it, or took it over because this one seemed dead.
        PathError: it cannot be a folder.
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
    """The file of a job in its folder, renewed by a thread.

    Attributes:
        lost: why the folder is this job's no more, where that is so.
    """

    def __init__(self, name: str, folder: Path) -> None:
        token = uuid.uuid4().hex
        self._name, self._folder, self._path, self.lost = name, folder, folder / f"{IN_USE}{token}.json", ""
        self._me: dict[str, Any] = {
            "token": token,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
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
        """Give the folder free."""
        self._end.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _must_wait(self) -> bool:
        """Whether somebody else started at the same time, and gives way.

        Raises:
            InUseError: somebody else has the folder, or started at the same time and comes first.
        """
        wait = False
        for path in sorted(self._folder.glob(f"{IN_USE}*.json")):
            if path == self._path or (there := _read(path)) is None:
                continue
            if not self._lives(path, there):
                path.unlink(missing_ok=True)
                continue
            if (now := _read(path)) is None:
                continue
            other = _parsed(now)
            if other.get("holds") or path < self._path:
                raise InUseError(self._sentence(other))
            wait = True
        return wait

    def _lives(self, path: Path, there: str) -> bool:
        other = _parsed(there)
        if other.get("machine") == self._me["machine"]:
            return bool(_started(int(other["pid"])) == other["started"] != "")
        logger.info("%s=%s: watching whether the job on %s lives", self._name, self._folder, other.get("host"))
        end = time.monotonic() + GONE_AFTER_S
        while time.monotonic() < end:
            time.sleep(RENEWED_EVERY_S / 3)
            if (now := _read(path)) != there:
                return now is not None
        return False

    def _renew(self) -> None:
        while not self._end.wait(RENEWED_EVERY_S):
            self._me["renewed"] += 1
            try:
                self._write()
            except FileNotFoundError:
                others = [_parsed(_read(path) or "") for path in self._folder.glob(f"{IN_USE}*.json")]
                why = self._sentence(others[0]) if others else f"{self._name}={self._folder} was deleted"
                self.lost = f"{why}; this job had seemed dead to it, and ends" if others else f"{why}: this job ends"
                logger.error("%s", self.lost)
                signal.pthread_kill(threading.main_thread().ident or 0, LOST)
                return
            except OSError as error:  # of a storage that may come back
                logger.warning("%s cannot be renewed: %s", self._path, error)

    def _announce(self) -> None:
        write_atomically(self._path, json.dumps(self._me))

    def _write(self) -> None:
        """Write anew; never make the file again that another has taken away."""
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
    """None where there is none (any more)."""
    with suppress(FileNotFoundError):
        return path.read_text()
    return None


def _parsed(text: str) -> dict[str, Any]:
    """Empty for what is being written just now."""
    with suppress(ValueError):
        found = json.loads(text)
        return found if isinstance(found, dict) else {}
    return {}


def _machine() -> str:
    """What tells apart the machines and containers whose process numbers mean different processes."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text().strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(parts)


def _started(pid: int) -> str:
    """When a process of this machine started, which tells it from another that got its number; empty where it is gone.

    Where there is no /proc, the number alone has to do.
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
    """The submission id of the Ray job that this process drives, if it does."""
    settings = _parsed(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", ""))
    return str((settings.get("metadata") or {}).get("job_submission_id", ""))
