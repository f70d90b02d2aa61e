"""Scorers that look at nothing, or at next to nothing. What a model is worth is its distance from these."""

from __future__ import annotations

import numpy as np

from robometer.baselines.progress import ProgressScorer, fingerprint
from robometer.configs.schema import BaselineConfig
from robometer.scoring import Clip


class Clock(ProgressScorer):
    """Progress is the time that has passed: perfect reward alignment, forwards and backwards, and blind otherwise."""

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
    """Uniform noise that depends on the seed and on what is in the clip, so that a clip scores alike in any batch."""

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def progress(self, clip: Clip) -> np.ndarray:
        """Uniform in [0, 1)."""
        return np.random.default_rng([self.seed, fingerprint(clip)]).random(len(clip))


class FrameDifference(ProgressScorer):
    """Progress is how far the picture is from the first one: mean absolute difference of pixels, times a gain."""

    name = "frame_difference"

    def __init__(self, gain: float = 10.0) -> None:
        self.gain = gain

    def progress(self, clip: Clip) -> np.ndarray:
        """Mean |frame - first frame| / 255 * gain, at most 1."""
        frames = clip.frames.astype(np.float32) / 255
        return np.asarray(np.minimum(np.abs(frames - frames[0]).mean(axis=(1, 2, 3)) * self.gain, 1.0))


def make(name: str, config: BaselineConfig, device: str) -> ProgressScorer:
    """See `robometer.baselines.load_baseline`."""
    made: dict[str, ProgressScorer] = {
        scorer.name: scorer for scorer in (Clock(), Constant(), Random(config.seed), FrameDifference())
    }
    return made[name]
