"""The targets of each frame: its progress, its success, and whether they are trained (arXiv 2603.02115).

The public implementation is robometer/data/datasets/helpers.py. Where its numbers are wrong, ours differ;
`parity/upstream/clips.py` says how.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
import yaml

NON_SUCCESSFUL = ("failure", "suboptimal", "failed")


@dataclass(frozen=True)
class SourceFacts:
    """Facts about a data source.

    Attributes:
        cutoff: fraction of a demonstration at which its task is done, in (0, 1].
        preference_only: whether it trains preferences only, because its frames do not show progress.
    """

    cutoff: float
    preference_only: bool


@lru_cache(maxsize=1)
def source_lists() -> dict[str, Any]:
    """The lists of `cutoffs.yaml`: `success_cutoff`, `preference_only` and `aliases`."""
    text = resources.files("robometer.sampling").joinpath("cutoffs.yaml").read_text(encoding="utf-8")
    lists: dict[str, Any] = yaml.safe_load(text)
    return lists


def source_facts(source: str, default_cutoff: float) -> SourceFacts:
    """Facts about a source, by the name that its converter writes or the name in `cutoffs.yaml`.

    Args:
        default_cutoff: the cut-off of a source that has none of its own.
    """
    lists = source_lists()
    names = (source, lists["aliases"].get(source, source))  # what stands under its own name counts first
    cutoff = next((lists["success_cutoff"][name] for name in names if name in lists["success_cutoff"]), default_cutoff)
    return SourceFacts(float(cutoff), not set(names).isdisjoint(lists["preference_only"]))


def is_partial(partial_success: float | None) -> bool:
    """Whether there is a partial success other than 1, to which progress then rises instead of to 1."""
    return partial_success is not None and abs(partial_success - 1.0) > 1e-6


def reached(
    path: np.ndarray,
    num_frames: int,
    kind: str,
    cutoff: float | None = None,
    partial_success: float | None = None,
) -> np.ndarray:
    """Progress at the frames of `path` (int [T], in display order), float64 [T] in [0, 1]; the task is done at 1.

    A recorded partial success q gives a ramp to q at the last frame.

    Args:
        num_frames: frames of the whole trajectory.
        kind: `absolute_wrt_total_frames` counts from the start of the trajectory; any other kind from 0 at the smallest
            index of `path`.
        cutoff: fraction of the trajectory at which progress reaches 1; None or 0 for its end.
        partial_success: share of the task done at the end of the trajectory; None where not recorded.
    """
    if len(path) == 0:
        return np.zeros(0)
    partial = is_partial(partial_success)
    done_at = max(1, int(cutoff * num_frames)) if cutoff and not partial else num_frames
    if kind == "absolute_wrt_total_frames":
        ramp = np.where(path >= done_at, 1.0, (path + 1) / num_frames)
    else:
        start, goal = min(path.tolist()), done_at - 1
        ramp = np.minimum(1.0, (path - start) / (goal - start)) if start < goal else np.ones(len(path))
    return ramp if partial_success is None or not partial else ramp * partial_success


def differences(progress: np.ndarray) -> np.ndarray:
    """Change from the previous frame, 0 at the first, float64 [T]."""
    return np.diff(progress, prepend=progress[:1])


def success_labels(progress: np.ndarray, quality_label: str | None) -> np.ndarray:
    """1 where progress is 1; 0 elsewhere, and everywhere in a trajectory that did not succeed; float64 [T]."""
    if (quality_label or "").lower() in NON_SUCCESSFUL:
        return np.zeros(len(progress))
    return np.asarray(progress >= 1.0, dtype=np.float64)


def success_mask(
    progress: np.ndarray, labels: np.ndarray, quality_label: str | None, not_done_below_progress: float
) -> np.ndarray:
    """Frames that train the success head, bool [T]: clearly not done, done, or any of an unsuccessful trajectory."""
    if (quality_label or "").lower() in NON_SUCCESSFUL:
        return np.ones(len(progress), dtype=bool)
    return np.asarray((progress < not_done_below_progress) | (labels > 0.5))


def supervises_progress(
    quality_label: str | None, source: str | None, partial_success: float | None, preference_only: bool
) -> bool:
    """Whether a trajectory trains progress: if it succeeded, or if RoboReward graded it."""
    if preference_only:
        return False
    if partial_success is not None and "roboreward" in (source or ""):
        return True
    return quality_label == "successful"
