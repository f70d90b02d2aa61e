"""Runs of one recipe that were trained with different seeds: what a number would be if the training were repeated.

The intervals of a run are over the clips that it was evaluated on. How much of a difference between two models is the
luck of one training run, they do not know; the spread over seeds does.
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
    "Intervals elsewhere are over the clips of one trained model each; here it is training itself that was repeated: "
    "mean and sample standard deviation over runs of one recipe with different seeds, and the smallest to the largest."
)


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ in `train.seed` alone, two or more, ordered by it; of two runs with one seed the first given."""

    name: str
    seeds: Sequence[int]
    runs: Sequence[EvaluationRun]


@dataclass(frozen=True)
class Spread:
    """One metric over the runs of a group where it is defined: `std` is the sample's, with n - 1."""

    mean: float
    std: float
    low: float
    high: float
    n: int


def seed_groups(runs: Sequence[EvaluationRun]) -> list[SeedGroup]:
    """Groups in the order of their first runs: equal recipe and mode, over the corpus that a report is over."""
    found: dict[tuple[str, str], dict[int, EvaluationRun]] = defaultdict(dict)
    for run in runs:
        recipe, seed = run.provenance.get("recipe"), run.provenance.get("train_seed")
        if recipe and seed is not None:
            found[str(recipe), str(run.provenance.get("mode"))].setdefault(int(seed), run)
    return [_group(recipe, of_seed) for (recipe, _), of_seed in found.items() if len(of_seed) > 1]


def _group(recipe: str, of_seed: dict[int, EvaluationRun]) -> SeedGroup:
    seeds = sorted(of_seed)
    model = str(of_seed[seeds[0]].provenance.get("model", "")).partition("@")[0]
    return SeedGroup(f"{model}, recipe {recipe}", seeds, [of_seed[seed] for seed in seeds])


def spread(group: SeedGroup, evaluation: str, split: str, name: str) -> Spread | None:
    """A metric over the seeds; None where fewer than two of them have it."""
    metrics = [run.metric(evaluation, split, name) for run in group.runs]
    values = [m.estimate.value for m in metrics if m is not None and math.isfinite(m.estimate.value)]
    if len(values) < 2:
        return None
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)), min(values), max(values), len(values))


def seed_tables(runs: Sequence[EvaluationRun]) -> list[Table]:
    """Per split: groups down, headlines across; empty without a group of two seeds."""
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


def _cell(found: Spread | None, group: SeedGroup) -> Table:
    if found is None:
        return {"value": "–", "range": ""}
    some = f", {found.n} of {len(group.seeds)} seeds" if found.n < len(group.seeds) else ""
    return {"value": f"{number(found.mean)} ± {number(found.std)}", "range": interval(found.low, found.high) + some}
