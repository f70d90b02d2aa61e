"""Scorers that look at nothing, or almost nothing. A model is worth only what it gains over these."""

from __future__ import annotations

import numpy as np

from robometer.baselines.config import BaselineConfig
from robometer.baselines.progress import ProgressScorer, fingerprint
from robometer.scoring import Clip


class Clock(ProgressScorer):
    """Progress is the time that has passed: perfect reward alignment forwards and backwards, and blind otherwise."""

    name = "clock"

    def progress(self, clip: Clip) -> np.ndarray:
        """(t + 1) / T."""
        return np.arange(1, len(clip) + 1) / len(clip)


class Constant(ProgressScorer):
    """The same progress for every frame of every clip."""

    name = "constant"

    def __init__(self, value: float = 0.5) -> None:
        self.value = value

    def progress(self, clip: Clip) -> np.ndarray:
        """The value, T times."""
        return np.full(len(clip), self.value)


class Random(ProgressScorer):
    """Uniform noise from the seed and the clip's content, so that a clip scores the same in any batch."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def progress(self, clip: Clip) -> np.ndarray:
        """Uniform in [0, 1)."""
        return np.random.default_rng([self.seed, fingerprint(clip)]).random(len(clip))


class FrameDifference(ProgressScorer):
    """Progress is the distance from the first frame: mean absolute difference of pixels, times a gain."""

    name = "frame_difference"

    def __init__(self, gain: float = 10.0) -> None:
        self.gain = gain

    def progress(self, clip: Clip) -> np.ndarray:
        """Mean |frame - first frame| / 255 * gain, at most 1."""
        frames = clip.frames.astype(np.float32) / 255
        return np.asarray(np.minimum(np.abs(frames - frames[0]).mean(axis=(1, 2, 3)) * self.gain, 1.0))


def make(name: str, config: BaselineConfig, device: str) -> ProgressScorer:
    """See `robometer.baselines.load_baseline`."""
    scorers: dict[str, ProgressScorer] = {
        scorer.name: scorer for scorer in (Clock(), Constant(), Random(config.seed), FrameDifference())
    }
    return scorers[name]
