"""The routes of jobs: an upload that is answered later, for work that is longer than a client wants to wait."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.routing import BaseRoute

from pipelines.serving.choice import MODEL_HEADER
from pipelines.serving.errors import ApiError, unavailable
from pipelines.serving.front import FRONT_HEADER, JOBS
from pipelines.serving.job_runner import JobQueue
from pipelines.serving.job_store import CANCELLED, Job, NoRoom
from pipelines.serving.schemas import error_responses

KEPT_HEADERS = ("content-type", "content-encoding", MODEL_HEADER)
"""Headers of an upload that say what its body is, and which model it is for."""

Check = Callable[[Request], Awaitable[None]]
"""Raises an `ApiError` for a body that its route would refuse before it decodes anything."""

_ID = {"name": "job_id", "in": "path", "required": True, "schema": {"type": "string"}}
_EXTRA = {"parameters": [_ID]}


class JobAnswer(BaseModel):
    """A job's state."""

    id: str = Field(description="whoever has it and the token may read, cancel and forget the job")
    kind: str = Field(description="the route that answers the upload, without /v1/", examples=["score"])
    state: str = Field(description="queued, running, succeeded, failed or cancelled", examples=["running"])
    request_id: str = Field(description="of the submission; the result has it too")
    submitted_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    jobs_ahead: int | None = Field(description="jobs that run before it; null unless it is queued")
    starts: int = Field(description="more than 1 where a process of the endpoint ended in the middle")


def job_routes(jobs: JobQueue | None, routes: Iterable[BaseRoute], checks: Mapping[str, Check]) -> APIRouter:
    """The routes of jobs; without `jobs` they say that there are none.

    Args:
        routes: what answers the jobs' uploads, of which those are taken that are in `checks`.
        checks: by path, what is asked of an upload before it becomes a job.
    """
    router = APIRouter()

    def running() -> JobQueue:
        if jobs is None:
            raise ApiError(404, "This endpoint takes no jobs (serve.max_jobs=0). Send the request to its own route.")
        return jobs

    async def submit(request: Request, response: Response) -> JobAnswer:
        """The body of the route of this kind. The answer has the job's id: it has been written to disk.

        Its fields are checked before it is accepted. What its uploads hold is decoded when the job runs.
        """
        queue, asked = running(), _job(request)
        await checks[asked.route](request)
        limit = request.state.client.limits.kept_jobs
        job = await queue.submit(asked, await request.body(), limit)
        if job is NoRoom.LIMIT:
            sentence = f"The token {request.state.client.name} has {limit} jobs, which is its limit. Delete one."
            raise ApiError(429, sentence, {"Retry-After": "10"})
        if isinstance(job, NoRoom):
            raise unavailable(
                "There is no room for another job (serve.max_jobs, serve.max_jobs_bytes). Delete one, or try later.", 10
            )
        response.headers["location"] = f"{JOBS}{job.job_id}"
        return _state(job)

    for upload in routes:
        if not (isinstance(upload, APIRoute) and upload.path in checks):
            continue
        router.add_api_route(
            f"{JOBS}{_kind(upload.path)}",
            submit,
            methods=["POST"],
            status_code=202,
            summary=f"{upload.summary}, as a job",
            operation_id=f"submit_{_kind(upload.path)}",
            openapi_extra=upload.openapi_extra,
            responses=error_responses(400, 401, 404, 408, 411, 413, 415, 422, 429, 503),
        )

    @router.get(f"{JOBS}{{job_id}}", responses=error_responses(401, 404, 503), openapi_extra=_EXTRA)
    async def state(request: Request) -> JobAnswer:
        """How far a job is."""
        return _state(_found(await running().find(request.path_params["job_id"], request.state.client.name)))

    @router.get(
        f"{JOBS}{{job_id}}/result",
        responses=error_responses(400, 401, 404, 409, 410, 413, 415, 422, 500, 503)
        | {200: {"description": "what the route of the job's kind answers"}},
        openapi_extra=_EXTRA,
    )
    async def result(request: Request) -> Response:
        """What the route would have answered, also if that is an error; 409 until the job has ended."""
        found = await running().answer(request.path_params["job_id"], request.state.client.name)
        job, answer = found or (_found(None), b"")
        if job.state == CANCELLED:
            raise ApiError(410, "The job was cancelled.")
        if not job.ended:
            raise ApiError(409, f"The job is {job.state}. Ask again later.", {"Retry-After": "1"})
        kind = "application/json" if job.status == 200 else "application/problem+json"
        return Response(answer, job.status, media_type=kind)

    @router.delete(f"{JOBS}{{job_id}}", responses=error_responses(401, 404, 503), openapi_extra=_EXTRA)
    async def cancel(request: Request) -> JobAnswer:
        """Cancel a job that has not ended; forget one that has, with its result, which makes room for another."""
        return _state(_found(await running().cancel(request.path_params["job_id"], request.state.client.name)))

    return router


def _job(request: Request) -> Job:
    return Job(
        job_id=request.headers[FRONT_HEADER],  # equal where the proxy sends an upload again, and not to be guessed
        route=f"/v1/{request.url.path.removeprefix(JOBS)}",
        query=request.url.query,
        headers={name: request.headers[name] for name in KEPT_HEADERS if name in request.headers},
        request_id=request.state.request_id,
        owner=request.state.client.name,
        submitted_s=time.time(),
    )


def _found(job: Job | None) -> Job:
    if job is None:
        raise ApiError(
            404,
            "There is no such job: another token submitted it, or none, or it was deleted, or it has ended, and has "
            "expired since (serve.job_ttl_s) or made room for another (serve.max_jobs).",
        )
    return job


def _kind(route: str) -> str:
    return route.removeprefix("/v1/")


def _state(job: Job) -> JobAnswer:
    return JobAnswer(
        id=job.job_id,
        kind=_kind(job.route),
        state=job.state,
        request_id=job.request_id,
        submitted_at=datetime.fromtimestamp(job.submitted_s, UTC),
        started_at=_time(job.started_s),
        ended_at=_time(job.ended_s),
        jobs_ahead=job.ahead,
        starts=job.starts,
    )


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
