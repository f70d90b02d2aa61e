from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from robometer.baselines import load_baseline
from robometer.baselines.asking import fill
from robometer.baselines.config import BaselineConfig
from robometer.baselines.vlac import TEMPLATE, Vlac, accumulate, asking_critic, fit, parse_delta
from robometer.scoring import MissingAnswer
from robometer.settings import ConfigError
from tests.baselines.local_models import bundled_clip, teach, tiny_model

CLIP = bundled_clip(5)


@pytest.mark.parametrize(
    ("answer", "delta"), [("12", 0.12), ("-4.5%", -0.045), ("+300", 1.0), ("about -250 percent", -1.0), ("0", 0.0)]
)
def test_a_delta_is_read_and_clamped(answer: str, delta: float) -> None:
    assert parse_delta(answer) == delta


def test_an_answer_without_a_number_is_missing() -> None:
    assert np.isnan(parse_delta("it got closer"))


def test_deltas_are_shares_of_what_is_left() -> None:
    np.testing.assert_allclose(accumulate(np.array([0.5, 0.5, -1.0, np.nan, 0.8])), [0.5, 0.75, 0.5, np.nan, 0.9])


@pytest.mark.parametrize(("deltas", "expected"), [([0.1], [0.1, 0, 0]), ([1, 2, 3, 4], [1, 2, 3])])
def test_deltas_are_padded_and_cut_to_the_clip(deltas: list[float], expected: list[float]) -> None:
    assert fit(np.array(deltas), 3).tolist() == expected


def test_the_models_deltas_become_progress_cut_to_the_unit_interval_in_any_batch() -> None:
    chat = tiny_model()
    pairs = list(zip(CLIP.frames[:-1], CLIP.frames[1:], strict=True))
    teach(chat, [fill(TEMPLATE, CLIP.task, pair) for pair in pairs], ["-20", "60", "none", "50"])
    scorer = Vlac(asking_critic(chat.ask))
    score = scorer.score([CLIP])[0]
    values = [0, -0.2, 0.52, 0.76]
    np.testing.assert_allclose(score.progress, [0, 0, 0.52, 0.64, 0.76], rtol=1e-6)
    assert values[2] == pytest.approx(-0.2 + 1.2 * 0.6) and score.coverage == 0.75
    np.testing.assert_allclose(scorer.score([CLIP.take([0, 1]), CLIP])[1].progress, score.progress, rtol=1e-5)


def test_without_any_delta_the_clip_is_an_error() -> None:
    with pytest.raises(MissingAnswer, match="none of 4 answers"):
        load_baseline("vlac", BaselineConfig(model="tiny")).score([CLIP])


def test_the_published_weights_ask_for_their_package(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internvl_chat"}))
    for model in ("", "InternRobotics/VLAC-8b", str(tmp_path)):
        with pytest.raises(ConfigError, match="run only in the package evo_vlac"):
            load_baseline("vlac", BaselineConfig(model=model))


def test_the_authors_path_needs_no_new_transformers() -> None:
    """The authors' package needs an old transformers, which lacks the classes that our models need."""
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from robometer.baselines import load_baseline\n"
        "from robometer.baselines.config import BaselineConfig\n"
        "load_baseline('vlac', BaselineConfig())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ConfigError: the weights of InternRobotics/VLAC run only in the package evo_vlac" in done.stderr
