"""Drawings of the report as plain data: heat maps, ranking strips, reliability plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from robometer.evaluation import metrics
from robometer.evaluation.measures.success_detection import last_success
from robometer.evaluation.results import Matrix, Row
from robometer.evaluation.views import FORWARD
from robometer.report.runs import EvaluationRun, splits_of
from robometer.report.tables import number
from robometer.trajectory import QUALITY_LABELS, SUCCESSFUL

LABEL_CHARACTERS = 34  # of a task beside the confusion matrix; hovering shows the whole text

Figure = dict[str, Any]


def heat_maps(runs: Sequence[EvaluationRun]) -> list[Figure]:
    """Per split, the confusion matrix of each run, with positions in units of one cell."""
    groups = []
    for split in splits_of(runs):
        maps = [
            {"model": i, "name": run.name, "split": split} | _heat_map(result.matrix)
            for i, run in enumerate(runs)
            for result in run.results
            if result.split == split and result.matrix is not None
        ]
        if maps:
            groups.append({"split": split, "maps": maps})
    return groups


def _heat_map(matrix: Matrix) -> Figure:
    cells = [
        {
            "x": j,
            "y": i,
            "value": number(value),
            "short": f"{value:.2f}".removeprefix("0") if math.isfinite(value) else "",
            "opacity": round(min(max(value, 0.0), 1.0), 3) if math.isfinite(value) else None,
            "instruction": matrix.rows[i],
            "video": matrix.columns[j],
            "count": matrix.counts[i][j],
        }
        for i, row in enumerate(matrix.values)
        for j, value in enumerate(row)
    ]
    longest = max(map(len, matrix.rows))
    return {
        "rows": matrix.rows,
        "columns": matrix.columns,
        "cells": cells,
        "size": len(matrix.rows),
        # px for labels in 12 px text: horizontal to the left of the rows, slanted by 50 degrees above the columns
        "left": 24 + round(6.8 * max(min(longest, LABEL_CHARACTERS), 24)),
        "top": 24 + round(5.4 * min(longest, LABEL_CHARACTERS)),
    }


def strips(runs: Sequence[EvaluationRun]) -> list[Figure]:
    """Per split and task, a strip per run with a dot per clip at its last-frame progress; worst-ranked task first."""
    by_split = []
    for split in splits_of(runs):
        tasks: dict[str, list[Figure]] = {}
        for i, run in enumerate(runs):
            for result in run.results:
                if result.split == split and result.strips:
                    for task, line in _strip_lines(result.per_task, result.strips).items():
                        tasks.setdefault(task, []).append({"model": i, "name": run.name} | line)
        if tasks:
            order = sorted(tasks, key=lambda task: (tasks[task][0]["order"], task))
            by_split.append({"split": split, "tasks": [{"task": task, "lines": tasks[task]} for task in order]})
    return by_split


def _strip_lines(per_task: Sequence[Row], dots: Sequence[Row]) -> dict[str, Figure]:
    taus = {str(row["task"]): float(row["kendall"]) for row in per_task}
    return {
        task: {
            "order": tau,
            "tau": number(tau),
            "dots": [_dot(dot) for dot in dots if dot["task"] == task],
        }
        for task, tau in taus.items()
    }


def _dot(row: Row) -> Figure:
    progress = float(row["progress"])
    quality = str(row["quality"])
    return {
        "quality": quality,
        "lane": len(QUALITY_LABELS) - 1 - QUALITY_LABELS.index(quality),
        "left": round(100 * min(max(progress, 0.0), 1.0), 2),
        "title": f"{quality}: {number(progress)} (clip {str(row['id'])[:8]})",
    }


def reliability(runs: Sequence[EvaluationRun]) -> list[Figure]:
    """Per split, the share of successful clips in each of 10 bins of the last frame's success probability."""
    by_split = []
    for split in splits_of(runs):
        curves = []
        for i, run in enumerate(runs):
            clips = [c for c in run.predictions.split(split).clips if c.view == FORWARD]
            if clips:
                labels = np.array([float(c.quality_label == SUCCESSFUL) for c in clips])
                curves.append({"model": i, "name": run.name} | _reliability_curve(last_success(clips), labels))
        if curves:
            by_split.append({"split": split, "curves": curves})
    return by_split


def _reliability_curve(probabilities: np.ndarray, labels: np.ndarray) -> Figure:
    bins = metrics.reliability_bin(probabilities)
    points = []
    for index in np.unique(bins):
        inside = bins == index
        mean, observed = float(probabilities[inside].mean()), float(labels[inside].mean())
        points.append(
            {
                "x": round(100 * min(max(mean, 0.0), 1.0), 2),
                "y": round(100 - 100 * observed, 2),
                "radius": round(1.2 + 4 * math.sqrt(inside.mean()), 2),
                "title": f"mean probability {number(mean)}, {number(observed)} successful, n = {inside.sum()}",
            }
        )
    error = float(metrics.calibration_error(probabilities, labels)[0])
    line = " ".join(f"{p['x']},{p['y']}" for p in points)
    return {"error": number(error), "n": len(labels), "points": points, "line": line}
