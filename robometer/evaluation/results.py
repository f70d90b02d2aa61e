"""Results of an evaluation: metrics with intervals, and a table per task."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from robometer.evaluation.metrics import Estimate

Row = dict[str, str | int | float]


@dataclass(frozen=True)
class Metric:
    """One number of one evaluation.

    Attributes:
        name: unique within its evaluation.
        estimate: value, interval and n.
        over: what n counts, in the plural (clips, pairs, frames, tasks).
        meaning: one sentence that defines it.
    """

    name: str
    estimate: Estimate
    over: str
    meaning: str

    def renamed(self, name: str, meaning: str) -> Metric:
        """The same number under another name."""
        return replace(self, name=name, meaning=meaning)


@dataclass(frozen=True)
class Matrix:
    """A labelled table of numbers: `values[i][j]` is for `rows[i]` and `columns[j]`, NaN if it is empty."""

    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float]]
    counts: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Result:
    """One evaluation on one split. If there are no metrics, `skipped` says why."""

    evaluation: str
    split: str
    metrics: Sequence[Metric] = ()
    per_task: Sequence[Row] = ()
    skipped: str = ""
    matrix: Matrix | None = None
    strips: Sequence[Row] = field(default_factory=tuple)

    def value(self, name: str) -> float:
        """Point estimate of a metric; NaN if this evaluation has none of that name."""
        return next((m.estimate.value for m in self.metrics if m.name == name), math.nan)


def metric_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """All metrics as flat rows: split, evaluation, metric, value, low, high, n, effective_n, over, resampled, groups,
    undefined, meaning."""
    return [
        {
            "split": result.split,
            "evaluation": result.evaluation,
            "metric": metric.name,
            "value": metric.estimate.value,
            "low": metric.estimate.low,
            "high": metric.estimate.high,
            "n": metric.estimate.n,
            "effective_n": metric.estimate.effective_n,
            "over": metric.over,
            "resampled": metric.estimate.unit,
            "groups": metric.estimate.groups,
            "undefined": metric.estimate.undefined,
            "meaning": metric.meaning,
        }
        for result in results
        for metric in result.metrics
    ]


def flat(results: Sequence[Result]) -> dict[str, float]:
    """Point estimates by `split/evaluation/metric`, for a tracker, without undefined ones."""
    rows = {f"{r['split']}/{r['evaluation']}/{r['metric']}": float(r["value"]) for r in metric_rows(results)}
    return {name: value for name, value in rows.items() if math.isfinite(value)}
