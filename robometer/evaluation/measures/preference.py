"""Preference: which of two clips did a task better? Every pair is shown in both orders.

A model that always prefers the first clip scores 1.0 in one order and 0.0 in the other. The logits of the two answers
are averaged, so it scores 1/2 here, and order consistency reveals the bias.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from robometer.evaluation import metrics
from robometer.evaluation.metrics import Resampling
from robometer.evaluation.predictions import PAIR_KINDS, PairPrediction, Predictions
from robometer.evaluation.results import Metric, Result, Row
from robometer.trajectory import SUCCESSFUL

NAME = "preference"

_KIND_MEANING = {
    "quality": "two qualities of one task",
    "task": "successful clips of this task and of another",
    "reversed": "a successful clip and itself played backwards",
}

_QUALITY_PARTS = {
    "accuracy_success_over_lesser": (True, "quality pairs whose better clip is successful"),
    "accuracy_suboptimal_over_failure": (False, "quality pairs without a successful clip"),
}


def evaluate(predictions: Predictions, split: str, settings: Resampling) -> Result:
    """Accuracy and order consistency by kind of pair."""
    if not predictions.pairs:
        return Result(NAME, split, skipped="no pairs")
    results: list[Metric] = []
    for kind in PAIR_KINDS:
        pairs = [p for p in predictions.pairs if p.kind == kind]
        if pairs:
            results += _metrics(kind, pairs, settings)
    for name, (of_success, meaning) in _QUALITY_PARTS.items():
        part = [p for p in predictions.pairs if p.kind == "quality" and (p.chosen_quality == SUCCESSFUL) == of_success]
        if part:
            results.append(_metrics("quality", part, settings)[0].renamed(name, meaning))
    return Result(NAME, split, results, _per_task(predictions.pairs))


def correct(pair: PairPrediction) -> float:
    """1 if the chosen clip wins over both orders together (mean logit above 0), 1/2 for a draw, else 0."""
    return float((np.sign(_logit(pair.chosen_first) + _logit(pair.chosen_second)) + 1) / 2)


def consistent(pair: PairPrediction) -> float:
    """1 if both orders give the same winner, or both a draw; else 0."""
    return float(np.sign(pair.chosen_first - 0.5) == np.sign(pair.chosen_second - 0.5))


def accuracy(pairs: Sequence[PairPrediction]) -> float:
    """Mean of `correct`; NaN without pairs."""
    return float(np.mean([correct(p) for p in pairs])) if pairs else math.nan


def _logit(probability: float) -> float:
    p = min(max(probability, 1e-7), 1 - 1e-7)
    # Exact at 1/2 and antisymmetric, so that opposite answers cancel out to a draw.
    return math.atanh(2 * p - 1)


def _win(probability: float) -> float:
    return float((np.sign(probability - 0.5) + 1) / 2)


def _metrics(kind: str, pairs: Sequence[PairPrediction], settings: Resampling) -> list[Metric]:
    group_of, unit = metrics.grouping([p.task for p in pairs], [p.chosen_id for p in pairs])
    over = _KIND_MEANING[kind]
    values = {
        f"accuracy_{kind}": ([correct(p) for p in pairs], f"both orders averaged; {over}"),
        f"accuracy_{kind}_chosen_first": ([_win(p.chosen_first) for p in pairs], "the better clip shown first"),
        f"accuracy_{kind}_chosen_second": ([_win(p.chosen_second) for p in pairs], "the better clip shown second"),
        f"order_consistency_{kind}": ([consistent(p) for p in pairs], "pairs where both orders give the same winner"),
    }
    return [
        Metric(name, metrics.estimate(metrics.weighted_mean(value), group_of, unit, settings), "pairs", meaning)
        for name, (value, meaning) in values.items()
    ]


def _per_task(pairs: Sequence[PairPrediction]) -> list[Row]:
    groups: dict[str, dict[str, list[PairPrediction]]] = defaultdict(lambda: defaultdict(list))
    for pair in pairs:
        groups[pair.task][pair.kind].append(pair)
    rows: list[Row] = []
    for task, kinds in sorted(groups.items()):
        row: Row = {"task": task, "pairs": sum(map(len, kinds.values()))}
        rows.append(row | {f"accuracy_{kind}": accuracy(kinds[kind]) for kind in PAIR_KINDS})
    return rows
