"""The HTTP interface as a FastAPI application over a `Backend`; it knows nothing of Ray."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from pipelines.serving import evaluate_batch, many, models
from pipelines.serving.backend import Backend, CompareRequest, Deployed, Limits, ScoreRequest, revision
from pipelines.serving.bodies import read_asked, read_fields
from pipelines.serving.decoding import Decoders
from pipelines.serving.errors import ApiError, as_sentence, error_response, no_such_route
from pipelines.serving.fetching import Fetcher
from pipelines.serving.frames import frames_routes
from pipelines.serving.guard import Guard, GuardSettings
from pipelines.serving.job_routes import Check, job_routes
from pipelines.serving.job_runner import JobQueue
from pipelines.serving.metrics import Metrics
from pipelines.serving.options import check_prefixes
from pipelines.serving.outcomes import checked
from pipelines.serving.page_routes import page_routes
from pipelines.serving.records import Recorded
from pipelines.serving.relabel import relabel_route
from pipelines.serving.schemas import (
    CompareAnswer,
    HealthAnswer,
    ModelAnswer,
    ScoreAnswer,
    StandingsAnswer,
    StatusAnswer,
    compare_body,
    error_responses,
    model_ref,
    request_body,
    scored_clip,
)
from pipelines.serving.sessions import Sessions, session_routes
from pipelines.serving.shares import Shares
from pipelines.serving.tournament import Tournament, standings_answer
from robometer.scoring import ClipScore

_DESCRIPTION = """Reward of robot videos: how far along a task is at every frame, whether it is done, and which of two
videos did better. Frames are RGB. Every error is problem details (RFC 9457) whose `detail` is one sentence."""

_POST_ERRORS = error_responses(400, 401, 408, 411, 413, 415, 422, 429, 500, 503)


def build_api(
    backend: Backend,
    limits: Limits,
    guard: GuardSettings,
    deployed: Deployed,
    replica: str,
    jobs: JobQueue | None = None,
    exporter: Any = None,
) -> FastAPI:
    """Build the application; for `replica` and `exporter` see `Metrics`."""
    metrics, backend = Metrics(replica, exporter), Recorded(backend)
    fetcher = Fetcher(deployed.urls, limits.max_upload_bytes, guard.body_timeout_s)
    decoders = Decoders(limits, metrics.observe_decoder_death, guard.max_held_bytes, fetcher)

    @asynccontextmanager
    async def closing(_: FastAPI) -> AsyncIterator[None]:
        yield
        decoders.close()

    api = FastAPI(
        title="Robometer",
        version="1",
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=closing,
        redirect_slashes=False,
    )
    api.add_middleware(Guard, settings=guard, metrics=metrics)
    api.add_exception_handler(ApiError, _on_api_error)
    api.add_exception_handler(HTTPException, _on_http_error)
    api.include_router(_open_routes(backend, deployed))
    api.include_router(page_routes())
    # The guard checks the token. This makes the page at /docs ask for it.
    bearer = [Depends(HTTPBearer(auto_error=False))] if guard.wants_token else []
    api.include_router(_probes(backend, limits, metrics), dependencies=bearer)
    api.include_router(frames_routes(decoders), dependencies=bearer)
    api.include_router(models.routes(guard.models, limits, deployed), dependencies=bearer)
    shares = Shares(deployed.max_samples_at_once)
    tournament = Tournament(backend, decoders, metrics, shares)
    scoring = _scoring(backend, decoders, metrics, tournament)
    api.include_router(scoring, dependencies=bearer)
    api.include_router(evaluate_batch.probe_routes(backend, deployed), dependencies=bearer)
    sessions = Sessions(backend, decoders, metrics, guard.session_idle_s, guard.timeout_s)
    api.include_router(session_routes(sessions), dependencies=bearer)
    clips = many.ClipScorer(backend, decoders, metrics, shares)
    of_many = many.many_routes(clips)
    api.include_router(of_many, dependencies=bearer)
    checks = _job_checks(decoders, tournament, clips)
    api.include_router(job_routes(jobs, [*scoring.routes, *of_many.routes], checks), dependencies=bearer)
    batches = evaluate_batch.sample_routes(backend, limits, decoders, metrics, shares)
    api.include_router(batches, dependencies=bearer)
    if deployed.relabel_image_keys:
        api.include_router(relabel_route(backend, limits, decoders, metrics, deployed), dependencies=bearer)
    return api


def _open_routes(backend: Backend, deployed: Deployed) -> APIRouter:
    router = APIRouter()
    static = Path(str(files("fastapi_offline"))) / "static"

    @router.get("/health", summary="Is the model loaded, however busy it is?", responses=error_responses(503))
    async def health() -> HealthAnswer:
        await backend.healthy()
        return HealthAnswer(status="healthy", available_gpus=deployed.num_gpus, total_gpus=deployed.num_gpus)

    @router.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        await backend.healthy()  # a public client takes this page for a sign of readiness
        return get_swagger_ui_html(
            openapi_url="openapi.json",
            title="Robometer",
            swagger_js_url="docs/swagger-ui.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="data:,",
        )

    @router.get("/docs/swagger-ui.js", include_in_schema=False)
    async def docs_script() -> Response:
        return FileResponse(static / "swagger-ui-bundle.js")

    @router.get("/docs/swagger-ui.css", include_in_schema=False)
    async def docs_style() -> Response:
        return FileResponse(static / "swagger-ui.css")

    return router


def _probes(backend: Backend, limits: Limits, metrics: Metrics) -> APIRouter:
    router = APIRouter()

    @router.get("/ready", summary="Does the model answer?", responses=error_responses(401, 503))
    async def ready() -> StatusAnswer:
        await backend.ready()
        return StatusAnswer(status="ready")

    @router.get(
        "/metrics",
        summary="Prometheus metrics of one ingress replica",
        response_class=Response,
        responses=error_responses(401, 503) | {200: {"content": {"text/plain": {}}}},
    )
    async def prometheus() -> Response:
        return Response(metrics.render(), media_type="text/plain; version=0.0.4")

    @router.get("/v1/model", summary="Which model answers, and the limits", responses=error_responses(401, 503))
    async def model() -> ModelAnswer:
        info = await backend.info()
        return ModelAnswer(
            name=info.name,
            revision=revision(info.name),
            provenance=info.provenance,
            limits=limits.as_dict(),
            frames=limits.frames_now().as_dict(),
            max_frames=info.max_frames,
        )

    return router


def _scoring(backend: Backend, decoders: Decoders, metrics: Metrics, tournament: Tournament) -> APIRouter:
    router = APIRouter(responses=_POST_ERRORS)

    @router.post("/v1/score", summary="Progress and success per frame", openapi_extra=_body(("",), options=True))
    async def score(request: Request) -> ScoreAnswer:
        """Upload a video or frames and the task; the reward is the progress at the last frame.

        A part of it is scored with `start_frame` and `end_frame`, or `start_s` and `end_s`. With `mode` prefix, each
        frame is scored from itself and the frames before it, as a policy sees it.
        """
        with ExitStack() as frames_in_memory:
            fields = await read_fields(request, decoders.limits.max_source_frames)
            asked = read_asked(fields, ("",), decoders, optional=True)
            [upload] = await asked.decode(decoders, frames_in_memory)
            if asked.options.prefixes:
                check_prefixes(len(upload.clip), "frames")
            outcome = checked(await backend.run(ScoreRequest(upload.clip, asked.options.mode)), metrics)
        scored = scored_clip(upload.clip.task, upload.frame_index, upload.fps, cast(ClipScore, outcome.value))
        return ScoreAnswer(
            request_id=request.state.request_id,
            model=model_ref(outcome.model),
            mode=asked.options.mode,
            **scored.model_dump(),
        )

    @router.post("/v1/compare", summary="Which of two or more videos did best", openapi_extra=compare_body())
    async def compare(request: Request) -> CompareAnswer | StandingsAnswer:
        """Upload two videos (or frames) of one task, `a` and `b`; or number them from 0, and have all compared."""
        fields = await read_fields(request, 2 * decoders.limits.max_source_frames)
        if many.is_numbered(fields):
            return standings_answer(request.state.request_id, await tournament.standings(fields))
        with ExitStack() as frames_in_memory:
            a, b = await read_asked(fields, ("_a", "_b"), decoders).decode(decoders, frames_in_memory)
            outcome = checked(await backend.run(CompareRequest(a.clip, b.clip)), metrics)
        value = cast(float, outcome.value)
        return CompareAnswer(
            request_id=request.state.request_id,
            model=model_ref(outcome.model),
            task=a.clip.task,
            probability_a_better=value,
            preferred="a" if value >= 0.5 else "b",
        )

    return router


def _job_checks(decoders: Decoders, tournament: Tournament, clips: many.ClipScorer) -> dict[str, Check]:
    """The routes that jobs can ask, each with what refuses a body before its uploads are decoded."""
    most = decoders.limits.max_source_frames

    async def score(request: Request) -> None:
        read_asked(await read_fields(request, most), ("",), decoders, optional=True)

    async def compare(request: Request) -> None:
        fields = await read_fields(request, 2 * most)
        if many.is_numbered(fields):
            tournament.check(fields)
        else:
            read_asked(fields, ("_a", "_b"), decoders)

    async def scores(request: Request) -> None:
        clips.check(await clips.read(request, own_tasks=True), own_tasks=True)

    async def rank(request: Request) -> None:
        clips.check(await clips.read(request, own_tasks=False), own_tasks=False)

    return {"/v1/score": score, "/v1/compare": compare, "/v1/scores": scores, "/v1/rank": rank}


def _body(suffixes: tuple[str, ...], options: bool = False) -> dict[str, object]:
    return {"requestBody": request_body(suffixes, options)}


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error, request.state.request_id)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        refusal = no_such_route()
    elif error.status_code == 405:
        refusal = ApiError(
            405, f"This route does not accept {request.method}.", {**(error.headers or {}), **_methods_at(request)}
        )
    else:
        refusal = ApiError(error.status_code, as_sentence(str(error.detail)), error.headers)
    return error_response(refusal, request.state.request_id)


def _methods_at(request: Request) -> dict[str, str]:
    """The Allow header of a path: the methods of all its routes. FastAPI names those of one of them."""
    for path, methods in request.app.openapi()["paths"].items():
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), request.url.path):
            return {"Allow": ", ".join(sorted(method.upper() for method in methods))}
    return {}
