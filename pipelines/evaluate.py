"""Evaluate a scorer on splits of a corpus: Ray Data actors predict, the driver computes metrics and writes the report.

Predictions are written before any metric is computed, so that metrics and report can be made anew without the model
(`recompute`). A clip that cannot be scored is a record with its error; it is counted and enters no metric.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from pipelines.cluster import connected, interactive, progress_bar
from robometer import tracking
from robometer.configs.loading import to_dict
from robometer.configs.schema import Config, ConfigError
from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.errors import RobometerError
from robometer.evaluation import report, suite
from robometer.evaluation.plan import Unit, plan_split, units_from, units_table
from robometer.evaluation.predict import ClipSource, predict_each
from robometer.evaluation.predictions import Predictions, Record, from_table, to_table
from robometer.evaluation.results import Result, flat
from robometer.evaluation.views import FORWARD
from robometer.models.checkpoint import load_scorer
from robometer.models.sources import for_workers
from robometer.scoring import Scorer

logger = logging.getLogger(__name__)

ScorerLoader = Callable[[str, str], Scorer]
"""Makes the scorer that a worker uses from (checkpoint folder or URL, device)."""

MODE = "whole clip: one prediction per stored frame, no padding"

BLOCKS_PER_ACTOR = 8
"""A block costs some 10 ms in Ray Data; several per actor keep the slowest from being waited for."""


class EvaluationFailed(RobometerError):
    """Nothing could be predicted; the message says why in one sentence."""


class Predictor:
    """A Ray Data actor: holds a scorer and the corpus, turns units into records."""

    def __init__(self, load: ScorerLoader, checkpoint: str, device: str, corpus: str, batch_size: int) -> None:
        self._scorer = load(checkpoint, device)
        self._source = ClipSource.for_scorer(Corpus(corpus), self._scorer)
        self._batch_size = batch_size

    def __call__(self, batch: pa.Table) -> pa.Table:
        records = predict_each(self._scorer, self._source, units_from(batch), self._batch_size)
        table = to_table(records)
        names = pa.array([self._scorer.name] * table.num_rows, pa.string())
        done = pa.array([batch.num_rows] + [0] * (table.num_rows - 1), pa.int64())  # units, for the progress bar
        return table.append_column("scorer", names).append_column("done", done)


def run_evaluate(config: Config, load: ScorerLoader = load_scorer) -> dict[str, Any]:
    """Predict, measure, report; returns what `metrics.json` holds.

    Writes `predictions`, `pairs`, `confusion` and `metrics` as Parquet, `metrics.json` and `report.html` into
    `evaluate.output`, and logs the metrics to the tracker.

    Args:
        load: how a worker makes its scorer; other than for a checkpoint, anything that Ray can send to a worker.

    Raises:
        ConfigError: an evaluation that does not exist, or no split that has clips.
        EvaluationFailed: every single clip failed.
    """
    suite.check(config.evaluate.evaluations)
    started = time.monotonic()
    corpus = Corpus(config.corpus.path)
    units = _plan(config, corpus)
    storage = Storage(config.evaluate.output)
    with tracking.start(config, kind="evaluate") as run, connected(config):
        name, predictions = _predict(config, corpus, units, load)
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


def _predict(config: Config, corpus: Corpus, units: Sequence[Unit], load: ScorerLoader) -> tuple[str, Predictions]:
    """Name of the scorer, and all records."""
    settings = config.evaluate
    arguments = {
        "load": load,
        "checkpoint": for_workers(settings.checkpoint, config.tracking.uri),
        "device": "cuda" if settings.num_gpus > 0 else "cpu",
        "corpus": corpus.storage.path,
        "batch_size": settings.batch_size,
    }
    blocks = min(len(units), settings.actors * BLOCKS_PER_ACTOR)
    table = units_table(units)
    parts = [table.slice(i[0], len(i)) for i in np.array_split(np.arange(len(units)), blocks)]
    answered = ray.data.from_arrow(parts).map_batches(
        Predictor,
        fn_constructor_kwargs=arguments,
        batch_size=settings.batch_size,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=settings.actors),
        num_gpus=settings.num_gpus,
    )
    names: set[str] = set()
    records: list[Record] = []
    show = progress_bar("evaluate", len(units), interactive())
    done = 0
    for block in _blocks(answered):
        names |= set(block["scorer"].to_pylist())
        done += int(sum(block["done"].to_pylist()))
        records += from_table(block)
        show(done, {})
    return sorted(names)[0], Predictions.of(records)


def _blocks(answered: ray.data.Dataset) -> Iterator[pa.Table]:
    yield from answered.iter_batches(batch_size=None, batch_format="pyarrow")


def _provenance(config: Config, corpus: Corpus, name: str, predictions: Predictions) -> dict[str, Any]:
    lengths = [len(c.progress) for c in predictions.clips if not c.error]
    counts: dict[str, str] = {}
    for split in config.evaluate.splits:
        clips = [c for c in predictions.split(split).clips if c.view == FORWARD]
        counts[split] = f"{len(clips)} of {len(corpus.rows(split))} clips, {len({c.task for c in clips})} tasks"
    return {
        "model": name,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "checkpoint": config.evaluate.checkpoint,
        "trained": _trained(config.evaluate.checkpoint),
        "corpus": config.corpus.path,
        "corpus_hash": corpus.content_hash,
        "splits": counts,
        "sources": ", ".join(sorted({c.source for c in predictions.clips})),
        "mode": MODE,
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
