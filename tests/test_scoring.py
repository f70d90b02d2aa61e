"""Scores of clips and their prefixes, and a scorer as a user writes one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from robometer.scoring import (
    Clip,
    ClipScore,
    MissingAnswer,
    Scorer,
    ScorerInfo,
    Session,
    last_of_each,
    score_positions,
    score_prefixes,
    spread,
)
from robometer.sessions import WindowSession


def test_answers_are_interpolated_between_the_frames_shown() -> None:
    values = np.array([0.0, 0.5, 0.25], dtype=np.float32)
    assert spread(values, np.array([0, 2, 6]), 7).tolist() == [0.0, 0.25, 0.5, 0.4375, 0.375, 0.3125, 0.25]


def test_a_missing_answer_is_filled_and_counted() -> None:
    score = ClipScore.of_progress(np.array([0.0, np.nan, 1.0, np.nan]), rank=7.0)
    assert score.progress.tolist() == score.success.tolist() == [0.0, 0.5, 1.0, 1.0]
    assert (score.coverage, score.reward) == (0.5, 7.0)
    with pytest.raises(MissingAnswer, match="no answer for any of 2 frames"):
        ClipScore.of_progress(np.full(2, np.nan))


def test_prefixes_give_their_last_frames() -> None:
    prefixes = [
        ClipScore(np.arange(n, dtype=np.float32), -np.arange(n, dtype=np.float32), coverage=n / 4) for n in (1, 2, 4)
    ]
    whole = last_of_each(prefixes)
    assert whole.progress.tolist() == [0, 1, 3] and whole.success.tolist() == [0, -1, -3]
    assert whole.coverage == pytest.approx((1 + 2 + 4) / 12) and whole.reward == 3.0


class FrameCount:
    """A scorer as a user writes one, from the documented protocol alone: progress is the number of frames, by ten."""

    name = "frame_count"
    info = ScorerInfo()

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        return [ClipScore.of_progress(np.full(len(clip), len(clip) / 10)) for clip in clips]

    def compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> np.ndarray:
        return np.array([len(a) > len(b) for a, b in pairs], dtype=np.float32)

    def open_session(self, task: str) -> Session:
        return WindowSession(self, task)


def test_a_scorer_of_ones_own_needs_a_name_an_info_and_three_methods() -> None:
    scorer: Scorer = FrameCount()
    clip = Clip(np.zeros((3, 4, 4, 3), dtype=np.uint8), "wave")
    (prefixes,) = score_prefixes(scorer, [clip])
    session = scorer.open_session("wave")
    pushed = [session.push(frame)[0] for frame in clip.frames]
    np.testing.assert_allclose(prefixes.progress, [0.1, 0.2, 0.3], rtol=1e-6)
    np.testing.assert_allclose(pushed, prefixes.progress)


@pytest.mark.parametrize(
    ("info", "positions", "shown"),
    [
        (ScorerInfo(), [5, 2, 5], [3, 6]),
        (ScorerInfo(max_frames=3), [5, 2, 5], [3, 6]),  # two prefixes, where all would be a pass and three more
        (ScorerInfo(max_frames=5), [5, 2, 5], [1, 2, 3, 4, 5, 6]),  # all are two passes
        (ScorerInfo(image_encoder="made"), [5, 2, 5], [1, 2, 3, 4, 5, 6]),  # each frame is encoded once
        (ScorerInfo(image_encoder="made"), [1], [1, 2]),
    ],
)
def test_few_positions_cost_less_than_all_and_are_equal(
    info: ScorerInfo, positions: list[int], shown: list[int]
) -> None:
    class Seen(FrameCount):
        seen: list[int] = []

        def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
            self.seen += [len(clip) for clip in clips]
            return super().score(clips)

    scorer, clip = Seen(), Clip(np.zeros((9, 4, 4, 3), dtype=np.uint8), "wave")
    scorer.info, scorer.seen = info, []
    score = score_positions(scorer, clip, positions)
    np.testing.assert_array_equal(score.progress, score_prefixes(FrameCount(), [clip])[0].progress[positions])
    assert scorer.seen == shown and len(score.success) == len(positions)


def test_a_scorer_that_shares_work_between_prefixes_is_asked_for_them() -> None:
    class Sharing(FrameCount):
        def score_prefixes(self, clips: Sequence[Clip]) -> list[ClipScore]:
            return [ClipScore.of_progress(np.ones(len(clip))) for clip in clips]

    (prefixes,) = score_prefixes(Sharing(), [Clip(np.zeros((2, 4, 4, 3), dtype=np.uint8), "wave")])
    assert prefixes.progress.tolist() == [1, 1]
