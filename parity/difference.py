"""How far our arrays are from upstream's recorded ones, as rows of the table; `recorded` has the same for JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from parity.row import Row


def numbered(group: str, name: str, cases: list[Any]) -> Iterator[tuple[str, Any]]:
    """Cases of a list that have no names of their own, named by their place."""
    for i, case in enumerate(cases):
        yield f"{group}/{name}[{i}]", case


def exact(case: str, what: str, ours: Any, theirs: Any) -> Row:
    """Text, indices and ids: equal or not."""
    same = np.array_equal(_array(ours), _array(theirs)) if _is_array(ours) or _is_array(theirs) else ours == theirs
    return Row(case, what, 0.0 if same else 1.0, 0.0)


def close(case: str, what: str, ours: Any, theirs: Any, atol: float = 0.0, rtol: float = 0.0) -> Row:
    """Numbers: NaN and infinity must stand where upstream's stand, and shapes be equal (else the error is infinite).

    Args:
        atol: absolute tolerance.
        rtol: tolerance as a share of upstream's largest absolute value.
    """
    a, b = np.asarray(_array(ours), dtype=np.float64), np.asarray(_array(theirs), dtype=np.float64)
    finite = np.isfinite(b)
    largest = float(np.abs(b[finite]).max(initial=0.0))
    tolerance = atol + rtol * largest
    if a.shape != b.shape or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return Row(case, what, math.inf, tolerance)
    return Row(case, what, float(np.abs(a - b)[finite].max(initial=0.0)), tolerance)


def wrong_upstream(case: str, what: str, reason: str, theirs: Any, ours: Any) -> Row:
    """A case in which upstream is wrong, with both values as text."""
    both = [np.asarray(_array(value)) for value in (ours, theirs)]
    numeric = all(array.dtype.kind in "fiub" for array in both) and both[0].shape == both[1].shape
    error = float(np.abs(both[0].astype(float) - both[1].astype(float)).max(initial=0.0)) if numeric else math.nan
    return Row(case, what, error, 0.0, reason, f"upstream {_short(theirs)}, ours {_short(ours)}")


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | torch.Tensor)


def _array(value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value


def _short(value: Any) -> str:
    if isinstance(value, str):
        return value
    with np.printoptions(precision=4, threshold=8, edgeitems=3, suppress=True):
        return " ".join(str(np.asarray(_array(value))).split())
