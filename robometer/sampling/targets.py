"""What is asked of each frame: its progress, its success, and whether they are trained (arXiv 2603.02115).

The public implementation has this in robometer/data/datasets/helpers.py. Where its numbers are wrong, ours differ;
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
    """What is known of a data source.

    Attributes:
        cutoff: fraction of a demonstration at which its task is done, in (0, 1].
        preference_only: its frames say nothing of progress, so that it trains preferences only.
    """

    cutoff: float
    preference_only: bool


@lru_cache(maxsize=1)
def source_lists() -> dict[str, Any]:
    """What `cutoffs.yaml` lists: `success_cutoff`, `preference_only` and `aliases`."""
    text = resources.files("robometer.sampling").joinpath("cutoffs.yaml").read_text(encoding="utf-8")
    lists: dict[str, Any] = yaml.safe_load(text)
    return lists


def source_facts(source: str, max_success: float) -> SourceFacts:
    """Facts of a source, by the name that its converter writes or by the one that `cutoffs.yaml` lists.

    Args:
        max_success: the cut-off of a source that has none of its own.
    """
    lists = source_lists()
    names = {source, lists["aliases"].get(source, source)}
    cutoffs = [lists["success_cutoff"][name] for name in sorted(names) if name in lists["success_cutoff"]]
    preference_only = not names.isdisjoint(lists["preference_only"])
    return SourceFacts(float(cutoffs[0]) if cutoffs else max_success, preference_only)


def is_partial(partial_success: float | None) -> bool:
    """A recorded partial success other than 1 replaces the usual ramp to 1."""
    return partial_success is not None and abs(partial_success - 1.0) > 1e-6


def reached(
    path: np.ndarray,
    num_frames: int,
    kind: str,
    cutoff: float | None = None,
    partial_success: float | None = None,
) -> np.ndarray:
    """Progress of the frames of `path` (int [T], in the order shown), float64 [T] in [0, 1]; success begins at 1.

    A recorded partial success q is a ramp to q at the last frame.

    Args:
        num_frames: frames of the whole trajectory.
        kind: `absolute_wrt_total_frames`, of the whole trajectory; any other, from 0 at the smallest index of `path`.
        cutoff: fraction of the trajectory at which progress reaches 1; None or 0 for its end.
        partial_success: what the trajectory reached at its end, where that was recorded.
    """
    if len(path) == 0:
        return np.zeros(0)
    partial = is_partial(partial_success)
    done = max(1, int(cutoff * num_frames)) if cutoff and not partial else num_frames
    if kind == "absolute_wrt_total_frames":
        ramp = np.where(path >= done, 1.0, (path + 1) / num_frames)
    else:
        start, goal = min(path.tolist()), done - 1
        ramp = np.minimum(1.0, (path - start) / (goal - start)) if start < goal else np.ones(len(path))
    return ramp if partial_success is None or not partial else ramp * partial_success


def differences(progress: np.ndarray) -> np.ndarray:
    """Change since the frame before, 0 at the first, float64 [T]."""
    return np.diff(progress, prepend=progress[:1])


def success_labels(progress: np.ndarray, quality_label: str | None) -> np.ndarray:
    """1 where progress is 1, 0 elsewhere and for trajectories that did not succeed, float64 [T]."""
    if (quality_label or "").lower() in NON_SUCCESSFUL:
        return np.zeros(len(progress))
    return np.asarray(progress >= 1.0, dtype=np.float64)


def success_mask(progress: np.ndarray, labels: np.ndarray, quality_label: str | None, min_success: float) -> np.ndarray:
    """Frames that train the success head: clearly undone, done, or any of an unsuccessful trajectory, bool [T]."""
    if (quality_label or "").lower() in NON_SUCCESSFUL:
        return np.ones(len(progress), dtype=bool)
    return np.asarray((progress < min_success) | (labels > 0.5))


def supervises_progress(
    quality_label: str | None, source: str | None, partial_success: float | None, preference_only: bool
) -> bool:
    """Whether a trajectory trains progress: where it succeeded, and where RoboReward graded it."""
    if preference_only:
        return False
    if partial_success is not None and "roboreward" in (source or ""):
        return True
    return quality_label == "successful"
