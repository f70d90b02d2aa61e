"""The routes of many clips in one request, `/v1/scores` and `/v1/rank`.

Clips have numbers: fields `video_0`, `video_1`, ... A clip that cannot be scored has an error in its place, and the
others their scores. Frames are decoded, scored and dropped clip by clip: many clips take no more memory than few.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

from fastapi import APIRouter, Request

from pipelines.serving.backend import Backend, ScoreRequest
from pipelines.serving.bodies import Fields, read_fields
from pipelines.serving.decoding import Decoders
from pipelines.serving.errors import AGAIN_HEADER, ApiError, replaced
from pipelines.serving.metrics import Metrics
from pipelines.serving.options import OPTIONS, ScoreOptions, check_prefixes
from pipelines.serving.outcomes import checked
from pipelines.serving.schemas import (
    ClipError,
    FailedClip,
    RankAnswer,
    RankedClip,
    ScoredClip,
    ScoresAnswer,
    clips_body,
    error_responses,
    model_ref,
    scored_clip,
)
from pipelines.serving.shares import Shares
from pipelines.serving.text import checked_task
from robometer.scoring import Clip, ClipScore

MAX_CLIPS = 256
"""Clips of one request, at most."""

_NUMBERED = re.compile(r"(task|video|frames|frames_base64|url)_(0|[1-9][0-9]{0,4})")


@dataclass(frozen=True)
class Scored:
    """A clip that was scored; the attributes are those of `UploadedClip` and `Outcome`."""

    task: str
    frame_index: list[int]
    fps: float | None
    model: str
    score: ClipScore


class ClipScorer:
    """Scores the clips of a request, each for itself."""

    def __init__(self, backend: Backend, decoders: Decoders, metrics: Metrics, shares: Shares) -> None:
        self._backend, self._decoders, self._metrics, self._shares = backend, decoders, metrics, shares

    async def read(self, request: Request, own_tasks: bool) -> Fields:
        """The fields of a request of numbered clips; with `own_tasks` each clip may have its task.

        Raises:
            ApiError: 400, 413, 415 or 422.
        """
        most = 2 * self._decoders.limits.max_source_frames
        return await read_fields(request, most, tasks=MAX_CLIPS if own_tasks else 1)

    def check(self, fields: Fields, own_tasks: bool) -> tuple[int, str | None, ScoreOptions]:
        """How many clips there are, the task of all, and how to score them; what is wrong with one clip is its own.

        Raises:
            ApiError: 413 or 422.
        """
        count = count_clips(fields, own_tasks, ("task", *OPTIONS), MAX_CLIPS)
        task = checked_task(fields.value("task")) if "task" in fields or not own_tasks else None
        return count, task, fields.options()

    async def score(self, fields: Fields, own_tasks: bool) -> tuple[str, list[Scored | ApiError]]:
        """Name of the model, and the score of each clip or why it has none.

        Raises:
            ApiError: 413 or 422, the request as a whole is wrong; 503, no clip could be scored now.
        """
        count, task, options = self.check(fields, own_tasks)

        async def one(position: int) -> Scored | ApiError:
            try:
                return await self._one(fields, position, task, options)
            except ApiError as error:
                if AGAIN_HEADER in error.headers:  # the whole request goes to another replica
                    raise
                return error

        results = await self._shares.each(count, one)
        failures = [result for result in results if isinstance(result, ApiError)]
        if len(failures) == count and all(failure.status == 503 for failure in failures):
            raise failures[0]
        models = {result.model for result in results if isinstance(result, Scored)}
        if len(models) > 1:
            raise replaced()
        return models.pop() if models else (await self._backend.info()).name, results

    async def _one(self, fields: Fields, position: int, task: str | None, options: ScoreOptions) -> Scored:
        own = fields.value(f"task_{position}")
        if own is not None or task is None:
            task = checked_task(own, f"task_{position}")
        upload = fields.upload(f"_{position}")
        decode = partial(upload.decode, options.cut, self._decoders)
        async with self._decoders.when_there_is_room(decode) as decoded:
            if options.prefixes:
                check_prefixes(len(decoded.frames), upload.field)
            async with self._shares.places:
                outcome = await self._backend.run(ScoreRequest(Clip(decoded.frames, task), options.mode))
        score = cast(ClipScore, checked(outcome, self._metrics).value)
        return Scored(task, decoded.frame_index, decoded.fps, outcome.model, score)


def count_clips(fields: Fields, own_tasks: bool, others: Sequence[str], most: int) -> int:
    """How many clips the fields number: 0, 1, 2, ...

    Args:
        others: fields that belong to no clip.

    Raises:
        ApiError: 422 for another field, no clip, or a number that is left out, 413 for too many clips.
    """
    kinds, numbers = (*fields.clip_kinds, *(["task"] if own_tasks else [])), set[int]()
    for name in fields:
        match = _NUMBERED.fullmatch(name)
        if match and match[1] in kinds:
            numbers.add(int(match[2]))
        elif name not in others:
            known = ", ".join([*others, *(f"{kind}_0" for kind in kinds)])
            raise ApiError(422, f"Unknown field {name[:80]!r}. This route takes {known}, and so on.")
    if not numbers:
        raise ApiError(
            422, f"There is no clip. Send '{fields.clip_kinds[0]}_0', '{fields.clip_kinds[0]}_1', and so on."
        )
    if len(numbers) > most:
        raise ApiError(413, f"The request has {len(numbers)} clips; the limit is {most}. Send several requests.")
    missing = next((number for number in range(len(numbers)) if number not in numbers), None)
    if missing is not None:
        raise ApiError(422, f"Clip {missing} is missing, and there is a clip {max(numbers)}. Number them from 0.")
    return len(numbers)


def is_numbered(fields: Fields) -> bool:
    """Whether the clips have numbers."""
    return any(_NUMBERED.fullmatch(name) for name in fields)


def many_routes(scorer: ClipScorer) -> APIRouter:
    """`/v1/scores` and `/v1/rank`."""
    router = APIRouter(responses=error_responses(400, 401, 408, 411, 413, 415, 422, 429, 500, 503))

    @router.post("/v1/scores", summary="Scores of several videos", openapi_extra=clips_body(own_tasks=True))
    async def scores(request: Request) -> ScoresAnswer:
        """Upload clips by number. The task is one for all, or that of each clip; the options are for all.

        The answer has the score of each clip, or its error. It is 200 whenever the request as a whole was understood.
        """
        fields = await scorer.read(request, own_tasks=True)
        model, results = await scorer.score(fields, own_tasks=True)
        return ScoresAnswer(
            request_id=request.state.request_id,
            model=model_ref(model),
            mode=fields.options().mode,
            clips=[_failed(r) if isinstance(r, ApiError) else _scored(r) for r in results],
        )

    @router.post("/v1/rank", summary="Videos ordered by an instruction", openapi_extra=clips_body(own_tasks=False))
    async def rank(request: Request) -> RankAnswer:
        """Upload clips by number and one task. Each is scored once; the order is by reward, the best first.

        The reward is the progress at the last frame. Clips of one reward are ordered by their mean success, then by
        their numbers. A clip that cannot be scored has an error and is not in the order.
        """
        fields = await scorer.read(request, own_tasks=False)
        model, results = await scorer.score(fields, own_tasks=False)
        return RankAnswer(
            request_id=request.state.request_id,
            model=model_ref(model),
            task=checked_task(fields.value("task")),
            order=best_first(results),
            clips=[_failed(r) if isinstance(r, ApiError) else _ranked(r) for r in results],
        )

    return router


def best_first(results: Sequence[Scored | ApiError]) -> list[int]:
    """Numbers of the clips that were scored, by reward, then mean success, then number."""
    keys = {
        number: (-result.score.reward, -float(result.score.success.mean()), number)
        for number, result in enumerate(results)
        if isinstance(result, Scored)
    }
    return sorted(keys, key=keys.__getitem__)


def _scored(result: Scored) -> ScoredClip:
    return scored_clip(result.task, result.frame_index, result.fps, result.score)


def _ranked(result: Scored) -> RankedClip:
    success = float(result.score.success.mean())
    return RankedClip(reward=result.score.reward, mean_success=success, num_frames=len(result.frame_index))


def _failed(error: ApiError) -> FailedClip:
    return FailedClip(error=ClipError(status=error.status, sentence=error.sentence))
