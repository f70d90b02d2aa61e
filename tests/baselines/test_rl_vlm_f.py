"""RL-VLM-F sends both last frames in order, reads one number, and has no progress."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from robometer.baselines import load_baseline
from robometer.baselines.rl_vlm_f import RlVlmF, read_preference
from robometer.scoring import Clip, MissingAnswer, NoProgress
from tests.baselines.chat_server import ChatServer, Reply, Seen, openai, settings


def rising_to(level: int) -> Clip:
    levels = np.linspace(0, level, 4).astype(np.uint8)
    return Clip(np.broadcast_to(levels[:, None, None, None], (4, 16, 16, 3)).copy(), "raise the lamp")


def by_brightness(seen: Seen) -> Reply:
    a, b = (picture.mean() for picture in seen.pictures)
    return openai(f"Both pictures show a lamp.\nOne of the 2 is bright.\n{-1 if abs(a - b) < 2 else int(b > a)}")


def rl_vlm_f(server: ChatServer, tmp_path: Path) -> RlVlmF:
    scorer = load_baseline("rl_vlm_f", settings(server, tmp_path / "answers"))
    assert isinstance(scorer, RlVlmF)
    return scorer


def test_both_orders_are_asked_as_given_and_agree(tmp_path: Path) -> None:
    dark, bright = rising_to(40), rising_to(200)
    with ChatServer(by_brightness) as server:
        answers = rl_vlm_f(server, tmp_path).compare([(bright, dark), (dark, bright), (bright, bright)])
    assert answers.dtype == np.float32 and answers.tolist() == [1.0, 0.0, 0.5]
    levels = sorted(tuple(round(picture.mean()) for picture in seen.pictures) for seen in server.seen)
    assert levels == [(40, 200), (200, 40), (200, 200)], "the last frame of each clip, in the order given"
    assert all("raise the lamp" in str(seen.parts[0]) for seen in server.seen)


def test_a_model_that_likes_the_first_picture_contradicts_itself(tmp_path: Path) -> None:
    with ChatServer([openai("0")]) as server:
        answers = rl_vlm_f(server, tmp_path).compare([(rising_to(9), rising_to(90)), (rising_to(90), rising_to(9))])
    assert answers.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("0", 1.0),
        ("Picture 0 shows 1 lamp.\nPicture 1 is closer.\n1", 0.0),
        ("They are alike.\n-1\n\n", 0.5),
        ("They are alike.\n\N{MINUS SIGN}1", 0.5),
        ("Answer: **0**", 1.0),
        ("$\\boxed{1}$", 0.0),
        ("[-1]", 0.5),
        ("1.0", 0.0),
    ],
)
def test_the_last_line_decides(answer: str, expected: float) -> None:
    assert read_preference(answer) == expected


@pytest.mark.parametrize("answer", ["0\nI am not sure.", "2", "10", "0.1", "neither", "3-1", "1 of them", "..."])
def test_any_other_last_line_is_a_missing_answer(answer: str) -> None:
    with pytest.raises(MissingAnswer, match="not 0, 1 or -1"):
        read_preference(answer)


def test_it_says_that_it_has_no_progress(tmp_path: Path) -> None:
    with ChatServer(by_brightness) as server:
        scorer = rl_vlm_f(server, tmp_path)
        assert scorer.info.compares_only
        with pytest.raises(NoProgress, match="only compares two clips"):
            scorer.score([rising_to(9)])
        with pytest.raises(NoProgress, match="only compares two clips"):
            scorer.open_session("raise the lamp")
        assert scorer.compare([]).shape == (0,) and server.seen == []
