"""Success detection: does the success head tell whether a clip succeeds, and when?"""

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
from robometer.trajectory import SUCCESSFUL

NAME = "success_detection"

THRESHOLD = 0.5


def evaluate(predictions: Predictions, split: str, settings: Resampling) -> Result:
    """Metrics per clip (largest and last probability against the label), and per frame against the simulator's flag."""
    clips = [c for c in predictions.clips if c.view == FORWARD]
    labels = np.array([float(c.quality_label == SUCCESSFUL) for c in clips])
    if len(np.unique(labels)) < 2:
        return Result(NAME, split, skipped="it needs clips that succeed and clips that do not")
    group_of, unit = metrics.grouping([c.task for c in clips], [c.id for c in clips])
    share = f"{labels.mean():.2f} of them are positive, which is the AUPRC of chance"
    results: list[Metric] = []
    for name, scores in {"last": last_success(clips), "max": max_success(clips)}.items():
        meaning = f"{name} success probability of a clip against its label; {share}"
        results += _areas(f"_{name}", scores, labels, group_of, unit, settings, "clips", meaning)
    results += _rates(max_success(clips), labels, group_of, unit, settings)
    results += _calibration(last_success(clips), labels, group_of, unit, settings)
    return Result(NAME, split, results + _delay(clips, settings) + _per_frame(clips, settings), _per_task(clips))


def last_success(clips: Sequence[ClipPrediction]) -> np.ndarray:
    """Success probability of each clip's last frame, float64 [N]."""
    return np.array([c.success[-1] for c in clips], dtype=np.float64)


def max_success(clips: Sequence[ClipPrediction]) -> np.ndarray:
    """Largest success probability of each clip, float64 [N]."""
    return np.array([c.success.max() for c in clips], dtype=np.float64)


def clip_auroc(clips: Sequence[ClipPrediction]) -> float:
    """AUROC of the last success probability against the label, over forward clips; NaN if there is only one class."""
    forward = [c for c in clips if c.view == FORWARD]
    return float(metrics.auroc(last_success(forward), [c.quality_label == SUCCESSFUL for c in forward])[0])


def _areas(
    suffix: str,
    scores: np.ndarray,
    labels: np.ndarray,
    group_of: np.ndarray,
    unit: str,
    settings: Resampling,
    over: str,
    meaning: str,
) -> list[Metric]:
    areas = metrics.Areas(scores, labels)
    return [
        Metric(f"{area.__name__}{suffix}", metrics.estimate(area, group_of, unit, settings), over, meaning)
        for area in (areas.auroc, areas.auprc)
    ]


def _rates(
    scores: np.ndarray, labels: np.ndarray, group_of: np.ndarray, unit: str, settings: Resampling
) -> list[Metric]:
    is_right = ((scores > THRESHOLD) == (labels > 0)).astype(np.float64)
    sides = {
        "true_positive_rate": (labels > 0, "successful clips that reach the threshold"),
        "true_negative_rate": (labels == 0, "other clips that never reach it"),
    }
    f1 = metrics.estimate(_f1(scores, labels), group_of, unit, settings)
    return [
        Metric("f1", f1, "clips", f"clips that reach the threshold of {THRESHOLD} against those that succeed"),
        *(
            Metric(
                name,
                metrics.estimate(metrics.weighted_mean(is_right[side]), _compact(group_of[side]), unit, settings),
                "clips",
                f"{meaning} (success probability above {THRESHOLD})",
            )
            for name, (side, meaning) in sides.items()
        ),
    ]


def _f1(scores: np.ndarray, labels: np.ndarray) -> metrics.Statistic:
    """2 TP / (2 TP + FP + FN); NaN if there are no positives, true or predicted."""
    predicted, true = scores > THRESHOLD, labels > 0

    def statistic(weights: np.ndarray) -> np.ndarray:
        hits, wrong = weights @ (predicted & true), weights @ (predicted != true)
        with np.errstate(invalid="ignore"):
            return np.asarray(2 * hits / (2 * hits + wrong))

    return statistic


def _calibration(
    scores: np.ndarray, labels: np.ndarray, group_of: np.ndarray, unit: str, settings: Resampling
) -> list[Metric]:
    values = {
        "calibration_error": (
            lambda w: metrics.calibration_error(scores, labels, w),
            f"last probability against the share that succeeded, {metrics.RELIABILITY_BINS} bins (ECE); 0 is right",
        ),
        "brier": (
            metrics.weighted_mean((scores - labels) ** 2),
            "mean squared error of the last success probability; 0 is right",
        ),
    }
    return [
        Metric(name, metrics.estimate(statistic, group_of, unit, settings), "clips", meaning)
        for name, (statistic, meaning) in values.items()
    ]


def _delay(clips: Sequence[ClipPrediction], settings: Resampling) -> list[Metric]:
    delays = [(clip, delay) for clip in clips if not math.isnan(delay := detection_delay(clip))]
    if not delays:
        return []
    group_of, unit = metrics.grouping([c.task for c, _ in delays], [c.id for c, _ in delays])
    statistic = metrics.weighted_mean([delay for _, delay in delays])
    meaning = (
        "from the first frame that succeeds to the first above the threshold, as a share of the clip; early is < 0"
    )
    return [Metric("detection_delay", metrics.estimate(statistic, group_of, unit, settings), "clips", meaning)]


def detection_delay(clip: ClipPrediction) -> float:
    """Frames from success by the simulator's flag to its detection, divided by T; NaN if one of the two is missing."""
    predicted, true = (np.flatnonzero(values > THRESHOLD) for values in (clip.success, clip.env_success))
    return float(predicted[0] - true[0]) / len(clip.success) if len(predicted) and len(true) else math.nan


def _compact(group_of: np.ndarray) -> np.ndarray:
    """The same groups, numbered without gaps."""
    return np.unique(group_of, return_inverse=True)[1].reshape(-1)


def _per_frame(clips: Sequence[ClipPrediction], settings: Resampling) -> list[Metric]:
    with_truth = [c for c in clips if len(c.env_success) == len(c.success)]
    if not with_truth:
        return []
    scores, labels = (np.concatenate([getattr(c, name) for c in with_truth]) for name in ("success", "env_success"))
    if len(np.unique(labels)) < 2:
        return []
    of_clip, unit = metrics.grouping([c.task for c in with_truth], [c.id for c in with_truth])
    group_of = np.repeat(of_clip, [len(c.success) for c in with_truth])
    meaning = f"success probability of a frame against the simulator's flag; {labels.mean():.2f} of them are positive"
    return _areas("_frame", scores, labels, group_of, unit, settings, "frames", meaning)


def _per_task(clips: Sequence[ClipPrediction]) -> list[Row]:
    groups: dict[str, list[ClipPrediction]] = defaultdict(list)
    for clip in clips:
        groups[clip.task].append(clip)
    rows: list[Row] = []
    for task, members in sorted(groups.items()):
        good = [c for c in members if c.quality_label == SUCCESSFUL]
        other = [c for c in members if c.quality_label != SUCCESSFUL]
        rows.append(
            {
                "task": task,
                "clips": len(members),
                "auroc_last": clip_auroc(members),
                "max_probability_successful": float(max_success(good).mean()) if good else math.nan,
                "max_probability_other": float(max_success(other).mean()) if other else math.nan,
            }
        )
    return rows
