"""The client of the endpoint for programs that run on asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import httpx
import numpy as np
from tenacity import AsyncRetrying

from robometer import calls, many_calls
from robometer.calls import Call, Client
from robometer.frames.video import Source
from robometer.many_calls import Failure, Ranking, Standings
from robometer.remote_jobs import AsyncRemoteJob, submission
from robometer.scoring import Clip, ClipScore

T = TypeVar("T")
Result = TypeVar("Result")


class AsyncRemoteScorer(Client):
    """`RemoteScorer` with coroutines: the same requests, retries and errors.

    It asks the endpoint for its description when it is opened: use it as `async with AsyncRemoteScorer(url) as scorer`.

    Args:
        url: see `RemoteScorer`, also for `token`, `timeout_s`, `patience_s` and `ca_file`.
        concurrency: requests in flight at a time, those of all methods together; others wait.

    Raises:
        ScoringError: as `RemoteScorer`.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        timeout_s: float = 600.0,
        patience_s: float = 60.0,
        concurrency: int = calls.CONCURRENCY,
        ca_file: str | None = None,
        model: str = "default",
    ) -> None:
        super().__init__(url, token, timeout_s, patience_s, ca_file, model)
        self._http = httpx.AsyncClient(**self._connection)
        self._places = asyncio.Semaphore(concurrency)

    async def open(self) -> AsyncRemoteScorer:
        """Ask the endpoint for its description, which gives `name`, `limits` and `info`."""
        await self._send(self._description, min(calls.START_PATIENCE_S, self._patience_s))
        return self

    async def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """See `RemoteScorer.score`."""
        return await self._send_all(calls.score_clip, clips)

    async def compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> np.ndarray:
        """See `RemoteScorer.compare`."""
        return np.array(await self._send_all(calls.compare_clips, pairs), dtype=np.float32)

    async def score_prefixes(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """See `RemoteScorer.score_prefixes`."""
        return await self._send_all(partial(calls.score_clip, mode="prefix"), clips)

    async def score_video(self, video: Source, task: str, **options: float | str) -> ClipScore:
        """See `RemoteScorer.score_video`."""
        return await self._make_and_send(partial(calls.score_video, video, task, **options))

    async def compare_videos(self, a: Source, b: Source, task: str) -> float:
        """See `RemoteScorer.compare_videos`."""
        return await self._make_and_send(partial(calls.compare_videos, a, b, task))

    async def score_videos(
        self, videos: Sequence[Source], tasks: str | Sequence[str], **options: float | str
    ) -> list[ClipScore | Failure]:
        """See `RemoteScorer.score_videos`."""
        return await self._make_and_send(partial(many_calls.score_videos, videos, tasks, **options))

    async def rank_videos(self, videos: Sequence[Source], task: str, **options: float | str) -> Ranking:
        """See `RemoteScorer.rank_videos`."""
        return await self._make_and_send(partial(many_calls.rank_videos, videos, task, **options))

    async def compare_many(self, videos: Sequence[Source], task: str) -> Standings:
        """See `RemoteScorer.compare_many`."""
        return await self._make_and_send(partial(many_calls.compare_many, videos, task))

    async def submit_video(self, video: Source, task: str, **options: float | str) -> AsyncRemoteJob:
        """See `RemoteScorer.submit_video`."""
        return await self._submit(partial(calls.score_video, video, task, **options))

    async def submit_comparison(self, a: Source, b: Source, task: str) -> AsyncRemoteJob:
        """See `RemoteScorer.submit_comparison`."""
        return await self._submit(partial(calls.compare_videos, a, b, task))

    def job(self, job_id: str) -> AsyncRemoteJob:
        """See `RemoteScorer.job`."""
        return AsyncRemoteJob(job_id, self._send)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> AsyncRemoteScorer:
        try:
            return await self.open()
        except BaseException:
            await self.close()
            raise

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _send(self, call: Call[Result], patience_s: float | None = None) -> Result:
        body = self._body(call)

        async def attempt() -> Result:
            with self._failures(call.route):
                response = await self._http.request(call.method, call.route, **body)
            return self._read(call, response)

        return await AsyncRetrying(**self._retries(self._patience_s if patience_s is None else patience_s))(attempt)

    async def _make_and_send(self, make: Callable[[], Call[Result]]) -> Result:
        async with self._places:
            # In a thread: it reads a file, or copies frames.
            return await self._send(await asyncio.to_thread(make))

    async def _submit(self, make: Callable[[], Call[Any]]) -> AsyncRemoteJob:
        return self.job((await self._make_and_send(lambda: submission(make()))).id)

    async def _send_all(self, make: Callable[[T], Call[Result]], items: Sequence[T]) -> list[Result]:
        """The answers to a request for each item; the first failure ends the others."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._make_and_send(partial(make, item))) for item in items]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]
