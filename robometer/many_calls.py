"""Requests of several videos, and their answers, for both clients of the endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robometer.calls import Call, clip_score, video_fields
from robometer.frames.video import Source
from robometer.scoring import ClipScore


@dataclass(frozen=True)
class Failure:
    """Why one video of a request has no answer: an HTTP status, and what was wrong with it and what to do."""

    status: int
    sentence: str


@dataclass(frozen=True)
class Ranking:
    """Videos ordered by a task.

    Attributes:
        order: positions of the videos that could be scored, the best first.
        rewards: of each video, in the order that they were given; a `Failure` where it could not be scored.
    """

    order: list[int]
    rewards: list[float | Failure]


@dataclass(frozen=True)
class Standings:
    """What the comparison of every two of N videos says.

    Attributes:
        order: positions of the videos, the best first.
        probabilities: [N, N], P(the video of the row is better than that of the column).
        strengths: [N], Bradley-Terry log-strengths with mean 0, see `robometer.evaluation.bradley_terry`.
    """

    order: list[int]
    probabilities: np.ndarray
    strengths: np.ndarray


def score_videos(
    videos: Sequence[Source], tasks: str | Sequence[str], **options: float | str
) -> Call[list[ClipScore | Failure]]:
    """Score several videos in one request.

    Raises:
        ValueError: there are several tasks, and not one for each video.
    """
    if isinstance(tasks, str):
        return _of_videos("/v1/scores", _scores, videos, {"task": tasks, **options})
    named = {f"task_{i}": task for i, (task, _) in enumerate(zip(tasks, videos, strict=True))}
    return _of_videos("/v1/scores", _scores, videos, {**named, **options})


def rank_videos(videos: Sequence[Source], task: str, **options: float | str) -> Call[Ranking]:
    """Order several videos by a task."""
    return _of_videos("/v1/rank", _ranking, videos, {"task": task, **options})


def compare_many(videos: Sequence[Source], task: str) -> Call[Standings]:
    """Compare every two of several videos."""
    return _of_videos("/v1/compare", _standings, videos, {"task": task})


def _of_videos(route: str, read: Any, videos: Sequence[Source], fields: dict[str, float | str]) -> Call[Any]:
    parts: dict[str, bytes] = {}
    for i, video in enumerate(videos):
        texts, files = video_fields(video, f"_{i}")
        fields.update(texts)
        parts.update(files)
    return Call(route, read, fields, parts)


def _scores(answer: dict[str, Any]) -> list[ClipScore | Failure]:
    return [_failure(clip) or clip_score(clip) for clip in answer["clips"]]


def _ranking(answer: dict[str, Any]) -> Ranking:
    return Ranking(answer["order"], [_failure(clip) or float(clip["reward"]) for clip in answer["clips"]])


def _standings(answer: dict[str, Any]) -> Standings:
    return Standings(answer["order"], np.array(answer["probabilities"]), np.array(answer["strengths"]))


def _failure(clip: dict[str, Any]) -> Failure | None:
    return Failure(clip["error"]["status"], clip["error"]["sentence"]) if "error" in clip else None
