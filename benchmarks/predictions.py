"""Synthetic predictions for any number of trajectories, for benchmarks of metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from robometer.evaluation.predictions import (
    ClipPrediction,
    InstructionPrediction,
    PairPrediction,
    Prediction,
    Predictions,
)
from robometer.evaluation.views import (
    CYCLE,
    FORWARD,
    HESITATION,
    MEMORY,
    RETRY,
    REVERSED,
    REWOUND,
    VIEWS,
    counterfactual,
    paraphrases,
)
from robometer.trajectory import FAILURE, QUALITY_LABELS, SUBOPTIMAL, SUCCESSFUL

SPLIT, PAIRS_PER_TASK = "seen", 50
SUCCESSFUL_VIEWS = (FORWARD, REVERSED, REWOUND, RETRY, CYCLE, HESITATION, MEMORY)
"""The views of a successful clip; other clips only play forward."""

_REACH = {FAILURE: 0.2, SUBOPTIMAL: 0.6, SUCCESSFUL: 1.0}


@dataclass(frozen=True)
class _Trajectory:
    id: str
    row: int
    task: str
    quality: str
    frames: int


def predictions(count: int, tasks: int = 50, seed: int = 0) -> Predictions:
    """Predictions of a fair, noisy model for `count` trajectories, with all records of a default `plan_split`.

    The three qualities are equally frequent in every task. Clips have 8 to 32 frames, each with the simulator's truth.
    """
    rng = np.random.default_rng(seed)
    names = [f"open drawer {number:02d}" for number in range(tasks)]
    frames = rng.integers(8, 33, count)
    trajectories = [
        _Trajectory(f"{i:032x}", i, names[i % tasks], QUALITY_LABELS[i // tasks % len(QUALITY_LABELS)], int(frames[i]))
        for i in range(count)
    ]
    return Predictions.of(
        record for part in (_clips, _instructions, _pairs) for record in part(trajectories, names, rng)
    )


def _clips(trajectories: list[_Trajectory], names: list[str], rng: np.random.Generator) -> Iterator[Prediction]:
    for one in trajectories:
        for view in SUCCESSFUL_VIEWS if one.quality == SUCCESSFUL else (FORWARD,):
            yield _clip(one, view, rng)


def _clip(one: _Trajectory, view: str, rng: np.random.Generator) -> ClipPrediction:
    positions = VIEWS[view](one.frames) if view in VIEWS else np.arange(2 * one.frames)
    state = _REACH[one.quality] * positions / (len(positions) - 1 if view == MEMORY else one.frames - 1)
    progress, chance = np.clip(state + rng.normal(0, 0.15, (2, len(positions))), 0, 1).astype(np.float32)
    has_truth = view != MEMORY
    return ClipPrediction(
        SPLIT, one.id, one.row, "lab", one.task, one.quality, view, progress, chance,
        env_reward=(10 * state * has_truth)[: len(positions) * has_truth].astype(np.float32),
        env_success=(state > 0.9)[: len(positions) * has_truth].astype(np.float32),
        partial_success=float(rng.integers(0, 5)) / 4,
        num_frames=one.frames,
    )  # fmt: skip


def _instructions(trajectories: list[_Trajectory], names: list[str], rng: np.random.Generator) -> Iterator[Prediction]:
    for one in trajectories:
        if one.quality != SUCCESSFUL:
            continue
        turned = counterfactual(one.task)
        instructions = [(one.task, "own"), *((name, "other") for name in names if name != one.task)]
        instructions += [(turned, "counterfactual")] if turned else []
        instructions += [(text, "paraphrase") for text in paraphrases(one.task)]
        final = np.clip([0.8 if kind in ("own", "paraphrase") else 0.4 for _, kind in instructions], 0, 1)
        final = np.clip(final + rng.normal(0, 0.2, len(instructions)), 0, 1)
        for (text, kind), value in zip(instructions, final.tolist(), strict=True):
            yield InstructionPrediction(SPLIT, one.id, one.row, one.task, text, value, kind)


def _pairs(trajectories: list[_Trajectory], names: list[str], rng: np.random.Generator) -> Iterator[Prediction]:
    """Up to 50 pairs of each kind per task."""
    for task in names:
        ranked = [
            [one for one in trajectories if (one.task, one.quality) == (task, quality)] for quality in QUALITY_LABELS
        ]
        foreign = [one for one in trajectories if one.task != task and one.quality == SUCCESSFUL]
        lesser = [(high, low) for i, low in enumerate(ranked) for high in ranked[i + 1 :] if low and high]
        candidates = {"quality": lesser, "task": [(ranked[-1], foreign)], "reversed": [(ranked[-1], ranked[-1])]}
        for kind, sides in candidates.items():
            for number in range(PAIRS_PER_TASK if all(map(len, sum(sides, ()))) else 0):
                chosen, rejected = sides[number % len(sides)]
                a = chosen[rng.integers(len(chosen))]
                b = a if kind == "reversed" else rejected[rng.integers(len(rejected))]
                worse = REVERSED if kind == "reversed" else b.quality
                first, second = rng.beta(3, 1.5, 2).tolist()
                yield PairPrediction(SPLIT, kind, task, a.id, b.id, a.quality, worse, first, second)
