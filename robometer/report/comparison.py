"""Comparison of runs: differences to the first run over what both scored, and each run by data source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from robometer.evaluation.metrics import Resampling
from robometer.evaluation.paired import Difference, paired
from robometer.evaluation.predictions import ClipPrediction, InstructionPrediction, PairPrediction
from robometer.report.runs import EvaluationRun, splits_of

SOURCE_RESAMPLES = 200
"""Most resamples for the intervals of one data source, as everything is computed again for each source."""


@dataclass(frozen=True)
class RunComparison:
    """Everything that a report is made of, except the frames of its clips.

    Attributes:
        runs: one or more runs; the others are compared with the first.
        differences: run name -> (evaluation, split, metric) -> difference to the first run.
        sources: run name -> data source -> the run on the clips of this source only, with at most `SOURCE_RESAMPLES`
            resamples.
    """

    runs: Sequence[EvaluationRun]
    differences: Mapping[str, Mapping[tuple[str, str, str], Difference]]
    sources: Mapping[str, Mapping[str, EvaluationRun]]

    @property
    def several(self) -> bool:
        """Whether there is anything to compare."""
        return len(self.runs) > 1


def compare_runs(runs: Sequence[EvaluationRun]) -> RunComparison:
    """Compare runs over one corpus with the first of them."""
    of_runs = {run.name: differences(runs[0], run) for run in runs[1:]}
    return RunComparison(runs, of_runs, {run.name: _by_source(run) for run in runs})


def _clip(record: ClipPrediction) -> tuple[str, ...]:
    return record.split, record.id, record.view


def _instruction(record: InstructionPrediction) -> tuple[str, ...]:
    return record.split, record.id, record.instruction


def _pair(record: PairPrediction) -> tuple[str, ...]:
    return record.split, record.kind, record.task, record.chosen_id, record.rejected_id


_KEYS: Mapping[str, Callable[[Any], tuple[str, ...]]] = {"clips": _clip, "instructions": _instruction, "pairs": _pair}


def common(first: EvaluationRun, second: EvaluationRun) -> tuple[EvaluationRun, EvaluationRun]:
    """Both runs, limited to what both scored. A run that scored no more is returned as it is."""
    shared = {name: _scored(first, name, key) & _scored(second, name, key) for name, key in _KEYS.items()}

    def cut(run: EvaluationRun) -> EvaluationRun:
        if all(_scored(run, name, key) == shared[name] for name, key in _KEYS.items()):
            return run
        records = {
            name: [record for record in getattr(run.predictions, name) if key(record) in shared[name]]
            for name, key in _KEYS.items()
        }
        return run.on(replace(run.predictions, **records))

    return cut(first), cut(second)


def _scored(run: EvaluationRun, name: str, key: Callable[[Any], tuple[str, ...]]) -> set[tuple[str, ...]]:
    return {key(record) for record in getattr(run.predictions, name) if not getattr(record, "error", "")}


def differences(baseline: EvaluationRun, other: EvaluationRun) -> dict[tuple[str, str, str], Difference]:
    """`other` minus `baseline` by (evaluation, split, metric), over what both scored."""
    first, second = common(baseline, other)
    settings = Resampling(first.settings.bootstrap, first.settings.confidence, first.settings.seed)
    found = {}
    for result in first.results:
        for metric in result.metrics:
            counterpart = second.metric(result.evaluation, result.split, metric.name)
            if counterpart is not None:
                key = result.evaluation, result.split, metric.name
                found[key] = paired(metric.estimate, counterpart.estimate, settings)
    return found


def _by_source(run: EvaluationRun) -> dict[str, EvaluationRun]:
    """The run on the clips of each data source only."""
    predictions = run.predictions
    sources = {clip.id: clip.source for clip in predictions.clips}
    names = sorted(set(sources.values()))
    if len(names) == 1:
        return {names[0]: run}
    quick = replace(run, settings=replace(run.settings, bootstrap=min(run.settings.bootstrap, SOURCE_RESAMPLES)))
    return {
        source: quick.on(
            replace(
                predictions,
                clips=[r for r in predictions.clips if r.source == source],
                instructions=[r for r in predictions.instructions if sources.get(r.id) == source],
                pairs=[r for r in predictions.pairs if sources.get(r.chosen_id) == source],
            )
        )
        for source in names
    }


def remarks(runs: Sequence[EvaluationRun]) -> list[str]:
    """Why runs are not directly comparable, a sentence each."""
    sentences = [_other_clips(runs[0], run, split) for run in runs[1:] for split in splits_of(runs)]
    for name in ("mode", "frames"):
        values = {run.name: str(run.provenance.get(name, "unknown")) for run in runs}
        if len(set(values.values())) > 1:
            sentences.append(f"The runs differ in {name}: " + "; ".join(f"{n}: {v}" for n, v in values.items()) + ".")
    return [sentence for sentence in sentences if sentence]


def _other_clips(first: EvaluationRun, run: EvaluationRun, split: str) -> str:
    ours, theirs = ({clip.id for clip in r.predictions.split(split).clips} for r in (first, run))
    if bool(ours) != bool(theirs):
        scored, missing = (first, run) if ours else (run, first)
        return f"On {split}, {scored.name} scored clips, but {missing.name} scored none."
    if ours == theirs:
        return ""
    return (
        f"On {split}, {run.name} scored {len(theirs)} clips and {first.name} {len(ours)}. Differences are over the "
        f"{len(ours & theirs)} clips that both scored."
    )
