"""Frames of roll-outs as image files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np


def write(folder: Path, frames: Iterable[np.ndarray], name: str = "{}.png", step: int = 1) -> Path:
    """Frames as images of these numbers (0, step, 2 step, ...); returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, frame in enumerate(frames):
        _, data = cv2.imencode(Path(name).suffix, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        (folder / name.format(i * step)).write_bytes(data.tobytes())
    return folder
