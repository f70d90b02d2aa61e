"""The `Model` deployment: holds the scorer and answers concurrent requests in batches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from ray import serve

from pipelines.serving.backend import CompareRequest, ModelInfo, ModelRequest, Outcome
from robometer.configs.stages import ServeConfig
from robometer.errors import InputError
from robometer.scorers import ScorerReference
from robometer.scoring import Clip, ClipScore, score_prefixes

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CANARY = Clip(np.zeros((2, 64, 64, 3), dtype=np.uint8), "check that the model answers")


class Model:
    """One replica of the model. Score and compare requests share one batch queue and one thread."""

    def __init__(self, scorer: ScorerReference, config: ServeConfig) -> None:
        # Torch is very slow when its threads outnumber the cores that Ray gave this replica.
        torch.set_num_threads(max(1, int(config.num_cpus)))
        self._scorer = scorer.load("cuda" if config.num_gpus > 0 else "cpu")
        self._description = scorer.describe()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._suspect, self._sick = False, ""
        self._batched.set_max_batch_size(config.max_batch_size)  # type: ignore[attr-defined]
        self._batched.set_batch_wait_timeout_s(config.batch_wait_timeout_s)  # type: ignore[attr-defined]
        # Encoders load on first use, so that the replica is ready only when one clip went through.
        self._scorer.score([_CANARY])

    async def info(self) -> ModelInfo:
        """What the scorer and its checkpoint say of themselves."""
        info = self._scorer.info
        return ModelInfo(self._scorer.name, dict(info.provenance), info.image_encoder, self._description)

    async def run(self, request: ModelRequest) -> Outcome:
        """Answer one request, in a batch with others that wait."""
        return await self._batched(request)

    async def check_health(self) -> None:
        """Raise where the model fails on a clip that must work: Ray Serve then replaces this replica."""
        if self._sick:
            raise RuntimeError(f"the model fails on any clip ({self._sick})")

    @serve.batch
    async def _batched(self, requests: list[ModelRequest]) -> list[Outcome]:
        # In a thread, so that health checks and the queue go on while the model computes.
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, requests)

    def _answer(self, requests: Sequence[ModelRequest]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        clips: dict[bool, list[tuple[int, Clip]]] = {False: [], True: []}
        pairs = []
        for i, request in enumerate(requests):
            if isinstance(request, CompareRequest):
                pairs.append((i, (request.a, request.b)))
            else:
                clips[request.prefixes].append((i, request.clip))
        for indices, values in (
            ([i for i, _ in clips[False]], self._guarded(self._score, [clip for _, clip in clips[False]])),
            ([i for i, _ in clips[True]], self._guarded(self._score_prefixes, [clip for _, clip in clips[True]])),
            ([i for i, _ in pairs], self._guarded(self._compare, [pair for _, pair in pairs])),
        ):
            for i, (value, error, rejected) in zip(indices, values, strict=True):
                outcomes[i] = Outcome(self._scorer.name, value, error, rejected, len(requests), first=i == 0)
        if self._suspect:
            self._examine()
        return [outcomes[i] for i in range(len(requests))]

    def _examine(self) -> None:
        """Find out, between two batches, whether the model or its input was at fault."""
        self._suspect = False
        try:
            self._score([_CANARY])
            self._sick = ""
        except Exception as error:  # whatever it is, this replica cannot score any clip
            logger.exception("The model fails on a clip that must work.")
            self._sick = type(error).__name__

    def _score(self, clips: Sequence[Clip]) -> list[ClipScore | float]:
        return self._finite(self._scorer.score(clips))

    def _score_prefixes(self, clips: Sequence[Clip]) -> list[ClipScore | float]:
        return self._finite(score_prefixes(self._scorer, clips))

    def _finite(self, scores: Sequence[ClipScore]) -> list[ClipScore | float]:
        if not all(np.isfinite(s.progress).all() and np.isfinite(s.success).all() for s in scores):
            raise ArithmeticError("the model answered with a number that is not finite")
        return list(scores)

    def _compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> list[ClipScore | float]:
        values = self._scorer.compare(pairs)
        if not np.isfinite(values).all():
            raise ArithmeticError("the model answered with a number that is not finite")
        return [float(value) for value in values]

    def _guarded(
        self, answer: Callable[[Sequence[T]], list[ClipScore | float]], items: Sequence[T]
    ) -> list[tuple[ClipScore | float | None, str, bool]]:
        """Answer `items` together; if that fails, one by one, so that a bad input fails alone."""
        if not items:
            return []
        try:
            return [(value, "", False) for value in answer(items)]
        except Exception as error:  # a request must end in an answer, whatever the model does
            if len(items) > 1:
                return [self._guarded(answer, [item])[0] for item in items]
            if isinstance(error, InputError):
                return [(None, _first_line(error), True)]
            logger.exception("The model failed on a request.")
            self._suspect = True
            return [(None, f"the model failed on this input ({type(error).__name__})", False)]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
