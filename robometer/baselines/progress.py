"""The base class of baselines that predict only progress."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from robometer.scoring import Clip, ClipScore, ScorerInfo
from robometer.sessions import WindowSession


class ProgressScorer:
    """A scorer of progress alone: success equals progress, and the clip that ranks higher is preferred.

    A subclass implements `progress`, or `score` if it can answer for many clips at once.
    """

    name = "progress"
    temperature = 0.1

    @property
    def info(self) -> ScorerInfo:
        """The defaults; a subclass that asks an API adds what it spent."""
        return ScorerInfo()

    def progress(self, clip: Clip) -> np.ndarray:
        """Progress float [T] in [0, 1], NaN for a frame without an answer."""
        raise NotImplementedError

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        """See `Scorer.score`."""
        return [ClipScore.of_progress(self.progress(clip)) for clip in clips]

    def compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> np.ndarray:
        """Logistic function of the difference in `ClipScore.reward`, divided by `temperature`, float32 [N]."""
        scores = iter(self.score([clip for pair in pairs for clip in pair]))
        difference = np.array([next(scores).reward - next(scores).reward for _ in pairs])
        return (1 / (1 + np.exp(-difference / self.temperature))).astype(np.float32)

    def open_session(self, task: str) -> WindowSession:
        """See `Scorer.open_session`; all frames so far are scored as a clip."""
        return WindowSession(self, task)


def fingerprint(clip: Clip) -> int:
    """A 32-bit hash of a clip's content, to seed what must not depend on the clip's batch."""
    checksum = zlib.crc32(clip.frames.tobytes(), zlib.crc32(clip.task.encode()))
    for value in clip.features.values():
        checksum = zlib.crc32(value.tobytes(), checksum)
    return checksum
