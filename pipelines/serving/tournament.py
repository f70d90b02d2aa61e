"""`/v1/compare` of more than two clips: every two of them are compared, and their strengths say who is the best."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import permutations
from typing import cast

import numpy as np

from pipelines.serving.backend import Backend, CompareRequest
from pipelines.serving.bodies import Fields, Upload
from pipelines.serving.decoding import Decoders
from pipelines.serving.errors import ApiError, replaced
from pipelines.serving.many import count_clips
from pipelines.serving.metrics import Metrics
from pipelines.serving.options import Cut
from pipelines.serving.outcomes import checked
from pipelines.serving.schemas import StandingsAnswer, model_ref
from pipelines.serving.shares import Shares
from pipelines.serving.text import checked_task
from robometer.evaluation.bradley_terry import bradley_terry
from robometer.scoring import Clip

MAX_COMPARED = 16
"""Clips of one request, at most: the work grows with their square."""


@dataclass(frozen=True)
class Standings:
    """What the comparison of N clips says.

    Attributes:
        order: numbers of the clips, the best first.
        probabilities: [N, N], P(row better than column).
        strengths: [N], see `bradley_terry`.
    """

    model: str
    task: str
    order: list[int]
    probabilities: np.ndarray
    strengths: np.ndarray


def standings_answer(request_id: str, standings: Standings) -> StandingsAnswer:
    """The standings as the route answers them."""
    return StandingsAnswer(
        request_id=request_id,
        model=model_ref(standings.model),
        task=standings.task,
        order=standings.order,
        probabilities=standings.probabilities.tolist(),
        strengths=standings.strengths.tolist(),
    )


class Tournament:
    """Compares every two clips of a request, in both orders."""

    def __init__(self, backend: Backend, decoders: Decoders, metrics: Metrics, shares: Shares) -> None:
        self._backend, self._decoders, self._metrics, self._shares = backend, decoders, metrics, shares

    def check(self, fields: Fields) -> tuple[str, list[Upload]]:
        """The task and the clips to compare, none of them decoded.

        Raises:
            ApiError: 413 or 422.
        """
        count = count_clips(fields, False, ("task",), MAX_COMPARED)
        if count < 2:
            raise ApiError(422, "There is one clip. Send two at least.")
        task, uploads = checked_task(fields.value("task")), [fields.upload(f"_{number}") for number in range(count)]
        for upload in uploads:
            upload.check(self._decoders)
        return task, uploads

    async def standings(self, fields: Fields) -> Standings:
        """Compare all clips of these fields.

        A model need not give P(A better) and P(B better) that add up to 1. So each pair is asked in both orders, and
        the mean counts: the answer does not depend on the numbers of the clips.

        Raises:
            ApiError: 413, 415, 422, 500 or 503. One clip that cannot be compared is an error of the request.
        """
        task, uploads = self.check(fields)
        with ExitStack() as frames_in_memory:
            clips = await self._clips(uploads, task, frames_in_memory)
            model, asked = await self._ask(clips)
        probabilities = (asked + 1 - asked.T) / 2
        strengths = bradley_terry(probabilities)
        order = sorted(range(len(clips)), key=lambda number: (-strengths[number], number))
        return Standings(model, task, order, probabilities, strengths)

    async def _clips(self, uploads: Sequence[Upload], task: str, frames_in_memory: ExitStack) -> list[Clip]:
        clips, bytes_left = [], self._decoders.max_bytes_of_many
        for upload in uploads:
            decoded = await upload.decode(Cut(), self._decoders)
            bytes_left -= decoded.frames.nbytes
            if bytes_left < 0:
                limit = f"{self._decoders.max_bytes_of_many} bytes (half of serve.max_held_bytes)"
                raise ApiError(413, f"The clips decode to more than {limit} together. Send fewer or smaller ones.")
            frames_in_memory.enter_context(self._decoders.counted(decoded.frames))
            clips.append(Clip(decoded.frames, task))
        return clips

    async def _ask(self, clips: Sequence[Clip]) -> tuple[str, np.ndarray]:
        """Name of the model, and P(row better than column) as it was answered, [N, N]; 0.5 on the diagonal."""
        pairs = list(permutations(range(len(clips)), 2))

        async def ask(position: int) -> tuple[str, float]:
            a, b = pairs[position]
            async with self._shares.places:
                outcome = await self._backend.run(CompareRequest(clips[a], clips[b]))
            error = outcome.error and f"on clips {a} and {b} {outcome.error}"
            outcome = checked(replace(outcome, error=error), self._metrics)
            return outcome.model, cast(float, outcome.value)

        answers = await self._shares.each(len(pairs), ask)
        models = {model for model, _ in answers}
        if len(models) > 1:
            raise replaced()
        asked = np.full((len(clips), len(clips)), 0.5)
        for (a, b), (_, probability) in zip(pairs, answers, strict=True):
            asked[a, b] = probability
        return models.pop(), asked
