"""The `Ingress` deployment: the HTTP interface in front of the model, and the patience with its replicas."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from pipelines.serving.api import build_api
from pipelines.serving.errors import ApiError, unavailable
from pipelines.serving.guard import GuardSettings
from pipelines.serving.jobs import Job, Limits, ModelInfo, Outcome

ATTEMPTS = 4
"""Scoring has no side effects: a job whose replica died is sent again, at most this many times in all."""

READY_TIMEOUT_S = 5.0

_NOT_READY = "the model is not loaded yet; try again in a moment"


class ServeBackend:
    """Backend over a handle to the `Model` deployment."""

    def __init__(self, model: DeploymentHandle[Any]) -> None:
        self._model, self._last_answer_s = model, float("-inf")

    async def run(self, job: Job) -> Outcome:
        """See `Backend.run`; a job outlives the replica that held it."""
        outcome: Outcome = await self._call("run", job)
        return outcome

    async def info(self) -> ModelInfo:
        """See `Backend.info`."""
        try:
            return await asyncio.wait_for(self._call("info"), READY_TIMEOUT_S)
        except TimeoutError:
            raise unavailable(_NOT_READY) from None

    async def ready(self) -> None:
        """See `Backend.ready`. A model that answered just now is ready, even if its queue is full."""
        if time.monotonic() - self._last_answer_s > READY_TIMEOUT_S:
            await self.info()

    async def _call(self, method: str, *args: Any) -> Any:
        for attempt in range(ATTEMPTS):
            try:
                answer = await getattr(self._model, method).remote(*args)
                self._last_answer_s = time.monotonic()
                return answer
            except BackPressureError:
                raise unavailable("the model's queue is full; try again later") from None
            except DeploymentUnavailableError:
                raise unavailable(_NOT_READY) from None
            except RayActorError:
                await asyncio.sleep(0.1 * 2**attempt)
        raise ApiError(503, f"the model died {ATTEMPTS} times on this request", {"Retry-After": "5"})


@serve.ingress(None)
class Ingress:
    """Decodes and validates; Ray Serve runs several of these beside few models."""

    def __init__(self, model: DeploymentHandle[Any], limits: Limits, guard: GuardSettings) -> None:
        self._api = build_api(ServeBackend(model), limits, guard, serve.get_replica_context().replica_id.unique_id)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._api
