"""Clips of the report: which ones to show, and each with its frames and every model's curve."""

from __future__ import annotations

import base64
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import cv2
import numpy as np

from robometer.corpus.corpus import Corpus
from robometer.evaluation.measures.reward_alignment import target_progress
from robometer.evaluation.predictions import ClipPrediction
from robometer.evaluation.views import FORWARD
from robometer.frames.video import encode_jpeg, thin_positions
from robometer.report.drawing import points, spans
from robometer.report.runs import EvaluationRun
from robometer.report.tables import number
from robometer.trajectory import QUALITY_LABELS, SUBOPTIMAL, SUCCESSFUL

FRAME_WIDTH = 176  # px, of the frames on the page
MAX_FRAMES_SHOWN = 48  # per clip
THUMBNAILS = 8
JPEG_QUALITY = 72
WORST_PER_RUN = 2
MOST_DISPUTED = 2

ByRun = Mapping[str, ClipPrediction]
"""The predictions of one clip, by the name of the run."""


def clip_cards(runs: Sequence[EvaluationRun], corpus: Corpus, splits: Sequence[str]) -> list[dict[str, Any]]:
    """Per split, the clips to look at.

    For one run, a typical and a badly judged clip of each quality. For several runs, the typical clips of the first
    run, the worst judged clips of each, and the clips that two of them judge most differently.
    """
    groups = []
    for split in splits:
        by_clip = _by_clip(runs, split)
        by_run = {run.name: [clips[run.name] for clips in by_clip.values() if run.name in clips] for run in runs}
        first = by_run[runs[0].name]
        chosen = _of_each_quality(first, worst=True) if len(runs) == 1 else _compared(by_run, by_clip)
        cards = [_card(runs, by_clip[id], "; ".join(why), corpus, first) for id, why in chosen.items()]
        if cards:
            groups.append({"split": split, "clips": cards})
    return groups


def _by_clip(runs: Sequence[EvaluationRun], split: str) -> dict[str, dict[str, ClipPrediction]]:
    by_clip: dict[str, dict[str, ClipPrediction]] = defaultdict(dict)
    for run in runs:
        for clip in run.predictions.split(split).clips:
            if clip.view == FORWARD:
                by_clip[clip.id][run.name] = clip
    return by_clip


def _of_each_quality(clips: Sequence[ClipPrediction], worst: bool) -> dict[str, list[str]]:
    """The chosen clips by id, with the reasons."""
    chosen: dict[str, list[str]] = {}
    for quality in reversed(QUALITY_LABELS):
        members = sorted((c for c in clips if c.quality_label == quality), key=lambda c: (_error(c), c.id))
        if members:
            middle = members[len(members) // 2]
            chosen[middle.id] = [f"typical: median last-frame progress ({number(float(middle.progress[-1]))})"]
        if worst and len(members) > 2:
            end = "lowest" if quality == SUCCESSFUL else "highest"
            chosen[members[-1].id] = [f"worst judged: {end} ({number(float(members[-1].progress[-1]))})"]
    return chosen


def _error(clip: ClipPrediction) -> float:
    """How wrong the last progress is: a success should end high, any other clip low."""
    last = float(clip.progress[-1])
    return 1 - last if clip.quality_label == SUCCESSFUL else last


def _compared(by_run: Mapping[str, Sequence[ClipPrediction]], by_clip: Mapping[str, ByRun]) -> dict[str, list[str]]:
    chosen: dict[str, list[str]] = defaultdict(list)
    for id, reasons in _of_each_quality(next(iter(by_run.values())), worst=False).items():
        chosen[id] += [f"{next(iter(by_run))}: {why}" for why in reasons]
    for name, clips in by_run.items():
        # A suboptimal clip ends somewhere in between, so its error is unknown.
        judged = [c for c in clips if c.quality_label != SUBOPTIMAL]
        for clip in sorted(judged, key=lambda c: (-_error(c), c.id))[:WORST_PER_RUN]:
            chosen[clip.id].append(f"worst judged by {name} ({number(float(clip.progress[-1]))})")
    disputed = sorted(((gap, id, a, b) for id, clips in by_clip.items() for gap, a, b in _gap(clips)), reverse=True)
    for gap, id, a, b in disputed[:MOST_DISPUTED]:
        chosen[id].append(f"{a} and {b} disagree most (by {number(gap)} a frame)")
    return chosen


def _gap(by_run: ByRun) -> list[tuple[float, str, str]]:
    """The largest mean distance between two models' progress on a clip, and the models."""
    gaps = [
        (float(np.abs(by_run[a].progress - by_run[b].progress).mean()), a, b)
        for a, b in combinations(by_run, 2)
        if len(by_run[a].progress) == len(by_run[b].progress)
    ]
    return [max(gaps)] if gaps else []


def _card(
    runs: Sequence[EvaluationRun], by_run: ByRun, why: str, corpus: Corpus, first: Sequence[ClipPrediction]
) -> dict[str, Any]:
    clip = next(iter(by_run.values()))
    count = len(clip.progress)
    cells = thin_positions(count, MAX_FRAMES_SHOWN)
    sprite, ratio = _sprite(corpus.frames(clip.row, cells))
    series = _series(runs, by_run, _reward_range(clip.task, first))
    return {
        "task": clip.task,
        "quality": clip.quality_label,
        "why": why,
        "id": clip.id,
        "sprite": sprite,
        "ratio": ratio,
        "cells": len(cells),
        "thumbs": thin_positions(len(cells), THUMBNAILS).tolist(),
        "series": [s | {"points": points(s["values"]), "last": number(float(s["values"][-1]))} for s in series],
        "done": spans(clip.env_success if len(clip.env_success) == count else np.zeros(0)),
        "data": {
            "series": [_rounded(s["values"]) for s in series],
            "cell": [int(np.abs(cells - i).argmin()) for i in range(count)],
        },
        "frames": count,
    }


def _series(runs: Sequence[EvaluationRun], by_run: ByRun, reward_range: tuple[float, float]) -> list[dict[str, Any]]:
    """The curves of a clip: progress and success of one run, or the progress of several."""
    clip = next(iter(by_run.values()))
    count = len(clip.progress)
    if len(runs) == 1:
        series = [_one("progress", "progress", clip.progress), _one("success", "success", clip.success)]
    else:
        series = [
            _one(run.name, "model", by_run[run.name].progress, model=i)
            for i, run in enumerate(runs)
            if run.name in by_run and len(by_run[run.name].progress) == count
        ]
    if clip.quality_label == SUCCESSFUL:
        series.append(_one("true progress", "target", target_progress(count)))
    low, high = reward_range
    if len(clip.env_reward) == count and high > low:
        series.append(_one("simulator's reward", "reward", (clip.env_reward - low) / (high - low)))
    return series


def _one(name: str, kind: str, values: np.ndarray, model: int = 0) -> dict[str, Any]:
    return {"name": name, "kind": kind, "values": values, "model": model}


def _reward_range(task: str, clips: Sequence[ClipPrediction]) -> tuple[float, float]:
    """Smallest and largest simulator reward of a task: one scale for all its clips."""
    rewards = [c.env_reward for c in clips if c.task == task and len(c.env_reward)]
    return (float(min(map(np.min, rewards))), float(max(map(np.max, rewards)))) if rewards else (0.0, 0.0)


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(v), 3) for v in values]


def _sprite(frames: np.ndarray) -> tuple[str, float]:
    """All frames side by side as one JPEG in a data URI, and the aspect ratio (width / height) of one frame."""
    height = max(1, round(FRAME_WIDTH * frames.shape[1] / frames.shape[2]))
    small = [cv2.resize(frame, (FRAME_WIDTH, height), interpolation=cv2.INTER_AREA) for frame in frames]
    encoded = encode_jpeg(np.concatenate(small, axis=1), JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(encoded).decode(), round(FRAME_WIDTH / height, 4)
