"""Answers batches of requests with a scorer: the same kinds together, and a bad input alone. Knows no Ray."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np

from pipelines.serving.backend import (
    Answer,
    CompareRequest,
    ModelRequest,
    Outcome,
    PushFrames,
    ScoreRequest,
    SessionAnswer,
    SessionLimits,
    SessionRequest,
)
from pipelines.serving.session_store import SessionRefusal, SessionStore
from robometer.errors import InputError
from robometer.scoring import Clip, ClipScore, Scorer, score_positions, score_prefixes
from robometer.sessions import NOT_FINITE, score_as_session

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CANARY = Clip(np.zeros((2, 64, 64, 3), dtype=np.uint8), "check that the model answers")


class Answerer:
    """Answers requests with a scorer, one batch after another.

    Attributes:
        sick: why the model fails on a clip that must work; empty while it works.
    """

    def __init__(self, scorer: Scorer, limits: SessionLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._scorer, self._sessions = scorer, SessionStore(scorer, limits, clock)
        self._suspect, self.sick = False, ""
        self._scores = {
            way: partial(self._guarded, partial(_finite_scores, score))
            for way, score in {
                "whole": lambda requests: scorer.score([request.clip for request in requests]),
                "prefix": lambda requests: score_prefixes(scorer, [request.clip for request in requests]),
                "positions": lambda requests: [score_positions(scorer, r.clip, r.positions) for r in requests],
                "session": lambda requests: [score_as_session(scorer, request.clip) for request in requests],
            }.items()
        }

    @property
    def trajectories(self) -> int:
        """Trajectories of the sessions that are kept."""
        return self._sessions.trajectories

    def answer(self, requests: Sequence[ModelRequest]) -> list[Outcome]:
        """The outcome of each request of a batch."""
        started_s = time.monotonic()
        self._sessions.expire()
        kinds = dict[Callable[[Any], list[Outcome]], list[int]]()
        for i, request in enumerate(requests):
            kinds.setdefault(self._way(request), []).append(i)
        outcomes = dict[int, Outcome]()
        for way, at in kinds.items():
            outcomes |= dict(zip(at, way([requests[i] for i in at]), strict=True))
        shared: dict[str, Any] = {"batch_size": len(requests), "model_s": time.monotonic() - started_s}
        if self._suspect:
            self._examine()
        return [replace(outcomes[i], **shared, first=i == 0) for i in range(len(requests))]

    def _way(self, request: ModelRequest) -> Callable[[Any], list[Outcome]]:
        if isinstance(request, ScoreRequest):
            return self._scores["positions" if request.positions else request.mode]
        return self._preferences if isinstance(request, CompareRequest) else self._in_sessions

    def _preferences(self, requests: Sequence[CompareRequest]) -> list[Outcome]:
        return self._guarded(self._compare, [(request.a, request.b) for request in requests])

    def _in_sessions(self, requests: Sequence[SessionRequest]) -> list[Outcome]:
        """Pushes to different sessions together; what is for one session, in its order."""
        outcomes, waiting = dict[int, Outcome](), dict(enumerate(requests))
        while waiting:
            first = {request.session_id: i for i, request in reversed(waiting.items())}
            wave = {i: waiting.pop(i) for i in sorted(first.values())}
            together = {i: r for i, r in wave.items() if isinstance(r, PushFrames) and self._sessions.can_push(r)}
            outcomes |= dict(zip(together, self._guarded(self._sessions.push, list(together.values())), strict=True))
            self._add_preferences(outcomes, together)
            for i in wave.keys() - together.keys():
                [outcomes[i]] = self._guarded(self._sessions.answer, [wave[i]])
        return [outcomes[i] for i in range(len(requests))]

    def _add_preferences(self, outcomes: dict[int, Outcome], pushes: Mapping[int, PushFrames]) -> None:
        asked = {i: r for i, r in pushes.items() if r.compare and not outcomes[i].error}
        compared = self._guarded(self._sessions.compare, list(asked.values()))
        for i, outcome in zip(asked, compared, strict=True):
            pushed = cast(SessionAnswer, outcomes[i].value)
            preference = cast(list[float] | None, outcome.value)
            if outcome.error:
                outcomes[i] = replace(outcome, error=f"{outcome.error.rstrip('.')}; the frame was pushed all the same")
            else:
                outcomes[i] = replace(outcome, value=replace(pushed, preference=preference))

    def try_out(self) -> None:
        """Score a clip that must work: encoders load on first use."""
        _finite_scores(lambda requests: self._scorer.score([r.clip for r in requests]), [ScoreRequest(_CANARY)])

    def _examine(self) -> None:
        """Find out, between two batches, whether the model or its input was at fault."""
        self._suspect = False
        try:
            self.try_out()
            self.sick = ""
        except Exception as error:  # whatever it is, this replica cannot score any clip
            logger.exception("The model fails on a clip that must work.")
            self.sick = type(error).__name__

    def _compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> list[float]:
        values = self._scorer.compare(pairs)
        if not np.isfinite(values).all():
            raise ArithmeticError(NOT_FINITE)
        return [float(value) for value in values]

    def _guarded(self, answer: Callable[[Sequence[T]], Sequence[Answer]], items: Sequence[T]) -> list[Outcome]:
        """Answer `items` together; if that fails, one by one, so that a bad input fails alone."""
        if not items:
            return []
        try:
            return [self._outcome(value) for value in answer(items)]
        except Exception as error:  # a request must end in an answer, whatever the model does
            if len(items) > 1:
                return [self._guarded(answer, [item])[0] for item in items]
            if isinstance(error, InputError):
                status = error.status if isinstance(error, SessionRefusal) else 422
                return [self._outcome(None, _first_line(error), True, status)]
            logger.exception("The model failed on a request.")
            self._suspect = True
            return [self._outcome(None, f"the model failed on this input ({type(error).__name__})")]

    def _outcome(self, value: Answer | None, error: str = "", rejected: bool = False, status: int = 422) -> Outcome:
        return Outcome(self._scorer.name, value, error, rejected, batch_size=1, first=False, status=status)


def _finite_scores(
    score: Callable[[Sequence[ScoreRequest]], list[ClipScore]], requests: Sequence[ScoreRequest]
) -> list[ClipScore]:
    scores = score(requests)
    if not all(np.isfinite(s.progress).all() and np.isfinite(s.success).all() for s in scores):
        raise ArithmeticError(NOT_FINITE)
    return scores


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
