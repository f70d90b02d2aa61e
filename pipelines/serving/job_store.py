"""Jobs on disk: what was uploaded, how far it is, and the answer. Each step is committed by one rename.

A job is a folder with `job.json`, `request` (the body, until the job has ended) and `answer` (from then on).
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path

logger = logging.getLogger(__name__)

QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED = "queued", "running", "succeeded", "failed", "cancelled"

KEPT_S = 60.0
"""Seconds for which a job that has ended is kept at least: then, where there is no room, it makes room for another."""

_ID = re.compile(r"[0-9a-f]{32}")
_NEW = ".new-"


class NoRoom(Enum):
    """Why a job is not accepted."""

    FULL = "there are as many as there may be"
    LIMIT = "the token has as many as it may have"


@dataclass(frozen=True)
class Job:
    """An upload that is answered later.

    Attributes:
        job_id: 32 hexadecimal digits that nobody can guess.
        route: that answers the upload, such as `/v1/score`; `query` is of its URL.
        headers: of the upload: what its body is, and which model it is for.
        owner: name of the token that submitted it; others do not see it.
        submitted_s, started_s, ended_s: Unix times.
        starts: how often it was started. More than once means that the process ended in the middle.
        status: HTTP status of the answer; 0 while there is none.
        ahead: jobs that run before it, where known. It is not kept on disk.
    """

    job_id: str
    route: str
    query: str
    headers: dict[str, str]
    request_id: str
    owner: str
    submitted_s: float
    state: str = QUEUED
    started_s: float | None = None
    ended_s: float | None = None
    starts: int = 0
    status: int = 0
    ahead: int | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in (SUCCEEDED, FAILED, CANCELLED)


class JobStore:
    """At most `max_jobs` jobs of `max_bytes` in a folder; those that ended `ttl_s` seconds ago are gone."""

    def __init__(
        self, folder: Path, max_jobs: int, max_bytes: int, ttl_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder, self.ttl_s, self.clock = folder, ttl_s, clock
        self._max_jobs, self._max_bytes = max_jobs, max_bytes
        self._adding, self._mark = threading.Lock(), f"{_NEW}{secrets.token_hex(4)}-"

    def add(self, job: Job, body: bytes, most: int | None = None) -> Job | NoRoom:
        """Commit a new job; one that is there already stays as it is.

        Where there is no room, the jobs that ended first are removed, if that is enough: those that ended `KEPT_S` ago.

        Args:
            most: jobs of its owner, with those that have ended; None: as many as there may be.

        Raises:
            OSError: the disk is full or broken.
        """
        new = self.folder / f"{self._mark}{job.job_id}"
        with self._adding:
            if (known := self.find(job.job_id)) is not None:
                return known
            beyond = [] if most is None else self._beyond(job.owner, most)
            if beyond is None:
                return NoRoom.LIMIT
            if not self._make_room(len(body), beyond):
                return NoRoom.FULL
            new.mkdir(mode=0o700, exist_ok=True)
            try:
                _write(new / "request", body)
                _write(new / "job.json", _packed(job))
                new.rename(self.folder / job.job_id)
            except OSError:
                shutil.rmtree(new, ignore_errors=True)
                raise
        _sync(self.folder)
        return job

    def find(self, job_id: str) -> Job | None:
        """The job of this id, unless there is none or it has expired."""
        if not _ID.fullmatch(job_id):
            return None
        try:
            job = Job(**json.loads((self.folder / job_id / "job.json").read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
            logger.warning("%s holds no job that this version reads.", self.folder / job_id)
            return None
        return None if job.ended_s is not None and job.ended_s + self.ttl_s <= self.clock() else job

    def save(self, job: Job) -> None:
        """Commit a step of a job."""
        _replace(self.folder / job.job_id / "job.json", _packed(job))

    def end(self, job: Job, state: str, status: int = 0, answer: bytes = b"") -> Job:
        """Commit the end of a job with its answer. Its body is not kept."""
        _replace(self.folder / job.job_id / "answer", answer)
        ended = replace(job, state=state, status=status, ended_s=self.clock())
        self.save(ended)
        (self.folder / job.job_id / "request").unlink(missing_ok=True)
        return ended

    def body(self, job: Job) -> bytes:
        """What was uploaded."""
        return (self.folder / job.job_id / "request").read_bytes()

    def answer(self, job: Job) -> bytes:
        """The body of the answer; empty while there is none."""
        return (self.folder / job.job_id / "answer").read_bytes()

    def forget(self, job: Job) -> None:
        """Remove a job and all that is known of it."""
        shutil.rmtree(self.folder / job.job_id, ignore_errors=True)

    def unfinished(self) -> list[Job]:
        """The jobs that have not ended, in the order in which they came."""
        jobs = [job for name in os.listdir(self.folder) if (job := self.find(name)) is not None and not job.ended]
        return sorted(jobs, key=lambda job: job.submitted_s)

    def count(self) -> int:
        """How many jobs are kept."""
        return sum(self.find(name) is not None for name in os.listdir(self.folder))

    def sweep(self) -> None:
        """Remove the jobs that have expired."""
        for name in os.listdir(self.folder):
            if _ID.fullmatch(name) and self.find(name) is None:
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def discard_half_written(self) -> None:
        """Remove what a process that has ended left of submissions."""
        for half in self.folder.glob(f"{_NEW}*"):
            if not half.name.startswith(self._mark):
                shutil.rmtree(half, ignore_errors=True)

    def _make_room(self, size_bytes: int, beyond: Sequence[str]) -> bool:
        sizes, removed = self._sizes(beyond), list(beyond)
        if not self._fits(sizes, size_bytes):
            self.sweep()
            sizes = self._sizes(beyond)
        for name in [] if self._fits(sizes, size_bytes) else self._removable(sizes):
            del sizes[name]
            removed.append(name)
            if self._fits(sizes, size_bytes):
                break
        if not self._fits(sizes, size_bytes):
            return False
        for name in removed:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        return True

    def _beyond(self, owner: str, most: int) -> list[str] | None:
        """The owner's jobs that must go before it may have another one; None: not enough of them may."""
        own = [job.job_id for name in os.listdir(self.folder) if (job := self.find(name)) and job.owner == owner]
        excess = max(0, len(own) + 1 - most)
        removable = self._removable(own) if excess else []
        return removable[:excess] if excess <= len(removable) else None

    def _fits(self, sizes: Mapping[str, int], size_bytes: int) -> bool:
        return len(sizes) < self._max_jobs and size_bytes + sum(sizes.values()) <= self._max_bytes

    def _removable(self, names: Iterable[str]) -> list[str]:
        """The jobs that make room for others, those that ended first before the others."""
        jobs = [job for name in names if (job := self.find(name)) is not None]
        ended = [(job.ended_s, job.job_id) for job in jobs if job.ended_s is not None]
        return [job_id for ended_s, job_id in sorted(ended) if ended_s + KEPT_S <= self.clock()]

    def _sizes(self, without: Sequence[str]) -> dict[str, int]:
        names = [name for name in os.listdir(self.folder) if _ID.fullmatch(name) or name.startswith(_NEW)]
        return {name: self._size_bytes(name) for name in names if name not in without}

    def _size_bytes(self, name: str) -> int:
        try:
            return sum(entry.stat().st_size for entry in os.scandir(self.folder / name))
        except FileNotFoundError:  # it was removed, or a file of it was replaced, a moment ago
            return 0


def _packed(job: Job) -> bytes:
    return json.dumps({name: value for name, value in asdict(job).items() if name != "ahead"}).encode()


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(f"{path.name}.partial")
    _write(partial, content)
    partial.replace(path)
    _sync(path.parent)


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make the names in a folder outlive the machine."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
