"""Predictions of a scorer, independent of the metrics, and the Parquet tables that hold them.

There are three kinds. `predictions`: every clip under its own task, in one or more views (`views`), beside the truth.
`instructions`: the last-frame progress of successful clips under other instructions. `pairs`: preferences, with each
pair shown in both orders. If `error` is not empty, the scorer failed: the record is counted, but enters no metric.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import pyarrow as pa

from robometer.corpus.storage import Storage
from robometer.evaluation.views import VIEWS, true_progress

PAIR_KINDS = ("quality", "task", "reversed")


@dataclass(frozen=True)
class ClipPrediction:
    """One clip under its own task.

    Attributes:
        view: how it was shown, a name in `views`: `forward`, or its frames in another order.
        progress, success: float32 [T] in the order of the view; empty if there is an `error`.
        env_reward, env_success: float32 [T], the simulator's reward and success flag at these frames; empty if unknown.
        reward: what the clip is ranked by (`ClipScore.reward`); NaN means the last progress.
        coverage: see `ClipScore`.
        partial_success: how much of the task was done, if somebody judged that; else NaN.
        num_frames: how many stored frames the view is made of; 0 means as many as it shows.
    """

    split: str
    id: str
    row: int
    source: str
    task: str
    quality_label: str
    view: str
    progress: np.ndarray
    success: np.ndarray
    env_reward: np.ndarray
    env_success: np.ndarray
    error: str = ""
    reward: float = math.nan
    coverage: float = 1.0
    partial_success: float = math.nan
    num_frames: int = 0

    @property
    def value(self) -> float:
        """What the clip is ranked by."""
        return float(self.progress[-1]) if math.isnan(self.reward) else self.reward

    @property
    def true_progress(self) -> np.ndarray:
        """Of a successful clip, float64 [T]: how far into the clip each frame of the view lies."""
        positions = VIEWS[self.view](self.num_frames) if self.view in VIEWS and self.num_frames else None
        return true_progress(np.arange(len(self.progress)) if positions is None else positions)


@dataclass(frozen=True)
class InstructionPrediction:
    """The last-frame progress of one clip under one instruction.

    Attributes:
        kind: `own`; `other` (of another task in the split); `counterfactual` (its own, reversed); or `paraphrase`.
    """

    split: str
    id: str
    row: int
    task: str
    instruction: str
    final_progress: float
    kind: str = "other"


@dataclass(frozen=True)
class PairPrediction:
    """One preference under `task`, with the pair shown in both orders.

    Attributes:
        kind: `quality` (two qualities of one task), `task` (a successful clip of this task against one of another
            task) or `reversed` (a successful clip against itself played backwards).
        chosen_id, rejected_id: the better and the worse clip by their labels.
        chosen_first: P(chosen better) with the chosen clip shown first.
        chosen_second: P(chosen better) with the chosen clip shown second.
    """

    split: str
    kind: str
    task: str
    chosen_id: str
    rejected_id: str
    chosen_quality: str
    rejected_quality: str
    chosen_first: float
    chosen_second: float
    error: str = ""


Prediction = ClipPrediction | InstructionPrediction | PairPrediction

_TYPES = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "np.ndarray": pa.list_(pa.float32())}


def _struct(kind: type) -> pa.StructType:
    return pa.struct([(f.name, _TYPES[str(f.type)]) for f in fields(kind)])


_KINDS: dict[str, type] = {
    "predictions": ClipPrediction,
    "instructions": InstructionPrediction,
    "pairs": PairPrediction,
}

PREDICTION_SCHEMA = pa.schema([(name, _struct(kind)) for name, kind in _KINDS.items()])
"""Predictions of all three kinds in one stream: exactly one column of each row is not null."""


@dataclass
class Predictions:
    """All predictions of one scorer on the evaluated splits."""

    clips: list[ClipPrediction] = field(default_factory=list)
    instructions: list[InstructionPrediction] = field(default_factory=list)
    pairs: list[PairPrediction] = field(default_factory=list)

    @classmethod
    def of(cls, records: Iterable[Prediction]) -> Predictions:
        """Sort records into their tables. The order is fixed, whatever order workers answered in."""
        predictions = cls()
        for record in records:
            if isinstance(record, ClipPrediction):
                predictions.clips.append(record)
            elif isinstance(record, PairPrediction):
                predictions.pairs.append(record)
            else:
                predictions.instructions.append(record)
        predictions.clips.sort(key=lambda r: (r.split, r.id, r.view))
        predictions.instructions.sort(key=lambda r: (r.split, r.id, r.instruction))
        predictions.pairs.sort(key=lambda r: (r.split, r.kind, r.task, r.chosen_id, r.rejected_id))
        return predictions

    def split(self, name: str) -> Predictions:
        """The predictions on one split, without failed ones."""
        return Predictions(
            [r for r in self.clips if r.split == name and not r.error],
            [r for r in self.instructions if r.split == name],
            [r for r in self.pairs if r.split == name and not r.error],
        )

    def split_names(self) -> list[str]:
        """Splits with at least one scored clip or pair, sorted."""
        return sorted({c.split for c in self.clips if not c.error} | {p.split for p in self.pairs if not p.error})

    def errors(self) -> list[ClipPrediction | PairPrediction]:
        """The failed predictions."""
        return [*(c for c in self.clips if c.error), *(p for p in self.pairs if p.error)]

    def save(self, storage: Storage) -> None:
        """Write `predictions.parquet`, `instructions.parquet` and `pairs.parquet`."""
        tables: dict[str, Sequence[Prediction]] = {
            "predictions": self.clips,
            "instructions": self.instructions,
            "pairs": self.pairs,
        }
        for name, records in tables.items():
            rows = [_row(record) for record in records]
            storage.write_parquet(f"{name}.parquet", pa.Table.from_pylist(rows, schema=_table_schema(name)))

    @classmethod
    def load(cls, storage: Storage) -> Predictions:
        """Read what `save` wrote, or what an earlier version wrote under other names."""
        tables = {name: _read_table(storage, name).to_pylist() for name in _KINDS}
        return cls.of(_record(name, row) for name, rows in tables.items() for row in rows)


def to_table(records: Sequence[Prediction]) -> pa.Table:
    """Predictions as one Arrow table of `PREDICTION_SCHEMA`, which workers return."""
    names = {kind: name for name, kind in _KINDS.items()}
    rows = [{names[type(record)]: _row(record)} for record in records]
    return pa.Table.from_pylist(rows, schema=PREDICTION_SCHEMA)


def from_table(table: pa.Table) -> list[Prediction]:
    """Inverse of `to_table`."""
    return [_record(name, row[name]) for row in table.to_pylist() for name in _KINDS if row[name] is not None]


_EARLIER_TABLES = {"instructions": "confusion"}
_EARLIER_COLUMNS = {"success_label": "env_success"}


def _read_table(storage: Storage, name: str) -> pa.Table:
    earlier = _EARLIER_TABLES.get(name, name)
    table = storage.read_parquet(f"{name if storage.exists(f'{name}.parquet') else earlier}.parquet")
    return table.rename_columns([_EARLIER_COLUMNS.get(column, column) for column in table.column_names])


def _table_schema(name: str) -> pa.Schema:
    return pa.schema(list(_struct(_KINDS[name])))


def _row(record: Prediction) -> dict[str, Any]:
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(record).items()}


def _record(name: str, row: dict[str, Any]) -> Prediction:
    values = {k: np.asarray(v, dtype=np.float32) if isinstance(v, list) else v for k, v in row.items()}
    record: Prediction = _KINDS[name](**values)
    return record
