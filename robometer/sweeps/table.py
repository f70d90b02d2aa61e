"""The table of a sweep's trials, and what its differences are worth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from robometer.sweeps.journal import TrialRecord
from robometer.sweeps.search import Objectives

CONFIDENCE = 0.95
WEIGHTS = ("progress", "success", "preference")
TIED, PARETO = "tied", "pareto"


def trial_table(records: Iterable[TrialRecord], keys: Sequence[str], objectives: Objectives) -> pd.DataFrame:
    """One row for each trial, the best by the first metric first, those that failed last.

    The columns are `trial`, the swept keys (empty where a trial leaves one as it is), the share of each loss where
    their weights are swept, the metrics of the best validation, `pareto` where there are several objectives (whether
    no other trial is at least as good in all of them and better in one), the last `step`, and `error`.
    """
    (metric, mode), *_ = objectives
    rows = [_row(record, keys, metric, mode) for record in records]
    good = [row for row in rows if not row["error"]]
    good.sort(key=lambda row: float(row[metric]), reverse=mode == "max")
    if len(objectives) > 1:
        for row, best in zip(good, pareto(good, objectives), strict=True):
            row[PARETO] = best
    table = pd.DataFrame([*good, *(row for row in rows if row["error"])])
    last = [name for name in (PARETO, "step", "error") if name in table]
    return table[[name for name in table if name not in last] + last]


def _row(record: TrialRecord, keys: Sequence[str], metric: str, mode: str) -> dict[str, Any]:
    row: dict[str, Any] = {"trial": record.name} | {key: record.values.get(key) for key in keys}
    row |= _shares(record) | {"step": record.step, "error": record.error}
    best = record.best(metric, mode)
    if best is not None:
        row |= {metric: best[metric]} | {name: value for name, value in best.items() if name not in ("step", metric)}
    if not record.error and not record.ended:
        row["error"] = "it did not end"
    elif not record.error and best is None:
        row["error"] = f"it reported no {metric}"
    return row


def _shares(record: TrialRecord) -> dict[str, float]:
    """The share of each loss in the sum of the weights, of which Adam only sees this, where all three are swept."""
    weights = {name: record.values.get(f"loss.{name}_weight") for name in WEIGHTS}
    if any(weight is None for weight in weights.values()):
        return {}
    total = sum(float(weight) for weight in weights.values() if weight is not None)
    return {f"{name}_share": float(weight or 0) / total if total else math.nan for name, weight in weights.items()}


def pareto(rows: Sequence[dict[str, Any]], objectives: Objectives) -> list[bool]:
    """Whether no other row is at least as good in every objective and better in one; an undefined number is worst."""
    signs = np.array([-1.0 if mode == "min" else 1.0 for _, mode in objectives])
    values = np.array([[float(row.get(metric, math.nan)) for metric, _ in objectives] for row in rows]) * signs
    values = np.where(np.isnan(values), -np.inf, values).reshape(len(rows), len(objectives))
    return [not any((other >= one).all() and (other > one).any() for other in values) for one in values]


@dataclass(frozen=True)
class Confirmation:
    """The winner beside the settings as they are, each trained again with the same new seeds.

    Attributes:
        metric: what is compared.
        winner: the number of the winning trial.
        seeds: of the runs that both have.
        given, won: the metric of each run with the settings as they are, and with the winner's.
        noise: standard deviation between seeds of `noise_of`, pooled over both.
        noise_of: the metric by which the sweep ranks.
        least: the smallest difference of two trials in it that exceeds the noise.
    """

    metric: str
    winner: str
    seeds: list[int]
    given: list[float]
    won: list[float]
    noise_of: str
    noise: float
    least: float

    @property
    def difference(self) -> float:
        """The winner's mean above that of the settings as they are."""
        return float(np.mean(np.subtract(self.won, self.given)))

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of `difference`: Student's t over the paired differences."""
        differences = np.subtract(self.won, self.given)
        n = len(differences)
        half = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * differences.std(ddof=1) / math.sqrt(n)
        return self.difference - float(half), self.difference + float(half)

    @property
    def differs(self) -> bool:
        """Whether the interval leaves out 0."""
        low, high = self.interval
        return low > 0 or high < 0

    def __str__(self) -> str:
        low, high = self.interval
        verdict = "" if self.differs else " It is no more than seeds explain."
        return (
            f"Over {len(self.seeds)} new seeds, {self.metric} of the winner (trial {self.winner}) is "
            f"{np.mean(self.won):.4g}, and {np.mean(self.given):.4g} with the settings as they are: "
            f"{self.difference:+.4g} (95 % interval {low:+.4g} to {high:+.4g}, paired by seed).{verdict} In "
            f"{self.noise_of}, two trials differ by more than the noise between seeds if they differ by more than "
            f"{self.least:.4g}."
        )


def confirmation(
    winner: TrialRecord, runs: Sequence[tuple[int, TrialRecord, TrialRecord]], metric: str, objectives: Objectives
) -> Confirmation:
    """Compare runs with equal seeds: (seed, with the settings as they are, with the winner's).

    A pair counts if both runs ended well and measured the metric.

    Raises:
        ValueError: fewer than two pairs count.
    """
    rank, mode = objectives[0]
    pairs = [
        (seed, given.best(rank, mode), won.best(rank, mode))
        for seed, given, won in runs
        if all(run.ended and not run.error for run in (given, won))
    ]
    whole = [
        (seed, given, won)
        for seed, given, won in pairs
        if given and won and all(math.isfinite(one.get(metric, math.nan)) for one in (given, won))
    ]
    if len(whole) < 2:
        raise ValueError(f"only {len(whole)} of {len(runs)} pairs of runs ended well and measured {metric}")
    ranked = np.array([[one[rank] for _, one, _ in whole], [one[rank] for _, _, one in whole]])
    noise = math.sqrt(float(ranked.var(axis=1, ddof=1).mean()))
    least = float(stats.t.ppf((1 + CONFIDENCE) / 2, 2 * (len(whole) - 1))) * noise * math.sqrt(2)
    return Confirmation(
        metric=metric,
        winner=winner.name,
        seeds=[seed for seed, _, _ in whole],
        given=[one[metric] for _, one, _ in whole],
        won=[one[metric] for _, _, one in whole],
        noise_of=rank,
        noise=noise,
        least=least,
    )


def with_ties(table: pd.DataFrame, metric: str, least: float) -> pd.DataFrame:
    """The table with `tied`: whether a trial is as good as the first one, as far as noise between seeds lets see."""
    gap = (table[metric] - table[metric].iloc[0]).abs()
    tied = ["" if error else bool(one <= least) for one, error in zip(gap, table["error"], strict=True)]
    place = list(table).index("step")
    return pd.concat(
        [table.iloc[:, :place], pd.Series(tied, index=table.index, name=TIED), table.iloc[:, place:]], axis=1
    )
