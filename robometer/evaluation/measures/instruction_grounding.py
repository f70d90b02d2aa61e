"""Instruction grounding: does a model read the instruction, and no more into it than it says?

A successful clip gets its own instruction, the same turned around (open: close), which it does not fulfil, and the same
in other words, which it does. Turned-around instructions need no second task, so that any corpus has them.
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
    "counterfactual_accuracy": "clips that get more progress under their own instruction than turned around, ties 1/2",
    "counterfactual_gap": "progress under the own instruction minus under the same turned around",
    "paraphrase_sensitivity": "mean change of progress when the instruction is put in other words; 0 is right",
}


def evaluate(predictions: Predictions, split: str, settings: Resampling) -> Result:
    """Last-frame progress of successful clips under their own instruction against variants of it."""
    clips = _by_clip(predictions.instructions)
    found = [_metric(name, clips, settings) for name in _MEANINGS]
    found = [metric for metric in found if metric.estimate.n]
    if not found:
        return Result(NAME, split, skipped="no successful clips, or none was shown under variants of its instruction")
    return Result(NAME, split, found, _per_task(clips))


class _Clip:
    """One clip's last progress by kind of instruction."""

    def __init__(self, records: Sequence[InstructionPrediction]) -> None:
        self.id, self.task = records[0].id, records[0].task
        of = defaultdict(list)
        for record in records:
            of[record.kind].append(record.final_progress)
        own, turned, reworded = (np.array(of[kind]) for kind in ("own", "counterfactual", "paraphrase"))
        self.values: dict[str, float] = {}
        if len(own) and len(turned):
            gap = float(own[0] - turned[0])
            self.values = {"counterfactual_accuracy": (np.sign(gap) + 1) / 2, "counterfactual_gap": gap}
        if len(own) and len(reworded):
            self.values["paraphrase_sensitivity"] = float(np.abs(reworded - own[0]).mean())


def _by_clip(records: Sequence[InstructionPrediction]) -> list[_Clip]:
    groups: dict[str, list[InstructionPrediction]] = defaultdict(list)
    for record in records:
        groups[record.id].append(record)
    return [_Clip(of_clip) for _, of_clip in sorted(groups.items())]


def _metric(name: str, clips: Sequence[_Clip], settings: Resampling) -> Metric:
    known = [clip for clip in clips if name in clip.values]
    group_of, unit = metrics.grouping([c.task for c in known], [c.id for c in known])
    statistic = metrics.weighted_mean([clip.values[name] for clip in known])
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
