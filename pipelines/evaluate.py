"""Evaluate scorers on splits of a corpus: Ray Data actors predict, the driver computes metrics and writes the report.

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
import re
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError

from pipelines.cluster import RETRIES, Needs, cause_of, check_room, connected, interactive, progress_bar, watched
from robometer.configs.loading import override, to_dict
from robometer.configs.schema import Config, ConfigError
from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.errors import RobometerError
from robometer.evaluation import suite
from robometer.evaluation.plan import Query, plan_split, queries_from, queries_table
from robometer.evaluation.predict import ClipSource, failed, predict_each
from robometer.evaluation.predictions import Prediction, Predictions, from_table, to_table
from robometer.evaluation.results import Result, flat
from robometer.evaluation.views import FORWARD
from robometer.report import page as report
from robometer.report.runs import METRICS_JSON, load_runs
from robometer.runs import tracking
from robometer.runs.outputs import exclusive_folder, with_absolute_paths
from robometer.runs.provenance import trained_by
from robometer.runs.redaction import redacted, without_secrets
from robometer.scorers import BaselineReference, ScorerReference, resolve
from robometer.scoring import Scorer

logger = logging.getLogger(__name__)

ScorerLoader = Callable[[str, str], Scorer]
"""Makes the scorer that a worker uses from (checkpoint folder or URL, device)."""

MODES = {
    "whole": "whole clip: one prediction per stored frame, no padding",
    "prefix": "prefixes: each frame's prediction is the last one of the clip up to it, no padding",
}

DEATHS = 16
"""Of one actor, after which something else than its clips is wrong; Ray Data's own default would go on for ever."""

AGAINST = "against"
PARTS, MARK, SCORER, SPENT = "parts", ".begun", "scorer", "spent"
UNITS_PER_PART = 32
"""Clips and pairs that a killed run predicts again at most, per actor."""


class EvaluationFailed(RobometerError):
    """Nothing could be predicted; the message says why in one sentence."""


class Predictor:
    """A Ray Data actor: holds a scorer and the corpus, turns each part of the units into a file of records.

    While it works on a part, a mark beside it says so. Who finds the mark of the same run takes the place of one that
    died, and goes on one unit at a time: one that kills two more is a record with its error.
    """

    def __init__(
        self,
        load: Callable[[], Scorer],
        corpus: str,
        output: str,
        batch_size: int,
        mode: str,
        run: str,
    ) -> None:
        self._scorer = load()
        self._source = ClipSource.for_scorer(Corpus(corpus), self._scorer)
        self._storage, self._run = Storage(output), run
        self._records = partial(predict_each, self._scorer, self._source, batch_size=batch_size, mode=mode)

    def __call__(self, batch: pa.Table) -> pa.Table:
        (part,) = batch["part"].unique().to_pylist()
        units = queries_from(batch.drop_columns(["part"]))
        if self._scorer.info.compares_only:
            units = [unit for unit in units if unit.pair_kind]
        started, before = time.monotonic(), self._scorer.info.spent
        table = to_table(self._answers(f"{PARTS}/{part}{MARK}", units))
        asked = {name: value - before[name] for name, value in self._scorer.info.spent.items()}
        spent = {"busy_seconds": time.monotonic() - started} | asked
        said = {SCORER: self._scorer.name, SPENT: json.dumps(spent)}
        self._storage.write_parquet(_file(part), table.replace_schema_metadata(said))
        self._storage.remove(f"{PARTS}/{part}{MARK}")
        return pa.table({"done": [batch.num_rows]})

    def _answers(self, mark: str, units: Sequence[Query]) -> list[Prediction]:
        run, *killers = self._storage.read_bytes(mark).decode().split() if self._storage.exists(mark) else [""]
        if run != self._run:
            self._storage.write_bytes(mark, self._run.encode())
            return self._records(units)
        records: list[Prediction] = []
        for number, unit in enumerate(units):
            if killers.count(str(number)) > 1:  # once may be the node's fault
                records.append(failed(self._source, unit, "the worker that scored it alone was killed, twice"))
                continue
            self._storage.write_bytes(mark, " ".join([run, *killers, str(number)]).encode())
            records += self._records([unit])
        return records


@dataclass(frozen=True)
class Part:
    """What a worker answered to one part of the units.

    Attributes:
        scorer: its name.
        spent: seconds that it took, and what was asked of an API (`baselines.api.Usage`), by name.
    """

    scorer: str
    spent: Mapping[str, float]
    records: Sequence[Prediction]

    @classmethod
    def read(cls, storage: Storage, name: str) -> Part:
        """What `Predictor` wrote under this name."""
        table = storage.read_parquet(_file(name))
        said = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
        return cls(said[SCORER], json.loads(said[SPENT]), from_table(table))

    @property
    def failed(self) -> bool:
        """Whether a clip or pair of it was not scored."""
        return any(getattr(record, "error", "") for record in self.records)


def run_evaluate(config: Config, load: ScorerLoader | None = None) -> dict[str, Any]:
    """Predict, measure, report; returns what `metrics.json` holds.

    Writes `predictions`, `pairs`, `instructions` and `metrics` as Parquet, `metrics.json` and `report.html` into
    `evaluate.output`, and logs the metrics to the tracker. Parts of a run before, of the same scorer and corpus, are
    used; those of others are deleted.

    Args:
        load: how a worker makes its scorer where `evaluate.scorer` does not name it: a function of a module.

    Raises:
        ConfigError: an evaluation that does not exist, or no split that has clips.
        InUseError: another job writes into the output folder.
        TrackingError: the tracking store cannot be used.
        EvaluationFailed: every single clip failed.
    """
    suite.check_evaluations(config.evaluate.evaluations)
    reference = _reference(config)
    asks_api = isinstance(reference, BaselineReference) and reference.asks_api
    cache = ["baseline.cache"] if asks_api else []
    config = with_absolute_paths(config, "evaluate.output", "corpus.path", "tracking.uri", *cache)
    with exclusive_folder("evaluate.output", config.evaluate.output):
        return _run(config, load)


def _run(config: Config, load: ScorerLoader | None) -> dict[str, Any]:
    started = time.monotonic()
    corpus = Corpus(config.corpus.path)
    units = _plan(config, corpus)
    storage = Storage(config.evaluate.output)
    if load is None:
        _warn_of_other_frames(config, corpus)
    # Raised where the same settings give other answers, or parts look different: form 4 names columns differently.
    parts = _parts(units, f"form 4 {corpus.content_hash} {config.evaluate.mode} {_identity(config, load)}")
    with tracking.start(config, kind="evaluate") as run:
        answered = _predict(config, corpus, parts, load)
        predictions = Predictions.of(record for part in answered for record in part.records)
        predictions.save(storage)
        if not predictions.split_names():
            first = predictions.errors()[0].error
            raise EvaluationFailed(f"none of {len(units)} clips and pairs could be scored; the first error: {first}")
        provenance = _provenance(config, corpus, answered, predictions)
        provenance["seconds"] = round(time.monotonic() - started, 1)
        found, results = _measure(config, storage, predictions, provenance, corpus)
        run.metrics(flat(results), step=0)
        run.tags({"robometer.model": provenance["model"], "robometer.corpus": corpus.content_hash})
        if Path(config.evaluate.output).is_dir():
            for file in (report.REPORT, METRICS_JSON):
                run.artifact(Path(config.evaluate.output) / file)
    return found


def _warn_of_other_frames(config: Config, corpus: Corpus) -> None:
    reference = _reference(config)
    if isinstance(reference, BaselineReference):
        return
    trained, stored = reference.frames(), corpus.frame_settings
    if trained != stored:
        logger.warning(
            "%s was trained on %s, and is shown %s: other frames, other numbers",
            redacted(config.evaluate.scorer),
            trained or "frames that it does not name",
            stored,
        )


def recompute(config: Config) -> dict[str, Any]:
    """Metrics and report from the predictions in `evaluate.output`, without the model."""
    storage = Storage(config.evaluate.output)
    if not storage.exists("predictions.parquet") or not storage.exists(METRICS_JSON):
        raise ConfigError(f"no predictions in {config.evaluate.output}: run `robometer evaluate` first")
    provenance = json.loads(storage.read_bytes(METRICS_JSON))["provenance"]
    corpus = Corpus(config.corpus.path)
    if corpus.content_hash != provenance["corpus_hash"]:
        raise ConfigError(f"{config.evaluate.output} was predicted on another corpus than {config.corpus.path}")
    return _measure(config, storage, Predictions.load(storage), provenance, corpus)[0]


def run_evaluations(config: Config, anew: bool = False) -> list[dict[str, Any]]:
    """Evaluate `evaluate.scorer` into `evaluate.output`, and each of `evaluate.against` alike into a folder of its
    own below it, one after the other; with several, `report.html` there sets all beside one another.

    Args:
        anew: metrics and reports from the predictions that are there, without the models.

    Returns:
        What each one's `metrics.json` holds.

    Raises:
        ConfigError: as `run_evaluate`, or two of `evaluate.against` have the same name.
    """
    output, against = config.evaluate.output, config.evaluate.against
    folders = [output, *(f"{output}/{AGAINST}/{_slug(checkpoint)}" for checkpoint in against)]
    if len(set(folders)) < len(folders):
        raise ConfigError(f"evaluate.against={against} names one model twice")
    ones = [
        override(config, {"evaluate.scorer": checkpoint, "evaluate.output": folder, "evaluate.against": []})
        for checkpoint, folder in zip([config.evaluate.scorer, *against], folders, strict=True)
    ]
    if against and not anew:  # a name that stands for nothing ends here, not hours later
        for one in ones:
            _identity(one, None)
    found = [recompute(one) if anew else run_evaluate(one) for one in ones]
    if against:
        report.write_report(Storage(output), load_runs(folders), Corpus(config.corpus.path))
    return found


def _slug(checkpoint: str) -> str:
    return re.sub(r"[^\w.-]+", "-", redacted(checkpoint)).strip("-.")


def _measure(
    config: Config, storage: Storage, predictions: Predictions, provenance: dict[str, Any], corpus: Corpus
) -> tuple[dict[str, Any], list[Result]]:
    results = suite.evaluate_all(predictions, config.evaluate)
    return report.write(storage, results, predictions, provenance, corpus), results


def _plan(config: Config, corpus: Corpus) -> list[Query]:
    settings = config.evaluate
    units: list[Query] = []
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
            logger.warning("split %s of %s has no clips%s", split, config.corpus.path, _of_sources(config))
        units += of_split
    if not units:
        there = sorted(set(corpus.manifest["split"].to_pylist()))
        raise ConfigError(
            f"evaluate.splits={settings.splits} has no clips{_of_sources(config)}: {config.corpus.path} has {there}"
        )
    return units


def _of_sources(config: Config) -> str:
    return f" of {', '.join(config.evaluate.sources)}" if config.evaluate.sources else ""


def _predict(
    config: Config, corpus: Corpus, parts: Mapping[str, Sequence[Query]], load: ScorerLoader | None
) -> list[Part]:
    storage = Storage(config.evaluate.output)
    there = {name: Part.read(storage, name) for name in parts if storage.exists(_file(name))}
    there = {name: part for name, part in there.items() if not part.failed}
    missing = {name: units for name, units in parts.items() if name not in there}
    if there:
        logger.info("evaluate: %d of %d parts are there from before", len(there), len(parts))
    if missing:
        with connected(config):  # no longer than it is needed: what is counted and written below is Ray's no more
            _predict_parts(config, corpus, missing, load)
    storage.remove_stale(PARTS, keep=set(parts), age_s=0.0)
    return [there[name] if name in there else Part.read(storage, name) for name in parts]


def _parts(units: Sequence[Query], identity: str) -> dict[str, Sequence[Query]]:
    """Units by the name of their part, which follows from them and from who is asked."""
    parts = [units[start : start + UNITS_PER_PART] for start in range(0, len(units), UNITS_PER_PART)]
    return {hashlib.sha256(f"{identity} {part}".encode()).hexdigest()[:24]: part for part in parts}


def _identity(config: Config, load: ScorerLoader | None) -> str:
    if load is not None:
        return f"{load.__module__}.{load.__qualname__} {config.evaluate.scorer}"
    return _reference(config).identity()


def _reference(config: Config) -> ScorerReference:
    return resolve(config.evaluate.scorer, config.tracking.uri, config.baseline)


def _file(part: str) -> str:
    return f"{PARTS}/{part}.parquet"


def _predict_parts(
    config: Config, corpus: Corpus, parts: Mapping[str, Sequence[Query]], load: ScorerLoader | None
) -> None:
    settings = config.evaluate
    reference = _reference(config).for_workers()
    device = "cuda" if settings.num_gpus > 0 else "cpu"
    arguments = {
        "load": partial(load, settings.scorer, device) if load else partial(reference.load, device),
        "corpus": corpus.storage.path,
        "output": Storage(settings.output).path,
        "batch_size": settings.batch_size,
        "mode": settings.mode,
        "run": uuid.uuid4().hex,
    }
    tables = [
        queries_table(units).append_column("part", pa.array([name] * len(units), pa.string()))
        for name, units in parts.items()
    ]
    answered = ray.data.from_arrow(tables).map_batches(
        Predictor,
        fn_constructor_kwargs=arguments,
        batch_size=None,  # a part is a block
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(settings.actors, len(parts))),
        num_gpus=settings.num_gpus,
        max_restarts=DEATHS,
        max_task_retries=RETRIES,
        runtime_env=reference.runtime_env if isinstance(reference, BaselineReference) else {},
    )
    needs, total, done = Needs(gpus=settings.num_gpus), sum(map(len, parts.values())), 0
    check_room("evaluate", needs, "set evaluate.num_gpus lower")
    show = progress_bar("evaluate", total, interactive())
    try:
        blocks = answered.iter_batches(batch_size=None, batch_format="pyarrow")
        for block in watched(blocks, "evaluate", needs):
            done += int(np.sum(block["done"]))
            show(done, {})
    except RayError as error:
        raise EvaluationFailed(f"a worker failed: {cause_of(error)}; mend that and run the same again") from error


def _provenance(config: Config, corpus: Corpus, parts: Sequence[Part], predictions: Predictions) -> dict[str, Any]:
    lengths = [len(c.progress) for c in predictions.clips if c.view == FORWARD and not c.error]
    counts: dict[str, str] = {}
    for split in config.evaluate.splits:
        clips = [c for c in predictions.split(split).clips if c.view == FORWARD]
        counts[split] = f"{len(clips)} of {len(corpus.rows(split))} clips, {len({c.task for c in clips})} tasks"
    return {
        "model": parts[0].scorer,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "checkpoint": redacted(config.evaluate.scorer),
        "trained": _trained(config.evaluate.scorer),
        **trained_by(config.evaluate.scorer),
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


def what_it_took(parts: Sequence[Part]) -> str:
    """What the scoring took, in words; of an API, what it was asked and what that cost in tokens."""
    total: dict[str, float] = defaultdict(float)
    for part in parts:
        for name, value in part.spent.items():
            total[name] += value
    records, seconds = sum(len(part.records) for part in parts), total.pop("busy_seconds")
    words = [f"{records} answers in {seconds:.1f} s of actors' time, {records / seconds:.3g} a second"]
    return ", ".join(words + [f"{name.replace('_', ' ')} {value:,.0f}" for name, value in total.items() if value])


def _trained(checkpoint: str) -> str:
    """Where a local checkpoint says that it comes from; its own numbers stay with it."""
    path = Path(checkpoint) / "provenance.json"
    if not path.is_file():
        return "unknown"
    known = {k: v for k, v in json.loads(path.read_text()).items() if isinstance(v, (str, int, float)) and v != ""}
    return ", ".join(f"{name} {value}" for name, value in known.items()) or "unknown"
