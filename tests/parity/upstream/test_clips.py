"""Upstream's clips where they are not ours, by hand, and ours where upstream is right."""

from __future__ import annotations

import numpy as np
import pytest

from parity.upstream import clips
from robometer.sampling import targets
from robometer.sampling.segments import Triple
from robometer.sampling.strategies import Rules, Subject, clip_plan

KIND = "absolute_first_frame"
RULES = Rules(max_frames=64, progress_target=KIND, not_done_below_progress=0.5, pad_frames=False)


def subject(quality: str = "successful", cutoff: float = 1.0, partial: float | None = None) -> Subject:
    return Subject(32, quality, cutoff, partial, supervised=True, preference_only=False)


@pytest.mark.parametrize("strategy", ["forward", "reverse", "suboptimal", "different_task"])
@pytest.mark.parametrize("triple", [None, (3, None, 29), (29, None, 3)])
@pytest.mark.parametrize("pad_frames", [True, False])
def test_where_upstream_is_right_its_clip_is_ours(strategy: str, triple: Triple | None, pad_frames: bool) -> None:
    rules = RULES._replace(max_frames=8, pad_frames=pad_frames)
    ours = clip_plan(0, subject(), rules, strategy, triple)
    theirs = clips.shown_clip(subject(), rules, strategy, triple, last_frame_only=False)
    np.testing.assert_array_equal(theirs.positions, ours.positions)
    np.testing.assert_array_equal(theirs.target, ours.progress_target)
    np.testing.assert_array_equal(theirs.label, ours.success_label)
    assert theirs.mask.all()


def test_the_cutoff_is_applied_twice() -> None:
    ours = clip_plan(0, subject(cutoff=0.95), RULES, "forward", None)
    theirs = clips.shown_clip(subject(cutoff=0.95), RULES, "forward", None, False)
    np.testing.assert_array_equal(theirs.target, ours.progress_target)
    assert (int(ours.success_label.argmax()), int(theirs.label.argmax())) == (29, 28)


def test_a_clip_that_starts_where_the_task_is_done_has_zero_at_its_first_frame() -> None:
    path = np.array([30, 31])
    assert clips.progress_targets(path, 32, KIND, 0.9, None).tolist() == [0.0, 1.0]
    assert targets.reached(path, 32, KIND, 0.9).tolist() == [1.0, 1.0]
    assert not clips.right_targets(path, 32, KIND, 0.9, None) and clips.right_targets(path - 10, 32, KIND, 0.9, None)


def test_a_cutoff_before_the_first_frame_makes_all_frames_done() -> None:
    assert clips.progress_targets(np.arange(3), 4, "absolute_wrt_total_frames", 0.1, None).tolist() == [1.0, 1.0, 1.0]


def test_partial_success_is_asked_of_the_last_frame_alone() -> None:
    whole = clips.shown_clip(subject("failure", partial=0.5), RULES, "forward", None, False)
    assert whole.target.tolist() == [0.0] * 31 + [0.5]
    assert clips.progress_targets(np.array([31, 30, 31]), 32, KIND, None, 0.5).tolist() == [0.5, 0.0, 0.0]
    assert clips.progress_targets(np.arange(3), 32, KIND, None, 0.5).tolist() == [0, 1 / 31, 2 / 31]


def test_thinning_drops_the_peak_of_a_rewind() -> None:
    rules = RULES._replace(max_frames=4)
    dropped = clips.shown_clip(subject(), rules, "rewind", (0, 30, 1), False)
    assert dropped.positions.tolist() == [0, 20, 21, 1]
    kept = clips.shown_clip(subject(), RULES, "rewind", (0, 30, 1), False)
    ours = clip_plan(0, subject(), RULES, "rewind", (0, 30, 1))
    np.testing.assert_array_equal(kept.positions, ours.positions)


def test_relative_targets_are_differences_before_thinning() -> None:
    rules = RULES._replace(max_frames=3, progress_target="relative_first_frame")
    theirs = clips.shown_clip(subject()._replace(num_frames=5), rules, "forward", None, False)
    assert theirs.positions.tolist() == [0, 2, 4] and theirs.target.tolist() == [0, 0.25, 0.25]
    ours = clip_plan(0, subject()._replace(num_frames=5), rules, "forward", None)
    assert ours.progress_target.tolist() == [0, 0.5, 0.5]


def test_of_a_partly_successful_clip_only_the_final_frame_is_unmasked() -> None:
    rules = RULES._replace(max_frames=8, pad_frames=True)
    forward = clips.shown_clip(subject("failure", partial=0.5), rules, "forward", (28, None, 31), True)
    assert forward.mask.tolist() == [False] * 3 + [True] + [False] * 4
    assert clips.shown_clip(subject(), rules, "forward", None, True).mask.all()
    assert clips.shown_clip(subject(partial=1.0), rules, "forward", None, True).mask.all()
    only = subject(partial=1.0)._replace(preference_only=True)
    assert clips.shown_clip(only, rules, "forward", None, True).mask.sum() == 1


def test_labels_begin_at_the_threshold_and_never_in_a_failure() -> None:
    progress = np.array([0.2, 0.8, 0.9, 1.0])
    assert clips.success_labels(progress, "successful", 0.9).tolist() == [0, 0, 1, 1]
    assert clips.success_labels(progress, "Failed", 0.9).tolist() == [0, 0, 0, 0]


def test_one_name_is_missing_from_the_list_of_preference_only_sources() -> None:
    assert targets.source_facts(clips.MISSED_PREFERENCE_ONLY, 1.0).preference_only
    assert not clips.is_preference_only(clips.MISSED_PREFERENCE_ONLY)
    assert clips.is_preference_only("auto_eval_rfm") and not clips.is_preference_only("autoeval")
    assert not clips.is_preference_only(None)


@pytest.mark.parametrize(
    ("quality", "preference_only", "supervised"), [(None, False, True), (None, True, False), ("failed", False, False)]
)
def test_the_rewind_of_an_unlabelled_trajectory_trains_progress(
    quality: str | None, preference_only: bool, supervised: bool
) -> None:
    assert clips.supervises_progress(quality, "lab", None, preference_only, rewind=True) == supervised
    assert not clips.supervises_progress(quality, "lab", None, preference_only, rewind=False)


def test_a_negative_value_wraps_around_to_the_last_bins() -> None:
    rows = clips.two_hot(np.array([0.5, 1.0, -0.25, -0.125]), 5)
    wanted = [[0, 0, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1], [0.5, 0, 0, 0, 0.5]]
    np.testing.assert_allclose(rows, wanted, atol=1e-9)


@pytest.mark.parametrize("bins", [2, 10, 32])
def test_bins_are_decoded_to_what_they_were_made_of(bins: int) -> None:
    values = np.linspace(0, 1, 57)
    np.testing.assert_allclose(clips.decoded(clips.two_hot(values, bins)), values, atol=1e-6)


def test_the_nearest_bin_of_a_half_is_the_even_one() -> None:
    assert clips.nearest_bin(np.array([-1.0, 0.125, 0.375, 0.6, 2.0]), 5).tolist() == [0, 0, 2, 2, 4]
