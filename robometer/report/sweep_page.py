"""One self-contained HTML page of a sweep: its trials, what decides about them, and how each one learned."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from scipy import stats

from robometer.report.tables import interval, number, signed
from robometer.sweeps.journal import TrialRecord
from robometer.sweeps.search import Objectives
from robometer.sweeps.table import CONFIDENCE, PARETO, TIED, Confirmation

RESAMPLES = 2000
HEAD = ("trial", "error")
WIDE, HIGH = 1000, 280
"""Of a drawing, in its own units."""

Figure = dict[str, Any]


@dataclass(frozen=True)
class SweepStory:
    """What the page tells.

    Attributes:
        table: of `robometer.sweeps.table.trial_table`.
        records: the trials by name.
        keys: the swept settings.
        settings: words and values for the head of the page.
        remarks: what a reader should know before the numbers.
        given: what the first trial is.
        heritage: of each run of a population that went on from another trial: its name, that of the other trial's run,
            and its values.
    """

    table: pd.DataFrame
    records: Mapping[str, TrialRecord]
    keys: Sequence[str]
    objectives: Objectives
    settings: Mapping[str, str]
    remarks: Sequence[str]
    given: str = "settings as they are"
    heritage: Sequence[tuple[str, str, Mapping[str, Any]]] = ()
    confirmed: Confirmation | None = None


def render(story: SweepStory) -> str:
    """The page."""
    environment = Environment(
        loader=PackageLoader("robometer.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    good = story.table[story.table["error"] == ""].reset_index(drop=True)
    metric, mode = story.objectives[0]
    environment.filters["breaking"] = _breaking
    return environment.get_template("sweep.html.jinja2").render(
        story=story,
        metric=metric,
        mode=mode,
        rows=_rows(story),
        columns=_columns(story),
        heritage=[
            (name, source, [_cell(values[key]) for key in story.keys]) for name, source, values in story.heritage
        ],
        comparison=_comparison(story.confirmed) if story.confirmed else None,
        axes=_parallel(good, story.keys, metric),
        importance=importance(good, story.keys, metric),
        pareto=_front(good, story.objectives) if len(story.objectives) > 1 else None,
        curves=_curves(story, str(good["trial"].iloc[0])),
        wide=WIDE,
        high=HIGH,
    )


def _columns(story: SweepStory) -> list[str]:
    """The columns of the table on the page: the result first, then the settings, then what else was measured."""
    first = [*(metric for metric, _ in story.objectives), PARETO, TIED, "step"]
    return [
        *(name for name in first if name in story.table),
        *story.table.columns.difference([*first, *HEAD], sort=False),
    ]


def _rows(story: SweepStory) -> list[Figure]:
    columns = _columns(story)
    return [
        {
            "trial": row["trial"],
            "what": story.given if row["trial"] == story.table["trial"].min() else "",
            "cells": [_cell(row[name]) for name in columns],
            "error": row["error"],
            "best": place == 0,
        }
        for place, (_, row) in enumerate(story.table.iterrows())
    ]


def _breaking(name: str) -> Markup:
    """A name that may break after its dots, slashes and low lines."""
    return Markup(re.sub(r"([./_])", r"\1<wbr>", str(escape(name))))  # noqa: S704  escaped here


def _cell(value: Any) -> str:
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    return str(value)


def _comparison(confirmed: Confirmation) -> Figure:
    return {
        "pairs": [
            {"seed": seed, "given": number(given), "won": number(won), "difference": signed(won - given)}
            for seed, given, won in zip(confirmed.seeds, confirmed.given, confirmed.won, strict=True)
        ],
        "given": number(float(np.mean(confirmed.given))),
        "won": number(float(np.mean(confirmed.won))),
        "difference": signed(confirmed.difference),
        "interval": interval(*confirmed.interval),
        "least": number(confirmed.least),
    }


# --- parallel coordinates -------------------------------------------------------------------------------------------


def _parallel(good: pd.DataFrame, keys: Sequence[str], metric: str) -> Figure:
    """A line for each trial over one axis for each key and one for the metric; the best trial is drawn last."""
    axes = [_axis(name, good[name].tolist()) for name in [*keys, metric]]
    gap = WIDE / max(1, len(axes) - 1)
    for i, axis in enumerate(axes):
        axis["x"] = round(i * gap, 1)
    lines = []
    for place, trial in enumerate(good["trial"]):
        heights = [axis["heights"][place] for axis in axes]
        whole = [(axis["x"], height) for axis, height in zip(axes, heights, strict=True) if height is not None]
        lines.append(
            {
                "points": " ".join(f"{x},{y:.1f}" for x, y in whole),
                "best": place == 0,
                "strength": round(1 - 0.75 * place / max(1, len(good) - 1), 2),
                "title": f"trial {trial}: "
                + ", ".join(f"{name} {_cell(good[name].iloc[place])}" for name in [*keys, metric]),
            }
        )
    return {"axes": axes, "lines": lines[::-1]}


def _axis(name: str, values: Sequence[Any]) -> Figure:
    """Height of each value on an axis, None for none; numbers that span decades are on a logarithmic scale."""
    present = [value for value in values if not _missing(value)]
    numeric = bool(present) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in present)
    if not numeric:
        options = sorted({str(value) for value in present})
        heights = [
            None if _missing(value) else _height(options.index(str(value)), 0, len(options) - 1) for value in values
        ]
        ticks = [{"y": _height(i, 0, len(options) - 1), "text": option} for i, option in enumerate(options)]
        return {"name": name, "heights": heights, "ticks": ticks, "log": False}
    low, high = min(present), max(present)
    log = low > 0 and high / low >= 20
    scale = math.log10 if log else float
    heights = [None if _missing(value) else _height(scale(value), scale(low), scale(high)) for value in values]
    ticks = [{"y": _height(scale(value), scale(low), scale(high)), "text": f"{value:.3g}"} for value in {low, high}]
    return {"name": name, "heights": heights, "ticks": ticks, "log": log}


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _height(value: float, low: float, high: float) -> float:
    """Place on an axis that points upwards; in its middle where all values are one."""
    return round(HIGH * (1 - (value - low) / (high - low) if high > low else 0.5), 1)


# --- what decides ---------------------------------------------------------------------------------------------------


def importance(good: pd.DataFrame, keys: Sequence[str], metric: str) -> list[Figure]:
    """Rank correlation of each swept key with the metric, with a bootstrap interval over trials.

    A choice has a row for each of its options: whether it was taken. The shares stand for weights where all losses are
    swept, since Adam sees no more of them. Rows are sorted by strength; those without any spread are left out.
    """
    shares = [name for name in good if name.endswith("_share")]
    names = [*(key for key in keys if not (shares and key.endswith("_weight"))), *shares]
    columns: dict[str, np.ndarray] = {}
    for name in names:
        columns |= _numbers(name, good[name].tolist())
    goal = good[metric].to_numpy(float)
    rows = [row for name, values in columns.items() if (row := _correlation(name, values, goal)) is not None]
    return sorted(rows, key=lambda row: -abs(row["value"]))


def _numbers(name: str, values: Sequence[Any]) -> dict[str, np.ndarray]:
    present = [value for value in values if not _missing(value)]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in present):
        return {name: np.array([math.nan if _missing(value) else float(value) for value in values])}
    options = sorted({str(value) for value in present})
    return {
        f"{name} = {option}": np.array([math.nan if _missing(v) else float(str(v) == option) for v in values])
        for option in options[1 if len(options) == 2 else 0 :]
    }


def _correlation(name: str, values: np.ndarray, goal: np.ndarray) -> Figure | None:
    kept = np.isfinite(values) & np.isfinite(goal)
    values, goal = values[kept], goal[kept]
    if len(values) < 4 or len(set(values)) < 2 or len(set(goal)) < 2:
        return None
    generator = np.random.default_rng([0, len(values)])
    picks = generator.integers(len(values), size=(RESAMPLES, len(values)))
    replicates = np.array([_spearman(values[pick], goal[pick]) for pick in picks])
    replicates = replicates[np.isfinite(replicates)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    value = _spearman(values, goal)
    return {
        "name": name,
        "value": value,
        "text": signed(value),
        "interval": interval(float(low), float(high)),
        "n": len(values),
        "told": bool(low > 0 or high < 0),
        "left": round(50 + 50 * float(low), 1),
        "width": round(50 * float(high - low), 1),
        "at": round(50 + 50 * value, 1),
    }


def _spearman(one: np.ndarray, other: np.ndarray) -> float:
    ranks = stats.rankdata(one), stats.rankdata(other)
    spread = [rank.std() for rank in ranks]
    if min(spread) == 0:
        return math.nan
    return float(np.mean((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())) / (spread[0] * spread[1]))


# --- several objectives, and learning -------------------------------------------------------------------------------


def _front(good: pd.DataFrame, objectives: Objectives) -> Figure:
    """The first two objectives of each trial; trials on the front are joined."""
    (x, _), (y, _) = objectives[:2]
    across, up = _scale(good[x].tolist()), _scale(good[y].tolist())
    dots = [
        {
            "x": round(WIDE / 2 * across(row[x]), 1),
            "y": round(HIGH * (1 - up(row[y])), 1),
            "front": bool(row[PARETO]),
            "title": f"trial {row['trial']}: {x} {_cell(row[x])}, {y} {_cell(row[y])}",
        }
        for _, row in good.iterrows()
        if not _missing(row[x]) and not _missing(row[y])
    ]
    front = sorted((dot["x"], dot["y"]) for dot in dots if dot["front"])
    return {
        "x": x,
        "y": y,
        "dots": dots,
        "line": " ".join(f"{a},{b}" for a, b in front) if len(objectives) == 2 else "",
        "ends": [number(float(end)) for end in (good[x].min(), good[x].max(), good[y].min(), good[y].max())],
        "more": [metric for metric, _ in objectives[2:]],
    }


def _scale(values: Sequence[float]) -> Any:
    low, high = np.nanmin(values), np.nanmax(values)
    return lambda value: 0.5 if high == low else (value - low) / (high - low)


def _curves(story: SweepStory, best: str) -> Figure:
    """The metric of every trial over its steps, failed ones too, where it was measured."""
    metric = story.objectives[0][0]
    given = min(story.table["trial"])
    measured = {
        name: [
            (one["step"], one[metric])
            for one in story.records[name].reports
            if math.isfinite(one.get(metric, math.nan))
        ]
        for name in story.table["trial"]
    }
    values = [value for points in measured.values() for _, value in points]
    last = max(step for points in measured.values() for step, _ in points)
    low, high = min(values), max(values)
    kinds = {name: "best" if name == best else "given" if name == given else "" for name in measured}
    lines = [
        {
            "points": " ".join(f"{WIDE * step / last:.1f},{_height(value, low, high)}" for step, value in points),
            "dots": [(round(WIDE * step / last, 1), _height(value, low, high)) for step, value in points],
            "kind": kinds[name],
            "title": f"trial {name}: " + ", ".join(f"{number(float(v))} at {int(step)}" for step, v in points),
        }
        for name, points in measured.items()
        if points
    ]
    lines.sort(key=lambda line: ["", "given", "best"].index(str(line["kind"])))
    return {"lines": lines, "low": number(float(low)), "high": number(float(high)), "last": int(last)}
