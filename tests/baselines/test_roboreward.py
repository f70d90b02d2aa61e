from __future__ import annotations

import numpy as np
import pytest

from robometer.baselines import load_baseline
from robometer.baselines.asking import PromptVideo, fill
from robometer.baselines.config import BaselineConfig
from robometer.baselines.roboreward import TEMPLATE, RoboReward, parse_grade
from robometer.scoring import MissingAnswer
from tests.baselines.local_models import bundled_clip, teach, tiny_model


@pytest.mark.parametrize(
    ("answer", "grade"),
    [
        ("ANSWER: 3", 3),
        ("The drawer is open.\nanswer:4", 4),
        ("ANSWER: 5\nThough 2 of 3 drawers are closed", 5),
        ("ANSWER: 7, no: rather a 2", 2),
        ("of 5 points it gets 4.", 4),
        ("**2**", 2),
    ],
)
def test_a_grade_is_read(answer: str, grade: int) -> None:
    assert parse_grade(answer) == grade


@pytest.mark.parametrize("answer", ["", "ANSWER: six", "ANSWER: 0", "12", "0.5", "-3", "3.5 points", "frame4"])
def test_an_answer_without_a_grade_is_missing_and_not_a_one(answer: str) -> None:
    assert np.isnan(parse_grade(answer))


def _taught(answers: list[str]) -> RoboReward:
    """On the bundled clip of 8 frames, whose prefixes are 1, 2, 4, 6 and 8 frames long."""
    chat, clip = tiny_model(), bundled_clip(8)
    ends = (1, 2, 4, 6, 8)
    teach(chat, [fill(TEMPLATE, clip.task, [PromptVideo(clip.frames[:end], 1.0)]) for end in ends], answers)
    return RoboReward(chat.ask)


def test_grades_of_prefixes_become_progress_at_their_ends_in_any_batch() -> None:
    scorer, clip = _taught([f"ANSWER: {grade}" for grade in (1, 2, 3, 3, 5)]), bundled_clip(8)
    score = scorer.score([clip])[0]
    np.testing.assert_allclose(score.progress, [0, 0.25, 0.375, 0.5, 0.5, 0.5, 0.75, 1])
    assert score.coverage == 1 and score.reward == 1
    again = scorer.score([clip.take([0, 7]), clip])[1]
    np.testing.assert_allclose(again.progress, score.progress, rtol=1e-5)


def test_a_grade_that_is_missing_is_interpolated_and_counted() -> None:
    score = _taught(["ANSWER: 1", "ANSWER: 2", "no idea", "ANSWER: 3", "ANSWER: 5"]).score([bundled_clip(8)])[0]
    np.testing.assert_allclose(score.progress[1:6], np.linspace(0.25, 0.5, 5))
    assert score.coverage == 0.8


def test_without_any_grade_the_clip_is_an_error() -> None:
    with pytest.raises(MissingAnswer, match="none of 5 answers could be read; the last one is"):
        RoboReward(tiny_model(max_new_tokens=4).ask).score([bundled_clip(8)])


def test_the_published_sizes_of_frames_and_answers_are_kept() -> None:
    scorer = load_baseline("roboreward", BaselineConfig(model="tiny"))
    assert isinstance(scorer, RoboReward)
    chat = scorer._ask.__self__  # type: ignore[attr-defined]
    tokens, _ = chat.read([[PromptVideo(bundled_clip(2).frames, 1.0)]])
    assert (tokens[0].identity < 0).sum() >= 128
    assert chat.model.generation_config.max_new_tokens == 128 and not chat.model.generation_config.do_sample
