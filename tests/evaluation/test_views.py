"""Clips with reordered frames and with other instructions, and the evaluations that use them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from robometer.baselines.trivial import Clock, Constant
from robometer.corpus.corpus import Corpus
from robometer.evaluation.measures import partial_success, robustness, success_detection
from robometer.evaluation.metrics import Resampling
from robometer.evaluation.plan import plan_split
from robometer.evaluation.predict import ClipSource, predict
from robometer.evaluation.predictions import ClipPrediction, Predictions
from robometer.evaluation.views import CYCLE, FORWARD, HESITATION, REWOUND, VIEWS, counterfactual, paraphrases
from robometer.evaluation.views import true_progress as truth_of
from robometer.scoring import Clip
from tests.evaluation.corpora import build_corpus
from tests.evaluation.test_evaluations import Reach, run

SETTINGS = Resampling(20)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build_corpus(tmp_path_factory.mktemp("views") / "corpus")


def test_every_view_moves_by_one_frame_at_most_and_stays_in_the_clip() -> None:
    for name, view in VIEWS.items():
        for count in range(1, 40):
            positions = view(count)
            assert len(positions) >= count and set(positions) == set(range(count)), (name, count)
            assert np.abs(np.diff(positions)).max(initial=0) <= 1, (name, count)
    assert VIEWS[REWOUND](5).tolist() == [0, 1, 2, 3, 4, 3, 2]
    assert VIEWS["retry"](7).tolist() == [0, 1, 2, 3, 4, 3, 2, 3, 4, 5, 6]
    assert VIEWS[CYCLE](3).tolist() == [0, 1, 2, 1, 0, 1, 2]
    assert VIEWS[HESITATION](4).tolist() == [0, 1, 2, 2, 2, 3]
    assert truth_of(VIEWS[REWOUND](3)).tolist() == [0.0, 0.5, 1.0, 0.5]


def test_instructions_are_turned_around_and_reworded() -> None:
    assert counterfactual("Open the drawer") == "close the drawer"
    assert counterfactual("is opening the top door") == "is close the top door"
    assert counterfactual("take the apple out of the pot") == "take the apple into the pot"
    assert counterfactual("stack the blocks") is None
    assert counterfactual("the bottle is upright") is None
    assert set(paraphrases("Open it.")) == {"Please open it.", "The robot should open it.", "OPEN IT"}


def test_a_judge_of_states_is_robust_and_forgets_the_first_of_two_tasks(corpus: Corpus) -> None:
    _, results = run(corpus, Reach())
    assert results["seen", "reward_alignment"].value("voc_rewound") > 0.99
    result = results["seen", "robustness"]
    assert result.value("voc_retry") > 0.99 and result.value("voc_cycle") > 0.99
    assert result.value("hesitation_error") == pytest.approx(0)
    assert result.value("voc_memory") < 0.8
    assert {row["task"] for row in result.per_task} == {
        row["task"] for row in results["seen", "reward_alignment"].per_task
    }


def test_a_clock_fails_all_but_two_tasks_in_a_row(corpus: Corpus) -> None:
    _, results = run(corpus, Clock())
    result = results["seen", "robustness"]
    assert result.value("voc_memory") == pytest.approx(1)
    assert result.value("voc_cycle") < 0.5 and result.value("hesitation_error") > 0.1
    assert results["seen", "reward_alignment"].value("voc_rewound") < 0.9


class LouderIsBetter(Constant):
    """Scores a clip by the share of capitals in its instruction alone."""

    def progress(self, clip: Clip) -> np.ndarray:
        return np.full(len(clip), 0.9 if clip.task.isupper() else 0.3)


def test_words_that_mean_the_same_are_told_from_words_that_do_not(corpus: Corpus) -> None:
    _, deaf = run(corpus, Constant())
    _, loud = run(corpus, LouderIsBetter())
    assert deaf["seen", "instruction_grounding"].value("paraphrase_sensitivity") == 0
    assert loud["seen", "instruction_grounding"].value("paraphrase_sensitivity") == pytest.approx(0.6 / 3)
    assert deaf["seen", "confusion_matrix"].value("diagonal_gap") == 0  # variants are no cells of it


def _clip(number: int, quality: str, progress: list[float], success: list[float], **known: object) -> ClipPrediction:
    none = np.zeros(0, dtype=np.float32)
    label = np.asarray(known.pop("label", none), dtype=np.float32)
    values = (np.asarray(v, dtype=np.float32) for v in (progress, success))
    clip = ClipPrediction("s", str(number), number, "s", f"task {number % 2}", quality, FORWARD, *values, none, label)
    return ClipPrediction(**vars(clip) | known)


def test_partial_success_is_graded_as_roboreward_does() -> None:
    judged, last = [0.0, 0.25, 0.5, 1.0], [0.1, 0.6, 0.5, 0.0]
    clips = [
        _clip(i, "suboptimal", [0, p], [0, 0], partial_success=j)
        for i, (j, p) in enumerate(zip(judged, last, strict=True))
    ]
    result = partial_success.evaluate(Predictions(clips), "s", SETTINGS)
    assert result.value("mae") == pytest.approx((0 + 1 + 0 + 4) / 4)
    assert result.value("absolute_error") == pytest.approx((0.1 + 0.35 + 0 + 1) / 4)
    assert result.value("pair_accuracy") == 0.5  # task 0: 0.0 before 0.5; task 1: 1.0 below 0.25
    assert "no clip" in partial_success.evaluate(Predictions([_clip(0, "failure", [0], [0])]), "s", SETTINGS).skipped


def test_calibration_f1_and_delay_of_known_probabilities() -> None:
    sure = [_clip(i, "successful" if i < 3 else "failure", [1], [0.75]) for i in range(4)]
    result = success_detection.evaluate(Predictions(sure), "s", SETTINGS)
    assert result.value("calibration_error") == pytest.approx(0)
    assert result.value("brier") == pytest.approx(3 / 4 * 0.25**2 + 1 / 4 * 0.75**2)
    assert result.value("f1") == pytest.approx(2 * 3 / (2 * 3 + 1))
    late = _clip(0, "successful", [0] * 4, [0, 0, 0, 1], label=[0, 1, 1, 1])
    assert success_detection.detection_delay(late) == 0.5
    assert math.isnan(success_detection.detection_delay(sure[0]))


def test_hesitation_counts_the_stop_alone() -> None:
    clip = _clip(0, "successful", [0.0, 0.2, 0.5, 0.6, 0.7, 1.0], [0] * 6, view=HESITATION, num_frames=4)
    assert robustness.hesitation_error(clip) == pytest.approx((0.1 + 0.2) / 2)


def test_in_prefix_mode_a_frame_is_judged_without_those_after_it(corpus: Corpus) -> None:
    units = plan_split(corpus, "held_out", 100, 1, 0, ["reward_alignment"])
    source = ClipSource(corpus, None)
    whole, prefix = (Predictions.of(predict(Clock(), source, units, 8, mode)) for mode in ("whole", "prefix"))
    assert all(set(clip.progress) == {1.0} for clip in prefix.clips)  # of each prefix, the last frame is its end
    assert [len(clip.progress) for clip in prefix.clips] == [len(clip.progress) for clip in whole.clips]
    whole, prefix = (Predictions.of(predict(Reach(), source, units, 8, mode)) for mode in ("whole", "prefix"))
    assert all(np.array_equal(a.progress, b.progress) for a, b in zip(whole.clips, prefix.clips, strict=True))
