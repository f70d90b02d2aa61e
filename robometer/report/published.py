"""Published results beside ours, and why they may not be comparable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from robometer.evaluation.anchors import Anchor, AnchorRow, Average, anchors, common_caveats
from robometer.report.comparison import RunComparison
from robometer.report.headlines import best
from robometer.report.runs import EvaluationRun, splits_of
from robometer.report.tables import Table, number


def anchor_tables(comparison: RunComparison) -> list[Table]:
    """Every published table with a counterpart in these runs. Rows are models, first theirs and then ours.

    Columns are the published averages (or the rows, if there are none), the published data sets that our corpus also
    has, and our splits. All published rows follow in a table of their own.
    """
    return [_table(anchor, comparison) for anchor in anchors().values() if _splits(anchor, comparison.runs)]


def _splits(anchor: Anchor, runs: Sequence[EvaluationRun]) -> list[str]:
    """Splits on which at least one run has the anchor's metric."""
    return [s for s in splits_of(runs) if any(r.metric(anchor.evaluation, s, anchor.metric) for r in runs)]


def _table(anchor: Anchor, comparison: RunComparison) -> Table:
    splits = _splits(anchor, comparison.runs)
    columns = _columns(anchor, comparison)
    rows = [
        row | {"cells": row["cells"] + [_cell(math.nan, anchor)] * len(splits)}
        for row in _published_rows(anchor, columns)
    ]
    for run in comparison.runs:
        on_columns = [_ours_on(anchor, column, comparison.sources[run.name]) for column in columns]
        on_splits = [_ours(anchor, run, split) for split in splits]
        cells = [_cell(value, anchor) for value in (*on_columns, *on_splits)]
        rows.append({"name": run.name, "ours": True, "cells": cells})
    return {
        "anchor": anchor,
        "columns": [*(column.name for column in columns), *(f"ours, {split}" for split in splits)],
        "rows": rows,
        "all": _all_rows(anchor),
        "caveats": _caveats(anchor, comparison.runs),
    }


def _columns(anchor: Anchor, comparison: RunComparison) -> list[Average | AnchorRow]:
    averages = [average for average in anchor.averages if set(anchor.models) <= set(average.values)]
    if not averages:
        return list(anchor.rows)
    ours = {source for by_source in comparison.sources.values() for source in by_source}
    return [*averages, *(row for row in anchor.rows if row.data_source in ours)]


def _published_rows(anchor: Anchor, columns: Sequence[Average | AnchorRow]) -> list[Table]:
    tops = [best(list(column.values.values()), anchor.lower_is_better) for column in columns]
    rows: list[Table] = []
    for model in anchor.models:
        values = [column.values.get(model, math.nan) for column in columns]
        cells = [_cell(value, anchor, value == top) for value, top in zip(values, tops, strict=True)]
        rows.append({"name": model, "ours": False, "cells": cells})
    return rows


def _cell(value: float, anchor: Anchor, is_best: bool = False) -> Table:
    return {"value": _formatted(value, anchor), "best": is_best}


def _formatted(value: float, anchor: Anchor) -> str:
    if not math.isfinite(value):
        return ""
    return f"{value:.1f}" if anchor.scale == 100 else number(value)


def _ours(anchor: Anchor, run: EvaluationRun, split: str) -> float:
    metric = run.metric(anchor.evaluation, split, anchor.metric)
    return metric.estimate.value * anchor.scale if metric else math.nan


def _ours_on(anchor: Anchor, column: AnchorRow | Average, by_source: Mapping[str, EvaluationRun]) -> float:
    """Our value on a published data set; NaN for an average, and for a data set that is in no split or in several."""
    run = by_source.get(column.data_source) if isinstance(column, AnchorRow) else None
    values = [v for s in splits_of([run]) if math.isfinite(v := _ours(anchor, run, s))] if run else []
    return values[0] if len(values) == 1 else math.nan


def _all_rows(anchor: Anchor) -> list[list[str]]:
    lines: list[list[str]] = []
    rows: list[AnchorRow | Average] = [*anchor.rows, *anchor.averages]
    for row in rows:
        name = row.name
        if isinstance(row, Average) and row.differs:
            name += " (" + "; ".join(f"{model}: {why}" for model, why in row.differs.items()) + ")"
        lines.append([name, *(_formatted(row.values.get(model, math.nan), anchor) for model in anchor.models)])
    return lines


def protocol(runs: Sequence[EvaluationRun]) -> list[str]:
    """How our protocol differs from all published numbers, a sentence each."""
    facts = [(name, _once([run.provenance.get(name) for run in runs])) for name in ("mode", "frames")]
    ours = "; ".join(f"{name} {value}" for name, value in facts if value)
    theirs = "theirs padded clips to a fixed number of frames, and scored prefixes or whole clips (accounts differ)"
    return [f"Other protocol: ours is {ours or 'not recorded'}; {theirs}.", *map(_sentence, common_caveats())]


def _caveats(anchor: Anchor, runs: Sequence[EvaluationRun]) -> list[str]:
    """Whether a table is over other data than ours, and its other caveats."""
    sources = {clip.source for run in runs for clip in run.predictions.clips}
    published = [row for row in anchor.rows if row.data_source]
    here = [row.name for row in published if row.data_source in sources]
    names = ", ".join(sorted(sources)) or "none"
    sentences = []
    if not here:
        sentences.append(
            f"Other data: no published data set is among ours ({names}), so the numbers are not comparable."
        )
    elif len(here) < len(published):
        sentences.append(
            f"Other data: ours has {len(here)} of {len(published)} published data sets ({', '.join(here)})."
        )
    return [*sentences, *map(_sentence, anchor.caveats)]


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _once(values: Sequence[Any]) -> str:
    return " or ".join(dict.fromkeys(str(value) for value in values if value))
