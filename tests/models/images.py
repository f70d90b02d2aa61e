"""Frames for the tests of this folder."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from robometer.scoring import Clip


def noise_clip(seed: int, num_frames: int, height: int = 64, width: int = 64, task: str = "stack") -> Clip:
    """Frames of random pixels."""
    rng = np.random.default_rng(seed)
    return Clip(rng.integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8), task)


def jpeg(rng: np.random.Generator, height: int, width: int) -> bytes:
    """A random image as JPEG."""
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(stream, "JPEG")
    return stream.getvalue()
