"""What a plan says of one training sample: which trajectories, which frames, which targets."""

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
"""Every way to make a sample, of both kinds; batches carry the index, so that new ones go to the end."""


class SamplingError(RobometerError):
    """Nothing to sample; the message is one sentence that says what is missing and what to change."""


@dataclass(frozen=True)
class ClipPlan:
    """The frames of one trajectory that are shown, and what is asked of them.

    Attributes:
        row: manifest row.
        positions: int32 [T], which stored frames, in the order shown (a rewind shows frames twice).
        progress_target: float32 [T] in [0, 1] (relative targets may be negative).
        progress_mask: bool [T].
        success_label: float32 [T], 0 or 1.
        success_mask: bool [T].
    """

    row: int
    positions: np.ndarray
    progress_target: np.ndarray
    progress_mask: np.ndarray
    success_label: np.ndarray
    success_mask: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True)
class SamplePlan:
    """One training sample.

    Attributes:
        sample_index: position in the stream.
        kind: `preference` (a and b) or `progress` (a only, b is None).
        strategy: one of `STRATEGIES`.
        task: the instruction that is shown with the sample.
        preference_label: 1.0 where `a` is the chosen trajectory, 0.0 where `b` is; 0.0 for progress samples.
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
