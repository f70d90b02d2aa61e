"""Robustness: is progress what the robot has reached, or only what usually comes next?

Successful clips are shown with their frames in another order (`views`): an attempt that is given up and made again, a
cycle of doing and undoing, a stop half way, and two tasks one after the other. A clock fails all but the last.
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
    RETRY: "video goes back from 2/3 to 1/3 of the way and on: an attempt made again",
    CYCLE: "video goes to its end, back to its start, and to its end again",
    MEMORY: "two clips one after the other under 'A, then B': what was done before counts, and is out of sight",
}
_HESITATION = "mean change of progress while the picture stands still half way, for as long as half the clip"


def evaluate(predictions: Predictions, split: str, settings: Resampling) -> Result:
    """Correlations with the progress of the state shown, and the drift of a picture that stands still."""
    of_view: dict[str, list[ClipPrediction]] = defaultdict(list)
    for clip in predictions.clips:
        if clip.quality_label == SUCCESSFUL:
            of_view[clip.view].append(clip)
    found = [
        correlation_metric(
            f"voc_{view}", of_view[view], _state, metrics.pearson_rows, settings, f"Pearson r, {meaning}"
        )
        for view, meaning in _MEANINGS.items()
    ]
    stopped = [clip for clip in of_view[HESITATION] if clip.num_frames > 1]
    found.append(_drift(stopped, settings))
    found = [metric for metric in found if metric.estimate.n]
    if not found:
        return Result(NAME, split, skipped="no successful clips of two frames or more were shown in other orders")
    return Result(NAME, split, found, _per_task(of_view))


def hesitation_error(clip: ClipPrediction) -> float:
    """Mean absolute change of progress over the frames of the stop, from the one where it began; 0 is right."""
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
    tasks = sorted({clip.task for view in SHOWN for clip in of_view[view]})
    return [{"task": task} | {name: known.get(task, math.nan) for name, known in columns.items()} for task in tasks]


SHOWN = (*_MEANINGS, HESITATION)
