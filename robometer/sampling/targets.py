"""What is asked of each frame: progress, success and which frames count (spec data.md 3.6, 3.7, model 3, 4.2-4.3).

`compat="upstream"` gives upstream's numbers, `compat="fixed"` the corrected ones; each function names its difference.
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
        cutoff: fraction of a demonstration at which its task is done (spec appendix A).
        preference_only: its frames say nothing of progress (spec appendix B).
    """

    cutoff: float
    preference_only: bool


@lru_cache(maxsize=1)
def _facts() -> dict[str, Any]:
    text = resources.files("robometer.sampling").joinpath("cutoffs.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def source_facts(source: str, max_success: float, compat: str = "fixed") -> SourceFacts:
    """Facts of a source; `max_success` is the cut-off of sources that have none of their own.

    Fixed: converters' names find the name that upstream's lists use (B6, B9); upstream misses them.
    """
    facts = _facts()
    names, preference_only = {source}, set(facts["preference_only"])
    if compat == "fixed":
        names.add(facts["aliases"].get(source, source))
        preference_only |= set(facts["preference_only_missed"])
    cutoffs = [facts["success_cutoff"][name] for name in sorted(names) if name in facts["success_cutoff"]]
    return SourceFacts(float(cutoffs[0]) if cutoffs else max_success, not names.isdisjoint(preference_only))


def is_partial(partial_success: float | None) -> bool:
    """A recorded partial success other than 1 replaces the usual ramp to 1."""
    return partial_success is not None and abs(partial_success - 1.0) > 1e-6


def progress_targets(
    path: np.ndarray,
    num_frames: int,
    kind: str,
    cutoff: float | None = None,
    partial_success: float | None = None,
    compat: str = "fixed",
) -> np.ndarray:
    """Progress of the frames of `path` (int [T], every frame of the segment in the order shown), float64 [T].

    Args:
        num_frames: frames of the whole trajectory.
        kind: `absolute_first_frame` (0 at the clip's smallest index, 1 at the cut-off), `absolute_wrt_total_frames`
            (of the whole trajectory), or `relative_first_frame` (differences of the first; negative going backward).
        cutoff: fraction of the trajectory at which progress reaches 1; None or 0 for none.
        partial_success: what the trajectory reached at its end, where that was recorded.

    Fixed: frames past the cut-off are 1 in any clip (upstream: 0 for the first frame of a clip that starts there).
    Fixed: partial success q is a ramp to q at the last frame (upstream: 0 everywhere but q at the first visit of the
    last frame, and the ramp to 1 where the clip misses that frame).
    """
    if len(path) == 0:
        return np.zeros(0)
    if compat == "upstream":
        return _upstream_targets(path, num_frames, kind, cutoff, partial_success)
    ramp = reached(path, num_frames, kind, cutoff, partial_success)
    return differences(ramp) if kind == "relative_first_frame" else ramp


def reached(
    path: np.ndarray, num_frames: int, kind: str, cutoff: float | None, partial_success: float | None
) -> np.ndarray:
    """Corrected absolute progress of each frame, float64 [T]; success begins where it is 1."""
    partial = is_partial(partial_success)
    done = max(1, int(cutoff * num_frames)) if cutoff and not partial else num_frames
    if kind == "absolute_wrt_total_frames":
        ramp = np.where(path >= done, 1.0, (path + 1) / num_frames)
    else:
        start, goal = min(path.tolist()), done - 1
        ramp = np.minimum(1.0, (path - start) / (goal - start)) if start < goal else np.ones(len(path))
    return ramp if partial_success is None or not partial else ramp * partial_success


def _upstream_targets(
    path: np.ndarray, num_frames: int, kind: str, cutoff: float | None, partial_success: float | None
) -> np.ndarray:
    done = int(cutoff * num_frames) if cutoff else None
    if kind == "absolute_wrt_total_frames":
        progress = (path + 1) / num_frames
        if done is not None:
            progress[path >= done] = 1.0
    else:
        start = int(path.min())
        progress = (path - start) / max(1, (num_frames if done is None else done) - start - 1)
        progress = progress if done is None else np.minimum(1.0, progress)
    if kind == "relative_first_frame":
        progress = differences(progress)
    last = np.flatnonzero(path == num_frames - 1)
    if is_partial(partial_success) and len(last):
        progress = np.zeros(len(path))
        progress[last[0]] = partial_success
    return progress


def differences(progress: np.ndarray) -> np.ndarray:
    """Change since the frame before, 0 at the first, float64 [T]."""
    return np.diff(progress, prepend=progress[:1])


def success_labels(progress: np.ndarray, quality_label: str | None, threshold: float = 1.0) -> np.ndarray:
    """1 where progress reaches `threshold`, 0 elsewhere and for trajectories that did not succeed, float64 [T].

    Fixed: the threshold is 1 on a progress that the cut-off has scaled already. Upstream passes the cut-off again,
    so that success begins at about its square (model spec 7, item 8).
    """
    if (quality_label or "").lower() in NON_SUCCESSFUL:
        return np.zeros(len(progress))
    return np.asarray(progress >= threshold, dtype=np.float64)


def success_mask(progress: np.ndarray, labels: np.ndarray, quality_label: str | None, min_success: float) -> np.ndarray:
    """Frames that train the success head: clearly undone, done, or any of an unsuccessful trajectory, bool [T]."""
    if (quality_label or "").lower() in NON_SUCCESSFUL:
        return np.ones(len(progress), dtype=bool)
    return np.asarray((progress < min_success) | (labels > 0.5))


def supervises_progress(
    quality_label: str | None,
    source: str | None,
    partial_success: float | None,
    preference_only: bool,
    rewind: bool = False,
) -> bool:
    """Does a trajectory train progress? The table of model spec 3.3, in its order; the same in both modes.

    Fixed and upstream: a missing source is no error (upstream raises TypeError where partial success is given).
    """
    if preference_only:
        return False
    if partial_success is not None and "roboreward" in (source or ""):
        return True
    if quality_label in NON_SUCCESSFUL:
        return False
    return quality_label == "successful" or rewind


def last_frame_mask(
    positions: np.ndarray, length: int, num_frames: int, partial_success: float | None, preference_only: bool
) -> np.ndarray:
    """Upstream's `predict_last_frame_partial_progress`: of partly successful clips only the final frame, bool [length].

    Frames beyond `positions` are padding, which a partly successful clip leaves out.
    """
    if partial_success is None or (partial_success == 1.0 and not preference_only):
        return np.ones(length, dtype=bool)
    mask = np.zeros(length, dtype=bool)
    mask[: len(positions)] = positions == num_frames - 1
    return mask


def two_hot(values: np.ndarray, bins: int, compat: str = "fixed") -> np.ndarray:
    """Values [...] in [0, 1] to probabilities float32 [..., bins] of the two nearest bin centres (C51).

    Fixed: values outside [0, 1] count as the nearer bound (upstream: a negative one, as relative targets have, wraps
    around to the last bins).
    """
    values = np.asarray(values, dtype=np.float64)
    scaled = (values if compat == "upstream" else values.clip(0.0, 1.0)) * (bins - 1)
    low = np.floor(scaled)
    high_share = (scaled - low)[..., None]
    onehot = np.eye(bins)
    low_bin, high_bin = low.astype(np.int64) % bins, np.ceil(scaled).astype(np.int64) % bins
    return np.asarray(onehot[low_bin] * (1.0 - high_share) + onehot[high_bin] * high_share, dtype=np.float32)


def decode_bins(bins: np.ndarray, logits: bool = False) -> np.ndarray:
    """Expectation [...] of probabilities (or `logits`) [..., K] over centres linspace(0, 1, K); inverse of `two_hot`.

    The caller says what it has; upstream guesses from whether every row sums to exactly 1 (model spec 7, item 13).
    """
    if logits:
        bins = np.exp(bins - bins.max(axis=-1, keepdims=True))
        bins = bins / bins.sum(axis=-1, keepdims=True)
    return np.asarray(bins @ np.linspace(0.0, 1.0, bins.shape[-1]), dtype=np.float64)


def nearest_bin(values: np.ndarray, bins: int) -> np.ndarray:
    """Index of the nearest bin centre, int64 [...], halves to even."""
    scaled = np.rint(np.clip(values, 0.0, 1.0) * (bins - 1))
    return np.asarray(scaled, dtype=np.int64)
