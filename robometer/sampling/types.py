"""The plan of one training sample: its trajectories, their frames and their targets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robometer.errors import RobometerError

STRATEGIES = (
    "forward",
    "reverse",
    "rewind",
    "different_instruction",
    "suboptimal",
    "different_task",
    "partial_success",
    "paired",
)
"""Every way to make a sample of either kind. Batches carry the index, so append new ones at the end."""


class SamplingError(RobometerError):
    """Nothing can be sampled; the message says what is missing and what to change."""


@dataclass(frozen=True)
class ClipPlan:
    """The frames of one trajectory that a sample shows, and their targets.

    Attributes:
        row: manifest row.
        positions: int32 [T], the stored frames in display order (a rewind shows some twice).
        progress_target: float32 [T] in [0, 1] (relative targets may be negative).
        progress_mask: bool [T], frames whose progress is trained.
        success_label: float32 [T], 0 or 1.
        success_mask: bool [T], frames whose success is trained.
    """

    row: int
    positions: np.ndarray
    progress_target: np.ndarray
    progress_mask: np.ndarray
    success_label: np.ndarray
    success_mask: np.ndarray

    @classmethod
    def unlabelled(cls, num_frames: int) -> ClipPlan:
        """A plan for scoring: all frames of a clip in order, without targets or a manifest row."""
        zeros, none = np.zeros(num_frames, dtype=np.float32), np.zeros(num_frames, dtype=bool)
        return cls(0, np.arange(num_frames), zeros, none, zeros, none)

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class SamplePlan:
    """One training sample.

    Attributes:
        sample_index: position in the stream.
        kind: `preference` (a and b) or `progress` (a only, b is None).
        strategy: one of `STRATEGIES`.
        task: the instruction of the sample.
        preference_label: 1.0 if `a` is the chosen trajectory, 0.0 if `b` is; 0.0 for progress samples.
    """

    sample_index: int
    kind: str
    strategy: str
    task: str
    a: ClipPlan
    b: ClipPlan | None
    preference_label: float

    @property
    def chosen(self) -> ClipPlan:
        return self.a if self.b is None or self.preference_label == 1.0 else self.b

    @property
    def rejected(self) -> ClipPlan | None:
        return self.b if self.preference_label == 1.0 else self.a if self.b is not None else None
