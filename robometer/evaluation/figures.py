"""What the report draws, as plain data for its template: tables, clips beside their curves, heat maps, strips."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from robometer.corpus.corpus import Corpus
from robometer.drawing import points, spans
from robometer.evaluation.plan import BEST
from robometer.evaluation.predictions import ClipPrediction, Predictions
from robometer.evaluation.results import Metric, Result, Row
from robometer.evaluation.reward_alignment import target_progress
from robometer.evaluation.views import FORWARD
from robometer.trajectory import QUALITY_LABELS
from robometer.video import encode_jpeg

FRAME_WIDTH = 176  # px, of the frames in the page
MAX_FRAMES_SHOWN = 48  # per clip
THUMBNAILS = 8
JPEG_QUALITY = 72
LABEL_CHARACTERS = 34  # of a task beside the confusion matrix; all of it shows on hovering

_SIGNED = ("voc", "spearman", "kendall", "tau", "env_reward", "diagonal_gap")

HEADLINES = (
    ("Reward alignment", "VOC r", "reward_alignment", "voc", "voc_reversed", "reversed video"),
    ("Ranking", "Kendall τ", "policy_ranking", "kendall_last", "accuracy_last", "pair accuracy"),
    ("Instructions", "own one highest", "confusion_matrix", "own_instruction_highest", "diagonal_gap", "gap to others"),
    ("Preference", "accuracy", "preference", "accuracy_quality", "order_consistency_quality", "order consistency"),
    ("Success", "AUROC", "success_detection", "auroc_last", "auprc_last", "AUPRC"),
)
"""Title, what the large number is, its evaluation and metric, the metric beside it and what that is."""


def number(value: Any) -> str:
    """Three decimals with a true minus sign for a float, a dash for NaN; anything else as it is."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}".replace("-", "−") if math.isfinite(value) else "–"


def headlines(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One card per evaluation with a line per split."""
    cards = []
    for title, what, evaluation, main, beside, beside_what in HEADLINES:
        lines = [
            {"split": r.split, "value": number(r.value(main)), "beside": number(r.value(beside))}
            for r in results
            if r.evaluation == evaluation and not r.skipped
        ]
        if lines:
            cards.append({"title": title, "what": what, "beside_what": beside_what, "lines": lines})
    return cards


def metric_tables(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Per evaluation: metrics down, splits across; a cell is value, interval, n and where to draw them."""
    tables = []
    splits = list(dict.fromkeys(r.split for r in results))
    for name in dict.fromkeys(r.evaluation for r in results):
        of_split = {r.split: r for r in results if r.evaluation == name}
        metrics = {m.name: m for r in of_split.values() for m in r.metrics}
        rows = [
            {
                "name": metric.name,
                "meaning": metric.meaning,
                "cells": [_cell(_find(of_split.get(split), metric.name)) for split in splits],
            }
            for metric in metrics.values()
        ]
        skipped = [f"{r.split}: {r.skipped}" for r in of_split.values() if r.skipped]
        tables.append({"name": name, "splits": splits, "rows": rows, "skipped": skipped})
    return tables


def _find(result: Result | None, name: str) -> Metric | None:
    return next((m for m in result.metrics if m.name == name), None) if result else None


def _cell(metric: Metric | None) -> dict[str, Any] | None:
    if metric is None:
        return None
    estimate, signed = metric.estimate, metric.name.startswith(_SIGNED)

    def place(value: float) -> float:
        share = (value + 1) / 2 if signed else value
        return round(100 * min(max(share, 0.0), 1.0), 2)

    known = math.isfinite(estimate.low)
    return {
        "value": number(estimate.value),
        "interval": f"{number(estimate.low)} to {number(estimate.high)}" if known else "",
        "n": f"{estimate.n} {metric.over}",
        "resampled": f"{estimate.groups} {'tasks' if estimate.unit == 'task' else 'trajectories'}" if known else "",
        "undefined": estimate.undefined,
        "signed": signed,
        "at": place(estimate.value) if math.isfinite(estimate.value) else None,
        "low": place(estimate.low) if known else None,
        "width": max(round(place(estimate.high) - place(estimate.low), 2), 0.5) if known else None,
    }


def task_tables(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Per evaluation and split: the table per task as header and formatted rows."""
    return [
        {
            "name": r.evaluation,
            "split": r.split,
            "header": [column.replace("_", " ") for column in r.per_task[0]],
            "rows": [[number(value) for value in row.values()] for row in r.per_task],
        }
        for r in results
        if r.per_task
    ]


@dataclass(frozen=True)
class _Choice:
    clip: ClipPrediction
    why: str


def clip_cards(predictions: Predictions, corpus: Corpus, splits: Sequence[str]) -> list[dict[str, Any]]:
    """Per split a typical and a badly judged clip of each quality, with curves and frames."""
    groups = []
    for split in splits:
        clips = predictions.split(split).clips
        cards = [_card(choice, corpus, _reward_range(choice.clip.task, clips)) for choice in _choose(clips)]
        if cards:
            groups.append({"split": split, "clips": cards})
    return groups


def _reward_range(task: str, clips: Sequence[ClipPrediction]) -> tuple[float, float]:
    """Smallest and largest simulator reward of a task: one scale for all its clips, good and bad."""
    rewards = [c.env_reward for c in clips if c.task == task and len(c.env_reward)]
    return (float(min(map(np.min, rewards))), float(max(map(np.max, rewards)))) if rewards else (0.0, 0.0)


def _choose(clips: Sequence[ClipPrediction]) -> list[_Choice]:
    choices = []
    for quality in reversed(QUALITY_LABELS):
        members = [c for c in clips if c.view == FORWARD and c.quality_label == quality]
        # from the best judged to the worst: a success should end high, anything else low
        members.sort(key=lambda c: (-c.progress[-1] if c.quality_label == BEST else c.progress[-1], c.id))
        if members:
            choices.append(_Choice(members[len(members) // 2], "typical: median last-frame progress"))
        if len(members) > 2:
            choices.append(_Choice(members[-1], "worst judged: " + ("lowest" if quality == BEST else "highest")))
    return choices


def _card(choice: _Choice, corpus: Corpus, reward_range: tuple[float, float]) -> dict[str, Any]:
    clip = choice.clip
    count = len(clip.progress)
    cells = np.unique(np.linspace(0, count - 1, min(count, MAX_FRAMES_SHOWN)).round().astype(int))
    sprite, ratio = _sprite(corpus.frames(clip.row, cells))
    target = target_progress(count) if clip.quality_label == BEST else None
    return {
        "task": clip.task,
        "quality": clip.quality_label,
        "why": choice.why,
        "id": clip.id,
        "sprite": sprite,
        "ratio": ratio,
        "cells": len(cells),
        "thumbs": [round(i) for i in np.linspace(0, len(cells) - 1, min(len(cells), THUMBNAILS))],
        "curves": _curves(clip, target, reward_range),
        "done": spans(clip.success_label if len(clip.success_label) == count else np.zeros(0)),
        "data": {
            "progress": _rounded(clip.progress),
            "success": _rounded(clip.success),
            "target": None if target is None else _rounded(target),
            "cell": [int(np.abs(cells - i).argmin()) for i in range(count)],
        },
        "frames": count,
        "last": number(float(clip.progress[-1])),
    }


def _curves(clip: ClipPrediction, target: np.ndarray | None, reward_range: tuple[float, float]) -> list[dict[str, str]]:
    low, high = reward_range
    known = {"progress": clip.progress, "success": clip.success}
    if target is not None:
        known["target"] = target
    if len(clip.env_reward) == len(clip.progress) and high > low:
        known["reward"] = (clip.env_reward - low) / (high - low)
    return [{"name": name, "points": points(values)} for name, values in known.items()]


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(v), 3) for v in values]


def _sprite(frames: np.ndarray) -> tuple[str, float]:
    """All frames side by side as one JPEG in a data URI, and the aspect ratio (width / height) of one frame."""
    height = max(1, round(FRAME_WIDTH * frames.shape[1] / frames.shape[2]))
    small = [cv2.resize(frame, (FRAME_WIDTH, height), interpolation=cv2.INTER_AREA) for frame in frames]
    encoded = encode_jpeg(np.concatenate(small, axis=1), JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(encoded).decode(), round(FRAME_WIDTH / height, 4)


def heat_maps(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Cells of each split's confusion matrix with positions in units of one cell."""
    return [_heat_map(r) for r in results if r.matrix is not None]


def _heat_map(result: Result) -> dict[str, Any]:
    assert result.matrix is not None
    matrix = result.matrix
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
        "split": result.split,
        "rows": matrix.rows,
        "columns": matrix.columns,
        "cells": cells,
        "size": len(matrix.rows),
        # px that labels of 12 px text take: in full to the left of the rows, slanted by 50 degrees above the columns
        "left": 24 + round(6.8 * max(min(longest, LABEL_CHARACTERS), 24)),
        "top": 24 + round(5.4 * min(longest, LABEL_CHARACTERS)),
    }


def strips(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Per split: one strip per task with a dot per clip at its last-frame progress, worst-ranked task first."""
    made = []
    for result in results:
        if not result.strips:
            continue
        taus = {str(row["task"]): float(row["kendall"]) for row in result.per_task}
        dots: dict[str, list[Row]] = {task: [] for task in sorted(taus, key=lambda t: (taus[t], t))}
        for dot in result.strips:
            dots[str(dot["task"])].append(dot)
        tasks = [{"task": t, "tau": number(taus[t]), "dots": [_dot(d) for d in members]} for t, members in dots.items()]
        made.append({"split": result.split, "tasks": tasks})
    return made


def _dot(row: Row) -> dict[str, Any]:
    progress = float(row["progress"])
    quality = str(row["quality"])
    return {
        "quality": quality,
        "lane": len(QUALITY_LABELS) - 1 - QUALITY_LABELS.index(quality),
        "left": round(100 * min(max(progress, 0.0), 1.0), 2),
        "title": f"{quality}: {number(progress)} (clip {str(row['id'])[:8]})",
    }
