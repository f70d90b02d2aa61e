"""Jobs at an endpoint: requests that are answered later, for work that is longer than a connection should last."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from robometer import calls
from robometer.calls import Call, ScoringError

MAX_PAUSE_S = 2.0
"""The longest pause between two looks at a job."""

_JOBS = "/v1/jobs/"
_READERS: dict[str, Callable[[dict[str, Any]], Any]] = {"score": calls.clip_score, "compare": calls.preference}


@dataclass(frozen=True)
class JobState:
    """How far a job is.

    Attributes:
        id: give it to `RemoteScorer.job` to come back to the job, also from another process.
        kind: the route that answers it, without `/v1/`: `score`, `scores`, `rank` or `compare`.
        state: `queued`, `running`, `succeeded`, `failed` or `cancelled`.
        submitted_at, started_at, ended_at: times in ISO 8601; None where that has not happened.
        jobs_ahead: jobs that run before it; None unless it is queued.
        starts: more than 1 where a process of the endpoint ended in the middle.
    """

    id: str
    kind: str
    state: str
    submitted_at: str
    started_at: str | None
    ended_at: str | None
    jobs_ahead: int | None
    starts: int

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ("succeeded", "failed", "cancelled")


def submission(call: Call[Any]) -> Call[JobState]:
    """Submit a request as a job."""
    return replace(call, route=call.route.replace("/v1/", _JOBS, 1), read=_state)


class RemoteJob:
    """A job of `RemoteScorer`. All methods raise `ScoringError` if the endpoint does not have it (any more)."""

    def __init__(self, job_id: str, send: Callable[[Call[Any]], Any]) -> None:
        self.id, self._send = job_id, send

    def state(self) -> JobState:
        """How far it is."""
        state: JobState = self._send(_look(self.id))
        return state

    def result(self, timeout_s: float | None = None) -> Any:
        """Wait for the job to end, and return its answer: a `ClipScore` of `score`, P(A better) of `compare`.

        Of another kind it is the JSON object that the route answers.

        Raises:
            ScoringError: it has not ended after `timeout_s`, it failed, or it was cancelled.
        """
        pauses = _pauses(self.id, timeout_s)
        while not (state := self.state()).ended:
            time.sleep(next(pauses))
        return self._send(_result(state))

    def cancel(self) -> JobState:
        """Cancel it; forget it, with its result, if it has ended."""
        state: JobState = self._send(_cancellation(self.id))
        return state


class AsyncRemoteJob:
    """A job of `AsyncRemoteScorer`; see `RemoteJob`."""

    def __init__(self, job_id: str, send: Callable[[Call[Any]], Awaitable[Any]]) -> None:
        self.id, self._send = job_id, send

    async def state(self) -> JobState:
        """See `RemoteJob.state`."""
        state: JobState = await self._send(_look(self.id))
        return state

    async def result(self, timeout_s: float | None = None) -> Any:
        """See `RemoteJob.result`."""
        pauses = _pauses(self.id, timeout_s)
        while not (state := await self.state()).ended:
            await asyncio.sleep(next(pauses))
        return await self._send(_result(state))

    async def cancel(self) -> JobState:
        """See `RemoteJob.cancel`."""
        state: JobState = await self._send(_cancellation(self.id))
        return state


def _state(answer: dict[str, Any]) -> JobState:
    return JobState(**{field.name: answer[field.name] for field in fields(JobState)})


def _look(job_id: str) -> Call[JobState]:
    return Call(f"{_JOBS}{job_id}", _state, method="GET")


def _cancellation(job_id: str) -> Call[JobState]:
    return Call(f"{_JOBS}{job_id}", _state, method="DELETE")


def _result(state: JobState) -> Call[Any]:
    return Call(f"{_JOBS}{state.id}/result", _READERS.get(state.kind, dict), method="GET")


def _pauses(job_id: str, timeout_s: float | None) -> Iterator[float]:
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    pause_s = 0.05
    while deadline_s is None or time.monotonic() < deadline_s:
        yield pause_s
        pause_s = min(2 * pause_s, MAX_PAUSE_S)
    raise ScoringError(f"job {job_id} has not ended after {timeout_s:g} s: ask for its result again, or cancel it")
