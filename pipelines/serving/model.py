"""The `Model` deployment: holds the scorer and answers concurrent requests in batches."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import torch
from ray import serve

from pipelines.serving.answerer import Answerer
from pipelines.serving.backend import ModelInfo, ModelRequest, Outcome, SessionLimits
from robometer.configs.stages import ServeConfig
from robometer.scorers import ScorerReference


class Model:
    """One replica of the model. Score and compare requests share one batch queue and one thread."""

    def __init__(self, scorer: ScorerReference, config: ServeConfig) -> None:
        # Torch is very slow when its threads outnumber the cores that Ray gave this replica.
        torch.set_num_threads(max(1, int(config.num_cpus)))
        self._scorer = scorer.load("cuda" if config.num_gpus > 0 else "cpu")
        self._description = scorer.describe()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._answerer = Answerer(self._scorer, SessionLimits.from_config(config))
        self._answerer.try_out()  # the replica is ready only when one clip went through
        self._batched.set_max_batch_size(config.max_batch_size)  # type: ignore[attr-defined]
        self._batched.set_batch_wait_timeout_s(config.batch_wait_timeout_s)  # type: ignore[attr-defined]

    async def info(self) -> ModelInfo:
        """What the scorer and its checkpoint say of themselves."""
        info = self._scorer.info
        return ModelInfo(
            self._scorer.name, dict(info.provenance), info.image_encoder, self._description, info.max_frames
        )

    async def run(self, request: ModelRequest) -> Outcome:
        """Answer one request, in a batch with others that wait."""
        return await self._batched(request)

    async def check_health(self) -> None:
        """Raise where the model fails on a clip that must work: Ray Serve then replaces this replica."""
        if self._answerer.sick:
            raise RuntimeError(f"the model fails on any clip ({self._answerer.sick})")

    @serve.batch
    async def _batched(self, requests: list[ModelRequest]) -> list[Outcome]:
        # In a thread, so that health checks and the queue go on while the model computes.
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._answerer.answer, requests)
