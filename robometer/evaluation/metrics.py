"""Metrics of predicted progress, success and preference, and their intervals, in pure numpy without model or corpus.

An undefined value is NaN, never silently a number. In a mean over clips, an evaluation counts the NaN of a constant
prediction as 0, as upstream, and reports how many there were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

MIN_TASKS_TO_RESAMPLE = 5
"""With fewer tasks, a bootstrap over tasks has too few distinct resamples: trajectories are resampled instead."""

_ELEMENTS_PER_CHUNK = 1 << 17  # resampling weights in memory at a time: 1 MB, which fits into a core's cache

ITEM_RESAMPLES = 200
"""Resamples for the variance of independent items, which they give to 10 % (the square root of 2 / 200)."""

Statistic = Callable[[np.ndarray], np.ndarray]
"""Maps weights [B, N] of N items to a value per row [B]; the point estimate is its value at all ones."""


Side = tuple[np.ndarray, np.ndarray]
"""Ascending scores [P] of some items, and their weights [B, P]."""


def _pair(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray] | None:
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    return None if a.shape != b.shape or a.size < 2 else (a, b)


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson correlation; NaN if the lengths differ, there are fewer than two values, or one side is constant."""
    pair = _pair(x, y)
    return math.nan if pair is None else float(pearson_rows(*(side.reshape(1, -1) for side in pair))[0])


def pearson_rows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`pearson` of each row of x [N, T] and y [N, T], float64 [N]: fast for many short clips."""
    varies = (np.ptp(x, axis=1) > 0) & (np.ptp(y, axis=1) > 0)
    a, b = (np.asarray(side, dtype=np.float64) - side.mean(axis=1, keepdims=True, dtype=np.float64) for side in (x, y))
    scale = np.sqrt(np.einsum("nt,nt->n", a, a)) * np.sqrt(np.einsum("nt,nt->n", b, b))
    is_defined = varies & (scale > 0)
    values = (np.einsum("nt,nt->n", a, b) / np.where(is_defined, scale, 1)).clip(-1, 1)
    return np.where(is_defined, values, math.nan)


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson correlation of the average ranks; NaN if `pearson` is."""
    pair = _pair(x, y)
    return math.nan if pair is None else float(spearman_rows(*(side.reshape(1, -1) for side in pair))[0])


def spearman_rows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`spearman` of each row of x [N, T] and y [N, T], float64 [N]."""
    from scipy.stats import rankdata  # takes a second, which a worker that trains does without

    return pearson_rows(rankdata(x, axis=1), rankdata(y, axis=1))  # a row with a NaN has NaN ranks


def kendall_rows(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`kendall` of each row of x [N, T] and y [N, T], float64 [N]; one by one, as each needs T^2 of memory."""
    return np.array([kendall(a, b) for a, b in zip(x, y, strict=True)], dtype=np.float64)


def kendall(x: ArrayLike, y: ArrayLike) -> float:
    """Kendall tau-a, (concordant - discordant) / (n(n-1)/2): ties add 0 and stay in the denominator.

    Constant input gives 0. Different lengths, a NaN, or fewer than two values give NaN. Memory grows with n^2, which is
    fine for the frames of one clip.
    """
    pair = _pair(x, y)
    if pair is None or np.isnan(pair).any():
        return math.nan
    a, b = pair
    agreement = np.sign(a[:, None] - a[None, :]) * np.sign(b[:, None] - b[None, :])
    return float(agreement.sum() / (a.size * (a.size - 1)))


@dataclass(frozen=True)
class PairCounts:
    """How the predictions of two groups compare, over all pairs of one clip from each; float64 [B] for B weightings.

    Attributes:
        wins: pairs where the clip with the higher label has the higher prediction.
        ties: pairs with equal predictions.
        total: all pairs.
    """

    wins: np.ndarray
    ties: np.ndarray
    total: np.ndarray

    @property
    def correct(self) -> np.ndarray:
        """Pairs in the right order; a tie counts 1/2."""
        return self.wins + self.ties / 2

    @property
    def tau(self) -> np.ndarray:
        """Mean sign of (higher - lower), in [-1, 1]."""
        return np.asarray(2 * self.correct / self.total - 1)

    @property
    def ceiling(self) -> np.ndarray:
        """What tau would be if every pair without a tie were in the right order."""
        return np.asarray(1 - self.ties / self.total)


def compare_labels(
    labels: Sequence[int] | np.ndarray, scores: ArrayLike, weights: np.ndarray | None = None
) -> list[PairCounts]:
    """Count in O(n log n), for every two labels, how often the higher one has the higher score.

    Args:
        labels: [N].
        scores: [N].
        weights: [B, N], how often each item counts; None means once.
    """
    label, score = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    weight = np.ones((1, score.size)) if weights is None else weights
    order = np.argsort(score, kind="stable")
    members = [order[label[order] == value] for value in np.unique(label)]
    sides = [(score[index], weight[:, index]) for index in members]
    return [_compare(low, high) for low, high in combinations(sides, 2)]


def _compare(lower: Side, higher: Side) -> PairCounts:
    (low, weight), (high, gain) = lower, higher
    running = _running(weight)
    below, not_above = (
        np.einsum("bp,bp->b", gain, running[:, np.searchsorted(low, high, side=side)]) for side in ("left", "right")
    )
    return PairCounts(below, not_above - below, gain.sum(1) * running[:, -1])


@dataclass(frozen=True)
class Ranking:
    """How well predictions order the clips of one task by label.

    Attributes:
        tau: tau-a averaged over every choice of one clip per label, in closed form: the mean over label pairs a < b of
            the mean over clips i in a, j in b of sign(r_j - r_i). Perfect order gives 1.
        ceiling: what tau would be if every pair that the prediction does not tie were in the right order.
        accuracy: share of the pairs with different labels that are in the right order, pooled; a tie counts 1/2.
        pairs: number of these pairs.
        correct: accuracy * pairs.
        ties: number of these pairs that the prediction ties.
    """

    tau: float
    ceiling: float
    accuracy: float
    pairs: int
    correct: float
    ties: int = 0


def ranking(labels: Sequence[int] | np.ndarray, scores: ArrayLike) -> Ranking:
    """Compare predicted `scores` [N] with ordinal `labels` [N]; all NaN if there is only one label."""
    counts = compare_labels(labels, scores)
    if not counts:
        return Ranking(math.nan, math.nan, math.nan, 0, 0.0)
    pairs, correct, ties = (float(sum(getattr(c, name)[0] for c in counts)) for name in ("total", "correct", "ties"))
    tau, ceiling = float(np.mean([c.tau for c in counts])), float(np.mean([c.ceiling for c in counts]))
    return Ranking(tau, ceiling, correct / pairs, int(pairs), correct, int(ties))


def tau_b_ceiling(labels: Sequence[int] | np.ndarray) -> float:
    """The largest possible Kendall tau-b over all clips, if labels tie and predictions do not."""
    _, sizes = np.unique(np.asarray(labels), return_counts=True)
    total = sizes.sum() * (sizes.sum() - 1) / 2
    tied = (sizes * (sizes - 1) / 2).sum()
    return math.sqrt((total - tied) / total) if total > tied else math.nan


class Areas:
    """Areas under the curves of scores [N] (higher means positive) against labels [N] (0 or 1).

    `auroc` and `auprc` are statistics: they map weights [B, N], how often each item counts, to values [B]. Everything
    that does not depend on the weights is computed here once, so that a bootstrap need not sort.
    """

    def __init__(self, scores: ArrayLike, labels: ArrayLike) -> None:
        score, positive = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64) > 0
        order = np.argsort(score, kind="stable")
        self._positive, self._negative = order[positive[order]], order[~positive[order]]
        of_positive, of_negative = score[self._positive], score[self._negative]
        # Per positive: how many positives score less, how many negatives do, and how many negatives do not score more.
        self._positive_below = np.searchsorted(of_positive, of_positive, side="left")
        self._below = np.searchsorted(of_negative, of_positive, side="left")
        self._not_above = np.searchsorted(of_negative, of_positive, side="right")

    def auroc(self, weights: np.ndarray) -> np.ndarray:
        """Area under the ROC curve; ties count 1/2; NaN if there is only one class."""
        positives = weights.take(self._positive, axis=1)  # [B, P]
        negatives = _running(weights.take(self._negative, axis=1))  # [B, 1 + N - P]
        beaten = negatives.take(self._below, axis=1) + negatives.take(self._not_above, axis=1)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.einsum("bp,bp->b", positives, beaten) / (2 * positives.sum(1) * negatives[:, -1]))

    def auprc(self, weights: np.ndarray) -> np.ndarray:
        """Average precision (area under the step-wise precision-recall curve); NaN if there is only one class."""
        each = weights.take(self._positive, axis=1)
        positives, negatives = _running(each), _running(weights.take(self._negative, axis=1))
        true = positives[:, -1:] - positives.take(self._positive_below, axis=1)  # that score no less
        false = negatives[:, -1:] - negatives.take(self._below, axis=1)
        area = np.einsum("bp,bp->b", each, true / np.maximum(true + false, 1e-300))
        both = (positives[:, -1] > 0) & (negatives[:, -1] > 0)
        return np.where(both, area / np.maximum(positives[:, -1], 1e-300), math.nan)


def _running(values: np.ndarray) -> np.ndarray:
    """Sums [B, 1 + N] of the first 0, 1, ..., N of the values [B, N]."""
    sums = np.zeros((len(values), values.shape[1] + 1))
    np.cumsum(values, axis=1, out=sums[:, 1:])
    return sums


def auroc(scores: ArrayLike, labels: ArrayLike, weights: np.ndarray | None = None) -> np.ndarray:
    """See `Areas.auroc`.

    Args:
        scores: [N]; higher means positive.
        labels: [N], 0 or 1.
        weights: [B, N], how often each item counts; None means once.

    Returns:
        float64 [B].
    """
    return Areas(scores, labels).auroc(np.ones((1, np.asarray(scores).size)) if weights is None else weights)


def auprc(scores: ArrayLike, labels: ArrayLike, weights: np.ndarray | None = None) -> np.ndarray:
    """See `Areas.auprc`; arguments as in `auroc`."""
    return Areas(scores, labels).auprc(np.ones((1, np.asarray(scores).size)) if weights is None else weights)


@dataclass(frozen=True)
class Estimate:
    """A number and its uncertainty.

    Attributes:
        value: the point estimate; NaN if undefined.
        low, high: percentile bootstrap interval; NaN if there is none.
        n: how many items (clips, pairs, frames, tasks) it is over.
        unit: what was resampled, `task` or `trajectory`.
        groups: how many of these there are.
        undefined: how many of the n items had no defined value and counted as 0.
        replicates: float64 [resamples], the values whose percentiles are the interval; empty if there is none. Equal
            groups, resamples and seed give the same draws, so two models' replicates can be subtracted
            (`evaluation.paired`).
        effective_n: see `effective_n`.
    """

    value: float
    low: float
    high: float
    n: int
    unit: str
    groups: int
    undefined: int = 0
    replicates: np.ndarray = field(default_factory=lambda: np.zeros(0), compare=False, repr=False)
    effective_n: float = math.nan


@dataclass(frozen=True)
class Resampling:
    """Bootstrap settings; `resamples=0` gives no intervals."""

    resamples: int = 1000
    confidence: float = 0.95
    seed: int = 42


def grouping(tasks: Sequence[str], trajectories: Sequence[str]) -> tuple[np.ndarray, str]:
    """Group index [N] of each item, and the unit of the groups: tasks if there are enough, else trajectories."""
    enough = len(set(tasks)) >= MIN_TASKS_TO_RESAMPLE
    names = np.asarray(tasks if enough else trajectories, dtype=str)
    return np.unique(names, return_inverse=True)[1].reshape(-1), "task" if enough else "trajectory"


def estimate(
    statistic: Statistic, group_of: np.ndarray, unit: str, settings: Resampling, undefined: int = 0
) -> Estimate:
    """Value and percentile bootstrap interval of a statistic of N items, by resampling whole groups of them.

    Each call uses its own Generator with the same seed. So a metric does not depend on which others are computed, and
    metrics over the same groups share their resamples.
    """
    n, groups = len(group_of), int(group_of.max()) + 1 if len(group_of) else 0
    value = float(statistic(np.ones((1, n)))[0]) if n else math.nan
    if groups < 2 or settings.resamples == 0:
        return Estimate(value, math.nan, math.nan, n, unit, groups, undefined)
    drawn = _group_draws(groups, settings.resamples, settings.seed)
    replicates = _replicates(statistic, n, settings.resamples, lambda rows: drawn[rows].take(group_of, axis=1))
    low, high = percentile_interval(replicates, settings.confidence)
    independent = n * _item_variance(statistic, n, settings) if groups < n else math.nan
    effective = effective_n(independent, replicates) if groups < n else float(n)
    return Estimate(value, low, high, n, unit, groups, undefined, replicates, effective)


@lru_cache(maxsize=2)
def _group_draws(groups: int, resamples: int, seed: int) -> np.ndarray:
    """How often each group is drawn, uint16 [resamples, groups]. It is cached, as most metrics share their groups."""
    rng = np.random.default_rng(seed)
    share = np.full(groups, 1 / groups)
    return np.stack([rng.multinomial(groups, share).astype(np.uint16) for _ in range(resamples)])


def _replicates(statistic: Statistic, n: int, resamples: int, draw: Callable[[slice], np.ndarray]) -> np.ndarray:
    """Values [resamples] of a statistic of n items; `draw(rows)` says how often each counts in those resamples."""
    chunk = max(1, _ELEMENTS_PER_CHUNK // n)
    rows = [slice(start, min(start + chunk, resamples)) for start in range(0, resamples, chunk)]
    return np.concatenate([statistic(draw(some).astype(np.float64)) for some in rows])


def _item_variance(statistic: Statistic, n: int, settings: Resampling) -> float:
    """Variance of a statistic if its n items were independent, by resampling the items themselves."""
    rng = np.random.default_rng(settings.seed)

    def draw(rows: slice) -> np.ndarray:
        size = rows.stop - rows.start
        drawn = rng.integers(0, n, (size, n)) + n * np.arange(size)[:, None]
        return np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)

    return variance(_replicates(statistic, n, min(settings.resamples, ITEM_RESAMPLES), draw))


def effective_n(item_variance: float, replicates: np.ndarray) -> float:
    """How many independent items would give the same uncertainty as these replicates: n over the design effect.

    The design effect (Kish) is the variance of the replicates, which draw whole groups, over the variance of n
    independent items. It is accurate to about 10 % (`ITEM_RESAMPLES`), less with few groups. A value above n means that
    groups are more alike than chance, each with its share of easy and of hard items.

    Args:
        item_variance: the variance of the statistic over n independent items, times n.
        replicates: [resamples], as in `Estimate`.

    Returns:
        The effective n; NaN if either side does not vary.
    """
    spread = variance(replicates)
    return item_variance / spread if item_variance > 0 and spread > 0 else math.nan


def variance(values: np.ndarray) -> float:
    """Variance of the finite values; 0 if they differ only by rounding, NaN if there are fewer than two."""
    finite = values[np.isfinite(values)]
    if finite.size < 2:
        return math.nan
    spread = float(finite.var())
    return spread if spread > (1e-9 * max(1.0, float(np.abs(finite).max()))) ** 2 else 0.0


def percentile_interval(replicates: np.ndarray, confidence: float) -> tuple[float, float]:
    """The central interval that holds the share `confidence` of the finite replicates; NaN if there are none."""
    finite = replicates[np.isfinite(replicates)]
    if finite.size == 0:
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return float(low), float(high)


def weighted_mean(values: ArrayLike, base: ArrayLike | None = None) -> Statistic:
    """Statistic: the mean of `values` [N], each of which counts `base` [N] times (once if it is None)."""
    value = np.asarray(values, dtype=np.float64)
    share = np.ones_like(value) if base is None else np.asarray(base, dtype=np.float64)

    def mean(weights: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.asarray(weights @ (value * share) / (weights @ share))

    return mean


RELIABILITY_BINS = 10
"""Equal bins of a probability from 0 to 1; the last one includes 1."""


def reliability_bin(probabilities: ArrayLike) -> np.ndarray:
    """The bin of each probability, int64 [N]."""
    value = np.asarray(probabilities, dtype=np.float64)
    return np.clip((value * RELIABILITY_BINS).astype(np.int64), 0, RELIABILITY_BINS - 1)


def calibration_error(probabilities: ArrayLike, labels: ArrayLike, weights: np.ndarray | None = None) -> np.ndarray:
    """Expected calibration error: |mean probability - share of positives|, averaged over bins by their size.

    Arguments as in `auroc`. Returns float64 [B], NaN without items.
    """
    value, label = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    weight = np.ones((1, value.size)) if weights is None else weights
    member = reliability_bin(value)[:, None] == np.arange(RELIABILITY_BINS)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs((weight * (value - label)) @ member).sum(1) / weight.sum(1))
