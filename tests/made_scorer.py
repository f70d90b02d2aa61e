"""A scorer that a worker or a replica makes by a function of a test module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from robometer.scorers import ScorerReference
from robometer.scoring import Scorer


@dataclass(frozen=True)
class Made(ScorerReference):
    """What `make(word)` returns."""

    make: Callable[[str], Scorer]
    word: str = ""

    takes_any_frames = True

    def load(self, device: str = "cpu") -> Scorer:
        """See `ScorerReference.load`."""
        return self.make(self.word)

    def identity(self) -> str:
        """See `ScorerReference.identity`."""
        return f"{self.make.__qualname__} {self.word}"
