"""Instruction grounding: does a model read the instruction, and only what it says?

A successful clip is scored under its own instruction, under the opposite (open: close), which it does not fulfil, and
under paraphrases, which it does. Opposites need no second task, so any corpus has them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from robometer.evaluation import metrics
from robometer.evaluation.metrics import Resampling
from robometer.evaluation.predictions import InstructionPrediction, Predictions
from robometer.evaluation.results import Metric, Result, Row

NAME = "instruction_grounding"

_MEANINGS = {
    "counterfactual_accuracy": "clips with more progress under their own instruction than under the opposite; ties 1/2",
    "counterfactual_gap": "progress under the own instruction minus progress under the opposite",
    "paraphrase_sensitivity": "mean change of progress if the instruction is paraphrased; 0 is right",
}


def evaluate(predictions: Predictions, split: str, settings: Resampling) -> Result:
    """Last-frame progress of successful clips under their own instruction, against variants of it."""
    clips = _by_clip(predictions.instructions)
    results = [_metric(name, clips, settings) for name in _MEANINGS]
    results = [metric for metric in results if metric.estimate.n]
    if not results:
        return Result(NAME, split, skipped="no successful clip was scored under variants of its instruction")
    return Result(NAME, split, results, _per_task(clips))


class _Clip:
    """One clip's last-frame progress, compared between kinds of instructions."""

    def __init__(self, records: Sequence[InstructionPrediction]) -> None:
        self.id, self.task = records[0].id, records[0].task
        by_kind = defaultdict(list)
        for record in records:
            by_kind[record.kind].append(record.final_progress)
        own, opposite, paraphrased = (np.array(by_kind[kind]) for kind in ("own", "counterfactual", "paraphrase"))
        self.values: dict[str, float] = {}
        if len(own) and len(opposite):
            gap = float(own[0] - opposite[0])
            self.values = {"counterfactual_accuracy": (np.sign(gap) + 1) / 2, "counterfactual_gap": gap}
        if len(own) and len(paraphrased):
            self.values["paraphrase_sensitivity"] = float(np.abs(paraphrased - own[0]).mean())


def _by_clip(records: Sequence[InstructionPrediction]) -> list[_Clip]:
    groups: dict[str, list[InstructionPrediction]] = defaultdict(list)
    for record in records:
        groups[record.id].append(record)
    return [_Clip(of_clip) for _, of_clip in sorted(groups.items())]


def _metric(name: str, clips: Sequence[_Clip], settings: Resampling) -> Metric:
    with_value = [clip for clip in clips if name in clip.values]
    group_of, unit = metrics.grouping([c.task for c in with_value], [c.id for c in with_value])
    statistic = metrics.weighted_mean([clip.values[name] for clip in with_value])
    return Metric(name, metrics.estimate(statistic, group_of, unit, settings), "clips", _MEANINGS[name])


def _per_task(clips: Sequence[_Clip]) -> list[Row]:
    rows: list[Row] = []
    for task in sorted({clip.task for clip in clips if clip.values}):
        row: Row = {"task": task}
        for name in _MEANINGS:
            values = [clip.values[name] for clip in clips if clip.task == task and name in clip.values]
            row[name] = float(np.mean(values)) if values else float("nan")
        rows.append(row)
    return rows
