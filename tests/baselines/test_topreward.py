from __future__ import annotations

import numpy as np
import pytest

from robometer.baselines import load_baseline
from robometer.baselines.asking import PromptVideo, fill
from robometer.baselines.config import BaselineConfig
from robometer.baselines.topreward import TEMPLATE, TopReward, min_max
from robometer.models.images import resize
from robometer.scoring import Clip, Scorer
from tests.baselines.local_models import bundled_clip, tiny_model


@pytest.fixture(scope="module")
def scorer() -> TopReward:
    baseline = load_baseline("topreward", BaselineConfig(model="tiny"))
    assert isinstance(baseline, TopReward) and isinstance(baseline, Scorer)
    return baseline


def test_rewards_of_prefixes_are_log_probabilities_of_each_prefix_alone(scorer: TopReward) -> None:
    clip, chat = bundled_clip(5), tiny_model()
    frames = resize(clip.frames, 224, 224, 3)  # type: ignore[arg-type]
    alone = [
        chat.log_prob([fill(TEMPLATE, clip.task, [PromptVideo(frames[:end], 2.0)])], "True")[0]
        for end in (1, 2, 3, 4, 5)
    ]
    np.testing.assert_allclose(scorer.rewards(clip, np.arange(1, 6)), alone, rtol=1e-5)


def test_progress_is_the_reward_scaled_within_the_clip_and_rank_is_the_last_reward(scorer: TopReward) -> None:
    clip = bundled_clip(6)
    score, rewards = scorer.score([clip])[0], scorer.rewards(clip, np.arange(1, 7))
    np.testing.assert_allclose(score.progress, (rewards - rewards.min()) / (rewards.max() - rewards.min()), atol=1e-6)
    assert score.rank == score.reward == pytest.approx(rewards[-1]) and rewards[-1] < 0


def test_a_clip_scores_alike_in_any_batch(scorer: TopReward) -> None:
    clips = [bundled_clip(4), bundled_clip(3).reversed(), bundled_clip(4).with_task("close the door")]
    together, alone = scorer.score(clips), [scorer.score([clip])[0] for clip in clips]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a.progress, b.progress, rtol=1e-5)
        assert a.rank == pytest.approx(b.rank, rel=1e-5)
    assert len({score.rank for score in alone}) == 3


def test_of_a_long_clip_fifteen_prefixes_are_scored_and_every_frame_has_a_value() -> None:
    lengths: list[int] = []

    class Counting(TopReward):
        def rewards(self, clip: Clip, ends: np.ndarray) -> np.ndarray:
            lengths.extend(ends)
            return np.asarray(-1.0 / ends)

    clip = Clip(np.zeros((100, 8, 8, 3), dtype=np.uint8), "wait")
    score = Counting(tiny_model()).score([clip])[0]
    assert len(lengths) == 15 and lengths[0] == 1 and lengths[-1] == 64
    assert len(score.progress) == 100 and (np.diff(score.progress) >= 0).all() and score.progress[-1] == 1


@pytest.mark.parametrize("num_frames", [1, 2])
def test_a_clip_of_one_or_two_frames_is_done_throughout(scorer: TopReward, num_frames: int) -> None:
    score = scorer.score([bundled_clip(6).take(range(num_frames))])[0]
    assert score.progress.tolist() == [1.0] * num_frames
    assert score.rank is not None and score.rank < 0


def test_equal_rewards_are_ones() -> None:
    assert min_max(np.array([-3.0, -3.0])).tolist() == [1, 1]
    assert min_max(np.array([-3.0, -1.0, -2.0])).tolist() == [0, 1, 0.5]


def test_the_clip_with_the_higher_log_probability_is_preferred(scorer: TopReward) -> None:
    a, b = bundled_clip(4), bundled_clip(4).with_task("close the door")
    difference = scorer.score([a])[0].reward - scorer.score([b])[0].reward
    assert scorer.compare([(a, b)])[0] == pytest.approx(1 / (1 + np.exp(-difference)), rel=1e-4)
