"""Targets, labels and masks, by hand; upstream's are in tests/parity/upstream/test_clips.py."""

from __future__ import annotations

import numpy as np
import pytest

from robometer.frames.video import thin_positions
from robometer.sampling import targets
from robometer.sampling.segments import keep_position
from robometer.sampling.strategies import Rules, Subject, clip_plan

KIND = "absolute_first_frame"
RULES = Rules(max_frames=64, progress_target=KIND, not_done_below_progress=0.5, pad_frames=False)


def subject(quality: str = "successful", cutoff: float = 1.0, partial: float | None = None) -> Subject:
    return Subject(32, quality, cutoff, partial, supervised=True, preference_only=False)


@pytest.mark.parametrize("kind", ["absolute_first_frame", "absolute_wrt_total_frames", "relative_first_frame"])
@pytest.mark.parametrize("cutoff", [1.0, 0.95, 0.7])
def test_success_begins_where_progress_reaches_one(kind: str, cutoff: float) -> None:
    clip = clip_plan(0, subject(cutoff=cutoff), RULES._replace(progress_target=kind), "forward", None)
    progress = clip.progress_target if kind != "relative_first_frame" else clip.progress_target.cumsum()
    np.testing.assert_array_equal(clip.success_label, (progress > 1 - 1e-5).astype(np.float32))
    assert clip.success_label[-1] == 1 and clip.success_label[: int(cutoff * 32) - 1].sum() == 0


def test_success_begins_at_the_cutoff() -> None:
    assert clip_plan(0, subject(cutoff=0.95), RULES, "forward", None).success_label.argmax() == 29


@pytest.mark.parametrize(
    ("kind", "cutoff", "progress", "success"),
    [  # done after int(0.6 x 5) = 3 frames
        ("absolute_wrt_total_frames", 0.6, [0.2, 0.4, 0.6, 1, 1], [0, 0, 0, 1, 1]),
        ("absolute_wrt_total_frames", 1.0, [0.2, 0.4, 0.6, 0.8, 1], [0, 0, 0, 0, 1]),
        ("absolute_first_frame", 0.6, [0, 0.5, 1, 1, 1], [0, 0, 1, 1, 1]),
        ("absolute_first_frame", 1.0, [0, 0.25, 0.5, 0.75, 1], [0, 0, 0, 0, 1]),
        ("relative_first_frame", 0.6, [0, 0.5, 0.5, 0, 0], [0, 0, 1, 1, 1]),
    ],
)
def test_targets_of_five_frames_by_hand(kind: str, cutoff: float, progress: list[float], success: list[float]) -> None:
    rules = RULES._replace(progress_target=kind)
    clip = clip_plan(0, subject(cutoff=cutoff)._replace(num_frames=5), rules, "forward", None)
    np.testing.assert_allclose(clip.progress_target, progress, atol=1e-6)
    assert clip.success_label.tolist() == success


def test_the_success_mask_leaves_out_what_is_half_done_and_not_done() -> None:
    """Of progress 0, 1/4, 1/2, 3/4, 1 with `not_done_below_progress` 1/2: below it, and where the task is done."""
    progress, labels = np.array([0, 0.25, 0.5, 0.75, 1]), np.array([0, 0, 0, 0, 1.0])
    assert targets.success_mask(progress, labels, "successful", 0.5).tolist() == [True, True, False, False, True]
    assert targets.success_mask(progress, labels, "failure", 0.5).all()
    assert targets.success_labels(progress, "successful").tolist() == [0, 0, 0, 0, 1]
    assert not targets.success_labels(progress, "suboptimal").any()


def test_frames_past_the_cutoff_are_done_in_any_clip() -> None:
    path = np.array([30, 31])
    assert targets.reached(path, 32, KIND, 0.9).tolist() == [1.0, 1.0]
    assert targets.reached(path[:0], 32, KIND, 0.9).tolist() == []


def test_eight_frames_of_thirty_two_by_hand() -> None:
    path = thin_positions(32, 8)
    assert path.tolist() == [0, 4, 9, 13, 18, 22, 27, 31]
    expected = [0, 0.1379, 0.3103, 0.4483, 0.6207, 0.7586, 0.9310, 1]
    np.testing.assert_allclose(targets.reached(path, 32, KIND, 0.95), expected, atol=5e-5)


def test_partial_success_is_a_ramp_to_it() -> None:
    whole = clip_plan(0, subject("failure", partial=0.5), RULES, "forward", None)
    np.testing.assert_allclose(whole.progress_target, np.linspace(0, 0.5, 32), atol=1e-6)
    middle = clip_plan(0, subject("failure", partial=0.5), RULES, "forward", (0, None, 15))
    np.testing.assert_allclose(middle.progress_target, whole.progress_target[:16], atol=1e-6)
    assert not whole.success_label.any() and whole.success_mask.all()


def test_success_is_trained_where_it_is_clear() -> None:
    clip = clip_plan(0, subject(), RULES, "forward", None)
    expected = (clip.progress_target < 0.5) | (clip.success_label == 1)
    np.testing.assert_array_equal(clip.success_mask, expected)
    assert 0 < clip.success_mask.sum() < 32


def test_the_peak_of_a_rewind_survives_thinning() -> None:
    rules = RULES._replace(max_frames=4)
    peaks = [clip_plan(0, subject(), rules, "rewind", (0, f3, f2)).positions for f3 in range(2, 32) for f2 in (1,)]
    for f3, positions in enumerate(peaks, start=2):
        assert positions.max() == f3 and len(positions) == min(4, 2 * f3)


def test_keep_position_moves_the_nearest_inner_one() -> None:
    assert keep_position(np.array([0, 10, 20, 30]), 14).tolist() == [0, 14, 20, 30]
    assert keep_position(np.array([0, 10, 20, 30]), 1).tolist() == [0, 1, 20, 30]
    assert keep_position(np.array([0, 10, 20, 30]), 29).tolist() == [0, 10, 29, 30]
    assert keep_position(np.array([0, 10, 20, 30]), 20).tolist() == [0, 10, 20, 30]


def test_names_that_converters_write_find_their_facts() -> None:
    assert targets.source_facts("fino_net", 1.0) == targets.SourceFacts(0.75, False)
    assert targets.source_facts("galaxea_part3_r1_lite", 1.0) == targets.SourceFacts(0.8, True)
    listed = "roboreward_dlr_edan_shared_control_converted_externally_to_rlds"
    assert targets.source_facts(listed, 1.0) == targets.SourceFacts(0.95, True)
    assert targets.source_facts("a new source", 0.9) == targets.SourceFacts(0.9, False)


def test_a_cut_off_under_its_own_name_counts_before_that_of_an_alias(monkeypatch: pytest.MonkeyPatch) -> None:
    lists = {"success_cutoff": {"zed": 0.5, "alpha": 0.9}, "preference_only": ["alpha"], "aliases": {"zed": "alpha"}}
    monkeypatch.setattr(targets, "source_lists", lambda: lists)
    assert targets.source_facts("zed", 1.0) == targets.SourceFacts(0.5, True)
    del lists["success_cutoff"]["zed"]  # type: ignore[attr-defined]
    assert targets.source_facts("zed", 1.0) == targets.SourceFacts(0.9, True)


def test_shared_arrays_cannot_be_changed() -> None:
    clip = clip_plan(0, subject(), RULES, "forward", None)
    with pytest.raises(ValueError, match="read-only"):
        clip.progress_target[0] = 7.0
