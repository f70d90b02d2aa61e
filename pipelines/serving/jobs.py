"""The `Jobs` deployment: one replica, which keeps the jobs of the endpoint on disk and runs them."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.serve.handle import DeploymentHandle

from pipelines.serving.api import build_api
from pipelines.serving.backend import Deployed, Limits
from pipelines.serving.guard import GuardSettings
from pipelines.serving.ingress import ServeBackend
from pipelines.serving.job_runner import JobRunner, through
from pipelines.serving.job_store import Job, JobStore, NoRoom
from robometer.configs.stages import ServeConfig


class Jobs:
    """Runs jobs through the routes that answer uploads, in this process: with the same limits and decoders."""

    def __init__(
        self,
        model: DeploymentHandle[Any],
        limits: Limits,
        guard: GuardSettings,
        deployed: Deployed,
        config: ServeConfig,
    ) -> None:
        self._is_temporary = not config.jobs_folder
        # Another replica of the same start must find what the one before it has left.
        folder = config.jobs_folder or f"{tempfile.gettempdir()}/robometer-jobs-{guard.instance}"
        store = JobStore(Path(folder), config.max_jobs, config.max_jobs_bytes, config.job_ttl_s)
        # The ingress replica has checked the token.
        inner = replace(
            guard, token="", token_file="", max_in_flight=config.max_running_jobs, timeout_s=config.job_timeout_s
        )
        api = build_api(ServeBackend(model, limits.frames_tag()), limits, inner, deployed, "jobs")
        self._runner = JobRunner(store, through(api), config.max_running_jobs)

    async def submit(self, job: Job, body: bytes, most: int | None = None) -> Job | NoRoom:
        """See `JobQueue.submit`."""
        return await self._runner.submit(job, body, most)

    async def find(self, job_id: str, owner: str) -> Job | None:
        """See `JobQueue.find`."""
        return await self._runner.find(job_id, owner)

    async def answer(self, job_id: str, owner: str) -> tuple[Job, bytes] | None:
        """See `JobQueue.answer`."""
        return await self._runner.answer(job_id, owner)

    async def cancel(self, job_id: str, owner: str) -> Job | None:
        """See `JobQueue.cancel`."""
        return await self._runner.cancel(job_id, owner)

    async def check_health(self) -> None:
        """Ray Serve calls this every second: it starts the jobs that a predecessor left, before any client comes."""
        self._runner.check()

    async def __del__(self) -> None:
        """Ray Serve awaits this at the end of a replica that it ends in order, not of one that was killed."""
        await asyncio.shield(self._runner.close(remove=self._is_temporary))
