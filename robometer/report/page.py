"""Files of an evaluation: a self-contained HTML page of one run or several, and the same numbers for other tools."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined

from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.evaluation import seeds
from robometer.evaluation.predictions import Predictions
from robometer.evaluation.results import Result, metric_rows
from robometer.report import clips, exports, figures, published, tables
from robometer.report.comparison import SOURCE_RESAMPLES, RunComparison, compare_runs, remarks
from robometer.report.runs import METRICS_JSON, EvaluationRun, settings_of, splits_of
from robometer.trajectory import QUALITY_LABELS

REPORT, METRICS_TABLE = "report.html", "metrics.parquet"

COLOURS = 8  # of models on the page; the ninth model has the first colour again

_MAX_ERRORS_SHOWN = 20


def summary(results: Sequence[Result], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `metrics.json`: strict JSON, with null for an undefined number.

    `metrics[split][evaluation][name]` has value, low, high, n and how it was resampled. `per_task` has the same keys
    without the name; `skipped` has the keys `split/evaluation`.
    """
    metrics: dict[str, Any] = {}
    for row in metric_rows(results):
        of_split = metrics.setdefault(row.pop("split"), {})
        of_split.setdefault(row.pop("evaluation"), {})[row.pop("metric")] = row
    per_task: dict[str, Any] = {}
    for result in results:
        per_task.setdefault(result.split, {})[result.evaluation] = result.per_task
    return {
        "provenance": _strict(provenance),
        "metrics": _strict(metrics),
        "skipped": {f"{r.split}/{r.evaluation}": r.skipped for r in results if r.skipped},
        "per_task": _strict(per_task),
    }


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write(
    storage: Storage,
    results: Sequence[Result],
    predictions: Predictions,
    provenance: Mapping[str, Any],
    corpus: Corpus | None,
) -> dict[str, Any]:
    """Write all files of one evaluation except the predictions, and return the content of `metrics.json`.

    Without the corpus, which holds the frames, the page has no clips.
    """
    content = summary(results, provenance)
    storage.write_bytes(METRICS_JSON, json.dumps(content, indent=1, allow_nan=False).encode())
    if rows := metric_rows(results):
        storage.write_parquet(METRICS_TABLE, pa.Table.from_pylist(rows))
    settings = replace(
        settings_of([provenance]),
        splits=list(dict.fromkeys(r.split for r in results)),
        evaluations=list(dict.fromkeys(r.evaluation for r in results)),
    )
    run = EvaluationRun(str(provenance["model"]), predictions, provenance, results, settings)
    storage.write_bytes(REPORT, render(compare_runs([run]), corpus).encode())
    return content


def write_report(storage: Storage, runs: Sequence[EvaluationRun], corpus: Corpus | None) -> None:
    """Write `report.html`, `report.md`, `report.tex` and `report.csv` of runs over one corpus.

    The first run is the baseline that the others are compared with.
    """
    comparison = compare_runs(runs)
    storage.write_bytes(REPORT, render(comparison, corpus).encode())
    for name, text in exports.files(comparison).items():
        storage.write_bytes(name, text.encode())


def render(comparison: RunComparison, corpus: Corpus | None) -> str:
    """The self-contained page. Without the corpus, which holds the frames, it has no clips."""
    environment = Environment(
        loader=PackageLoader("robometer.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["words"] = lambda name: name.replace("_", " ")
    runs, several = comparison.runs, comparison.several
    return environment.get_template("report.html.jinja2").render(
        runs=runs,
        several=several,
        colours=COLOURS,
        remarks=remarks(runs) + ([] if corpus else ["The corpus was not available, so there are no clips."]),
        cards=[] if several else tables.cards(runs[0]),
        leaderboards=tables.leaderboards(runs) if several else [],
        seed_tables=seeds.seed_tables(runs),
        over_seeds=seeds.OVER_SEEDS,
        difference_tables=tables.difference_tables(comparison),
        effective_n=tables.EFFECTIVE_N,
        metric_tables=tables.metric_tables(comparison),
        source_resamples=min(runs[0].settings.bootstrap, SOURCE_RESAMPLES),
        source_tables=tables.source_tables(comparison),
        anchor_tables=published.anchor_tables(comparison),
        protocol=published.protocol(runs),
        task_tables=tables.task_tables(runs),
        clips=clips.clip_cards(runs, corpus, splits_of(runs)) if corpus is not None else [],
        heat_maps=figures.heat_maps(runs),
        strips=figures.strips(runs),
        reliability=figures.reliability(runs),
        qualities=list(reversed(QUALITY_LABELS)),
        max_errors=_MAX_ERRORS_SHOWN,
    )
