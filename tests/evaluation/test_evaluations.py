"""Evaluations of scorers whose answers are known: a clock, a constant, noise, frame difference."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from robometer.baselines.progress import ProgressScorer
from robometer.baselines.trivial import Clock, Constant, FrameDifference, Random
from robometer.corpus.corpus import Corpus
from robometer.corpus.storage import Storage
from robometer.evaluation import suite
from robometer.evaluation.config import EvaluateConfig
from robometer.evaluation.measures import confusion_matrix
from robometer.evaluation.metrics import Resampling
from robometer.evaluation.plan import plan_split, select_rows
from robometer.evaluation.predict import ClipSource, predict, predict_each
from robometer.evaluation.predictions import (
    ClipPrediction,
    InstructionPrediction,
    PairPrediction,
    Prediction,
    Predictions,
    from_table,
    to_table,
)
from robometer.evaluation.results import Result, flat
from robometer.evaluation.validation import measurable, validate
from robometer.evaluation.views import FORWARD
from robometer.sampling.groups import members
from robometer.sampling.types import SamplingError
from robometer.scoring import Clip, Scorer
from robometer.settings import ConfigError
from robometer.trajectory import QUALITY_LABELS
from tests.evaluation.corpora import TASKS, build_corpus

CONFIG = EvaluateConfig(bootstrap=50)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build_corpus(tmp_path_factory.mktemp("evaluation") / "corpus")


def run(corpus: Corpus, scorer: Scorer) -> tuple[Predictions, dict[tuple[str, str], Result]]:
    source = ClipSource.for_scorer(corpus, scorer)
    units = [u for split in CONFIG.splits for u in plan_split(corpus, split, 1000, 20, 0, CONFIG.evaluations)]
    predictions = Predictions.of(predict(scorer, source, units, 16))
    return predictions, {(r.split, r.evaluation): r for r in suite.evaluate_all(predictions, CONFIG)}


class Reach(ProgressScorer):
    """Scores each frame by the position of the square, so that progress in a reversed video falls."""

    name = "reach"

    def progress(self, clip: Clip) -> np.ndarray:
        red = clip.frames[:, 20, :, 0] > 180
        return np.asarray([np.flatnonzero(row).mean() / 64 for row in red])


class Reader(Reach):
    """Predicts no progress for a video of another task, which it tells by the background."""

    name = "reader"

    def progress(self, clip: Clip) -> np.ndarray:
        shade = 40 + 3 * len(clip.task), 60 + ord(clip.task[0])
        same = np.abs(clip.frames[0, 2, 2, :2].astype(int) - shade).max() <= 1
        return super().progress(clip) if same else np.zeros(len(clip))


@pytest.mark.parametrize(("tasks", "unit"), [(3, "trajectory"), (12, "task")])
def test_pairs_that_share_clips_are_worth_far_fewer_independent_ones(tasks: int, unit: str) -> None:
    """400 pairs of 20 clips each are worth about 30: the variance of an AUROC by chance is 41 / (12 * 20 * 20)."""
    rng, none = np.random.default_rng(0), np.zeros(0)
    clips = [
        ClipPrediction(
            "seen", f"{task} {label} {i}", 0, "test", f"task {task}", label, FORWARD, values, none, none, none
        )
        for task in range(tasks)
        for label in ("failure", "successful")
        for i, values in enumerate(rng.random((20, 2)))
    ]
    result = suite.EVALUATIONS["policy_ranking"](Predictions(clips), "seen", Resampling(1000, 0.95, 0))
    estimates = {m.name: m.estimate for m in result.metrics}
    accuracy, kendall = estimates["accuracy_last"], estimates["kendall_last"]
    assert accuracy.unit == unit and accuracy.n == 400 * tasks
    assert 15 * tasks < accuracy.effective_n < 60 * tasks
    assert (kendall.effective_n == kendall.n) if unit == "task" else math.isnan(kendall.effective_n)


def test_a_longer_clip_has_the_greater_sum_and_not_the_greater_mean() -> None:
    none = np.zeros(0, np.float32)
    progress = {"failure": [0.6, 0.6], "successful": [1.0]}
    clips = [
        ClipPrediction("seen", label, 0, "test", "open", label, FORWARD, np.array(values), np.array(values), none, none)
        for label, values in progress.items()
    ]
    result = suite.EVALUATIONS["policy_ranking"](Predictions(clips), "seen", Resampling(0, 0.95, 0))
    assert [result.value(f"accuracy_{reward}") for reward in ("last", "mean", "sum")] == [1.0, 1.0, 0.0]


def test_success_is_detected_above_one_half_and_not_at_it() -> None:
    """By hand. `late` reaches 1/2 at its second frame and passes it at its fourth, one after it succeeds: 1 of 4 late.
    `never` stays at 1/2: it counts as not detected, and has no delay. Of the two that fail, `loud` is a false alarm."""
    clips_of = {
        "late": ("successful", [0.2, 0.5, 0.4, 0.75], [0, 0, 1, 1]),
        "never": ("successful", [0.1, 0.5, 0.5, 0.5], [0, 0, 0, 1]),
        "quiet": ("failure", [0.1, 0.5, 0.1, 0.0], [0, 0, 0, 0]),
        "loud": ("suboptimal", [0.1, 0.51, 0.1, 0.25], [0, 0, 0, 0]),
    }
    none = np.zeros(0, np.float32)
    clips = []
    for id, (quality, predicted, true) in clips_of.items():
        values = np.array(predicted), np.array(predicted), none, np.array(true)
        clips.append(ClipPrediction("seen", id, 0, "test", "open", quality, FORWARD, *values))
    result = suite.EVALUATIONS["success_detection"](Predictions(clips), "seen", Resampling(0, 0.95, 0))
    expected = {
        "detection_delay": 1 / 4,
        "true_positive_rate": 1 / 2,
        "true_negative_rate": 1 / 2,
        "f1": 2 * 1 / (2 * 1 + 2),
        "auroc_last": 1.0,  # .75 and .5 against 0 and .25
        "auroc_max": (2 + 0.5 + 0) / 4,  # .75 beats both; .5 ties with .5 and loses against .51
        "brier": (0.25**2 + 0.5**2 + 0 + 0.25**2) / 4,
        "calibration_error": (0.25 + 0.5 + 0 + 0.25) / 4,  # four bins of one clip each
    }
    assert {name: result.value(name) for name in expected} == pytest.approx(expected)


def test_a_cell_of_the_confusion_matrix_is_an_instruction_by_a_video() -> None:
    progress = {("close", "open"): [0.25, 0.75], ("open", "open"): [1.0], ("open", "close"): [0.125]}
    records = [
        InstructionPrediction("seen", f"{video} {i}", 0, video, instruction, value)
        for (instruction, video), values in progress.items()
        for i, value in enumerate(values)
    ]
    matrix = confusion_matrix.matrix_of(records)
    assert list(matrix.rows) == list(matrix.columns) == ["close", "open"]
    np.testing.assert_array_equal(matrix.values, [[np.nan, 0.5], [0.125, 1.0]])
    assert matrix.counts == [[0, 2], [1, 1]]


def test_a_clock_is_perfect_forwards_and_backwards_and_ranks_nothing(corpus: Corpus) -> None:
    _, results = run(corpus, Clock())
    for split in CONFIG.splits:
        alignment, ranking = results[split, "reward_alignment"], results[split, "policy_ranking"]
        assert alignment.value("voc") == pytest.approx(1.0)
        assert alignment.value("voc_reversed") == pytest.approx(1.0)
        assert ranking.value("kendall_last") == 0.0
        assert ranking.value("kendall_ceiling_last") == 0.0
        assert ranking.value("accuracy_last") == 0.5
        assert results[split, "preference"].value("accuracy_quality") == 0.5
        assert results[split, "success_detection"].value("auroc_last") == 0.5


def test_a_constant_counts_as_zero_and_says_how_often(corpus: Corpus) -> None:
    _, results = run(corpus, Constant())
    voc = next(m for m in results["seen", "reward_alignment"].metrics if m.name == "voc")
    assert (voc.estimate.value, voc.estimate.undefined, voc.estimate.n) == (0.0, 10, 10)
    confusion = results["seen", "confusion_matrix"]
    assert confusion.value("diagonal_gap") == 0.0
    assert confusion.value("own_instruction_highest") == pytest.approx(1 / 5)


def test_a_judge_of_states_goes_down_on_reversed_video(corpus: Corpus) -> None:
    _, results = run(corpus, Reach())
    alignment = results["held_out", "reward_alignment"]
    assert alignment.value("voc") > 0.99
    assert alignment.value("voc_reversed") < -0.99
    assert alignment.value("env_reward") > 0.99
    assert results["held_out", "policy_ranking"].value("accuracy_last") == 1.0
    assert results["held_out", "preference"].value("accuracy_reversed") == 1.0
    assert results["held_out", "success_detection"].value("auroc_frame") > 0.9


def test_a_reader_of_instructions_fills_the_diagonal_and_prefers_the_right_task(corpus: Corpus) -> None:
    _, results = run(corpus, Reader())
    confusion = results["seen", "confusion_matrix"]
    assert confusion.value("own_instruction_highest") == 1.0
    assert confusion.value("diagonal_gap") > 0.5
    assert confusion.value("diagonal_share") == pytest.approx(1.0)
    assert confusion.matrix is not None and list(confusion.matrix.rows) == sorted(TASKS["seen"])
    assert results["seen", "preference"].value("accuracy_task") == 1.0


def test_noise_is_near_chance(corpus: Corpus) -> None:
    _, results = run(corpus, Random(1))
    assert abs(results["seen", "reward_alignment"].value("voc")) < 0.4
    assert 0.2 < results["seen", "policy_ranking"].value("accuracy_last") < 0.8


def test_noise_depends_on_the_clip_and_not_on_its_batch(corpus: Corpus) -> None:
    clips = [corpus.clip(row) for row in range(3)]
    together = Random(0).score(clips)
    for clip, score in zip(clips, together, strict=True):
        assert np.array_equal(Random(0).score([clip])[0].progress, score.progress)
    assert not np.array_equal(together[0].progress, together[1].progress)


def test_intervals_hold_their_value_and_name_their_unit(corpus: Corpus) -> None:
    _, results = run(corpus, FrameDifference())
    for (split, _), result in results.items():
        for metric in result.metrics:
            estimate = metric.estimate
            if estimate.groups > 1 and not math.isnan(estimate.low):
                assert estimate.low - 1e-9 <= estimate.value <= estimate.high + 1e-9
            if result.evaluation not in ("confusion_matrix", "instruction_grounding"):  # of some tasks only
                assert estimate.unit == ("task" if split == "seen" else "trajectory")


def test_position_bias_shows_as_inconsistency_and_scores_one_half() -> None:
    pairs = [
        PairPrediction("s", "quality", "t", f"a{i}", f"b{i}", "successful", "failure", 0.9, 1 - 0.9) for i in range(6)
    ]
    result = suite.EVALUATIONS["preference"](Predictions(pairs=pairs), "s", suite.Resampling(0))
    assert result.value("accuracy_quality_chosen_first") == 1.0
    assert result.value("accuracy_quality_chosen_second") == 0.0
    assert result.value("accuracy_quality") == 0.5
    assert result.value("order_consistency_quality") == 0.0


def test_both_orders_are_asked_of_the_scorer(corpus: Corpus) -> None:
    class First(Constant):
        def compare(self, pairs):  # type: ignore[no-untyped-def]
            return np.full(len(pairs), 0.8, dtype=np.float32)

    _, results = run(corpus, First())
    assert results["seen", "preference"].value("accuracy_quality") == 0.5
    assert results["seen", "preference"].value("order_consistency_quality") == 0.0


def test_a_split_without_failures_says_why_it_is_skipped(corpus: Corpus) -> None:
    predictions, _ = run(corpus, Clock())
    predictions.clips = [c for c in predictions.clips if c.quality_label == "successful"]
    results = {r.evaluation: r for r in suite.evaluate_all(predictions, CONFIG) if r.split == "seen"}
    assert "two qualities" in results["policy_ranking"].skipped
    assert results["success_detection"].skipped and not results["success_detection"].metrics
    assert results["reward_alignment"].metrics
    empty = suite.evaluate_all(Predictions(), CONFIG)
    assert all(r.skipped for r in empty) and flat(empty) == {}


def test_predictions_survive_parquet(corpus: Corpus, tmp_path: Path) -> None:
    predictions, results = run(corpus, FrameDifference())
    predictions.save(Storage(str(tmp_path)))
    again = Predictions.load(Storage(str(tmp_path)))
    assert again.pairs == predictions.pairs and again.instructions == predictions.instructions
    assert flat(suite.evaluate_all(again, CONFIG)) == flat(list(results.values()))


def test_predictions_of_earlier_versions_are_read_under_the_names_they_have(corpus: Corpus, tmp_path: Path) -> None:
    predictions, _ = run(corpus, FrameDifference())
    storage = Storage(str(tmp_path))
    predictions.save(storage)
    (tmp_path / "instructions.parquet").rename(tmp_path / "confusion.parquet")
    clips = storage.read_parquet("predictions.parquet")
    earlier = ["success_label" if name == "env_success" else name for name in clips.column_names]
    storage.write_parquet("predictions.parquet", clips.rename_columns(earlier))
    again = Predictions.load(storage)
    assert again.instructions == predictions.instructions
    truth = [clip.env_success.tolist() for clip in predictions.clips]
    assert any(truth) and [clip.env_success.tolist() for clip in again.clips] == truth


def test_predictions_survive_the_wire(corpus: Corpus) -> None:
    predictions, _ = run(corpus, FrameDifference())
    records: list[Prediction] = [predictions.clips[0], predictions.pairs[0], predictions.instructions[0]]
    back = from_table(to_table(records))
    assert back[1:] == records[1:]
    assert str(dataclasses.asdict(back[0])) == str(dataclasses.asdict(records[0]))


def test_the_plan_is_seeded_bounded_and_balanced(corpus: Corpus) -> None:
    rows = select_rows(corpus, "seen", 15, 0)
    cells = {(corpus.manifest["task"][int(r)].as_py(), corpus.manifest["quality_label"][int(r)].as_py()) for r in rows}
    assert len(rows) == len(cells) == 15
    units = plan_split(corpus, "seen", 1000, 2, 0, ["preference"])
    assert units == plan_split(corpus, "seen", 1000, 2, 0, ["preference"])
    for task in TASKS["seen"]:
        kinds = [u.pair_kind for u in units if u.task == task and u.pair_kind]
        assert sorted(kinds) == ["quality"] * 2 + ["reversed"] * 2 + ["task"] * 2
    assert all(not u.instructions for u in units)
    with_instructions = plan_split(corpus, "held_out", 1000, 2, 0, CONFIG.evaluations)
    assert any(u.instructions for u in with_instructions)
    assert plan_split(corpus, "no such split", 10, 2, 0, CONFIG.evaluations) == []


def test_with_room_for_all_every_pair_is_planned_once(corpus: Corpus) -> None:
    pairs = [u for u in plan_split(corpus, "seen", 1000, 10_000, 0, ["preference"]) if u.pair_kind]
    clips = corpus.manifest.select(["task", "quality_label"]).to_pylist()
    clips = [(row, clip["task"], QUALITY_LABELS.index(clip["quality_label"])) for row, clip in enumerate(clips)]
    seen = [clip for clip in clips if clip[1] in TASKS["seen"]]
    expected = Counter(("reversed", row, row) for row, _, rank in seen if rank == 2)
    for (a, task, rank), (b, other, lower) in itertools.permutations(seen, 2):
        expected["quality", a, b] += task == other and rank > lower
        expected["task", a, b] += task != other and rank == lower == 2
    assert Counter((u.pair_kind, u.row, u.second) for u in pairs) == expected


def test_a_group_of_sources_is_evaluated_by_its_name(corpus: Corpus) -> None:
    group = members("rbm-1m-ood")
    names = [("elsewhere", *group)[row % 7] for row in range(corpus.manifest.num_rows)]
    column = corpus.manifest.schema.get_field_index("source")
    mixed = Corpus(corpus.storage.path, corpus.manifest.set_column(column, "source", pa.array(names)))
    rows = select_rows(mixed, "seen", 1000, 0, ["rbm-1m-ood"])
    assert list(rows) == [row for row in mixed.rows("seen") if names[row] != "elsewhere"]
    assert {u.row for u in plan_split(mixed, "seen", 1000, 2, 0, [], ["elsewhere"])}.isdisjoint(rows)
    with pytest.raises(SamplingError, match=r"usc_trossen \(of group rbm-1m-ood\)"):
        select_rows(corpus, "seen", 1000, 0, ["rbm-1m-ood"])


def test_reversed_truth_is_reversed_with_the_frames(corpus: Corpus) -> None:
    predictions, _ = run(corpus, Clock())
    by_key = {(c.id, c.view): c for c in predictions.clips}
    for (clip_id, view), clip in by_key.items():
        if view == FORWARD and clip.quality_label == "successful":
            assert np.array_equal(by_key[clip_id, "reversed"].env_reward, clip.env_reward[::-1])


def test_a_broken_clip_is_an_error_record_and_the_rest_is_scored(tmp_path: Path) -> None:
    broken = build_corpus(tmp_path / "corpus", broken=True)
    scorer = Clock()
    units = plan_split(broken, "seen", 1000, 3, 0, ["reward_alignment"])
    predictions = Predictions.of(predict_each(scorer, ClipSource.for_scorer(broken, scorer), units, 4))
    assert len(predictions.errors()) == 1 and "as an image" in predictions.errors()[0].error
    views = [len(unit.views) for unit in units if unit.row != predictions.errors()[0].row]  # type: ignore[union-attr]
    assert len(predictions.split("seen").clips) == sum(views)


def test_validation_gives_the_headline_numbers(corpus: Corpus) -> None:
    values = validate(Reach(), corpus, ["seen", "held_out"], 15, 0)
    names = ("voc", "voc_reversed", "kendall", "ranking_accuracy", "preference_accuracy", "success_auroc")
    assert set(values) == {f"{split}/{name}" for split in ("seen", "held_out") for name in names}
    assert values["held_out/voc_reversed"] < -0.9 and values["seen/ranking_accuracy"] == 1.0
    assert validate(Reach(), corpus, ["no such split"], 15, 0) == {}


def test_the_labels_tell_which_metrics_a_validation_will_have(corpus: Corpus, tmp_path: Path) -> None:
    all_of_them = list(validate(Reach(), corpus, ["held_out", "seen"], 15, 0))
    broken = build_corpus(tmp_path / "broken", broken=True)  # no frame is read
    assert measurable(corpus, ["held_out", "seen"], 15, 0) == measurable(broken, ["held_out", "seen"], 15, 0)
    assert measurable(corpus, ["held_out", "seen"], 15, 0) == all_of_them
    successes = build_corpus(tmp_path / "successes", qualities=["successful"])
    assert measurable(successes, ["seen"], 15, 0) == ["seen/voc", "seen/voc_reversed"]
    failures = build_corpus(tmp_path / "failures", qualities=["failure"])
    assert measurable(failures, ["seen"], 15, 0) == measurable(corpus, ["no such split"], 15, 0) == []


def test_an_unknown_evaluation_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.evaluations='voc' is none of reward_alignment, "):
        suite.check_evaluations(["voc"])
