from __future__ import annotations

import dataclasses
import importlib
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from robometer.baselines import load_baseline, robo_dopamine
from robometer.baselines.config import BaselineConfig
from robometer.baselines.robo_dopamine import RoboDopamine, accumulate, parse_hop
from robometer.scoring import MissingAnswer
from tests.baselines.chat_server import ChatServer, Reply, Seen, openai, settings
from tests.baselines.local_models import bundled_clip, teach, tiny_model

CLIP = bundled_clip(5)


@pytest.mark.parametrize(
    ("answer", "hop"),
    [
        ("<score>+25%</score>", 0.25),
        ("<score>-7.5%</score>", -0.075),
        ("It moved.\n<SCORE> 40 </SCORE> done", 0.4),
        ("<score>+250%</score>", 1.0),
        ("<score>-101%</score>", -1.0),
        ("<score>0%</score><score>9%</score>", 0.0),
    ],
)
def test_a_hop_is_read_and_clamped(answer: str, hop: float) -> None:
    assert parse_hop(answer) == hop


@pytest.mark.parametrize("answer", ["", "+25%", "<score></score>", "<score>half</score>", "<score>+25%"])
def test_an_answer_without_a_score_is_missing_and_not_a_zero(answer: str) -> None:
    assert np.isnan(parse_hop(answer))


def test_hops_add_up_as_published() -> None:
    hops = np.array([0.2, 0.5, -0.5, np.nan, 1.0])
    np.testing.assert_allclose(accumulate(hops, "incremental"), [0.2, 0.6, 0.3, np.nan, 1.0])
    np.testing.assert_allclose(accumulate(hops, "forward"), hops)
    np.testing.assert_allclose(accumulate(-hops, "backward"), [0.8, 0.5, 1.5, np.nan, 0.0])


def test_the_first_hop_is_taken_as_it_is() -> None:
    np.testing.assert_allclose(accumulate(np.array([np.nan, -0.2, 0.5]), "incremental"), [np.nan, -0.2, 0.4])


@pytest.mark.parametrize(
    ("mode", "before"), [("forward", [0, 0, 0, 0]), ("incremental", [0, 1, 2, 3]), ("backward", [-1, -1, -1, -1])]
)
def test_each_question_shows_start_and_goal_and_the_view_thrice_before_and_after(mode: str, before: list[int]) -> None:
    goal = np.full_like(CLIP.frames[0], 9)
    prompts = RoboDopamine(lambda prompts: [], mode, goals={CLIP.task: goal}).prompts(CLIP)
    frames = [*CLIP.frames, goal]
    for i, prompt in enumerate(prompts):
        pictures = [part for part in prompt if isinstance(part, np.ndarray)]
        expected = [frames[0], goal, *[frames[before[i]]] * 3, *[frames[i + 1]] * 3]
        assert len(pictures) == 8 and all(map(np.array_equal, pictures, expected))


def test_without_a_goal_a_grey_picture_stands_in() -> None:
    grey = RoboDopamine(lambda prompts: []).prompts(CLIP)[0][3]
    assert isinstance(grey, np.ndarray) and grey.shape == (224, 224, 3) and (grey == 128).all()


@pytest.mark.parametrize("name", ["tiny_qwen2_5_vl", "tiny"])
def test_the_models_hops_become_progress_in_any_batch(name: str) -> None:
    chat = tiny_model(name)
    scorer = RoboDopamine(chat.ask, goals={CLIP.task: CLIP.frames[-1]})
    answers = ["<score>+20%</score>", "<score>-10%</score>", "dunno", "<score>+90%</score>"]
    teach(chat, scorer.prompts(CLIP), answers)
    score = scorer.score([CLIP])[0]
    np.testing.assert_allclose(score.progress, [0, 0.2, 0, 0.45, 0.9], rtol=1e-6)
    assert score.coverage == 0.75
    np.testing.assert_allclose(scorer.score([CLIP.take([0, 1]), CLIP])[1].progress, score.progress, rtol=1e-5)


def test_without_any_hop_the_clip_is_an_error() -> None:
    with pytest.raises(MissingAnswer, match="none of 4 answers could be read; the last one is"):
        RoboDopamine(tiny_model(max_new_tokens=4).ask).score([CLIP])


def test_a_single_frame_is_the_start() -> None:
    assert RoboDopamine(lambda prompts: []).score([CLIP.take([2])])[0].progress.tolist() == [0.0]


@pytest.mark.parametrize(("mode", "expected"), [("", "forward"), ("incremental", "incremental")])
def test_the_mode_is_the_published_one_unless_it_is_set(mode: str, expected: str) -> None:
    scorer = load_baseline("robo_dopamine", BaselineConfig(model="tiny_qwen2_5_vl", mode=mode))
    assert isinstance(scorer, RoboDopamine) and scorer._mode == expected


@pytest.mark.parametrize(
    ("folder", "expected"), [("", "forward"), ("tanhuajie2001/Robo-Dopamine-GRM-3B", "incremental")]
)
def test_a_folder_with_a_published_name_has_its_mode(
    folder: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(robo_dopamine, "load_chat_model", lambda *_: SimpleNamespace(ask=list))
    scorer = load_baseline("robo_dopamine", BaselineConfig(model=str(tmp_path / folder)))
    assert isinstance(scorer, RoboDopamine) and scorer._mode == expected


def test_an_import_leaves_the_environment_alone() -> None:
    before = dict(os.environ)
    importlib.reload(robo_dopamine)
    assert dict(os.environ) == before


def test_an_endpoint_is_asked_with_the_eight_pictures_and_its_bad_answers_are_missing(tmp_path: Path) -> None:
    answers = ["", "<score>+10%</score>", "I cannot tell.", "<score>+30%</score>", ""]

    def by_frame(seen: Seen) -> Reply:
        apart = [np.abs(frame - seen.pictures[-1].astype(float)).mean() for frame in CLIP.frames]
        return openai(answers[int(np.argmin(apart))])

    with ChatServer(by_frame) as server:
        config = dataclasses.replace(settings(server, tmp_path / "answers"), model="")
        score = load_baseline("robo_dopamine", config).score([CLIP])[0]
    assert all(len(seen.pictures) == 8 and CLIP.task in str(seen.parts[0]) for seen in server.seen)
    assert score.coverage < 1 and score.progress[1] == pytest.approx(0.1) and score.progress[3] == pytest.approx(0.3)
