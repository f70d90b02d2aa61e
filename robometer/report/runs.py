"""Output folders of `robometer evaluate`, read back to be reported together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import PurePath
from typing import Any

from robometer.configs.renamed import current
from robometer.corpus.storage import Storage
from robometer.errors import RobometerError
from robometer.evaluation import suite
from robometer.evaluation.config import EvaluateConfig
from robometer.evaluation.predictions import Predictions
from robometer.evaluation.results import Metric, Result
from robometer.settings import not_a_choice

METRICS_JSON = "metrics.json"


class ReportError(RobometerError):
    """Runs that cannot be reported. The message says why in one sentence."""


@dataclass(frozen=True)
class EvaluationRun:
    """One evaluated model.

    Attributes:
        name: of the model, unique among the runs of a report.
        settings: by which its metrics were computed from its predictions.
    """

    name: str
    predictions: Predictions
    provenance: Mapping[str, Any]
    results: Sequence[Result]
    settings: EvaluateConfig

    def result(self, evaluation: str, split: str) -> Result | None:
        """One evaluation on one split; None if it was not run."""
        return next((r for r in self.results if (r.evaluation, r.split) == (evaluation, split)), None)

    def metric(self, evaluation: str, split: str, name: str) -> Metric | None:
        """One metric; None if the run does not have it."""
        result = self.result(evaluation, split)
        return next((m for m in result.metrics if m.name == name), None) if result else None

    def on(self, predictions: Predictions) -> EvaluationRun:
        """The run as if it had made only these predictions."""
        return replace(self, predictions=predictions, results=suite.evaluate_all(predictions, self.settings))


def load_runs(folders: Sequence[str], baseline: str = "") -> list[EvaluationRun]:
    """Runs of these output folders. Metrics are computed again, all with the settings of the first run.

    Args:
        folders: output folders of evaluations.
        baseline: name of the run to compare the others with, which becomes the first; empty keeps the order.

    Raises:
        ReportError: a folder has no predictions, the corpora differ, or no run has the baseline's name.
    """
    stored = [_read(folder) for folder in folders]
    hashes = [provenance.get("corpus_hash") for _, provenance in stored]
    for folder, corpus_hash in zip(folders, hashes, strict=True):
        if corpus_hash != hashes[0]:
            raise ReportError(
                f"{folder} was evaluated on another corpus than {folders[0]} (hash {corpus_hash}, not {hashes[0]}): "
                "report them separately, or evaluate both on one corpus"
            )
    names = _unique([str(provenance["model"]) for _, provenance in stored], folders)
    if baseline and baseline not in names:
        raise ReportError(not_a_choice("--reference", baseline, names))
    settings = settings_of([provenance for _, provenance in stored])
    runs = [
        EvaluationRun(name, predictions, provenance, suite.evaluate_all(predictions, settings), settings)
        for name, (predictions, provenance) in zip(names, stored, strict=True)
    ]
    return sorted(runs, key=lambda run: run.name != baseline) if baseline else runs


def _read(folder: str) -> tuple[Predictions, Mapping[str, Any]]:
    storage = Storage(folder)
    if not storage.exists("predictions.parquet") or not storage.exists(METRICS_JSON):
        raise ReportError(f"no predictions in {folder}: give the evaluate.output of a finished `robometer evaluate`")
    return Predictions.load(storage), json.loads(storage.read_bytes(METRICS_JSON))["provenance"]


def _unique(names: Sequence[str], folders: Sequence[str]) -> list[str]:
    """Names of models, followed by their folder if two models have the same name."""
    bare = [f"{n} ({PurePath(f).name})" if names.count(n) > 1 else n for n, f in zip(names, folders, strict=True)]
    return [f"{n} {bare[:i].count(n) + 1}" if bare.count(n) > 1 else n for i, n in enumerate(bare)]


def settings_of(provenances: Sequence[Mapping[str, Any]]) -> EvaluateConfig:
    """The settings of the first run, with the splits and evaluations of all; keys of other versions are ignored."""
    stored = [current(p.get("config", {})).get("evaluate", {}) for p in provenances]
    names = {f.name for f in fields(EvaluateConfig)}
    settings = EvaluateConfig(**{k: v for k, v in stored[0].items() if k in names})
    splits = dict.fromkeys(s for of_run in stored for s in of_run.get("splits", settings.splits))
    evaluations = dict.fromkeys(e for of_run in stored for e in of_run.get("evaluations", settings.evaluations))
    return replace(
        settings, splits=list(splits), evaluations=[name for name in evaluations if name in suite.EVALUATIONS]
    )


def splits_of(runs: Sequence[EvaluationRun]) -> list[str]:
    """Splits of at least one run, in the order of the configuration."""
    return list(dict.fromkeys(result.split for run in runs for result in run.results))


def evaluations_of(runs: Sequence[EvaluationRun]) -> list[str]:
    """Evaluations of at least one run, in the order of the report."""
    return list(dict.fromkeys(result.evaluation for run in runs for result in run.results))
