"""Robustness: does progress follow what the robot has reached, or only what usually comes next?

Successful clips are shown with their frames in another order (`views`): a failed attempt and a second one, a cycle of
doing and undoing, a stop half way, and two tasks one after the other. A clock fails all but the last.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from robometer.evaluation import metrics
from robometer.evaluation.measures.reward_alignment import correlation_by_task, correlation_metric
from robometer.evaluation.metrics import Resampling
from robometer.evaluation.predictions import ClipPrediction, Predictions
from robometer.evaluation.results import Metric, Result, Row
from robometer.evaluation.views import CYCLE, HESITATION, MEMORY, RETRY
from robometer.trajectory import SUCCESSFUL

NAME = "robustness"

_MEANINGS = {
    RETRY: "video goes back from 2/3 to 1/3 of the way and then on: a second attempt",
    CYCLE: "video goes to its end, back to its start, and to its end again",
    MEMORY: "two clips one after the other under 'A, then B': A still counts when it is out of sight",
}
_HESITATION = "mean change of progress while the video stands still half way, for as long as half the clip"


def evaluate(predictions: Predictions, split: str, settings: Resampling) -> Result:
    """Correlations with the progress of the state that is shown, and the drift while the video stands still."""
    of_view: dict[str, list[ClipPrediction]] = defaultdict(list)
    for clip in predictions.clips:
        if clip.quality_label == SUCCESSFUL:
            of_view[clip.view].append(clip)
    results = [
        correlation_metric(
            f"voc_{view}", of_view[view], _state, metrics.pearson_rows, settings, f"Pearson r, {meaning}"
        )
        for view, meaning in _MEANINGS.items()
    ]
    stopped = [clip for clip in of_view[HESITATION] if clip.num_frames > 1]
    results.append(_drift(stopped, settings))
    results = [metric for metric in results if metric.estimate.n]
    if not results:
        return Result(NAME, split, skipped="no successful clip of two frames or more was shown in other orders")
    return Result(NAME, split, results, _per_task(of_view))


def hesitation_error(clip: ClipPrediction) -> float:
    """Mean absolute change of progress during the stop, relative to its first frame; 0 is right."""
    start = clip.num_frames // 2
    still = clip.progress[start : start + clip.num_frames // 2 + 1]
    return float(np.abs(still[1:] - still[0]).mean())


def _state(clip: ClipPrediction) -> np.ndarray:
    return clip.true_progress


def _drift(clips: Sequence[ClipPrediction], settings: Resampling) -> Metric:
    group_of, unit = metrics.grouping([c.task for c in clips], [c.id for c in clips])
    statistic = metrics.weighted_mean([hesitation_error(clip) for clip in clips])
    return Metric("hesitation_error", metrics.estimate(statistic, group_of, unit, settings), "clips", _HESITATION)


def _per_task(of_view: dict[str, list[ClipPrediction]]) -> list[Row]:
    columns = {f"voc_{view}": correlation_by_task(of_view[view], _state) for view in _MEANINGS}
    drift: dict[str, list[float]] = defaultdict(list)
    for clip in of_view[HESITATION]:
        if clip.num_frames > 1:
            drift[clip.task].append(hesitation_error(clip))
    columns["hesitation_error"] = {task: float(np.mean(values)) for task, values in drift.items()}
    tasks = sorted({clip.task for view in (*_MEANINGS, HESITATION) for clip in of_view[view]})
    return [{"task": task} | {name: values.get(task, math.nan) for name, values in columns.items()} for task in tasks]
