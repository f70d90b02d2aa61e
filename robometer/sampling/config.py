"""Settings of sampling: which trajectories, strategies and targets the plan draws."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from robometer.settings import Settings, require

Mode = Literal["trajectory_first", "strategy_first"]
ProgressTarget = Literal["absolute_first_frame", "absolute_wrt_total_frames", "relative_first_frame"]


@dataclass
class PreferenceStrategies(Settings, section="sampling.preference_strategies"):
    """Relative weights of the ways to make a rejected clip, each 0 or more."""

    rewind: float = 1.0
    """The rejected clip goes forward, then back."""
    suboptimal: float = 1.0
    """The rejected clip is a worse trajectory of the same task."""
    different_task: float = 1.0
    """The rejected clip is a success of another task."""
    reverse: float = 1.0
    """The rejected clip is played backwards."""
    paired: float = 0.0
    """A robot's success against a human's at the same task, played as a rewind, or the other way around."""


@dataclass
class ProgressStrategies(Settings, section="sampling.progress_strategies"):
    """Relative weights of the ways to show one trajectory, each 0 or more."""

    forward: float = 1.0
    """As it was recorded."""
    reverse: float = 1.0
    """Backwards."""
    rewind: float = 1.0
    """Forward, then back."""
    different_instruction: float = 1.0
    """Under the instruction of another task: its progress is 0."""


@dataclass
class SamplingConfig(Settings, section="sampling"):
    """What the plan draws."""

    max_frames: int = 16
    """Frames of a clip that the model is shown, at least 2."""
    mode: Mode = "trajectory_first"
    """What is drawn first: `trajectory_first` walks over all trajectories; `strategy_first` draws a strategy, then a
    data set, then a trajectory."""
    sources: list[str] = field(default_factory=list)
    """Data sets and groups (`robometer/sampling/groups.yaml`) to draw from; empty: all."""
    source_weights: dict[str, float] = field(default_factory=dict)
    """Weights of data sets or groups, each 0 or more: `'+sampling.source_weights={lab:2}'`; the others have 1."""
    preference: float = 1.0
    """Weight of samples that compare two clips, 0 or more."""
    progress: float = 1.0
    """Weight of samples of a single clip, 0 or more."""
    preference_strategies: PreferenceStrategies = field(default_factory=PreferenceStrategies)
    progress_strategies: ProgressStrategies = field(default_factory=ProgressStrategies)
    partial_success_threshold: float = 0.2
    """Two trajectories with partial success make a pair if they differ by at least this, 0 to 1."""
    same_source_probability: float = 0.5
    """How often another task is drawn from the same data set, 0 to 1."""
    min_frames_per_trajectory: int = 5
    """Shorter trajectories are not drawn."""
    progress_target: ProgressTarget = "absolute_first_frame"
    """`absolute_first_frame`: 0 at the earliest frame that is shown, 1 at the cut-off; `absolute_wrt_total_frames`:
    share of the whole trajectory; `relative_first_frame`: the change of the first from frame to frame."""
    not_done_below_progress: float = 0.5
    """Frames of a success below this progress, 0 to 1, train the success head as not done; those from there to the
    cut-off do not train it."""
    default_cutoff: float = 1.0
    """Share of a demonstration at which its task counts as done, 0 to 1, for data sets without a cut-off of their own
    (`robometer/sampling/cutoffs.yaml`)."""
    progress_bins: int = 10
    """Bins of the two-hot progress target, at least 2."""
    graded_pairs: float = 0.0
    """Share of unsuccessful trajectories that are paired with the other grade, 0 to 1: suboptimal beats failure."""
    feature_noise: float = 0.0
    """Noise on each frame's embedding, in standard deviations of each dimension, 0 or more."""
    clip_noise: float = 0.0
    """The same noise, one shift for all frames of a clip."""
    pad_frames: bool = False
    """Repeat the last frame up to `max_frames` and train it, as the public weights were."""
    split: str = "train"
    """Split to draw from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.max_frames >= 2, "sampling.max_frames must be at least 2")
        require(self.preference >= 0 and self.progress >= 0, "sampling ratios must not be negative")
        require(self.preference + self.progress > 0, "sampling.preference and sampling.progress are both 0")
        require(
            all(0 <= weight < math.inf for weight in self.source_weights.values()),
            "sampling.source_weights must be numbers that are not negative",
        )
        require(0 <= self.graded_pairs <= 1, "sampling.graded_pairs must be in [0, 1]")
        require(min(self.feature_noise, self.clip_noise) >= 0, "sampling noise must not be negative")
        require(self.progress_bins >= 2, "sampling.progress_bins must be at least 2")
