"""Upstream's training clips: frames, targets, labels and masks (robometer/data/datasets/helpers.py)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from robometer.frames.video import thin_positions
from robometer.sampling import segments, strategies, targets
from robometer.sampling.segments import Triple
from robometer.sampling.strategies import Rules, Subject
from robometer.training import losses

MISSED_PREFERENCE_ONLY = "roboreward_dlr_edan_shared_control_converted_externally_to_rlds"
"""Upstream's list lacks a comma after this name, so that it has neither this one nor the next."""


class Shown(NamedTuple):
    """What upstream shows of a trajectory and asks of it; see `ClipPlan`.

    Attributes:
        positions: int [T].
        target: progress, float [T].
        label: success, float [T].
        mask: frames whose progress may be trained, bool [T]; whether the trajectory trains it is no part of that.
    """

    positions: np.ndarray
    target: np.ndarray
    label: np.ndarray
    mask: np.ndarray


def shown_clip(subject: Subject, rules: Rules, strategy: str, triple: Triple | None, last_frame_only: bool) -> Shown:
    """What upstream shows and asks: our clip, but for these mistakes.

    Thinning may drop the peak of a rewind. Relative targets are differences before thinning, not after. The cut-off
    scales progress, and then success begins where that reaches the cut-off once more. `progress_targets` has the rest.

    Args:
        last_frame_only: upstream's `predict_last_frame_partial_progress`, see `last_frame_mask`.
    """
    path = strategies.shown_path(subject, rules, triple, strategy == "rewind")
    keep = thin_positions(len(path), rules.max_frames)
    positions = path[keep]
    length = max(rules.max_frames, len(positions)) if rules.pad_frames else len(positions)
    mask = last_frame_mask(positions, length, subject) if last_frame_only else np.ones(length, dtype=bool)
    facts = (subject.num_frames, rules.progress_target, subject.cutoff, subject.partial_success)
    target = progress_targets(path, *facts)[keep]
    if strategy in ("different_instruction", "different_task"):
        target = label = np.zeros(len(positions))
    else:
        label = success_labels(target, subject.quality_label, subject.cutoff)
    positions, target, label = (segments.pad(values, length) for values in (positions, target, label))
    shown = Shown(positions, target, label, mask)
    if strategy == "rewind" and not _shows_peak(positions, triple):
        return shown
    clip = strategies.clip_plan(0, subject, rules, strategy, triple)
    if not right_targets(path, *facts):
        return shown._replace(positions=clip.positions)
    ours = Shown(clip.positions, clip.progress_target, clip.success_label, mask)
    return ours if subject.cutoff == 1 else ours._replace(label=shown.label)


def _shows_peak(positions: np.ndarray, triple: Triple | None) -> bool:
    """Whether the frame at which a rewind turns back is among `positions`; a segment without a middle has none."""
    start, middle, _ = triple or (0, None, None)
    return middle is None or (start < middle and middle in positions)


def right_targets(
    path: np.ndarray, num_frames: int, kind: str, cutoff: float | None, partial_success: float | None
) -> bool:
    """Whether upstream asks what it should of the frames of a path."""
    done = int(cutoff * num_frames) if cutoff else num_frames
    starts_done = len(path) > 0 and int(path.min()) >= done - 1
    absolute = kind != "relative_first_frame"
    return absolute and not starts_done and not targets.is_partial(partial_success)


def progress_targets(
    path: np.ndarray, num_frames: int, kind: str, cutoff: float | None, partial_success: float | None
) -> np.ndarray:
    """Our progress, float64 [T], but for what upstream does otherwise; arguments as in `targets.reached`.

    The first frame of a clip that starts where the task is done has 0. Partial success q is no ramp to q: it is 0
    everywhere but q at the first visit of the last frame, and the ramp to 1 where the clip misses that frame.
    """
    progress = targets.reached(path, num_frames, kind, cutoff)
    done = int(cutoff * num_frames) if cutoff else num_frames
    if kind == "absolute_wrt_total_frames":
        progress = np.where(path >= done, 1.0, progress)  # a cut-off before the first frame
    elif len(path) and path.min() >= done - 1:
        progress = np.where(path == path.min(), 0.0, progress)
    if kind == "relative_first_frame":
        progress = targets.differences(progress)
    last = np.flatnonzero(path == num_frames - 1)
    if partial_success is not None and targets.is_partial(partial_success) and len(last):
        progress = np.zeros(len(path))
        progress[last[0]] = partial_success
    return progress


def success_labels(progress: np.ndarray, quality_label: str | None, threshold: float) -> np.ndarray:
    """Our labels, but success begins at a `threshold` of progress."""
    return targets.success_labels((progress >= threshold).astype(np.float64), quality_label)


def last_frame_mask(positions: np.ndarray, length: int, subject: Subject) -> np.ndarray:
    """Of a partly successful clip only the final frame, bool [length]; we have no such option.

    Frames beyond `positions` are padding, which a partly successful clip leaves out.
    """
    partial = subject.partial_success
    if partial is None or (partial == 1.0 and not subject.preference_only):
        return np.ones(length, dtype=bool)
    mask = np.zeros(length, dtype=bool)
    mask[: len(positions)] = positions == subject.num_frames - 1
    return mask


def supervises_progress(
    quality_label: str | None, source: str | None, partial_success: float | None, preference_only: bool, rewind: bool
) -> bool:
    """Our answer, but the rewind of a trajectory without a quality label trains progress too."""
    unlabelled = quality_label not in ("successful", *targets.NON_SUCCESSFUL)
    ours = targets.supervises_progress(quality_label, source, partial_success, preference_only)
    return ours or (unlabelled and rewind and not preference_only)


def is_preference_only(source: str | None) -> bool:
    """Our list by its own names alone, without the one that upstream misses."""
    return source in targets.source_lists()["preference_only"] and source != MISSED_PREFERENCE_ONLY


def two_hot(values: np.ndarray, bins: int) -> np.ndarray:
    """Our bins [..., bins], but a negative value, as relative targets have, wraps around to the last ones."""
    turns = np.asarray(values, dtype=np.float64) * (bins - 1) / bins % 1.0
    wrapped = losses.two_hot(torch.from_numpy(np.asarray(turns)), bins + 1).numpy()
    wrapped[..., 0] += wrapped[..., bins]
    return np.asarray(wrapped[..., :bins])


def decoded(probabilities: np.ndarray) -> np.ndarray:
    """Progress float64 [...] of probabilities [..., bins]; upstream takes those for logits that do not sum to 1."""
    return np.asarray(probabilities, dtype=np.float64) @ np.linspace(0.0, 1.0, np.shape(probabilities)[-1])


def nearest_bin(values: np.ndarray, bins: int) -> np.ndarray:
    """Index of the nearest bin centre, int64 [...], halves to even; we have no hard bins."""
    scaled = np.rint(np.clip(values, 0.0, 1.0) * (bins - 1))
    return np.asarray(scaled, dtype=np.int64)
