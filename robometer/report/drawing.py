"""Charts of the HTML pages: per-frame values for SVG and CSS, in percent of the chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np


@dataclass(frozen=True)
class Span:
    """A stretch of the chart, in percent of its width."""

    left: float
    width: float


def place(position: float, count: int) -> float:
    """Position of a frame: the first of `count` at 0, the last at 100."""
    return 100 * position / max(1, count - 1)


def points(values: Sequence[float] | np.ndarray) -> str:
    """Points of an SVG polyline in a box of 100 x 100, y down, for values from 0 to 1."""
    return " ".join(f"{place(i, len(values)):.2f},{100 - 100 * float(v):.2f}" for i, v in enumerate(values))


def spans(flags: Sequence[float] | np.ndarray) -> list[Span]:
    """Where a flag (0 or 1 per frame) is set; a frame extends half way to its neighbours."""
    stretches, start, last = [], 0, len(flags) - 1
    for up, run in groupby(flag > 0.5 for flag in flags):
        stop = start + len(list(run))
        if up:
            left, right = place(max(start - 0.5, 0), len(flags)), place(min(stop - 0.5, last), len(flags))
            stretches.append(Span(round(left, 2), round(right - left, 2)))
        start = stop
    return stretches
