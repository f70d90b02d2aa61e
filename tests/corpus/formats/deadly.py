"""A format of six small trajectories, one of which kills the process that reads it, as a crashing decoder would."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import numpy as np

from robometer.corpus.formats import Refused, Unit
from robometer.frames.recording import ImageSequence
from robometer.trajectory import Episode


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """Six units, of which the third is deadly."""
    for key in ("a", "b", "deadly", "c", "d", "e"):
        yield Unit(key, source or "memory", f"memory:{key}")


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """One trajectory of grey frames."""
    if unit.key == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    frames = ImageSequence(5, lambda i: np.full((32, 32, 3), 20 * i, np.uint8), fps=5.0)
    yield Episode(unit.source, unit.key, "main", "wait", frames, unit.uri)
