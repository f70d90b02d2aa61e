from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from robometer.baselines import runtime_env
from robometer.baselines.asking import answered, fill, moment_positions, prefix_ends, read_template
from robometer.baselines.config import BaselineConfig
from robometer.scoring import MissingAnswer
from robometer.settings import ConfigError

PICTURES = np.zeros((2, 4, 4, 3), dtype=np.uint8)


def test_pictures_take_the_places_of_the_marks_and_a_mark_in_a_task_is_text() -> None:
    prompt = fill("Do {task}: <image>, <image>", "wipe the <image>", PICTURES)
    assert [part if isinstance(part, str) else "picture" for part in prompt] == [
        "Do wipe the <image>: ",
        "picture",
        ", ",
        "picture",
    ]
    assert prompt[3] is not prompt[1]


def test_the_prompt_of_a_file_replaces_ours_if_it_has_the_same_marks(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("{task}? <image> <image>")
    assert read_template(BaselineConfig(prompt=str(file)), "<image>{task}<image>") == "{task}? <image> <image>"
    assert read_template(BaselineConfig(), "ours") == "ours"
    with pytest.raises(ConfigError, match="has the marks <image> <image>, but it needs <video>"):
        read_template(BaselineConfig(prompt=str(file)), "<video>{task}")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_template(BaselineConfig(prompt=str(tmp_path / "none.txt")), "")


@pytest.mark.parametrize(
    ("num_frames", "count", "expected"), [(1, 15, [1]), (3, 15, [1, 2, 3]), (32, 5, [1, 8, 16, 24, 32])]
)
def test_prefixes_are_spread_evenly_without_repeats(num_frames: int, count: int, expected: list[int]) -> None:
    assert prefix_ends(num_frames, count).tolist() == expected


@pytest.mark.parametrize(
    ("num_frames", "interval", "expected"), [(7, 3, [0, 3, 6]), (8, 3, [0, 3, 6, 7]), (1, 1, [0]), (3, 9, [0, 2])]
)
def test_moments_are_every_kth_frame_and_the_last(num_frames: int, interval: int, expected: list[int]) -> None:
    assert moment_positions(num_frames, 64, interval).tolist() == expected


def test_missing_answers_are_interpolated_and_lower_the_coverage() -> None:
    score = answered(np.array([0.0, np.nan, 1.0, 0.5]), np.array([0, 1, 4, 5]), 6)
    np.testing.assert_allclose(score.progress, [0, 0.25, 0.5, 0.75, 1, 0.5])
    assert score.coverage == 0.75
    with pytest.raises(MissingAnswer, match="none of 2 answers"):
        answered(np.full(2, np.nan), np.arange(2), 2)


def test_only_what_needs_an_environment_of_its_own_has_one() -> None:
    assert "transformers<4.52" in runtime_env("vlac")["pip"]
    assert runtime_env("topreward") == {}


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"interval": 0}, {"max_frames": -1}, {"mode": "sideways"}])
def test_settings_that_cannot_work_are_refused(wrong: dict[str, int | str]) -> None:
    with pytest.raises(ConfigError, match="baseline"):
        BaselineConfig(**wrong)  # type: ignore[arg-type]
