"""Paired comparison of two models: the bootstrap of their difference over the same clips.

Two models that are judged on the same clips share what makes a clip easy or hard. Their own intervals count that twice;
the interval of their difference does not, and is narrower the more they agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from robometer.evaluation.metrics import Estimate, Resampling, percentile_interval


@dataclass(frozen=True)
class Difference:
    """How far one model's metric lies above another's.

    Attributes:
        value: second minus first, NaN where one of them is undefined or `reason` is not empty.
        low, high: percentile bootstrap interval of the difference, NaN where none could be made.
        p: two-sided p-value, twice the smaller share of replicates on one side of 0 (0 itself is on both sides); NaN as
            the interval.
        n, unit, groups: as in `Estimate`.
        reason: why the two cannot be compared, or not with an interval; else empty.
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

    That the items are the same is the caller's to know; estimates that cannot be over the same are refused.
    """
    if (first.n, first.groups, first.unit) != (second.n, second.groups, second.unit):
        return _refused(f"over {_extent(first)} and over {_extent(second)}")
    value = second.value - first.value
    if first.replicates.shape != second.replicates.shape or not first.replicates.size:
        reason = "no replicates, or not the same number of them"
        return Difference(value, math.nan, math.nan, math.nan, first.n, first.unit, first.groups, reason)
    differences = second.replicates - first.replicates
    low, high = percentile_interval(differences, settings.confidence)
    return Difference(value, low, high, _p_value(differences), first.n, first.unit, first.groups)


def _refused(reason: str) -> Difference:
    return Difference(math.nan, math.nan, math.nan, math.nan, 0, "", 0, reason)


def _extent(estimate: Estimate) -> str:
    return f"n = {estimate.n} in {estimate.groups} {estimate.unit} groups"


def _p_value(differences: np.ndarray) -> float:
    """At least 2 / (resamples + 1): a finite number of resamples cannot say more."""
    known = differences[np.isfinite(differences)]
    if not known.size:
        return math.nan
    smaller = min((known <= 0).sum(), (known >= 0).sum())
    return float(min(1.0, 2 * (smaller + 1) / (known.size + 1)))
