"""Confusion matrix: is a successful clip's last-frame progress highest under its own instruction?

Rows are instructions and columns are the tasks of the videos, both sorted by name. A cell is the mean over the column's
clips, NaN if nothing was predicted. A column is balanced, as every clip is scored under every instruction.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from robometer.evaluation import metrics
from robometer.evaluation.metrics import Resampling
from robometer.evaluation.predictions import InstructionPrediction, Predictions
from robometer.evaluation.results import Matrix, Metric, Result, Row

NAME = "confusion_matrix"


def matrix_of(records: Sequence[InstructionPrediction]) -> Matrix:
    """Mean last-frame progress by (instruction, task of the video)."""
    names = sorted({r.task for r in records} | {r.instruction for r in records})
    index = {name: i for i, name in enumerate(names)}
    total, count = np.zeros((len(names), len(names))), np.zeros((len(names), len(names)), dtype=np.int64)
    for record in records:
        cell = index[record.instruction], index[record.task]
        total[cell] += record.final_progress
        count[cell] += 1
    mean = np.divide(total, count, out=np.full_like(total, math.nan), where=count > 0)
    return Matrix(names, names, mean.tolist(), count.tolist())


def diagonal_gap(matrix: np.ndarray) -> float:
    """Mean of the diagonal minus mean of the other cells, without empty cells; NaN if either has none."""
    on = np.eye(len(matrix), dtype=bool)
    has_value = ~np.isnan(matrix)
    if not (on & has_value).any() or not (~on & has_value).any():
        return math.nan
    return float(matrix[on & has_value].mean() - matrix[~on & has_value].mean())


def column_maximum_on_diagonal(column: np.ndarray, own: int) -> float:
    """1 if a column's maximum is in its own row, 1/k if k rows share it, else 0; NaN if the own cell is empty."""
    if math.isnan(column[own]):
        return math.nan
    best = np.flatnonzero(column == np.nanmax(column))
    return 1.0 / len(best) if own in best else 0.0


def column_share(column: np.ndarray, own: int) -> float:
    """The own cell's share of a column's sum, 0/0 = 0 (the papers' column-normalised diagonal); NaN if it is empty."""
    total = float(np.nansum(column))
    return math.nan if math.isnan(column[own]) else float(column[own]) / total if total > 0 else 0.0


def evaluate(predictions: Predictions, split: str, settings: Resampling) -> Result:
    """How well the scorer tells a split's videos apart by their instructions."""
    records = [r for r in predictions.instructions if r.kind in ("own", "other")]
    matrix = matrix_of(records)
    values = np.array(matrix.values)
    if len(values) < 2:
        return Result(NAME, split, skipped="fewer than two tasks have successful clips")
    columns = [i for i in range(len(values)) if not math.isnan(values[i, i])]
    results = [
        _gap(records, settings),
        _over_columns("own_instruction_highest", [column_maximum_on_diagonal(values[:, i], i) for i in columns],
                      settings, "tasks whose videos get most progress under their own instruction (chance: 1 / tasks)"),
        _over_columns("diagonal_share", [column_share(values[:, i], i) for i in columns],
                      settings, "the own instruction's share of a column's sum, mean over columns (chance: 1 / tasks)"),
    ]  # fmt: skip
    return Result(NAME, split, results, _per_task(matrix, values, columns), matrix=matrix)


def _gap(records: Sequence[InstructionPrediction], settings: Resampling) -> Metric:
    """Mean over columns of (own - mean of the others), which is diagonal minus off-diagonal."""
    by_clip: dict[str, list[InstructionPrediction]] = defaultdict(list)
    for record in records:
        by_clip[record.id].append(record)
    tasks, values = [], []
    for of_clip in by_clip.values():
        own = [r.final_progress for r in of_clip if r.instruction == r.task]
        others = [r.final_progress for r in of_clip if r.instruction != r.task]
        if own and others:
            tasks.append(of_clip[0].task)
            values.append(own[0] - float(np.mean(others)))
    counts = {task: tasks.count(task) for task in set(tasks)}
    group_of, unit = metrics.grouping(tasks, [str(i) for i in range(len(tasks))])
    statistic = metrics.weighted_mean(values, [1 / counts[task] for task in tasks])
    meaning = "mean progress under the own instruction minus the mean under others (diagonal minus off-diagonal)"
    return Metric("diagonal_gap", metrics.estimate(statistic, group_of, unit, settings), "clips", meaning)


def _over_columns(name: str, values: Sequence[float], settings: Resampling, meaning: str) -> Metric:
    enough = len(values) >= metrics.MIN_TASKS_TO_RESAMPLE
    resampling = settings if enough else Resampling(0, settings.confidence, settings.seed)
    statistic = metrics.weighted_mean(values)
    return Metric(name, metrics.estimate(statistic, np.arange(len(values)), "task", resampling), "tasks", meaning)


def _per_task(matrix: Matrix, values: np.ndarray, columns: Sequence[int]) -> list[Row]:
    rows: list[Row] = []
    for i in columns:
        others = np.delete(values[:, i], i)
        defined = np.where(np.isnan(others), -np.inf, others)
        names = [name for j, name in enumerate(matrix.rows) if j != i]
        rows.append(
            {
                "task": matrix.columns[i],
                "clips": int(matrix.counts[i][i]),
                "own": float(values[i, i]),
                "others": float(np.nanmean(others)),
                "strongest_other": names[int(defined.argmax())],
                "its_progress": float(defined.max()),
            }
        )
    return rows
