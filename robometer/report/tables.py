"""Tables of the report as plain data: leaderboard, differences, all metrics, tasks, sources, published results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robometer.evaluation.paired import Difference
from robometer.evaluation.results import Metric, Result
from robometer.report.comparison import RunComparison
from robometer.report.headlines import Headline, best, headlines_of, words
from robometer.report.runs import EvaluationRun, evaluations_of, splits_of

Table = dict[str, Any]

_SIGNED = ("voc", "spearman", "kendall", "tau", "env_reward", "diagonal_gap")


EFFECTIVE_N = (
    "Effective n is how many independent items would give the same uncertainty (Kish). It is below n if items that are "
    "resampled together are alike, and above n if each group has its share of easy and of hard items."
)


def number(value: Any) -> str:
    """A float with three decimals and a true minus sign, or a dash for NaN; anything else as it is."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}".replace("-", "−") if math.isfinite(value) else "–"


def signed(value: float) -> str:
    """A difference: as `number`, with a sign."""
    return f"+{number(value)}" if value > 0 else number(value)


def interval(low: float, high: float) -> str:
    """The ends of an interval; empty if there is none."""
    return f"{number(low)} to {number(high)}" if math.isfinite(low) else ""


def extent(metric: Metric) -> str:
    """What a metric is over: n, and the effective n if there is one."""
    estimate = metric.estimate
    effective = f"{estimate.effective_n:.{0 if estimate.effective_n >= 10 else 1}f}"
    return f"{estimate.n} {metric.over}" + (f" (effective {effective})" if math.isfinite(estimate.effective_n) else "")


def cards(run: EvaluationRun) -> list[Table]:
    """A card per headline, with a line per split."""
    headline_cards = []
    for headline in headlines_of([run]):
        lines = [
            {"split": r.split, "value": number(r.value(headline.main)), "beside": number(r.value(headline.beside))}
            for r in run.results
            if r.evaluation == headline.evaluation and not r.skipped
        ]
        if lines:
            headline_cards.append({"headline": headline, "lines": lines})
    return headline_cards


def leaderboards(runs: Sequence[EvaluationRun]) -> list[Table]:
    """Per split: models down, headlines across. The best of a column is marked."""
    headlines = headlines_of(runs)
    boards = []
    for split in splits_of(runs):
        columns = [_board_column(runs, split, headline) for headline in headlines]
        rows = [
            {"model": i, "name": run.name, "cells": [column[i] for column in columns]} for i, run in enumerate(runs)
        ]
        boards.append({"split": split, "headlines": headlines, "rows": rows})
    return boards


def _board_column(runs: Sequence[EvaluationRun], split: str, headline: Headline) -> list[Table]:
    metrics = [run.metric(headline.evaluation, split, headline.main) for run in runs]
    values = [metric.estimate.value if metric else math.nan for metric in metrics]
    top = best(values, headline.lower_is_better)
    cells = []
    for run, metric, value in zip(runs, metrics, values, strict=True):
        beside = run.metric(headline.evaluation, split, headline.beside)
        cells.append(
            {
                "value": number(value),
                "sort": _sortable(value),
                "best": value == top,
                "interval": interval(metric.estimate.low, metric.estimate.high) if metric else "",
                "n": extent(metric) if metric else "",
                "beside": number(beside.estimate.value) if beside else "",
            }
        )
    return cells


def difference_tables(comparison: RunComparison) -> list[Table]:
    """Per split: headlines down, all runs except the first across."""
    runs, differences = comparison.runs, comparison.differences
    tables = []
    for split in splits_of(runs):
        rows: list[Table] = []
        for headline in headlines_of(runs):
            key = headline.evaluation, split, headline.main
            rows.append(
                {"headline": headline, "cells": [difference_cell(differences[run.name].get(key)) for run in runs[1:]]}
            )
        if any(cell for row in rows for cell in row["cells"]):
            tables.append({"split": split, "rows": rows})
    return tables


def difference_cell(difference: Difference | None) -> Table | None:
    """A difference as text, and its position on a track from −1 to 1."""
    if difference is None:
        return None
    value, low, high, p = difference.value, difference.low, difference.high, difference.p
    return {
        "value": signed(value),
        "interval": interval(low, high),
        "p": ("< 0.001" if p < 0.001 else f"= {p:.3f}") if math.isfinite(p) else "",
        "is_clear": math.isfinite(low) and (low > 0 or high < 0),
        "reason": difference.reason,
        "track": _track(value, low, high, is_signed=True),
    }


def metric_tables(comparison: RunComparison) -> list[Table]:
    """All metrics: of one run, per evaluation with a column per split; of several, per split with a column per run."""
    runs, tables = comparison.runs, []
    for evaluation in evaluations_of(runs):
        for split, columns in _columns(runs, evaluation):
            metrics = {m.name: m for _, r in columns if r for m in r.metrics}
            rows = [
                {
                    "name": metric.name,
                    "meaning": metric.meaning,
                    "cells": [_metric_cell(comparison, name, r, metric.name) for name, r in columns],
                }
                for metric in metrics.values()
            ]
            skipped = [f"{name}: {r.skipped}" for name, r in columns if r and r.skipped]
            title = words(evaluation) + (f", {split}" if split else "")
            tables.append({"title": title, "columns": [n for n, _ in columns], "rows": rows, "skipped": skipped})
    return tables


def _columns(runs: Sequence[EvaluationRun], evaluation: str) -> list[tuple[str, list[tuple[str, Result | None]]]]:
    splits = splits_of(runs)
    if len(runs) == 1:
        return [("", [(split, runs[0].result(evaluation, split)) for split in splits])]
    return [(split, [(run.name, run.result(evaluation, split)) for run in runs]) for split in splits]


def _metric_cell(comparison: RunComparison, name: str, result: Result | None, metric: str) -> Table | None:
    member = next((m for m in result.metrics if m.name == metric), None) if result else None
    if member is None or result is None:
        return None
    difference = comparison.differences.get(name, {}).get((result.evaluation, result.split, metric))
    return _cell(member) | {"difference": difference_cell(difference)}


def _cell(metric: Metric) -> Table:
    estimate = metric.estimate
    units = "tasks" if estimate.unit == "task" else "trajectories"
    return {
        "value": number(estimate.value),
        "interval": interval(estimate.low, estimate.high),
        "n": extent(metric),
        "resampled": f"{estimate.groups} {units}" if math.isfinite(estimate.low) else "",
        "undefined": estimate.undefined,
        "track": _track(estimate.value, estimate.low, estimate.high, metric.name.startswith(_SIGNED)),
    }


def _track(value: float, low: float, high: float, is_signed: bool) -> Table | None:
    """Value and interval in percent of a track from 0 to 1, or from −1 if they may be negative; None if beyond it."""
    defined = [v for v in (value, low, high) if math.isfinite(v)]
    if not defined or max(map(abs, defined)) > 1:
        return None
    is_signed = is_signed or min(defined) < 0

    def place(v: float) -> float:
        return round(100 * ((v + 1) / 2 if is_signed else v), 2)

    return {
        "signed": is_signed,
        "at": place(value) if math.isfinite(value) else None,
        "low": place(low) if math.isfinite(low) else None,
        "width": max(round(place(high) - place(low), 2), 0.5) if math.isfinite(low) else None,
    }


def task_tables(runs: Sequence[EvaluationRun]) -> list[Table]:
    """Per evaluation and split, the runs' tables per task side by side; a column that all runs share appears once."""
    tables = []
    for evaluation in evaluations_of(runs):
        for split in splits_of(runs):
            results = [run.result(evaluation, split) for run in runs]
            by_task = [{str(row["task"]): row for row in r.per_task} if r else {} for r in results]
            if any(by_task):
                tables.append({"title": f"{words(evaluation)}, {split}"} | _side_by_side(runs, by_task))
    return tables


def _side_by_side(runs: Sequence[EvaluationRun], by_task: Sequence[Mapping[str, Mapping[str, Any]]]) -> Table:
    tasks = sorted({task for rows in by_task for task in rows})
    names = list(dict.fromkeys(name for rows in by_task for row in rows.values() for name in row))

    def values(task: str, name: str) -> list[str]:
        return [number(rows[task].get(name, math.nan)) if task in rows else "–" for rows in by_task]

    def shared(name: str) -> bool:  # counts of clips are equal for all runs; measurements are floats
        is_float = any(isinstance(row.get(name), float) for rows in by_task for row in rows.values())
        return not is_float and all(len(set(values(task, name))) == 1 for task in tasks)

    once = {name: len(runs) == 1 or shared(name) for name in names}
    header = [{"name": name.replace("_", " "), "span": 1 if once[name] else len(runs)} for name in names]
    rows = [
        [v for name in names for v in (values(task, name)[:1] if once[name] else values(task, name))] for task in tasks
    ]
    models = [i for name in names for i in ([None] if once[name] else range(len(runs)))]
    return {"header": header, "models": models, "rows": rows}


def source_tables(comparison: RunComparison) -> list[Table]:
    """Per split with more than one source: the headlines of each with their intervals, and their unweighted mean."""
    headlines = headlines_of(comparison.runs)
    tables = []
    for split in splits_of(comparison.runs):
        sources = sorted({c.source for run in comparison.runs for c in run.predictions.split(split).clips})
        if len(sources) > 1:
            rows = [
                {"model": i, "name": run.name} | row
                for i, run in enumerate(comparison.runs)
                for row in _source_rows(comparison.sources[run.name], split, sources, headlines)
            ]
            tables.append({"split": split, "headlines": headlines, "rows": rows})
    return tables


def _source_rows(
    by_source: Mapping[str, EvaluationRun], split: str, sources: Sequence[str], headlines: Sequence[Headline]
) -> list[Table]:
    counts = [_clips(by_source.get(source), split) for source in sources]
    metrics = [[_headline(by_source.get(source), split, headline) for headline in headlines] for source in sources]
    cells = [[_source_cell(metric) for metric in row] for row in metrics]
    means = [_mean([m.estimate.value for row in metrics if (m := row[i]) is not None]) for i in range(len(headlines))]
    cells.append([{"value": number(mean), "sort": _sortable(mean), "interval": "", "n": ""} for mean in means])
    lines = zip([*sources, "mean over sources"], [*counts, sum(counts)], cells, strict=True)
    return [{"source": s, "clips": count, "cells": row} for s, count, row in lines]


def _source_cell(metric: Metric | None) -> Table:
    if metric is None:
        return {"value": number(math.nan), "sort": "", "interval": "", "n": ""}
    estimate = metric.estimate
    return {
        "value": number(estimate.value),
        "sort": _sortable(estimate.value),
        "n": extent(metric),
        "interval": interval(estimate.low, estimate.high),
    }


def _sortable(value: float) -> float | str:
    return value if math.isfinite(value) else ""


def _clips(run: EvaluationRun | None, split: str) -> int:
    return len({clip.id for clip in run.predictions.split(split).clips}) if run else 0


def _headline(run: EvaluationRun | None, split: str, headline: Headline) -> Metric | None:
    return run.metric(headline.evaluation, split, headline.main) if run else None


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if math.isfinite(value)]
    return float(np.mean(defined)) if defined else math.nan
