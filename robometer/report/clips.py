"""Clips of the report: which are worth looking at, and each with its pictures and every model's curve."""

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

FRAME_WIDTH = 176  # px, of the frames in the page
MAX_FRAMES_SHOWN = 48  # per clip
THUMBNAILS = 8
JPEG_QUALITY = 72
WORST_PER_RUN = 2
MOST_DISPUTED = 2

Shown = Mapping[str, ClipPrediction]
"""A clip as each model judged it, by the name of the run."""


def clip_cards(runs: Sequence[EvaluationRun], corpus: Corpus, splits: Sequence[str]) -> list[dict[str, Any]]:
    """Per split the clips worth looking at.

    Of one run a typical and a badly judged clip of each quality; of several the typical ones of the first run, the
    worst judged of each, and those that two of them judge most differently.
    """
    groups = []
    for split in splits:
        shown = _by_clip(runs, split)
        own = {run.name: [found[run.name] for found in shown.values() if run.name in found] for run in runs}
        first = own[runs[0].name]
        chosen = _of_each_quality(first, worst=True) if len(runs) == 1 else _compared(own, shown)
        cards = [_card(runs, shown[id], "; ".join(why), corpus, first) for id, why in chosen.items()]
        if cards:
            groups.append({"split": split, "clips": cards})
    return groups


def _by_clip(runs: Sequence[EvaluationRun], split: str) -> dict[str, dict[str, ClipPrediction]]:
    found: dict[str, dict[str, ClipPrediction]] = defaultdict(dict)
    for run in runs:
        for clip in run.predictions.split(split).clips:
            if clip.view == FORWARD:
                found[clip.id][run.name] = clip
    return found


def _of_each_quality(clips: Sequence[ClipPrediction], worst: bool) -> dict[str, list[str]]:
    """Why each clip is shown, by id."""
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
    """How badly the last frame is judged: a success should end high, anything else low."""
    last = float(clip.progress[-1])
    return 1 - last if clip.quality_label == SUCCESSFUL else last


def _compared(own: Mapping[str, Sequence[ClipPrediction]], shown: Mapping[str, Shown]) -> dict[str, list[str]]:
    chosen: dict[str, list[str]] = defaultdict(list)
    for id, found in _of_each_quality(next(iter(own.values())), worst=False).items():
        chosen[id] += [f"{next(iter(own))}: {why}" for why in found]
    for name, clips in own.items():
        # a suboptimal clip ends somewhere between, nobody says where
        judged = [c for c in clips if c.quality_label != SUBOPTIMAL]
        for clip in sorted(judged, key=lambda c: (-_error(c), c.id))[:WORST_PER_RUN]:
            chosen[clip.id].append(f"worst judged by {name} ({number(float(clip.progress[-1]))})")
    disputed = sorted(((gap, id, a, b) for id, found in shown.items() for gap, a, b in _gap(found)), reverse=True)
    for gap, id, a, b in disputed[:MOST_DISPUTED]:
        chosen[id].append(f"{a} and {b} disagree most (by {number(gap)} a frame)")
    return chosen


def _gap(found: Shown) -> list[tuple[float, str, str]]:
    """The two models that are furthest apart over a clip, and how far in the mean over its frames."""
    gaps = [
        (float(np.abs(found[a].progress - found[b].progress).mean()), a, b)
        for a, b in combinations(found, 2)
        if len(found[a].progress) == len(found[b].progress)
    ]
    return [max(gaps)] if gaps else []


def _card(
    runs: Sequence[EvaluationRun], found: Shown, why: str, corpus: Corpus, first: Sequence[ClipPrediction]
) -> dict[str, Any]:
    clip = next(iter(found.values()))
    count = len(clip.progress)
    cells = thin_positions(count, MAX_FRAMES_SHOWN)
    sprite, ratio = _sprite(corpus.frames(clip.row, cells))
    series = _series(runs, found, _reward_range(clip.task, first))
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


def _series(runs: Sequence[EvaluationRun], found: Shown, reward_range: tuple[float, float]) -> list[dict[str, Any]]:
    """What is drawn over a clip: with one run its progress and success, with several everyone's progress."""
    clip = next(iter(found.values()))
    count = len(clip.progress)
    if len(runs) == 1:
        series = [_one("progress", "progress", clip.progress), _one("success", "success", clip.success)]
    else:
        series = [
            _one(run.name, "model", found[run.name].progress, model=i)
            for i, run in enumerate(runs)
            if run.name in found and len(found[run.name].progress) == count
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
    """Smallest and largest simulator reward of a task: one scale for all its clips, good and bad."""
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
