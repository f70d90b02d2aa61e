"""How ingress replicas reach the `Jobs` deployment."""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_exponential

from pipelines.serving.errors import unavailable
from pipelines.serving.job_store import Job, NoRoom

PATIENCE_S = 30.0
"""How long a call is sent to one replica after another."""


class ServeJobs:
    """The `JobQueue` of ingress replicas: the `Jobs` deployment, whose replica may be killed at any time."""

    def __init__(self, jobs: DeploymentHandle[Any]) -> None:
        self._jobs = jobs

    async def submit(self, job: Job, body: bytes, most: int | None = None) -> Job | NoRoom:
        """See `JobQueue.submit`; the id keeps a second try from making a second job."""
        submitted: Job | NoRoom = await self._call("submit", job, body, most)
        return submitted

    async def find(self, job_id: str, owner: str) -> Job | None:
        """See `JobQueue.find`."""
        job: Job | None = await self._call("find", job_id, owner)
        return job

    async def answer(self, job_id: str, owner: str) -> tuple[Job, bytes] | None:
        """See `JobQueue.answer`."""
        answer: tuple[Job, bytes] | None = await self._call("answer", job_id, owner)
        return answer

    async def cancel(self, job_id: str, owner: str) -> Job | None:
        """See `JobQueue.cancel`."""
        job: Job | None = await self._call("cancel", job_id, owner)
        return job

    async def _call(self, method: str, *args: Any) -> Any:
        try:
            return await self._ask(method, *args)
        except (RayActorError, DeploymentUnavailableError):
            raise unavailable("The part of the endpoint that keeps jobs does not answer. Try again later.", 5) from None

    @retry(
        retry=retry_if_exception_type(RayActorError),
        stop=stop_after_delay(PATIENCE_S),
        wait=wait_exponential(multiplier=0.1, max=1.0),
        reraise=True,
    )
    async def _ask(self, method: str, *args: Any) -> Any:
        return await getattr(self._jobs, method).remote(*args)
