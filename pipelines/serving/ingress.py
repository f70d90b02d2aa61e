"""The `Ingress` deployment: the HTTP interface in front of the model, which retries when a model replica dies."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve import metrics
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.types import Scope
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential

from pipelines.serving.api import build_api
from pipelines.serving.backend import (
    CompareRequest,
    Deployed,
    Limits,
    ModelInfo,
    ModelRequest,
    Outcome,
    PushFrames,
    ScoreRequest,
    SessionRequest,
    size_bytes,
)
from pipelines.serving.calls import SHARED_BYTES, Answer, answer, way
from pipelines.serving.choice import chosen
from pipelines.serving.errors import unavailable, updating
from pipelines.serving.guard import GuardSettings
from pipelines.serving.job_handle import ServeJobs

ATTEMPTS = 4
"""How often a request is sent in all if its replica dies; scoring has no side effects."""

READY_TIMEOUT_S = 5.0

SMALL_ANSWERS = ScoreRequest, CompareRequest, PushFrames
"""Requests whose answers are some numbers a frame. Ray's gRPC would refuse an answer of more than 4 MiB."""

_NOT_READY = "The model is not loaded yet. Try again in a moment."


class ServeBackend:
    """The `Backend` that sends requests to the `Model` deployment."""

    _last_answer_s: float
    _infos: dict[str, ModelInfo]

    def __init__(self, model: DeploymentHandle[Any], frames_tag: str) -> None:
        self._model, self._frames_tag = model, frames_tag
        self._forget()

    async def run(self, request: ModelRequest) -> Outcome:
        """See `Backend.run`; a request outlives the replica that held it, and an update of the endpoint."""
        outcome: Outcome | None = await self._call("run", request, self._frames_tag)
        if outcome is None:
            raise updating()
        if (told := self._infos.get(chosen())) and told.name != outcome.model:  # an update has replaced the model
            del self._infos[chosen()]
        return outcome

    async def info(self) -> ModelInfo:
        """See `Backend.info`. It is asked for once: behind a full queue the answer would come late."""
        return self._infos.get(chosen()) or await self._ask_info()

    async def ready(self) -> None:
        """See `Backend.ready`. A model that answered just now is ready, even if its queue is full."""
        if time.monotonic() - self._last_answer_s > READY_TIMEOUT_S:
            await self._ask_info()

    async def healthy(self) -> None:
        """See `Backend.healthy`."""
        if self._last_answer_s == float("-inf"):
            await self._ask_info()

    async def _ask_info(self) -> ModelInfo:
        try:
            info: ModelInfo = await asyncio.wait_for(self._call("info"), READY_TIMEOUT_S)
        except TimeoutError:
            raise unavailable(_NOT_READY) from None
        self._infos[chosen()] = info
        return info

    def _forget(self) -> None:
        """The model has gone, or has not answered yet."""
        self._last_answer_s, self._infos = float("-inf"), {}

    async def _call(self, method: str, *args: Any) -> Any:
        try:
            answer = await self._ask(method, *args)
        except BackPressureError:
            raise unavailable("The model's queue is full. Try again later.") from None
        except DeploymentUnavailableError:
            self._forget()
            raise unavailable(_NOT_READY) from None
        except RayActorError:
            self._forget()
            raise unavailable(f"The model died {ATTEMPTS} times on this request.", 5) from None
        self._last_answer_s = time.monotonic()
        return answer

    @retry(
        retry=retry_if_exception_type(RayActorError),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(multiplier=0.1),  # 0.1 s, 0.2 s, 0.4 s
        reraise=True,
    )
    async def _ask(self, method: str, *args: Any) -> Any:
        asked = next((args[0].session_id for _ in args if isinstance(args[0], SessionRequest)), "")
        size = size_bytes(args[0]) if args and isinstance(args[0], SMALL_ANSWERS) else SHARED_BYTES
        model = self._model.options(session_id=asked, multiplexed_model_id=chosen(), **way(size))
        return await getattr(model, method).remote(*args)


@serve.ingress(None)
class Ingress:
    """Decodes and validates requests. Ray Serve runs several of these in front of few models."""

    def __init__(
        self,
        model: DeploymentHandle[Any],
        limits: Limits,
        guard: GuardSettings,
        deployed: Deployed,
        jobs: DeploymentHandle[Any] | None = None,
    ) -> None:
        replica = serve.get_replica_context().replica_id.unique_id
        queue = None if jobs is None else ServeJobs(jobs)
        backend = ServeBackend(model, limits.frames_tag())
        self._api = build_api(backend, limits, guard, deployed, replica, queue, metrics)

    async def answer(self, scope: Scope, body: bytes, most_bytes: int | None) -> Answer | None:
        """See `calls.answer`."""
        return await answer(self._api, scope, body, most_bytes)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._api
