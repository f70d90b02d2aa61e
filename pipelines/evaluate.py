"""Evaluate scorers on splits of a corpus: workers predict, the driver computes metrics and writes the report.

`recompute` makes metrics and report again without the model. A clip that could not be scored is counted, and enters no
metric.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.predict import EvaluationFailed, Part, predict_queries, what_it_took
from robometer.configs.loading import override, to_dict
from robometer.configs.schema import Config
from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.evaluation import suite
from robometer.evaluation.plan import Query, plan_split
from robometer.evaluation.predictions import Predictions
from robometer.evaluation.results import Result, flat
from robometer.evaluation.views import FORWARD
from robometer.models.sources import locate
from robometer.report import page as report
from robometer.report.runs import METRICS_JSON, load_runs
from robometer.runs import tracking
from robometer.runs.outputs import exclusive_folder, with_absolute_paths
from robometer.runs.paths import is_uri_of_storage
from robometer.runs.provenance import trained_by
from robometer.runs.redaction import redacted, without_secrets
from robometer.scorers import ScorerReference, resolve
from robometer.settings import ConfigError

logger = logging.getLogger(__name__)

MODES = {
    "whole": "whole clip: one prediction per stored frame, no padding",
    "prefix": "prefixes: each frame's prediction is the last one of the clip up to it, no padding",
}

AGAINST = "against"


def run_evaluations(config: Config, without_models: bool = False) -> list[dict[str, Any]]:
    """Evaluate one scorer after the other: that of `evaluate.scorer` into `evaluate.output`, and each of
    `evaluate.against` into a folder below it. If there are several, `report.html` in `evaluate.output` compares them.

    Args:
        without_models: compute metrics and reports from the predictions in these folders.

    Returns:
        The content of each `metrics.json`.

    Raises:
        ConfigError: as `run_evaluate`, or `evaluate.against` names a scorer twice.
    """
    configs = _one_for_each(config)
    if without_models:
        metrics = [recompute(one) for one in configs]
    else:
        # Of several, a wrong name ends here, and not hours later.
        identities = [scorer_of(one).identity() for one in configs] if len(configs) > 1 else [""]
        metrics = [run_evaluate(one, identity=identity) for one, identity in zip(configs, identities, strict=True)]
    if len(configs) > 1:
        folders = [one.evaluate.output for one in configs]
        report.write_report(Storage(config.evaluate.output), load_runs(folders), Corpus(config.corpus.path))
    return metrics


def run_evaluate(config: Config, scorer: ScorerReference | None = None, identity: str = "") -> dict[str, Any]:
    """Predict, measure, report; returns the content of `metrics.json`.

    Writes `predictions`, `pairs`, `instructions` and `metrics` as Parquet, `metrics.json` and `report.html` into
    `evaluate.output`, and logs the metrics to the tracker. Uses the parts of an earlier run with the same scorer and
    corpus, and deletes other parts.

    Args:
        scorer: instead of the one that `evaluate.scorer` names.
        identity: of the scorer, where the caller has it already.

    Raises:
        ConfigError: an evaluation does not exist, or no split has clips.
        InUseError: another job writes into the output folder.
        TrackingError: the tracking store cannot be used.
        EvaluationFailed: no clip could be scored.
    """
    suite.check_evaluations(config.evaluate.evaluations)
    cache = ["baseline.cache"] if (scorer or scorer_of(config)).asks_api else []
    config = with_absolute_paths(config, "evaluate.output", "corpus.path", "tracking.uri", *cache)
    with exclusive_folder("evaluate.output", config.evaluate.output):
        return _evaluate(config, scorer or scorer_of(config), identity)


def recompute(config: Config) -> dict[str, Any]:
    """Compute metrics and report from the predictions in `evaluate.output`, without the model.

    Raises:
        ConfigError: there are no predictions, or they were made on another corpus.
    """
    storage = Storage(config.evaluate.output)
    if not storage.exists("predictions.parquet") or not storage.exists(METRICS_JSON):
        raise ConfigError(f"no predictions in {config.evaluate.output}: run `robometer evaluate` first")
    provenance = json.loads(storage.read_bytes(METRICS_JSON))["provenance"]
    corpus = Corpus(config.corpus.path)
    if corpus.content_hash != provenance["corpus_hash"]:
        raise ConfigError(
            f"the predictions in {config.evaluate.output} were made on another corpus than {config.corpus.path}"
        )
    predictions = Predictions.load(storage)
    results = suite.evaluate_all(predictions, config.evaluate)
    return report.write(storage, results, predictions, provenance, corpus)


def scorer_of(config: Config) -> ScorerReference:
    """The scorer that `evaluate.scorer` names."""
    return resolve(config.evaluate.scorer, config.tracking.uri, config.baseline)


def _one_for_each(config: Config) -> list[Config]:
    """A configuration for each scorer, with an output folder of its own."""
    output, against = config.evaluate.output, config.evaluate.against
    folders = [output, *(f"{output}/{AGAINST}/{_slug(name)}" for name in against)]
    if len(set(folders)) < len(folders):
        raise ConfigError(f"evaluate.against={against} names one model twice")
    return [
        override(config, {"evaluate.scorer": name, "evaluate.output": folder, "evaluate.against": []})
        for name, folder in zip([config.evaluate.scorer, *against], folders, strict=True)
    ]


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", redacted(name)).strip("-.")


def _evaluate(config: Config, scorer: ScorerReference, identity: str) -> dict[str, Any]:
    started = time.monotonic()
    corpus = Corpus(config.corpus.path)
    queries = _plan(config, corpus)
    warn_of_other_frames(scorer, corpus, config.evaluate.scorer)
    with tracking.start(config, kind="evaluate") as run:
        parts = predict_queries(config, corpus, queries, scorer, identity or scorer.identity())
        predictions = _saved(config, parts, len(queries))
        provenance = _provenance(config, corpus, parts, predictions)
        provenance["seconds"] = round(time.monotonic() - started, 1)
        results = suite.evaluate_all(predictions, config.evaluate)
        metrics = report.write(Storage(config.evaluate.output), results, predictions, provenance, corpus)
        _track(run, config, results, provenance)
    return metrics


def _plan(config: Config, corpus: Corpus) -> list[Query]:
    settings = config.evaluate
    queries: list[Query] = []
    for split in settings.splits:
        of_split = plan_split(
            corpus,
            split,
            settings.max_clips,
            settings.pairs_per_task,
            settings.seed,
            settings.evaluations,
            settings.sources,
        )
        if not of_split:
            logger.warning("Split %s of %s has no clips%s.", split, config.corpus.path, _of_sources(config))
        queries += of_split
    if not queries:
        splits = sorted(set(corpus.manifest["split"].to_pylist()))
        raise ConfigError(
            f"evaluate.splits={settings.splits} has no clips{_of_sources(config)}: {config.corpus.path} has {splits}"
        )
    return queries


def _of_sources(config: Config) -> str:
    return f" of {', '.join(config.evaluate.sources)}" if config.evaluate.sources else ""


def warn_of_other_frames(scorer: ScorerReference, corpus: Corpus, name: str) -> None:
    """Warn where the corpus has other frames than the model was trained on."""
    if scorer.takes_any_frames:
        return
    trained, stored = scorer.frames(), corpus.frame_settings
    if trained != stored:
        logger.warning(
            "%s was trained on %s, and is shown %s. Its numbers may differ for that reason.",
            redacted(name),
            trained or "unknown frames",
            stored,
        )


def _saved(config: Config, parts: Sequence[Part], num_queries: int) -> Predictions:
    """Write the predictions of all parts into the output folder, and return them.

    Raises:
        EvaluationFailed: all of them are errors.
    """
    predictions = Predictions.of(record for part in parts for record in part.records)
    predictions.save(Storage(config.evaluate.output))
    if not predictions.split_names():
        first = predictions.errors()[0].error
        raise EvaluationFailed(f"none of {num_queries} clips and pairs could be scored. The first error: {first}")
    return predictions


def _track(run: tracking.TrackedRun, config: Config, results: Sequence[Result], provenance: dict[str, Any]) -> None:
    run.metrics(flat(results), step=0)
    run.tags({"robometer.model": provenance["model"], "robometer.corpus": provenance["corpus_hash"]})
    storage = Storage(config.evaluate.output)
    for file in (report.REPORT, METRICS_JSON):
        with storage.local_copy(file) as copy:
            run.artifact(copy)


def _provenance(config: Config, corpus: Corpus, parts: Sequence[Part], predictions: Predictions) -> dict[str, Any]:
    lengths = [len(c.progress) for c in predictions.clips if c.view == FORWARD and not c.error]
    scorer = config.evaluate.scorer
    folder = locate(scorer) if is_uri_of_storage(scorer) else Path(scorer)
    counts: dict[str, str] = {}
    for split in config.evaluate.splits:
        clips = [c for c in predictions.split(split).clips if c.view == FORWARD]
        counts[split] = f"{len(clips)} of {len(corpus.rows(split))} clips, {len({c.task for c in clips})} tasks"
    return {
        "model": parts[0].scorer,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "checkpoint": redacted(scorer),
        "trained": _trained(folder),
        **trained_by(folder),
        "corpus": redacted(config.corpus.path),
        "corpus_hash": corpus.content_hash,
        "splits": counts,
        "sources": ", ".join(sorted({c.source for c in predictions.clips})),
        "mode": MODES[config.evaluate.mode],
        "frames": f"{min(lengths)} to {max(lengths)} per clip, median {int(np.median(lengths))}" if lengths else "none",
        "intervals": f"{config.evaluate.confidence:.0%} percentile bootstrap, {config.evaluate.bootstrap} resamples",
        "seed": config.evaluate.seed,
        "scoring": what_it_took(parts),
        "failed": len(predictions.errors()),
        "config": without_secrets(to_dict(config)),
    }


def _trained(folder: Path) -> str:
    """What a checkpoint on a disk says about its origin, without its metrics."""
    path = folder / "provenance.json"
    if not path.is_file():
        return "unknown"
    values = json.loads(path.read_text()).items()
    plain = {name: value for name, value in values if isinstance(value, (str, int, float)) and value != ""}
    return ", ".join(f"{name} {value}" for name, value in plain.items()) or "unknown"
