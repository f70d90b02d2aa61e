"""What each strategy shows and asks, once rows and segments are drawn (spec 3.8, 3.9). Nothing here is random."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from robometer.configs.schema import SamplingConfig
from robometer.sampling import segments, targets
from robometer.sampling.segments import Triple
from robometer.sampling.types import ClipPlan

MIN_FRAMES_OF_SEGMENT = 3
"""Three distinct frames make a segment."""

_CACHED_CLIPS = 16384
"""About 16 MB per process. Most clips of a corpus share their length, cut-off and segment with others."""


class Rules(NamedTuple):
    """The part of `SamplingConfig` that targets depend on, hashable.

    `last_frame_only` is upstream's `predict_last_frame_partial_progress`.
    """

    max_frames: int
    progress_target: str
    min_success: float
    pad_frames: bool
    fixed: bool
    last_frame_only: bool = False

    @classmethod
    def of(cls, config: SamplingConfig) -> Rules:
        """The rules that a configuration sets."""
        fixed = config.compat == "fixed"
        return cls(config.max_frames, config.progress_target, config.min_success, config.pad_frames, fixed)

    @property
    def compat(self) -> str:
        """`fixed` or `upstream`."""
        return "fixed" if self.fixed else "upstream"


class Subject(NamedTuple):
    """What the targets of a trajectory depend on.

    Attributes:
        num_frames: stored frames.
        quality_label: one of `QUALITY_LABELS`.
        cutoff: fraction of the trajectory at which its task is done.
        partial_success: in [0, 1], or None.
        supervised: its progress is trained (`targets.supervises_progress`).
        preference_only: its source trains preferences only.
    """

    num_frames: int
    quality_label: str
    cutoff: float
    partial_success: float | None
    supervised: bool
    preference_only: bool


def needed_frames(strategy: str, compat: str) -> int:
    """Smallest `max_frames` that can show a strategy.

    Fixed: a reversal needs 2 frames and a rewind 3; upstream shows a shorter one as if it were a forward clip.
    """
    return {"reverse": 2, "rewind": 3, "paired": 3}.get(strategy, 1) if compat == "fixed" else 1


def clip_plan(row: int, subject: Subject, rules: Rules, strategy: str, triple: Triple | None) -> ClipPlan:
    """Frames and targets of one trajectory, shown the way `strategy` shows the clip that it is about.

    `different_instruction` and `different_task` show it with another task's text: progress and success are 0
    throughout. A `triple` of None shows the whole trajectory. The arrays are shared between plans and read-only.

    Fixed: the peak of a rewind is always shown (upstream's thinning may drop it).
    Fixed: relative targets are differences between the frames shown (upstream: between neighbours, then thinned).
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
    """Chosen and rejected clip of a pair: the chosen is always played forward, the rejected by `strategy`."""
    chosen = clip_plan(rows[0], subjects[0], rules, "forward", triples[0])
    return chosen, clip_plan(rows[1], subjects[1], rules, strategy, triples[1])


@lru_cache(maxsize=_CACHED_CLIPS)
def _clip_arrays(
    subject: Subject, rules: Rules, triple: Triple | None, rewind: bool, mismatched: bool
) -> tuple[np.ndarray, ...]:
    """The arrays of a `ClipPlan`, in its order."""
    path = _path(subject, rules, triple, rewind)
    keep = segments.linspace_positions(len(path), rules.max_frames)
    if rewind and rules.fixed and triple is not None and triple[1] is not None:
        keep = segments.keep_position(keep, triple[1] - triple[0])
    shown = path[keep]
    length = max(rules.max_frames, len(shown)) if rules.pad_frames else len(shown)
    target, reached = (segments.pad(values, length) for values in _progress(subject, rules, path, keep))
    if mismatched:
        target = reached = labels = np.zeros(length)
    else:
        labels = targets.success_labels(reached, subject.quality_label, 1.0 if rules.fixed else subject.cutoff)
    mask = np.full(length, subject.supervised)
    if rules.last_frame_only:
        facts = (subject.num_frames, subject.partial_success, subject.preference_only)
        mask &= targets.last_frame_mask(shown, length, *facts)
    arrays = (
        segments.pad(shown, length).astype(np.int32),
        target.astype(np.float32),
        mask,
        labels.astype(np.float32),
        targets.success_mask(reached, labels, subject.quality_label, rules.min_success),
    )
    for array in arrays:
        array.flags.writeable = False
    return arrays


def _path(subject: Subject, rules: Rules, triple: Triple | None, rewind: bool) -> np.ndarray:
    if triple is None:
        return np.arange(subject.num_frames)
    start, middle, end = triple
    return segments.segment_path(subject.num_frames, start, end, middle if rewind else None, rules.max_frames)


def _progress(subject: Subject, rules: Rules, path: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Targets of the frames kept, and the progress by which success is judged."""
    facts = (subject.num_frames, rules.progress_target, subject.cutoff, subject.partial_success)
    if not rules.fixed:
        target = targets.progress_targets(path, *facts, compat="upstream")[keep]
        return target, target
    reached = targets.reached(path, *facts)[keep]
    relative = rules.progress_target == "relative_first_frame"
    return (targets.differences(reached) if relative else reached), reached
