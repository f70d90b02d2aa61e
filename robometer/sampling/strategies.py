"""The frames and targets of each strategy, once rows and segments are drawn (arXiv 2603.02115). Nothing is random."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from robometer.frames.video import thin_positions
from robometer.sampling import segments, targets
from robometer.sampling.config import SamplingConfig
from robometer.sampling.segments import Triple
from robometer.sampling.types import ClipPlan

MIN_FRAMES_OF_SEGMENT = 3
"""A segment needs three distinct frames."""

_CACHED_CLIPS = 16384
"""About 16 MB per process. Most clips of a corpus share their length, cut-off and segment with others."""


class Rules(NamedTuple):
    """The part of `SamplingConfig` that targets depend on; hashable."""

    max_frames: int
    progress_target: str
    not_done_below_progress: float
    pad_frames: bool

    @classmethod
    def of(cls, config: SamplingConfig) -> Rules:
        """The rules of a configuration."""
        return cls(config.max_frames, config.progress_target, config.not_done_below_progress, config.pad_frames)


class Subject(NamedTuple):
    """The facts about a trajectory that its targets depend on; hashable.

    Attributes:
        num_frames: stored frames.
        quality_label: one of `QUALITY_LABELS`.
        cutoff: fraction of the trajectory at which its task is done.
        partial_success: in [0, 1], or None.
        supervised: whether it trains progress (`targets.supervises_progress`).
        preference_only: whether its source trains preferences only.
    """

    num_frames: int
    quality_label: str
    cutoff: float
    partial_success: float | None
    supervised: bool
    preference_only: bool


def needed_frames(strategy: str) -> int:
    """Smallest `max_frames` for a strategy: a reversal needs 2 frames, a rewind 3."""
    return {"reverse": 2, "rewind": 3, "paired": 3}.get(strategy, 1)


def clip_plan(row: int, subject: Subject, rules: Rules, strategy: str, triple: Triple | None) -> ClipPlan:
    """Frames and targets of one trajectory, shown as `strategy` says.

    `different_instruction` and `different_task` show it under another task's text: progress and success are 0
    throughout. A `triple` of None shows the whole trajectory. The peak of a rewind is always among the frames; relative
    targets are differences between the frames that are shown. Plans share the arrays, which are read-only.
    """
    mismatched = strategy in ("different_instruction", "different_task")
    return ClipPlan(row, *_clip_arrays(subject, rules, triple, strategy == "rewind", mismatched))


def pair_plan(
    rows: tuple[int, int],
    subjects: tuple[Subject, Subject],
    rules: Rules,
    strategy: str,
    triples: tuple[Triple | None, Triple | None],
) -> tuple[ClipPlan, ClipPlan]:
    """Chosen and rejected clip of a pair: the chosen one always plays forward, the rejected one as `strategy` says."""
    chosen = clip_plan(rows[0], subjects[0], rules, "forward", triples[0])
    return chosen, clip_plan(rows[1], subjects[1], rules, strategy, triples[1])


@lru_cache(maxsize=_CACHED_CLIPS)
def _clip_arrays(
    subject: Subject, rules: Rules, triple: Triple | None, rewind: bool, mismatched: bool
) -> tuple[np.ndarray, ...]:
    """The arrays of a `ClipPlan`, in the order of its fields."""
    path = shown_path(subject, rules, triple, rewind)
    keep = thin_positions(len(path), rules.max_frames)
    if rewind and triple is not None and triple[1] is not None:
        keep = segments.keep_position(keep, triple[1] - triple[0])
    positions = path[keep]
    length = max(rules.max_frames, len(positions)) if rules.pad_frames else len(positions)
    target, reached = (segments.pad(values, length) for values in _progress(subject, rules, path, keep))
    if mismatched:
        target = reached = labels = np.zeros(length)
    else:
        labels = targets.success_labels(reached, subject.quality_label)
    arrays = (
        segments.pad(positions, length).astype(np.int32),
        target.astype(np.float32),
        np.full(length, subject.supervised),
        labels.astype(np.float32),
        targets.success_mask(reached, labels, subject.quality_label, rules.not_done_below_progress),
    )
    for array in arrays:
        array.flags.writeable = False
    return arrays


def shown_path(subject: Subject, rules: Rules, triple: Triple | None, rewind: bool) -> np.ndarray:
    """Every frame of a segment in display order, before thinning, int64 [L]; only a rewind uses its middle."""
    if triple is None:
        return np.arange(subject.num_frames)
    start, middle, end = triple
    return segments.segment_path(subject.num_frames, start, end, middle if rewind else None, rules.max_frames)


def _progress(subject: Subject, rules: Rules, path: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Targets of the kept frames, and the progress that decides success."""
    facts = (subject.num_frames, rules.progress_target, subject.cutoff, subject.partial_success)
    reached = targets.reached(path, *facts)[keep]
    relative = rules.progress_target == "relative_first_frame"
    return (targets.differences(reached) if relative else reached), reached
