"""Runs of one recipe with different training seeds: how a number varies if the training is repeated.

The intervals of a run are over the clips that it was evaluated on. They do not say how much of a difference between two
models is the luck of one training run; the spread over seeds does.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from robometer.report.headlines import headlines_of
from robometer.report.runs import EvaluationRun, splits_of
from robometer.report.tables import Table, interval, number

OVER_SEEDS = (
    "Elsewhere, intervals are over the clips of one trained model. Here the training itself was repeated: mean and "
    "sample standard deviation over runs of one recipe with different seeds, and the range from smallest to largest."
)


@dataclass(frozen=True)
class SeedGroup:
    """Two or more runs that differ only in `train.seed`, ordered by it; of two runs with one seed, the first."""

    name: str
    seeds: Sequence[int]
    runs: Sequence[EvaluationRun]


@dataclass(frozen=True)
class Spread:
    """One metric over the runs of a group that define it; `std` is the sample standard deviation, with n - 1."""

    mean: float
    std: float
    low: float
    high: float
    n: int


def seed_groups(runs: Sequence[EvaluationRun]) -> list[SeedGroup]:
    """Groups of runs with equal recipe and mode, in the order of their first runs."""
    by_recipe: dict[tuple[str, str], dict[int, EvaluationRun]] = defaultdict(dict)
    for run in runs:
        recipe, seed = run.provenance.get("recipe"), run.provenance.get("train_seed")
        if recipe and seed is not None:
            by_recipe[str(recipe), str(run.provenance.get("mode"))].setdefault(int(seed), run)
    return [_group(recipe, by_seed) for (recipe, _), by_seed in by_recipe.items() if len(by_seed) > 1]


def _group(recipe: str, by_seed: dict[int, EvaluationRun]) -> SeedGroup:
    seeds = sorted(by_seed)
    model = str(by_seed[seeds[0]].provenance.get("model", "")).partition("@")[0]
    return SeedGroup(f"{model}, recipe {recipe}", seeds, [by_seed[seed] for seed in seeds])


def spread(group: SeedGroup, evaluation: str, split: str, name: str) -> Spread | None:
    """A metric over the seeds; None if fewer than two of them have it."""
    metrics = [run.metric(evaluation, split, name) for run in group.runs]
    values = [m.estimate.value for m in metrics if m is not None and math.isfinite(m.estimate.value)]
    if len(values) < 2:
        return None
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)), min(values), max(values), len(values))


def seed_tables(runs: Sequence[EvaluationRun]) -> list[Table]:
    """Per split: groups down, headlines across; empty if no group has two seeds."""
    groups, headlines = seed_groups(runs), headlines_of(runs)
    tables = []
    for split in splits_of(runs) if groups else []:
        rows = [
            {
                "name": group.name,
                "seeds": f"{len(group.seeds)} ({', '.join(map(str, group.seeds))})",
                "models": [run.name for run in group.runs],
                "cells": [_cell(spread(group, h.evaluation, split, h.main), group) for h in headlines],
            }
            for group in groups
        ]
        tables.append({"split": split, "headlines": headlines, "rows": rows})
    return tables


def _cell(values: Spread | None, group: SeedGroup) -> Table:
    if values is None:
        return {"value": "–", "range": ""}
    some = f", {values.n} of {len(group.seeds)} seeds" if values.n < len(group.seeds) else ""
    return {"value": f"{number(values.mean)} ± {number(values.std)}", "range": interval(values.low, values.high) + some}
