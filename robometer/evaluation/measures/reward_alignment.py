"""Reward alignment: does predicted progress rise along a successful clip, and fall if the clip is played backwards?

The target of frame i of T is i / (T - 1). Papers call the mean Pearson correlation with it VOC r. A clock scores 1.0,
so the same clips are also played backwards and correlated with the same rising target: a model that judges what it sees
gets a negative number, a clock gets 1.0 again.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from robometer.evaluation import metrics
from robometer.evaluation.metrics import Resampling
from robometer.evaluation.predictions import ClipPrediction, Predictions
from robometer.evaluation.results import Metric, Result, Row
from robometer.evaluation.views import FORWARD, REVERSED, REWOUND
from robometer.trajectory import SUCCESSFUL

NAME = "reward_alignment"

Correlation = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Maps truths [N, T] and predictions [N, T] of N clips to a value each [N]."""

Truth = Callable[[ClipPrediction], np.ndarray]

_WITH_TIME: dict[str, tuple[Correlation, str]] = {
    "voc": (metrics.pearson_rows, "Pearson r with time (VOC r)"),
    "spearman": (metrics.spearman_rows, "Spearman correlation with time"),
    "kendall": (metrics.kendall_rows, "Kendall tau-a with time"),
}
_BACKWARDS = ", video played backwards: below 0 if states are judged, as high as forwards for a clock"
_REWOUND = "Pearson r with how far into the clip each frame lies, video rewound from its end to its middle"
_WITH_REWARD = "Pearson r with the simulator's reward, clips that {}"


@cache
def target_progress(frames: int) -> np.ndarray:
    """True progress float64 [T] of a successful clip: linear from 0 to 1 over the whole clip. It is read-only."""
    target = np.linspace(0.0, 1.0, frames)
    target.setflags(write=False)
    return target


def evaluate(predictions: Predictions, split: str, settings: Resampling) -> Result:
    """Mean correlations of a split's clips with the truths of this module's docstring."""
    good = [c for c in predictions.clips if c.quality_label == SUCCESSFUL]
    forward = [c for c in good if c.view == FORWARD]
    if not forward:
        return Result(NAME, split, skipped="no successful clips")
    backward, rewound = ([c for c in good if c.view == view] for view in (REVERSED, REWOUND))
    unsuccessful = [c for c in predictions.clips if c.quality_label != SUCCESSFUL and c.view == FORWARD]
    results = []
    for name, (correlation, meaning) in _WITH_TIME.items():
        results.append(correlation_metric(name, forward, _time, correlation, settings, meaning))
        results.append(
            correlation_metric(f"{name}_reversed", backward, _time, correlation, settings, meaning + _BACKWARDS)
        )
    results.append(correlation_metric("voc_rewound", rewound, _state, metrics.pearson_rows, settings, _REWOUND))
    for name, clips, which in (
        ("env_reward", forward, "succeeded"),
        ("env_reward_unsuccessful", unsuccessful, "did not succeed"),
    ):
        results.append(
            correlation_metric(name, clips, _reward, metrics.pearson_rows, settings, _WITH_REWARD.format(which))
        )
    return Result(NAME, split, [m for m in results if m.estimate.n], _per_task(forward, backward))


def mean_correlation(clips: Sequence[ClipPrediction]) -> float:
    """Mean Pearson correlation of clips with time; undefined ones count as 0; NaN without clips."""
    values = [value for _, value in _correlations(clips, _time, metrics.pearson_rows)]
    return float(np.mean(np.nan_to_num(values))) if values else math.nan


def _time(clip: ClipPrediction) -> np.ndarray:
    return target_progress(len(clip.progress))


def _state(clip: ClipPrediction) -> np.ndarray:
    return clip.true_progress


def _reward(clip: ClipPrediction) -> np.ndarray:
    return clip.env_reward


def _correlations(
    clips: Sequence[ClipPrediction], truth: Truth, correlation: Correlation
) -> list[tuple[ClipPrediction, float]]:
    """Value of each clip whose truth varies, in their order; NaN if the prediction does not vary."""
    truths = [(clip, truth(clip)) for clip in clips]
    varying = [(clip, true) for clip, true in truths if len(true) == len(clip.progress) > 1 and np.ptp(true) > 0]
    values, by_length = np.full(len(varying), math.nan), defaultdict(list)
    for i, (clip, _) in enumerate(varying):
        by_length[len(clip.progress)].append(i)
    for members in by_length.values():  # clips of one length together, which is many times faster than one by one
        true, predicted = [varying[i][1] for i in members], [varying[i][0].progress for i in members]
        values[members] = correlation(np.stack(true), np.stack(predicted))
    return [(clip, value) for (clip, _), value in zip(varying, values.tolist(), strict=True)]


def correlation_metric(
    name: str,
    clips: Sequence[ClipPrediction],
    truth: Truth,
    correlation: Correlation,
    settings: Resampling,
    meaning: str,
) -> Metric:
    """Mean correlation of progress with a truth, over the clips whose truth varies; undefined ones count as 0."""
    correlations = _correlations(clips, truth, correlation)
    values = np.array([value for _, value in correlations])
    group_of, unit = metrics.grouping([c.task for c, _ in correlations], [c.id for c, _ in correlations])
    undefined = int(np.isnan(values).sum())
    statistic = metrics.weighted_mean(np.nan_to_num(values))
    return Metric(name, metrics.estimate(statistic, group_of, unit, settings, undefined), "clips", meaning)


def correlation_by_task(clips: Sequence[ClipPrediction], truth: Truth) -> dict[str, float]:
    """Mean Pearson correlation of progress with a truth, for each task that has one; undefined ones count as 0."""
    values: dict[str, list[float]] = defaultdict(list)
    for clip, value in _correlations(clips, truth, metrics.pearson_rows):
        values[clip.task].append(value)
    return {task: float(np.mean(np.nan_to_num(of_task))) for task, of_task in values.items()}


def _per_task(forward: Sequence[ClipPrediction], backward: Sequence[ClipPrediction]) -> list[Row]:
    clips = Counter(clip.task for clip in forward)
    voc, voc_reversed = (correlation_by_task(side, _time) for side in (forward, backward))
    return [
        {
            "task": task,
            "clips": clips[task],
            "voc": voc.get(task, math.nan),
            "voc_reversed": voc_reversed.get(task, math.nan),
        }
        for task in sorted({clip.task for side in (forward, backward) for clip in side})
    ]
