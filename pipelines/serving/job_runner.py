"""Runs the jobs of a `JobStore`, a few at a time and one after the other. Knows no Ray.

All that matters is on disk. So a runner whose predecessor was killed goes on where that one was: a job that had begun
begins again, which does no harm, as scoring changes nothing.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Protocol

import httpx
from starlette.types import ASGIApp

from pipelines.serving.errors import ApiError, problem
from pipelines.serving.front import FRONT_HEADER
from pipelines.serving.job_store import CANCELLED, FAILED, QUEUED, RUNNING, SUCCEEDED, Job, JobStore, NoRoom

logger = logging.getLogger(__name__)

MAX_STARTS = 4
"""A job over which the process ended as often as this has failed."""

PATIENCE_S = 600.0
"""How long a job is tried again while the answer is 503: the model has gone, or is overloaded."""

SWEEP_S = 60.0
"""How often expired jobs are removed."""

Send = Callable[[Job, bytes], Awaitable[tuple[int, bytes]]]
"""Answers a job's upload: HTTP status and body."""


class JobQueue(Protocol):
    """Where the HTTP interface sends jobs. None: its `owner` (a token's name) has no such job."""

    async def submit(self, job: Job, body: bytes, most: int | None = None) -> Job | NoRoom:
        """Accept a job, once for each id. It has been written to disk when this returns.

        Args:
            most: jobs of its owner that are kept, at most.
        """
        ...

    async def find(self, job_id: str, owner: str) -> Job | None:
        """A job's state."""
        ...

    async def answer(self, job_id: str, owner: str) -> tuple[Job, bytes] | None:
        """A job's state and answer, which is empty unless the job succeeded or failed."""
        ...

    async def cancel(self, job_id: str, owner: str) -> Job | None:
        """Cancel a job that has not ended; forget one that has, which makes room for another."""
        ...


class JobRunner:
    """The `JobQueue` of this process. All methods must be called in one event loop."""

    def __init__(self, store: JobStore, send: Send, max_running: int) -> None:
        self._store, self._send, self._max_running = store, send, max_running
        self._waiting = dict[str, None]()  # in order
        self._running = dict[str, asyncio.Task[None]]()
        self._arrived = asyncio.Event()
        self._main: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to run jobs, those of a predecessor first; every method calls this."""
        if self._main is None:
            self._main = asyncio.create_task(self._work_all())

    def check(self) -> None:
        """Raise where no more jobs would run."""
        self.start()
        if self._main is not None and self._main.done():
            raise RuntimeError("the runner of jobs has ended")

    async def submit(self, job: Job, body: bytes, most: int | None = None) -> Job | NoRoom:
        """See `JobQueue.submit`."""
        self.start()
        try:
            added = await asyncio.to_thread(self._store.add, job, body, most)
        except OSError:  # such as a full disk
            logger.exception("A job cannot be written to %s.", self._store.folder)
            return NoRoom.FULL
        if isinstance(added, NoRoom):
            return added
        if not added.ended:
            self._enqueue(added)
        return self._placed(added)

    async def find(self, job_id: str, owner: str) -> Job | None:
        """See `JobQueue.find`."""
        self.start()
        job = self._store.find(job_id)
        return self._placed(job) if job is not None and job.owner == owner else None

    async def answer(self, job_id: str, owner: str) -> tuple[Job, bytes] | None:
        """See `JobQueue.answer`."""
        job = await self.find(job_id, owner)
        if job is None:
            return None
        try:
            return job, self._store.answer(job) if job.ended else b""
        except FileNotFoundError:  # it made room for another a moment ago
            return None

    async def cancel(self, job_id: str, owner: str) -> Job | None:
        """See `JobQueue.cancel`."""
        job = await self.find(job_id, owner)
        if job is None:
            return None
        if job.ended:
            self._store.forget(job)
            return job
        self._waiting.pop(job_id, None)
        ended = self._store.end(job, CANCELLED)
        if job_id in self._running:
            self._running[job_id].cancel()
        return ended

    async def close(self, remove: bool = False) -> None:
        """Stop; a successor begins with the jobs that ran. With `remove`, delete the folder instead."""
        if self._main is not None:
            self._main.cancel()
            await asyncio.wait({self._main})
        if remove:
            if kept := self._store.count():
                remedy = "To keep jobs, and go on with them, name a folder as serve.jobs_folder."
                logger.warning("%d jobs, with those that have ended, are lost with this endpoint. %s", kept, remedy)
            await asyncio.to_thread(shutil.rmtree, self._store.folder, ignore_errors=True)

    def _placed(self, job: Job) -> Job:
        return replace(job, ahead=list(self._waiting).index(job.job_id)) if job.job_id in self._waiting else job

    def _enqueue(self, job: Job) -> None:
        if job.job_id not in self._running:
            self._waiting[job.job_id] = None
            self._arrived.set()

    async def _work_all(self) -> None:
        with (self._store.folder / ".lock").open("w") as lock:
            # While an update overlaps with the runner that it replaces, that one has the lock, until its process ends.
            while not _locked(lock.fileno()):
                await asyncio.sleep(0.2)
            self._store.discard_half_written()
            newcomers, self._waiting = self._waiting, {job.job_id: None for job in self._store.unfinished()}
            self._waiting |= newcomers
            async with asyncio.TaskGroup() as group:
                for _ in range(self._max_running):
                    group.create_task(self._work())
                group.create_task(self._sweep())

    async def _sweep(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self._store.sweep)
            except OSError:
                logger.exception("Expired jobs cannot be removed from %s.", self._store.folder)
            await asyncio.sleep(SWEEP_S)

    async def _work(self) -> None:
        while True:
            while not self._waiting:
                self._arrived.clear()
                await self._arrived.wait()
            job_id = next(iter(self._waiting))
            del self._waiting[job_id]
            task = self._running[job_id] = asyncio.create_task(self._perform(job_id))
            try:
                await asyncio.wait({task})  # unlike the task itself this does not end with a job that is cancelled
            except asyncio.CancelledError:
                await self._put_back(job_id, task)
                raise
            finally:
                del self._running[job_id]

    async def _put_back(self, job_id: str, task: asyncio.Task[None]) -> None:
        """End a job's task, not the job: it did not bring this process down, so that this start does not count."""
        task.cancel()
        await asyncio.wait({task})
        job = self._store.find(job_id)
        if job is not None and job.state == RUNNING:
            self._store.save(replace(job, state=QUEUED, starts=job.starts - 1))

    async def _perform(self, job_id: str) -> None:
        job = self._store.find(job_id)
        if job is None or job.ended:
            return
        if job.starts >= MAX_STARTS:
            return self._fail(job, f"The endpoint ended {MAX_STARTS} times while it ran this job.")
        started_s = job.started_s or self._store.clock()
        job = replace(job, state=RUNNING, started_s=started_s, starts=job.starts + 1)
        try:
            self._store.save(job)
            status, answer = await self._answer(job)
            self._store.end(job, SUCCEEDED if status == 200 else FAILED, status, answer)
        except Exception:  # the others must run, whatever became of this one
            logger.exception("Job of request %s failed.", job.request_id)
            self._fail(job, "The endpoint failed on this job. Its log has the cause under the request id.")

    async def _answer(self, job: Job) -> tuple[int, bytes]:
        """The first answer that is not 503."""
        deadline_s, pause_s = time.monotonic() + PATIENCE_S, 0.25
        while True:
            status, answer = await self._send(job, await asyncio.to_thread(self._store.body, job))
            if status != 503:
                return status, answer
            if time.monotonic() > deadline_s:
                sentence = json.loads(answer)["detail"]
                return 500, _problem(job, f"The job was given up after {PATIENCE_S:g} s. The last try said: {sentence}")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, 10.0)

    def _fail(self, job: Job, sentence: str) -> None:
        self._store.end(job, FAILED, 500, _problem(job, sentence))


def through(api: ASGIApp) -> Send:
    """A `Send` that calls an ASGI application in this process."""
    transport = httpx.ASGITransport(api)

    async def send(job: Job, body: bytes) -> tuple[int, bytes]:
        headers = [(name.encode(), value.encode("latin-1")) for name, value in job.headers.items()]
        headers += [
            (b"x-request-id", job.request_id.encode()),
            (FRONT_HEADER.encode(), b"1"),
        ]  # a `Front` has read the upload
        async with httpx.AsyncClient(transport=transport, base_url="http://jobs") as http:
            url = f"{job.route}?{job.query}" if job.query else job.route
            response = await http.post(url, content=body, headers=headers)
        return response.status_code, response.content

    return send


def _problem(job: Job, sentence: str) -> bytes:
    return json.dumps(problem(ApiError(500, sentence), job.request_id)).encode()


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
