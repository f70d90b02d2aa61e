"""Partial success: does the last progress equal how much of the task was done, if somebody judged that?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from robometer.evaluation import metrics
from robometer.evaluation.metrics import Resampling
from robometer.evaluation.predictions import ClipPrediction, Predictions
from robometer.evaluation.results import Metric, Result, Row
from robometer.evaluation.views import FORWARD

NAME = "partial_success"

GRADES = 5
"""RoboReward's scale from 1 to 5: the MAE is in grades, as in RoboRewardBench."""

_MEANINGS = {
    "mae": f"mean distance in grades of 1 to {GRADES} between last progress and judged partial success (RoboReward)",
    "absolute_error": "mean |last progress - judged partial success|",
}


def evaluate(predictions: Predictions, split: str, settings: Resampling) -> Result:
    """Errors over judged clips, and how often two clips of a task are in the order of their judgements."""
    clips = [c for c in predictions.clips if c.view == FORWARD and not math.isnan(c.partial_success)]
    if not clips:
        return Result(NAME, split, skipped="no clip has a judged partial success")
    judged = np.array([c.partial_success for c in clips])
    last = np.array([float(c.progress[-1]) for c in clips])
    values = {"mae": np.abs(grade(last) - grade(judged)), "absolute_error": np.abs(last - judged)}
    group_of, unit = metrics.grouping([c.task for c in clips], [c.id for c in clips])
    errors = [
        Metric(name, metrics.estimate(metrics.weighted_mean(value), group_of, unit, settings), "clips", _MEANINGS[name])
        for name, value in values.items()
    ]
    return Result(NAME, split, [*errors, *_order(clips, settings)], _per_task(clips))


def grade(values: np.ndarray) -> np.ndarray:
    """Grade float [N], 0 to 4, of values in [0, 1]; halves are rounded to even, as upstream."""
    return np.asarray(np.rint(np.clip(values, 0, 1) * (GRADES - 1)))


def _order(clips: Sequence[ClipPrediction], settings: Resampling) -> list[Metric]:
    counted = {task: _pairs(members) for task, members in _by_task(clips).items()}
    with_pairs = {task: (correct, total) for task, (correct, total) in counted.items() if total}
    if not with_pairs:
        return []
    correct, total = (np.array([pair[i] for pair in with_pairs.values()]) for i in (0, 1))
    enough = len(with_pairs) >= metrics.MIN_TASKS_TO_RESAMPLE
    resampling = settings if enough else Resampling(0, settings.confidence, settings.seed)
    statistic = metrics.weighted_mean(correct / total, total)
    meaning = f"share in the right order of {int(total.sum())} pairs of one task with different judgements; ties 1/2"
    estimate = metrics.estimate(statistic, np.arange(len(with_pairs)), "task", resampling)
    return [Metric("pair_accuracy", estimate, "tasks", meaning)]


def _pairs(clips: Sequence[ClipPrediction]) -> tuple[float, int]:
    """How many pairs with different judgements are in the right order, and how many there are."""
    judged, value = np.array([c.partial_success for c in clips]), np.array([c.value for c in clips])
    ranking = metrics.ranking(np.unique(judged, return_inverse=True)[1], value)
    return ranking.correct, ranking.pairs


def _by_task(clips: Sequence[ClipPrediction]) -> dict[str, list[ClipPrediction]]:
    groups: dict[str, list[ClipPrediction]] = defaultdict(list)
    for clip in clips:
        groups[clip.task].append(clip)
    return dict(sorted(groups.items()))


def _per_task(clips: Sequence[ClipPrediction]) -> list[Row]:
    rows: list[Row] = []
    for task, members in _by_task(clips).items():
        judged = np.array([c.partial_success for c in members])
        last = np.array([float(c.progress[-1]) for c in members])
        error = float(np.abs(grade(last) - grade(judged)).mean())
        rows.append(
            {
                "task": task,
                "clips": len(members),
                "judged": float(judged.mean()),
                "predicted": float(last.mean()),
                "mae": error,
            }
        )
    return rows
