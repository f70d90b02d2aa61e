"""Paired comparison of two models: the bootstrap of their difference over the same clips.

On the same clips, two models share what makes a clip easy or hard. Their own intervals count this twice. The interval
of their difference does not, and is narrower the more they agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from robometer.evaluation.metrics import Estimate, Resampling, percentile_interval


@dataclass(frozen=True)
class Difference:
    """How far one model's metric is above another's.

    Attributes:
        value: second minus first; NaN if one of them is undefined or they cannot be compared.
        low, high: percentile bootstrap interval of the difference; NaN if there is none.
        p: two-sided p-value: twice the smaller share of replicates on one side of 0 (0 itself is on both sides); NaN if
            there is no interval.
        n, unit, groups: as in `Estimate`.
        reason: why the two cannot be compared, or have no interval; else empty.
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    unit: str
    groups: int
    reason: str = ""


def paired(first: Estimate, second: Estimate, settings: Resampling) -> Difference:
    """`second` - `first`, two estimates of one metric over the same items with the same `settings`.

    The caller makes sure that the items are the same; estimates over different numbers of items are not compared.
    """
    if (first.n, first.groups, first.unit) != (second.n, second.groups, second.unit):
        return _refused(f"one is over {_extent(first)}, the other over {_extent(second)}")
    value = second.value - first.value
    if first.replicates.shape != second.replicates.shape or not first.replicates.size:
        reason = "there are no replicates, or not equally many"
        return Difference(value, math.nan, math.nan, math.nan, first.n, first.unit, first.groups, reason)
    differences = second.replicates - first.replicates
    low, high = percentile_interval(differences, settings.confidence)
    return Difference(value, low, high, _p_value(differences), first.n, first.unit, first.groups)


def _refused(reason: str) -> Difference:
    return Difference(math.nan, math.nan, math.nan, math.nan, 0, "", 0, reason)


def _extent(estimate: Estimate) -> str:
    return f"n = {estimate.n} in {estimate.groups} {estimate.unit} groups"


def _p_value(differences: np.ndarray) -> float:
    """At least 2 / (resamples + 1): finitely many resamples allow no smaller p."""
    finite = differences[np.isfinite(differences)]
    if not finite.size:
        return math.nan
    smaller = min((finite <= 0).sum(), (finite >= 0).sum())
    return float(min(1.0, 2 * (smaller + 1) / (finite.size + 1)))
