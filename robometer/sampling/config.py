"""Settings of sampling: which trajectories, strategies and targets the plan draws."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from robometer.settings import Count, NotNegative, Range, Settings, Share, require

Mode = Literal["trajectory_first", "strategy_first"]
ProgressTarget = Literal["absolute_first_frame", "absolute_wrt_total_frames", "relative_first_frame"]


@dataclass
class PreferenceStrategies(Settings, section="sampling.preference_strategies"):
    """Relative weights of the ways to make a rejected clip."""

    rewind: NotNegative = 1.0
    """The rejected clip goes forward, then back."""
    suboptimal: NotNegative = 1.0
    """The rejected clip is a worse trajectory of the same task."""
    different_task: NotNegative = 1.0
    """The rejected clip is a success of another task."""
    reverse: NotNegative = 1.0
    """The rejected clip is played backwards."""
    paired: NotNegative = 0.0
    """A robot's success against a human's at the same task, played as a rewind, or the other way around."""


@dataclass
class ProgressStrategies(Settings, section="sampling.progress_strategies"):
    """Relative weights of the ways to show one trajectory."""

    forward: NotNegative = 1.0
    """As it was recorded."""
    reverse: NotNegative = 1.0
    """Backwards."""
    rewind: NotNegative = 1.0
    """Forward, then back."""
    different_instruction: NotNegative = 1.0
    """Under the instruction of another task: its progress is 0."""


@dataclass
class SamplingConfig(Settings, section="sampling"):
    """What the plan draws."""

    max_frames: Annotated[int, Range(least=2)] = 16
    """Frames of a clip that the model is shown."""
    mode: Mode = "trajectory_first"
    """What is drawn first: `trajectory_first` walks over all trajectories; `strategy_first` draws a strategy, then a
    data set, then a trajectory."""
    sources: list[str] = field(default_factory=list)
    """Data sets and groups (`robometer/sampling/groups.yaml`) to draw from; empty: all."""
    source_weights: dict[str, float] = field(default_factory=dict)
    """Weights of data sets or groups, each 0 or more: `'sampling.source_weights={lab:2}'`; the others have 1."""
    preference: NotNegative = 1.0
    """Weight of samples that compare two clips."""
    progress: NotNegative = 1.0
    """Weight of samples of a single clip."""
    preference_strategies: PreferenceStrategies = field(default_factory=PreferenceStrategies)
    progress_strategies: ProgressStrategies = field(default_factory=ProgressStrategies)
    partial_success_threshold: Share = 0.2
    """Two trajectories with partial success make a pair if they differ by at least this."""
    same_source_probability: Share = 0.5
    """How often another task is drawn from the same data set."""
    min_frames_per_trajectory: Count = 5
    """Shorter trajectories are not drawn."""
    progress_target: ProgressTarget = "absolute_first_frame"
    """`absolute_first_frame`: 0 at the earliest frame that is shown, 1 at the cut-off; `absolute_wrt_total_frames`:
    share of the whole trajectory; `relative_first_frame`: the change of the first from frame to frame."""
    not_done_below_progress: Share = 0.5
    """Frames of a success below this progress train the success head as not done; those from there to the
    cut-off do not train it."""
    default_cutoff: Annotated[float, Range(above=0, most=1)] = 1.0
    """Share of a demonstration at which its task counts as done, for data sets without a cut-off of their own
    (`robometer/sampling/cutoffs.yaml`)."""
    progress_bins: Annotated[int, Range(least=2)] = 10
    """Bins of the two-hot progress target."""
    graded_pairs: Share = 0.0
    """Share of unsuccessful trajectories that are paired with the other grade: suboptimal beats failure."""
    feature_noise: NotNegative = 0.0
    """Noise on each frame's embedding, in standard deviations of each dimension."""
    clip_noise: NotNegative = 0.0
    """The same noise, one shift for all frames of a clip."""
    pad_frames: bool = False
    """Repeat the last frame up to `max_frames` and train it, as the public weights were."""
    split: str = "train"
    """Split to draw from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.preference + self.progress > 0, "sampling.preference and sampling.progress are both 0")
        require(
            all(0 <= weight < math.inf for weight in self.source_weights.values()),
            "sampling.source_weights must be numbers that are not negative",
        )
