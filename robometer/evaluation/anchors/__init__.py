"""Published results, to compare with ours. `published.yaml` holds them with their sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
import yaml

Values = Mapping[str, float]
"""Published values by model; a model without a value is left out."""


@dataclass(frozen=True)
class AnchorRow:
    """One published row.

    Attributes:
        name: data set or setting, as published.
        group: averages are over the rows of a group.
        data_source: our name for the data set; empty if there is none.
    """

    name: str
    group: str
    data_source: str
    values: Values


@dataclass(frozen=True)
class Average:
    """A published average over the rows of `group`. If the rows do not give it, `differs` says why, by model."""

    name: str
    group: str
    values: Values
    differs: Mapping[str, str]


@dataclass(frozen=True)
class Anchor:
    """One published table.

    Attributes:
        source, date: who published it, and when it was read (year and month).
        models: its columns.
        caveats: why our numbers may differ, besides the `common_caveats`.
        evaluation, metric: our counterpart; empty if there is none.
        scale: factor from our unit to the table's.
        lower_is_better: whether the smallest value of a row is the best.
    """

    title: str
    source: str
    date: str
    models: Sequence[str]
    rows: Sequence[AnchorRow]
    averages: Sequence[Average]
    caveats: Sequence[str]
    evaluation: str = ""
    metric: str = ""
    scale: float = 1.0
    lower_is_better: bool = False

    def recomputed(self, average: Average) -> dict[str, float]:
        """Mean of the rows of an average's group, for each model that the average is published for."""
        rows = [row for row in self.rows if row.group == average.group]
        return {model: float(np.mean([row.values[model] for row in rows])) for model in average.values}


@lru_cache(maxsize=1)
def anchors() -> dict[str, Anchor]:
    """All published tables by name."""
    return {name: _anchor(table) for name, table in _file()["tables"].items()}


def common_caveats() -> list[str]:
    """Why our numbers may differ from all published ones."""
    return list(_file()["caveats"])


def _file() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(resources.files(__name__).joinpath("published.yaml").read_text("utf-8"))
    return loaded


def _anchor(table: dict[str, Any]) -> Anchor:
    models = table.pop("columns")
    differs = table.pop("differs", [])
    return Anchor(
        **table
        | {
            "date": str(table["date"]),
            "models": models,
            "rows": [AnchorRow(name, group, ours or "", _values(models, v)) for name, group, ours, *v in table["rows"]],
            "averages": [
                Average(name, group, _values(models, v), {model: why for of, model, why in differs if of == name})
                for name, group, *v in table.get("averages", [])
            ],
            "caveats": table.get("caveats", []),
        }
    )


def _values(models: Sequence[str], values: Sequence[float | None]) -> dict[str, float]:
    return {model: float(value) for model, value in zip(models, values, strict=True) if value is not None}
