"""Reading what was recorded of upstream, and rows that say how far a value of ours is from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from parity.row import Row

EXACT, FLOAT64, FLOAT32 = 0.0, 1e-9, 1e-5
"""Tolerances: what must be equal, float64 maths, float32 metrics and values over HTTP."""

Record = dict[str, Any]

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def read(path: Path) -> Any:
    """The content of a JSON file, in which numbers that are not finite stand as strings."""
    return _numbers(json.loads(path.read_text()))


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return _NOT_FINITE.get(value, value) if isinstance(value, str) else value


def gap(ours: Any, theirs: Any) -> float:
    """Largest absolute difference of two nested values; infinite where their keys, lengths, texts or kinds differ.

    NaN equals NaN, and None, which is how upstream writes a value that is undefined.
    """
    if isinstance(theirs, Mapping):
        same = isinstance(ours, Mapping) and ours.keys() == theirs.keys()
        return max((gap(ours[key], theirs[key]) for key in theirs), default=0.0) if same else math.inf
    if isinstance(theirs, Sequence) and not isinstance(theirs, str):
        same = not isinstance(ours, str | Mapping) and hasattr(ours, "__len__") and len(ours) == len(theirs)
        return max((gap(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0) if same else math.inf
    if isinstance(theirs, str) or isinstance(ours, str):
        return 0.0 if ours == theirs else math.inf
    a, b = (math.nan if value is None else float(value) for value in (ours, theirs))
    if math.isnan(a) or math.isnan(b):
        return 0.0 if math.isnan(a) and math.isnan(b) else math.inf
    return 0.0 if a == b else abs(a - b)


def brief(value: Any) -> str:
    """A value as text for one line, with four digits."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {brief(item)}" for key, item in value.items())
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str | int | None):
        return str(value)
    return "[" + ", ".join(brief(item) for item in value) + "]"


def compared(case: str, what: str, ours: Any, theirs: Any, tolerance: float) -> Row:
    """Our value against upstream's."""
    return Row(case, what, gap(ours, theirs), tolerance)


def unless_wrong(case: str, what: str, ours: Any, theirs: Any, tolerance: float, wrong: bool, reason: str) -> Row:
    """Our value against upstream's, which may differ only where the record has what makes upstream `wrong`."""
    error = gap(ours, theirs)
    if wrong and error > tolerance:
        return Row(case, what, error, tolerance, reason, brief(ours))
    return Row(case, what, error, tolerance)


def raised(case: str, what: str, outcome: Record, ours: Any) -> Row:
    """Our value where upstream raised, by its record `{"ok": false, "error": ...}`."""
    reason = f"upstream raises {outcome['error']} ({outcome['message']})"
    return Row(case, what, math.nan, EXACT, reason, brief(ours))
