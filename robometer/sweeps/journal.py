"""What happened in a sweep, in its order: the one record that a killed or extended sweep goes on from.

Schedulers and searches keep no state of their own on disk. They are functions of these events, which are replayed.
"""

from __future__ import annotations

import json
import math
import os
import posixpath
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from robometer.configs.renamed import RENAMED
from robometer.corpus.storage import Storage
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
    source: str = ""
    at: float = 0.0
    """Seconds since 1970; 0: unknown, as in a journal of an earlier version."""


@dataclass
class TrialRecord:
    """What is known of a trial.

    Attributes:
        name: its number, and its seed where it repeats another one; also the name of its folder.
        values: the swept settings, under today's names.
        reports: its validations, by step.
        ended: whether it is over for good.
        error: why it failed; empty where it did not.
        source: the run whose training state it started with; empty where it began anew.
        seconds: how long it went on, as far as its events say, its further attempts included.
        at: the time of its last event.
    """

    name: str
    values: Values
    reports: list[Metrics] = field(default_factory=list)
    ended: bool = False
    error: str = ""
    source: str = ""
    seconds: float = 0.0
    at: float = 0.0

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

    def __init__(self, path: str | Path) -> None:
        """Read what there is, at a path or URI. A last line that a kill has cut off is no event, and is removed."""
        folder, self._name = posixpath.split(str(path))
        self._storage = Storage(folder)
        self.events: list[Event] = []
        self.trials: dict[str, TrialRecord] = {}
        text = self._storage.read_bytes(self._name) if self._storage.exists(self._name) else b""
        self._text = text[: text.rfind(b"\n") + 1]
        if len(self._text) < len(text):
            self._storage.write_bytes(self._name, self._text)
        for line in self._text.splitlines():
            self._take(Event(**json.loads(line)))

    def append(self, event: Event) -> None:
        """Add an event, in the file first. A report of a step that a trial has reported before changes nothing."""
        if event.kind == "report" and event.metrics["step"] <= self.trials[event.trial].step:
            return
        event = replace(event, at=event.at or round(time.time(), 1))
        fields = {name: value for name, value in vars(event).items() if value != {} and value != ""}
        self._write(f"{json.dumps(fields)}\n".encode())
        self._take(event)

    def _write(self, line: bytes) -> None:
        if self._storage.is_local:
            with Path(self._storage.full(self._name)).open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        else:  # nothing can be added to a file in a bucket
            self._text += line
            self._storage.write_bytes(self._name, self._text)

    def searched(self, seeds: Sequence[int] = ()) -> Iterator[TrialRecord]:
        """The trials of the search, by number; those that repeat one with one of these seeds count as parts of it."""
        for name in sorted(self.trials):
            if name.isdigit():
                yield _mean([self.trials.get(one) for one in (name, *(repeated(name, seed) for seed in seeds))])

    def evolved(self) -> Iterator[TrialRecord]:
        """The trials of a population, by number: the last run of each, with what it and the runs before it reported."""
        for number in sorted(filter(str.isdigit, self.trials)):
            runs = self.ancestry(number)
            reports = {int(one["step"]): one for run in runs for one in run.reports}
            yield replace(runs[-1], name=number, reports=[reports[step] for step in sorted(reports)])

    def ancestry(self, number: str) -> list[TrialRecord]:
        """The last run of a trial, and before it those whose training states it went on from, the first one first."""
        runs = [[run for name, run in self.trials.items() if trial_of(name) == number][-1]]
        while source := runs[0].source:
            runs.insert(0, self.trials[source])
        return runs

    def _take(self, event: Event) -> None:
        self.events.append(event)
        if event.kind == "start":
            values = {RENAMED.get(key, key): value for key, value in event.values.items()}
            record = self.trials.setdefault(event.trial, TrialRecord(event.trial, values, source=event.source))
            record.error, record.at = "", event.at
            return
        record = self.trials[event.trial]
        record.seconds += event.at - record.at if record.at and event.at else 0.0
        record.at = event.at
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


def generation_of(name: str, generation: int) -> str:
    """The name of a trial's run in a generation of a population, from that of any of its runs."""
    return f"{trial_of(name)}-gen{generation}" if generation else trial_of(name)


def trial_of(name: str) -> str:
    """The number of the trial that a run is part of."""
    return name.partition("-")[0]


def as_values(values: Any) -> Values:
    """Settings as the journal keeps them."""
    return dict(json.loads(json.dumps(values)))
