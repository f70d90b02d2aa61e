"""Upstream's definitions of the evaluation metrics (robometer/evals/compile_results.py, robometer/utils/metrics.py).

Where upstream raises, the value is NaN here. Ours are in `robometer.evaluation.metrics` and `robometer.evaluation`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import log_softmax

from robometer.evaluation import metrics
from robometer.evaluation.measures.confusion_matrix import matrix_of
from robometer.evaluation.measures.partial_success import grade
from robometer.evaluation.predictions import ClipPrediction, InstructionPrediction, PairPrediction
from robometer.evaluation.results import Matrix
from robometer.trajectory import QUALITY_LABELS, SUCCESSFUL

AGGREGATES = ("last", "avg", "sum")
"""What one reward of a trajectory is made of its predictions."""

_GRADE_EDGES = (1 / 3, 2 / 3, 1.0)
_DIFFERENCES = {
    "succ_subopt_diff": ("successful", "suboptimal"),
    "subopt_fail_diff": ("suboptimal", "failure"),
    "succ_fail_diff": ("successful", "failure"),
}

Values = dict[str, float]


@dataclass(frozen=True)
class Judged:
    """A trajectory and what was predicted of it.

    Attributes:
        progress: float32 [T] each: one array for the whole clip, or one per prefix of it, shortest first.
        target: true progress, shaped like `progress`; empty where no metric asks for it.
        partial_success: what was reached, in [0, 1]; None where unknown.
    """

    id: str
    task: str
    quality_label: str
    progress: Sequence[np.ndarray]
    target: Sequence[np.ndarray] = ()
    partial_success: float | None = None

    @classmethod
    def of(cls, clip: ClipPrediction, partial_success: float | None = None) -> Judged:
        """A prediction of ours, which is always over the whole clip."""
        return cls(clip.id, clip.task, clip.quality_label, (clip.progress,), (), partial_success)

    def last_predictions(self) -> np.ndarray:
        """The last frame's prediction of each array of `progress`, float32 [K]."""
        return np.array([values[-1] for values in self.progress], dtype=np.float32)


def is_graded(source: str) -> bool:
    """Whether upstream ranks a source by partial success, which it tells from the name."""
    return "roboreward" in source.lower() or "roboarena" in source.lower()


def kendall(x: ArrayLike, y: ArrayLike) -> float:
    """Tau-a as `metrics.kendall`, but every pair with a NaN counts as discordant."""
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.shape != b.shape or a.size < 2:
        return math.nan
    i, j = np.triu_indices(a.size, 1)
    return float(np.mean(_agreement(a[i] - a[j], b[i] - b[j])))


def _agreement(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """1 for a concordant pair, 0 for a tie, -1 for any other, NaN among them."""
    agreement = np.sign(a) * np.sign(b)
    return np.where(np.isnan(agreement), -1.0, agreement)


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """`metrics.auroc`, but 0.5 with one class only."""
    value = float(metrics.auroc(scores, labels)[0])
    return 0.5 if math.isnan(value) else value


def accuracy(scores: np.ndarray, labels: np.ndarray, threshold: float) -> float:
    """Share of the frames whose score is above `threshold` where the label is 1, and not above where it is 0."""
    return float(np.mean((scores > threshold) == (labels > 0.5))) if scores.size else math.nan


def frame_spearman(prediction: np.ndarray, target: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Spearman correlation per row of [B, T], float64 [B]; an undefined one is 0. Upstream logs their mean."""
    masks = np.ones(prediction.shape, dtype=bool) if mask is None else mask > 0
    values = [metrics.spearman(p[m], t[m]) for p, t, m in zip(prediction, target, masks, strict=True)]
    return np.asarray(np.nan_to_num(values))


def trajectory_reward(progress: np.ndarray, aggregate: str, relative: bool = False) -> float:
    """One reward of predictions float32 [T], with `relative` of their running sum; of none, 0 (the mean: NaN)."""
    if len(progress) == 0:
        return math.nan if aggregate == "avg" else 0.0
    values = np.cumsum(progress, dtype=np.float32) if relative else np.asarray(progress, dtype=np.float32)
    return float({"last": values[-1], "avg": values.mean(), "sum": values.sum()}[aggregate])


@dataclass(frozen=True)
class Ranked:
    """Metrics over all tasks and those of each task; both empty where no task can be ranked."""

    metrics: Values
    per_task: dict[str, Values]


def rank_by_quality(
    trajectories: Sequence[Judged], aggregate: str = "last", correlation: str = "kendall", relative: bool = False
) -> Ranked:
    """Policy ranking of sources with quality labels. NaN stands where upstream leaves a value out.

    Pairwise accuracy compares (q_i > q_j) with (r_i > r_j), so a tie is right or wrong by the order of `trajectories`,
    which upstream takes from a set of ids; ours counts it 1/2.
    """
    tasks = {
        name: members
        for name, members in _by_task(trajectories, aggregate, relative).items()
        if len({t.quality_label for t, _ in members}) > 1
    }
    per_task = {name: _quality_of_task(members, correlation) for name, members in tasks.items()}
    if not per_task:
        return Ranked({}, {})
    scores = {correlation: float(np.mean([row[correlation] for row in per_task.values()]))}
    scores[f"{correlation}_rewind"] = _mean_of_defined(row[f"{correlation}_rewind"] for row in per_task.values())
    for name in _DIFFERENCES:
        defined = [row[name] for row in per_task.values() if name in row] or [math.nan]
        scores[f"avg_{name}"] = float(np.mean(defined))
        scores[f"min_{name}"], scores[f"max_{name}"] = float(np.min(defined)), float(np.max(defined))
    per_task = {task: dict.fromkeys(_DIFFERENCES, math.nan) | row for task, row in per_task.items()}
    return Ranked(scores | _pair_accuracies(tasks), per_task)


def rank_by_partial_success(
    trajectories: Sequence[Judged], aggregate: str = "last", correlation: str = "kendall", relative: bool = False
) -> Ranked:
    """Policy ranking of graded sources (roboreward, roboarena); trajectories without partial success do not count."""
    graded = [t for t in trajectories if t.partial_success is not None]
    per_task, counts = {}, []
    for name, members in _by_task(graded, aggregate, relative).items():
        grades = np.array([t.partial_success for t, _ in members])
        rewards = np.array([reward for _, reward in members])
        right, pairs = _ordered_pairs(grades, rewards)
        bins = np.minimum(2, np.digitize(grades, _GRADE_EDGES))
        means = [float(rewards[bins == value].mean()) for value in np.unique(bins)]
        if not pairs:
            continue
        counts.append((right, pairs))
        rewind = _correlate(np.unique(bins), means, correlation)
        per_task[name] = {"ranking_acc": right / pairs, f"{correlation}_rewind": rewind}
    if not per_task:
        return Ranked({}, {})
    total = sum(pairs for _, pairs in counts)
    scores = {"ranking_acc_rba": sum(right for right, _ in counts) / total}
    scores[f"{correlation}_rewind_rba"] = _mean_of_defined(row[f"{correlation}_rewind"] for row in per_task.values())
    return Ranked(scores, per_task)


_Members = list[tuple[Judged, float]]


def _by_task(trajectories: Sequence[Judged], aggregate: str, relative: bool) -> dict[str, _Members]:
    tasks: dict[str, _Members] = defaultdict(list)
    for trajectory in trajectories:
        reward = trajectory_reward(trajectory.last_predictions(), aggregate, relative)
        tasks[trajectory.task].append((trajectory, reward))
    return dict(tasks)


def _quality_of_task(members: _Members, correlation: str) -> Values:
    cells = {label: np.array([reward for t, reward in members if t.quality_label == label]) for label in QUALITY_LABELS}
    present = {label: cell for label, cell in cells.items() if len(cell)}
    means = {label: float(cell.mean()) for label, cell in present.items()}
    ranks = np.arange(len(present))
    row = {
        correlation: _over_choices(list(present.values()), correlation),
        f"{correlation}_rewind": _correlate(ranks, list(means.values()), correlation),
    }
    differences = {
        name: means[better] - means[worse]
        for name, (better, worse) in _DIFFERENCES.items()
        if better in means and worse in means
    }
    return row | differences


def _over_choices(cells: Sequence[np.ndarray], correlation: str) -> float:
    """Mean correlation over every choice of one reward per label, lowest label first; undefined ones are left out."""
    if correlation == "kendall":  # in closed form, as `metrics.ranking`
        pairs = [_agreement(np.ones(1), b[None, :] - a[:, None]).mean() for a, b in combinations(cells, 2)]
        return float(np.mean(pairs))
    values = [metrics.spearman(np.arange(len(cells)), choice) for choice in product(*cells)]
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else 0.0


def _correlate(x: ArrayLike, y: ArrayLike, correlation: str) -> float:
    return kendall(x, y) if correlation == "kendall" else metrics.spearman(x, y)


def _mean_of_defined(values: Iterable[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return float(np.mean(defined)) if defined else math.nan


def _ordered_pairs(grades: np.ndarray, rewards: np.ndarray, among: np.ndarray | None = None) -> tuple[int, int]:
    """Pairs i before j of different grade that are in order, and all of them; only where `among` [N, N] is true."""
    different = np.triu(grades[:, None] != grades[None, :])
    counted = different if among is None else different & among
    in_order = (grades[:, None] > grades[None, :]) == (rewards[:, None] > rewards[None, :])
    return int((in_order & counted).sum()), int(counted.sum())


def _pair_accuracies(tasks: Mapping[str, _Members]) -> Values:
    counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(2))
    for members in tasks.values():
        grades = np.array([QUALITY_LABELS.index(t.quality_label) for t, _ in members])
        rewards = np.array([reward for _, reward in members])
        for labels in combinations(range(len(QUALITY_LABELS)), 2):
            among = np.isin(grades, labels)
            pair = _ordered_pairs(grades, rewards, among[:, None] & among[None, :])
            counts["_vs_".join(sorted(QUALITY_LABELS[i] for i in labels))] += pair
    scores = {f"ranking_acc_{name}": right / pairs for name, (right, pairs) in counts.items() if pairs}
    right, pairs = np.sum(list(counts.values()), axis=0)
    return scores | dict.fromkeys(("ranking_acc", "ranking_acc_all_pairs"), float(right / pairs))


def confusion_matrix(records: Sequence[InstructionPrediction]) -> tuple[Matrix, Values]:
    """Matrix of `evaluation.confusion_matrix` with 0 in empty cells, and its metrics, which take the 0 for a reward."""
    means = matrix_of(records)
    values = np.nan_to_num(np.array(means.values))
    n, trace = len(values), float(np.trace(values))
    others = float(values.sum()) - trace
    on, off = trace / n, others / (n * n - n) if n > 1 else 0.0
    scores = {
        "trace": trace,
        "off_diagonal_sum": others,
        "trace_minus_offdiag": trace - others,
        "avg_diagonal": on,
        "avg_off_diagonal": off,
        "normalized_trace_minus_offdiag": on - off,
    }
    return Matrix(means.rows, means.columns, values.tolist(), means.counts), scores


def scored_frames(
    trajectory: Judged, prefixes: bool, last_only: bool = False, relative: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and targets that reward alignment compares, each float32 [T].

    With `prefixes`, prefix k is scored at its frame k, not at its last, so that the end of a long clip never counts;
    ours is `last_only`.
    """
    pairs = list(zip(trajectory.progress, trajectory.target, strict=True))
    if prefixes:
        at = [-1 if last_only else min(k, len(values) - 1) for k, (values, _) in enumerate(pairs)]
        chosen = [(values[i], target[i]) for i, (values, target) in zip(at, pairs, strict=True)]
        prediction, target = (np.array(side, dtype=np.float32) for side in zip(*chosen, strict=True))
    else:
        prediction, target = (side[-1:] if last_only else side for side in pairs[0])
    return (np.cumsum(prediction), np.cumsum(target)) if relative else (prediction, target)


def reward_alignment(
    trajectories: Sequence[Judged], prefixes: bool, last_only: bool = False, relative: bool = False
) -> Values:
    """`pearson` and `squared_error` of the successful trajectories, an undefined correlation 0; NaN without any."""
    good = [scored_frames(t, prefixes, last_only, relative) for t in trajectories if t.quality_label == SUCCESSFUL]
    if not good:
        return {"pearson": math.nan, "squared_error": math.nan}
    correlations = np.nan_to_num([metrics.pearson(target, prediction) for prediction, target in good])
    errors = [np.mean((prediction - target) ** 2) for prediction, target in good]
    return {"pearson": float(np.mean(correlations)), "squared_error": float(np.mean(errors))}


def cross_entropy(logits: np.ndarray, target: np.ndarray) -> float:
    """Discrete loss of a clip [T, K], or of P prefixes [P, T, K] in one call, in which axis 1 holds the classes.

    So the classes of a prefix are its frames, and the number is no loss of any frame; ours takes the last axis always.
    """
    return float(-(target * log_softmax(logits.astype(np.float64), axis=1)).sum(axis=1).mean())


def success_rates(probabilities: np.ndarray, labels: np.ndarray, threshold: float = 0.5) -> Values:
    """Over all frames together; the area is 0 with one class only, and the accuracy of a class without frames NaN."""
    positive = labels > 0.5
    return {
        "success_auprc": float(np.nan_to_num(metrics.auprc(probabilities, labels)[0])),
        "positive_success_acc": accuracy(probabilities[positive], labels[positive], threshold),
        "negative_success_acc": accuracy(probabilities[~positive], labels[~positive], threshold),
    }


def grade_error(progress: ArrayLike, partial_success: ArrayLike) -> float:
    """RoboRewardBench MAE: mean distance in grades of 5, halves rounded to even."""
    ours, truth = (grade(np.asarray(side, dtype=np.float64)) for side in (progress, partial_success))
    return float(np.abs(ours - truth).mean())


def preference_accuracy(pairs: Sequence[PairPrediction]) -> float:
    """Share of the pairs whose better clip is preferred when it is shown first, which hides a bias to the first."""
    return float(np.mean([pair.chosen_first > 0.5 for pair in pairs])) if pairs else math.nan


def preference_by_quality(pairs: Sequence[PairPrediction]) -> Values:
    """`preference_accuracy` by pair of quality labels, named in alphabetical order."""
    groups: dict[str, list[PairPrediction]] = defaultdict(list)
    for pair in pairs:
        groups["_vs_".join(sorted((pair.chosen_quality, pair.rejected_quality)))].append(pair)
    return {name: preference_accuracy(members) for name, members in groups.items()}
