"""Scorers that look at nothing, or at next to nothing. What a model is worth is its distance from these."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from robometer.scoring import Clip, ClipScore, PrefixSession, Session


class ProgressScorer:
    """A scorer of progress alone: success is progress, and the clip that ends with more of it is preferred."""

    name = "progress"
    temperature = 0.1

    def progress(self, clip: Clip) -> np.ndarray:
        """Progress float [T] in [0, 1]."""
        raise NotImplementedError

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """Progress of each frame, twice."""
        values = [np.asarray(self.progress(clip), dtype=np.float32) for clip in clips]
        return [ClipScore(value, value) for value in values]

    def compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> np.ndarray:
        """Logistic function of the difference in last-frame progress, float32 [N]."""
        difference = [float(self.progress(a)[-1]) - float(self.progress(b)[-1]) for a, b in pairs]
        return (1 / (1 + np.exp(-np.array(difference) / self.temperature))).astype(np.float32)

    def open_session(self, task: str) -> Session:
        """A session that scores each prefix as a clip."""
        return PrefixSession(self, task)


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
        seen = zlib.crc32(clip.frames.tobytes(), zlib.crc32(clip.task.encode()))
        for value in clip.features.values():
            seen = zlib.crc32(np.ascontiguousarray(value).tobytes(), seen)
        return np.random.default_rng([self.seed, seen]).random(len(clip))


class FrameDifference(ProgressScorer):
    """Progress is how far the picture is from the first one: mean absolute difference of pixels, times a gain."""

    name = "frame_difference"

    def __init__(self, gain: float = 10.0) -> None:
        self.gain = gain

    def progress(self, clip: Clip) -> np.ndarray:
        """Mean |frame - first frame| / 255 * gain, at most 1."""
        frames = clip.frames.astype(np.float32) / 255
        return np.asarray(np.minimum(np.abs(frames - frames[0]).mean(axis=(1, 2, 3)) * self.gain, 1.0))
