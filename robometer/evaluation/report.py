"""Files of an evaluation: one self-contained HTML page, `metrics.json`, and Parquet tables of metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined

from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.evaluation import figures
from robometer.evaluation.predictions import Predictions
from robometer.evaluation.results import Result, metric_rows
from robometer.trajectory import QUALITY_LABELS

REPORT, METRICS_JSON, METRICS_TABLE = "report.html", "metrics.json", "metrics.parquet"

_MAX_ERRORS_SHOWN = 20


def summary(results: Sequence[Result], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What `metrics.json` holds: strict JSON, null where a number is undefined.

    `metrics[split][evaluation][name]` has value, low, high, n and how it was resampled; `skipped` and `per_task` are
    keyed the same way.
    """
    metrics: dict[str, Any] = {}
    for row in metric_rows(results):
        of_split = metrics.setdefault(row.pop("split"), {})
        of_split.setdefault(row.pop("evaluation"), {})[row.pop("metric")] = row
    tables: dict[str, Any] = {}
    for result in results:
        tables.setdefault(result.split, {})[result.evaluation] = result.per_task
    return {
        "provenance": _strict(provenance),
        "metrics": _strict(metrics),
        "skipped": {f"{r.split}/{r.evaluation}": r.skipped for r in results if r.skipped},
        "per_task": _strict(tables),
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
    """Write all files but the predictions themselves, and return what `metrics.json` holds.

    Without the corpus, which holds the pictures, the page has no clips.
    """
    found = summary(results, provenance)
    storage.write_bytes(METRICS_JSON, json.dumps(found, indent=1, allow_nan=False).encode())
    if rows := metric_rows(results):
        storage.write_parquet(METRICS_TABLE, pa.Table.from_pylist(rows))
    storage.write_bytes(REPORT, render(results, predictions, provenance, corpus).encode())
    return found


def render(
    results: Sequence[Result], predictions: Predictions, provenance: Mapping[str, Any], corpus: Corpus | None
) -> str:
    """The page: everything it shows is inside it."""
    environment = Environment(
        loader=PackageLoader("robometer.evaluation"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    splits = list(dict.fromkeys(r.split for r in results))
    errors = predictions.errors()
    return environment.get_template("report.html.jinja2").render(
        provenance=provenance,
        headlines=figures.headlines(results),
        metric_tables=figures.metric_tables(results),
        task_tables=figures.task_tables(results),
        clips=figures.clip_cards(predictions, corpus, splits) if corpus is not None else [],
        heat_maps=figures.heat_maps(results),
        strips=figures.strips(results),
        qualities=list(reversed(QUALITY_LABELS)),
        errors=errors[:_MAX_ERRORS_SHOWN],
        error_count=len(errors),
    )
