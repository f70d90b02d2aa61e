"""What happened in a sweep, in its order: the one record that a killed or extended sweep goes on from.

Schedulers and searches keep no state of their own on disk. They are functions of these events, which are replayed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from robometer.configs.renamed import RENAMED
from robometer.sweeps.space import Values

Metrics = dict[str, float]
"""Metrics of a validation, as SPLIT/METRIC, and its `step`."""

Kind = Literal["start", "report", "end", "fail"]
"""`start`: a trial has settings and runs; `report`: a validation; `end`: the trial is over, with a reason where it went
wrong for good; `fail`: it was given up, and another run of the sweep tries again."""


@dataclass(frozen=True)
class Event:
    """One line of the journal; which fields it has depends on its kind."""

    kind: Kind
    trial: str
    values: Values = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    reason: str = ""


@dataclass
class TrialRecord:
    """What is known of a trial.

    Attributes:
        name: its number, and its seed where it repeats another one; also the name of its folder.
        values: the swept settings, under today's names.
        reports: its validations, by step.
        ended: whether it is over for good.
        error: why it failed; empty where it did not.
    """

    name: str
    values: Values
    reports: list[Metrics] = field(default_factory=list)
    ended: bool = False
    error: str = ""

    def best(self, metric: str, mode: str) -> Metrics | None:
        """The first of the best validations; None where none measured the metric."""
        measured = [one for one in self.reports if math.isfinite(one.get(metric, math.nan))]
        return (min if mode == "min" else max)(measured, key=lambda one: one[metric], default=None)

    @property
    def step(self) -> int:
        """The last step that was validated."""
        return int(self.reports[-1]["step"]) if self.reports else 0


class Journal:
    """Events in a file of lines, each written before the next thing happens."""

    def __init__(self, path: Path) -> None:
        """Read what there is. A last line that a kill has cut off is no event, and is removed."""
        self._path = path
        self.events: list[Event] = []
        self.trials: dict[str, TrialRecord] = {}
        text = path.read_bytes() if path.is_file() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            os.truncate(path, len(whole))
        for line in whole.splitlines():
            self._take(Event(**json.loads(line)))

    def append(self, event: Event) -> None:
        """Add an event, on disk first. A report of a step that a trial has reported before changes nothing."""
        if event.kind == "report" and event.metrics["step"] <= self.trials[event.trial].step:
            return
        fields = {name: value for name, value in vars(event).items() if value != {} and value != ""}
        with self._path.open("a") as file:
            file.write(json.dumps(fields) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._take(event)

    def searched(self, seeds: Sequence[int] = ()) -> Iterator[TrialRecord]:
        """The trials of the search, by number; those that repeat one with one of these seeds count as parts of it."""
        for name in sorted(self.trials):
            if name.isdigit():
                yield _mean([self.trials.get(one) for one in (name, *(repeated(name, seed) for seed in seeds))])

    def _take(self, event: Event) -> None:
        self.events.append(event)
        if event.kind == "start":
            values = {RENAMED.get(key, key): value for key, value in event.values.items()}
            record = self.trials.setdefault(event.trial, TrialRecord(event.trial, values))
            record.error = ""
            return
        record = self.trials[event.trial]
        if event.kind == "report":
            record.reports.append(event.metrics)
        else:
            record.ended, record.error = event.kind == "end", event.reason


def _mean(runs: Sequence[TrialRecord | None]) -> TrialRecord:
    """One trial of several runs, of which the first has begun: the mean of what all of them measured at a step."""
    first = runs[0]
    assert first is not None
    if len(runs) == 1:
        return first
    begun = [run for run in runs if run]
    steps = (
        [{int(report["step"]): report for report in run.reports} for run in begun] if len(begun) == len(runs) else []
    )
    reports = [
        {
            key: float(np.mean([run[step][key] for run in steps]))
            for key in steps[0][step]
            if all(key in run[step] for run in steps)
        }
        for step in sorted(steps[0] if steps else [])
        if all(step in run for run in steps)
    ]
    error = next((f"{run.name}: {run.error}" for run in begun if run.error), "")
    return TrialRecord(first.name, first.values, reports, bool(steps) and all(run.ended for run in begun), error)


def number_of(index: int) -> str:
    """The name of trial number `index` of the search."""
    return f"{index:04d}"


def repeated(name: str, seed: int) -> str:
    """The name of the trial that repeats another one with a seed of its own."""
    return f"{name}-seed{seed}"


def as_values(values: Any) -> Values:
    """Settings as the journal keeps them."""
    return dict(json.loads(json.dumps(values)))
