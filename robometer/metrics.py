"""Metrics of predicted progress, success and preference, and intervals for them. Pure numpy, no model, no corpus.

What is undefined is NaN here, never silently a number. Where the mean over clips is taken, an evaluation counts the NaN
of a constant prediction as 0, as upstream does (spec evaluation 1.2), and reports how many there were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

MIN_TASKS_TO_RESAMPLE = 5
"""With fewer tasks a bootstrap over tasks has too few distinct resamples; trajectories are resampled instead."""

_ELEMENTS_PER_CHUNK = 4_000_000  # resampling weights held at once, 32 MB

Statistic = Callable[[np.ndarray], np.ndarray]
"""Maps weights [B, N] of N items to a value per row [B]; the point estimate is its value at all ones."""


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray] | None:
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    return None if a.shape != b.shape or a.size < 2 else (a, b)


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson correlation; NaN for unequal or too short input and where one side is constant."""
    pair = _pair(x, y)
    if pair is None or np.ptp(pair[0]) == 0 or np.ptp(pair[1]) == 0:
        return math.nan
    a, b = pair[0] - pair[0].mean(), pair[1] - pair[1].mean()
    scale = math.sqrt(float(a @ a)) * math.sqrt(float(b @ b))
    return float(np.clip(a @ b / scale, -1.0, 1.0)) if scale > 0 else math.nan


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson correlation of the average ranks; NaN where `pearson` is."""
    pair = _pair(x, y)
    return math.nan if pair is None or np.isnan(pair).any() else pearson(rankdata(pair[0]), rankdata(pair[1]))


def kendall(x: ArrayLike, y: ArrayLike) -> float:
    """Kendall tau-a, (concordant - discordant) / (n(n-1)/2): ties add 0 and stay in the denominator.

    Constant input gives 0; unequal input, NaN or fewer than two values give NaN. Memory grows with n^2: meant for the
    frames of one clip.
    """
    pair = _pair(x, y)
    if pair is None or np.isnan(pair).any():
        return math.nan
    a, b = pair
    agreement = np.sign(a[:, None] - a[None, :]) * np.sign(b[:, None] - b[None, :])
    return float(agreement.sum() / (a.size * (a.size - 1)))


@dataclass(frozen=True)
class PairCounts:
    """How the predictions of two groups compare, over all pairs of one clip each.

    Attributes:
        wins: pairs where the clip with the higher label has the higher prediction.
        ties: pairs with equal predictions.
        total: all pairs.
    """

    wins: int
    ties: int
    total: int

    @property
    def tau(self) -> float:
        """Mean sign of (higher - lower), in [-1, 1]."""
        return (2 * self.wins + self.ties - self.total) / self.total

    @property
    def accuracy(self) -> float:
        """Share of pairs in the right order, a tie counts 1/2."""
        return (self.wins + 0.5 * self.ties) / self.total


def compare_groups(lower: ArrayLike, higher: ArrayLike) -> PairCounts:
    """Count in O(n log n) how often a value of `higher` beats a value of `lower`."""
    low, high = np.sort(np.asarray(lower, dtype=np.float64)), np.asarray(higher, dtype=np.float64)
    below = np.searchsorted(low, high, side="left")
    not_above = np.searchsorted(low, high, side="right")
    return PairCounts(int(below.sum()), int((not_above - below).sum()), low.size * high.size)


@dataclass(frozen=True)
class Ranking:
    """How well predictions order the clips of one task by label.

    Attributes:
        tau: tau-a averaged over every choice of one clip per label, in closed form: the mean over label pairs a < b of
            the mean over clips i in a, j in b of sign(r_j - r_i) (spec evaluation 1.4). Perfect order gives 1.
        ceiling: what tau would be if every pair that the prediction does not tie were in the right order.
        accuracy: share of the pairs with different labels in the right order, pooled, a tie counts 1/2.
        pairs: how many those are.
        correct: accuracy * pairs.
    """

    tau: float
    ceiling: float
    accuracy: float
    pairs: int
    correct: float


def ranking(labels: Sequence[int] | np.ndarray, scores: ArrayLike) -> Ranking:
    """Compare predicted `scores` [N] with ordinal `labels` [N]; all NaN where there is only one label."""
    label, score = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    groups = [score[label == value] for value in np.unique(label)]
    counts = [compare_groups(a, b) for a, b in combinations(groups, 2)]
    if not counts:
        return Ranking(math.nan, math.nan, math.nan, 0, 0.0)
    pairs = sum(c.total for c in counts)
    correct = sum(c.wins + 0.5 * c.ties for c in counts)
    tau = float(np.mean([c.tau for c in counts]))
    ceiling = float(np.mean([1 - c.ties / c.total for c in counts]))
    return Ranking(tau, ceiling, correct / pairs, pairs, correct)


def tau_b_ceiling(labels: Sequence[int] | np.ndarray) -> float:
    """The most that Kendall tau-b over all clips can be when labels tie and predictions do not."""
    _, sizes = np.unique(np.asarray(labels), return_counts=True)
    total = sizes.sum() * (sizes.sum() - 1) / 2
    tied = (sizes * (sizes - 1) / 2).sum()
    return math.sqrt((total - tied) / total) if total > tied else math.nan


def auroc(scores: ArrayLike, labels: ArrayLike, weights: np.ndarray | None = None) -> np.ndarray:
    """Area under the ROC curve, ties count 1/2; NaN with one class only.

    Args:
        scores: [N], higher means positive.
        labels: [N], 0 or 1.
        weights: [B, N], how often each item counts; one row of ones without.

    Returns:
        float64 [B].
    """
    positive, negative = _by_score(scores, labels, weights)
    below = np.cumsum(negative, axis=1) - negative / 2
    with np.errstate(invalid="ignore"):
        return np.asarray((positive * below).sum(1) / (positive.sum(1) * negative.sum(1)))


def auprc(scores: ArrayLike, labels: ArrayLike, weights: np.ndarray | None = None) -> np.ndarray:
    """Average precision (area under the step-wise precision-recall curve); arguments and NaN as in `auroc`."""
    positive, negative = (side[:, ::-1] for side in _by_score(scores, labels, weights))
    found, false = np.cumsum(positive, axis=1), np.cumsum(negative, axis=1)
    both = (positive.sum(1) > 0) & (negative.sum(1) > 0)
    precision = found / np.maximum(found + false, 1e-300)
    return np.where(both, (positive * precision).sum(1) / np.maximum(positive.sum(1), 1e-300), math.nan)


def _by_score(scores: ArrayLike, labels: ArrayLike, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Weight of positives and of negatives at each distinct score, ascending, each [B, G]."""
    score, label = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    weight = np.ones((1, score.size)) if weights is None else weights
    order = np.argsort(score, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(score[order]) != 0])[: score.size]
    if score.size == 0:
        return np.zeros((len(weight), 0)), np.zeros((len(weight), 0))
    positive = np.add.reduceat((weight * label)[:, order], starts, axis=1)
    negative = np.add.reduceat((weight * (1 - label))[:, order], starts, axis=1)
    return positive, negative


@dataclass(frozen=True)
class Estimate:
    """A number and how sure it is.

    Attributes:
        value: the point estimate, NaN where undefined.
        low, high: percentile bootstrap interval, NaN where none could be made.
        n: how many items (clips, pairs, frames, tasks) it is over.
        unit: what was resampled, `task` or `trajectory`.
        groups: how many of those there are.
        undefined: of the n items, how many had no defined value of their own and counted as 0.
        replicates: float64 [resamples], the values whose percentiles the interval is; empty where there is none. Equal
            groups, resamples and seed draw alike, so that two models' replicates differ pairwise
            (`evaluation.paired`).
    """

    value: float
    low: float
    high: float
    n: int
    unit: str
    groups: int
    undefined: int = 0
    replicates: np.ndarray = field(default_factory=lambda: np.zeros(0), compare=False, repr=False)


@dataclass(frozen=True)
class Resampling:
    """Bootstrap settings; `resamples=0` makes no intervals."""

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 42


def grouping(tasks: Sequence[str], trajectories: Sequence[str]) -> tuple[np.ndarray, str]:
    """Group index [N] of each item and its unit: tasks where there are enough of them, else trajectories."""
    enough = len(set(tasks)) >= MIN_TASKS_TO_RESAMPLE
    names = np.asarray(tasks if enough else trajectories, dtype=str)
    return np.unique(names, return_inverse=True)[1].reshape(-1), "task" if enough else "trajectory"


def estimate(
    statistic: Statistic, group_of: np.ndarray, unit: str, settings: Resampling, undefined: int = 0
) -> Estimate:
    """Value and percentile bootstrap interval of a statistic of N items, resampling whole groups of them.

    Each call draws from its own Generator with the same seed, so that one metric does not depend on which others were
    computed, and metrics over the same groups share their resamples.
    """
    n, groups = len(group_of), int(group_of.max()) + 1 if len(group_of) else 0
    value = float(statistic(np.ones((1, n)))[0]) if n else math.nan
    replicates = _replicates(statistic, group_of, groups, settings)
    low, high = percentile_interval(replicates, settings.confidence)
    return Estimate(value, low, high, n, unit, groups, undefined, replicates)


def _replicates(statistic: Statistic, group_of: np.ndarray, groups: int, settings: Resampling) -> np.ndarray:
    if groups < 2 or settings.resamples == 0:
        return np.zeros(0)
    rng = np.random.default_rng(settings.seed)
    chunk = max(1, _ELEMENTS_PER_CHUNK // len(group_of))
    values = []
    for start in range(0, settings.resamples, chunk):
        size = min(chunk, settings.resamples - start)
        weights = rng.multinomial(groups, np.full(groups, 1 / groups), size=size).astype(np.float64)
        values.append(statistic(weights[:, group_of]))
    return np.concatenate(values)


def percentile_interval(replicates: np.ndarray, confidence: float) -> tuple[float, float]:
    """The middle `confidence` of the finite replicates; NaN where there is none."""
    finite = replicates[np.isfinite(replicates)]
    if finite.size == 0:
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


def weighted_mean(values: ArrayLike, base: ArrayLike | None = None) -> Statistic:
    """Statistic: the mean of `values` [N], each counting `base` [N] times (once without)."""
    value = np.asarray(values, dtype=np.float64)
    share = np.ones_like(value) if base is None else np.asarray(base, dtype=np.float64)

    def mean(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.asarray(weights @ (value * share) / (weights @ share))

    return mean


RELIABILITY_BINS = 10
"""Equal bins of a probability from 0 to 1; 1 itself is in the last."""


def reliability_bin(probabilities: ArrayLike) -> np.ndarray:
    """Which of the bins each probability is in, int64 [N]."""
    value = np.asarray(probabilities, dtype=np.float64)
    return np.clip((value * RELIABILITY_BINS).astype(np.int64), 0, RELIABILITY_BINS - 1)


def calibration_error(probabilities: ArrayLike, labels: ArrayLike, weights: np.ndarray | None = None) -> np.ndarray:
    """Expected calibration error: mean over bins, by their size, of |mean probability - share of positives|.

    Arguments as in `auroc`; float64 [B], NaN without items.
    """
    value, label = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    weight = np.ones((1, value.size)) if weights is None else weights
    member = reliability_bin(value)[:, None] == np.arange(RELIABILITY_BINS)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs((weight * (value - label)) @ member).sum(1) / weight.sum(1))
