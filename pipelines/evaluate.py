"""Evaluate a scorer on splits of a corpus: Ray Data actors predict, the driver computes metrics and writes the report.

Predictions are kept in parts, each written whole by the worker that made it, under a name that follows from what was
asked of which scorer: a run that was killed goes on with the parts that are not there, and none is there twice. Metrics
and report can be made anew without the model (`recompute`). A clip that cannot be scored is a record with its error;
it is counted, enters no metric, and is asked again by the next run.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError

from pipelines.cluster import cause_of, connected, interactive, progress_bar
from robometer import baselines, tracking
from robometer.configs.loading import to_dict
from robometer.configs.schema import Config, ConfigError
from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.errors import RobometerError
from robometer.evaluation import report, suite
from robometer.evaluation.plan import Unit, plan_split, units_from, units_table
from robometer.evaluation.predict import ClipSource, predict_each
from robometer.evaluation.predictions import Predictions, from_table, to_table
from robometer.evaluation.results import Result, flat
from robometer.evaluation.views import FORWARD
from robometer.models.checkpoint import load_scorer, scorer_identity
from robometer.models.sources import for_workers
from robometer.provenance import trained_by
from robometer.scoring import Scorer

logger = logging.getLogger(__name__)

ScorerLoader = Callable[[str, str], Scorer]
"""Makes the scorer that a worker uses from (checkpoint folder or URL, device)."""

MODES = {
    "whole": "whole clip: one prediction per stored frame, no padding",
    "prefix": "prefixes: each frame's prediction is the last one of the clip up to it, no padding",
}

RETRIES = 3
"""Of an actor that dies; Ray Data's own default would go on with a clip that always kills it for ever."""

PARTS = "parts"
UNITS_PER_PART = 32
"""Clips and pairs that a killed run predicts again at most, per actor."""


class EvaluationFailed(RobometerError):
    """Nothing could be predicted; the message says why in one sentence."""


class Predictor:
    """A Ray Data actor: holds a scorer and the corpus, turns each part of the units into a file of records."""

    def __init__(
        self, load: ScorerLoader, checkpoint: str, device: str, corpus: str, output: str, batch_size: int, mode: str
    ) -> None:
        self._scorer = load(checkpoint, device)
        self._source = ClipSource.for_scorer(Corpus(corpus), self._scorer)
        self._storage, self._batch_size, self._mode = Storage(output), batch_size, mode

    def __call__(self, batch: pa.Table) -> pa.Table:
        units = units_from(batch.drop_columns(["part"]))
        if getattr(self._scorer, "compares_only", False):
            units = [unit for unit in units if unit.pair_kind]
        table = to_table(predict_each(self._scorer, self._source, units, self._batch_size, self._mode))
        names = pa.array([self._scorer.name] * table.num_rows, pa.string())
        self._storage.write_parquet(_file(batch["part"][0].as_py()), table.append_column("scorer", names))
        return pa.table({"done": [batch.num_rows]})


def run_evaluate(config: Config, load: ScorerLoader | None = None) -> dict[str, Any]:
    """Predict, measure, report; returns what `metrics.json` holds.

    Writes `predictions`, `pairs`, `confusion` and `metrics` as Parquet, `metrics.json` and `report.html` into
    `evaluate.output`, and logs the metrics to the tracker. Parts of a run before, of the same scorer and corpus, are
    used; those of others are deleted.

    Args:
        load: how a worker makes its scorer where `evaluate.checkpoint` does not name it: a function of a module.

    Raises:
        ConfigError: an evaluation that does not exist, or no split that has clips.
        EvaluationFailed: every single clip failed.
    """
    suite.check(config.evaluate.evaluations)
    started = time.monotonic()
    corpus = Corpus(config.corpus.path)
    units = _plan(config, corpus)
    storage = Storage(config.evaluate.output)
    parts = _parts(units, f"{corpus.content_hash} {config.evaluate.mode} {_identity(config, load)}")
    with tracking.start(config, kind="evaluate") as run, connected(config):
        name, predictions = _predict(config, corpus, parts, load)
        predictions.save(storage)
        if not predictions.split_names():
            first = predictions.errors()[0].error
            raise EvaluationFailed(f"none of {len(units)} clips and pairs could be scored; the first error: {first}")
        provenance = _provenance(config, corpus, name, predictions) | {"seconds": round(time.monotonic() - started, 1)}
        found, results = _measure(config, storage, predictions, provenance, corpus)
        run.metrics(flat(results), step=0)
        run.tags({"robometer.model": name, "robometer.corpus": corpus.content_hash})
        if Path(config.evaluate.output).is_dir():
            for file in (report.REPORT, report.METRICS_JSON):
                run.artifact(Path(config.evaluate.output) / file)
    return found


def recompute(config: Config) -> dict[str, Any]:
    """Metrics and report from the predictions in `evaluate.output`, without the model."""
    storage = Storage(config.evaluate.output)
    if not storage.exists("predictions.parquet") or not storage.exists(report.METRICS_JSON):
        raise ConfigError(f"no predictions in {config.evaluate.output}: run `robometer evaluate` first")
    provenance = json.loads(storage.read_bytes(report.METRICS_JSON))["provenance"]
    corpus = Corpus(config.corpus.path)
    if corpus.content_hash != provenance["corpus_hash"]:
        raise ConfigError(f"{config.evaluate.output} was predicted on another corpus than {config.corpus.path}")
    return _measure(config, storage, Predictions.load(storage), provenance, corpus)[0]


def _measure(
    config: Config, storage: Storage, predictions: Predictions, provenance: dict[str, Any], corpus: Corpus
) -> tuple[dict[str, Any], list[Result]]:
    results = suite.evaluate_all(predictions, config.evaluate)
    return report.write(storage, results, predictions, provenance, corpus), results


def _plan(config: Config, corpus: Corpus) -> list[Unit]:
    settings = config.evaluate
    units: list[Unit] = []
    for split in settings.splits:
        of_split = plan_split(
            corpus, split, settings.max_clips, settings.pairs_per_task, settings.seed, settings.evaluations
        )
        if not of_split:
            logger.warning("split %s of %s has no clips", split, config.corpus.path)
        units += of_split
    if not units:
        there = sorted(set(corpus.manifest["split"].to_pylist()))
        raise ConfigError(f"evaluate.splits={settings.splits} has no clips: {config.corpus.path} has {there}")
    return units


def _predict(
    config: Config, corpus: Corpus, parts: Mapping[str, Sequence[Unit]], load: ScorerLoader | None
) -> tuple[str, Predictions]:
    """Name of the scorer, and all records."""
    storage = Storage(config.evaluate.output)
    missing = {name: part for name, part in parts.items() if not storage.exists(_file(name)) or _failed(storage, name)}
    if len(missing) < len(parts):
        logger.info("evaluate: %d of %d parts are there from before", len(parts) - len(missing), len(parts))
    if missing:
        _predict_parts(config, corpus, missing, load)
    storage.remove_stale(PARTS, keep=set(parts), age_s=0.0)
    tables = [storage.read_parquet(_file(name)) for name in parts]
    scorer = next((str(table["scorer"][0]) for table in tables if table.num_rows), "unknown")
    return scorer, Predictions.of(record for table in tables for record in from_table(table))


def _parts(units: Sequence[Unit], identity: str) -> dict[str, Sequence[Unit]]:
    """Units by the name of their part, which follows from them and from who is asked."""
    parts = [units[start : start + UNITS_PER_PART] for start in range(0, len(units), UNITS_PER_PART)]
    return {hashlib.sha256(f"{identity} {part}".encode()).hexdigest()[:24]: part for part in parts}


def _identity(config: Config, load: ScorerLoader | None) -> str:
    if load is not None:
        return f"{load.__module__}.{load.__qualname__} {config.evaluate.checkpoint}"
    return scorer_identity(config.evaluate.checkpoint, config.tracking.uri, config.baseline)


def _file(part: str) -> str:
    return f"{PARTS}/{part}.parquet"


def _failed(storage: Storage, part: str) -> bool:
    return any(getattr(record, "error", "") for record in from_table(storage.read_parquet(_file(part))))


def _predict_parts(
    config: Config, corpus: Corpus, parts: Mapping[str, Sequence[Unit]], load: ScorerLoader | None
) -> None:
    settings = config.evaluate
    arguments = {
        "load": load
        or partial(load_scorer, baseline=replace(config.baseline, cache=Storage(config.baseline.cache).path)),
        "checkpoint": for_workers(settings.checkpoint, config.tracking.uri),
        "device": "cuda" if settings.num_gpus > 0 else "cpu",
        "corpus": corpus.storage.path,
        "output": Storage(settings.output).path,
        "batch_size": settings.batch_size,
        "mode": settings.mode,
    }
    tables = [
        units_table(units).append_column("part", pa.array([name] * len(units), pa.string()))
        for name, units in parts.items()
    ]
    answered = ray.data.from_arrow(tables).map_batches(
        Predictor,
        fn_constructor_kwargs=arguments,
        batch_size=None,  # a part is a block
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=settings.actors),
        num_gpus=settings.num_gpus,
        max_restarts=RETRIES,
        max_task_retries=RETRIES,
        runtime_env=baselines.runtime_env(settings.checkpoint.removeprefix(baselines.PREFIX)),
    )
    total, done = sum(map(len, parts.values())), 0
    show = progress_bar("evaluate", total, interactive())
    try:
        for block in answered.iter_batches(batch_size=None, batch_format="pyarrow"):
            done += int(np.sum(block["done"]))
            show(done, {})
    except RayError as error:
        raise EvaluationFailed(f"a worker failed: {cause_of(error)}; mend that and run the same again") from error


def _provenance(config: Config, corpus: Corpus, name: str, predictions: Predictions) -> dict[str, Any]:
    lengths = [len(c.progress) for c in predictions.clips if c.view == FORWARD and not c.error]
    counts: dict[str, str] = {}
    for split in config.evaluate.splits:
        clips = [c for c in predictions.split(split).clips if c.view == FORWARD]
        counts[split] = f"{len(clips)} of {len(corpus.rows(split))} clips, {len({c.task for c in clips})} tasks"
    return {
        "model": name,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "checkpoint": config.evaluate.checkpoint,
        "trained": _trained(config.evaluate.checkpoint),
        **trained_by(config.evaluate.checkpoint),
        "corpus": config.corpus.path,
        "corpus_hash": corpus.content_hash,
        "splits": counts,
        "sources": ", ".join(sorted({c.source for c in predictions.clips})),
        "mode": MODES[config.evaluate.mode],
        "frames": f"{min(lengths)} to {max(lengths)} per clip, median {int(np.median(lengths))}" if lengths else "none",
        "intervals": f"{config.evaluate.confidence:.0%} percentile bootstrap, {config.evaluate.bootstrap} resamples",
        "seed": config.evaluate.seed,
        "failed": len(predictions.errors()),
        "config": to_dict(config),
    }


def _trained(checkpoint: str) -> str:
    """Where a local checkpoint says that it comes from; its own numbers stay with it."""
    path = Path(checkpoint) / "provenance.json"
    if not path.is_file():
        return "unknown"
    known = {k: v for k, v in json.loads(path.read_text()).items() if isinstance(v, (str, int, float)) and v != ""}
    return ", ".join(f"{name} {value}" for name, value in known.items()) or "unknown"
