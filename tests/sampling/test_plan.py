"""Properties of every plan, on a synthetic manifest."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest

from robometer.sampling.config import PreferenceStrategies, ProgressStrategies, SamplingConfig
from robometer.sampling.index import ManifestIndex
from robometer.sampling.mix import describe_mix, effective_mix, in_words
from robometer.sampling.plan import plan
from robometer.sampling.segments import Draws, draw_triple
from robometer.sampling.types import STRATEGIES, SamplePlan, SamplingError
from robometer.trajectory import normalise_task
from tests.sampling.manifest import manifest, mixed_manifest

TABLE = mixed_manifest()
TASKS = [normalise_task(task) for task in TABLE["task"].to_pylist()]
QUALITY = TABLE["quality_label"].to_pylist()
PARTIAL = TABLE["partial_success"].to_pylist()
FRAMES = TABLE["num_frames"].to_pylist()


def plans(config: SamplingConfig, count: int = 3000, seed: int = 3) -> Iterator[SamplePlan]:
    index = ManifestIndex.from_table(TABLE, config)
    return (plan(index, config, seed, i) for i in range(count))


@pytest.fixture(scope="module")
def samples() -> list[SamplePlan]:
    return list(plans(SamplingConfig()))


def pairs(samples: list[SamplePlan], strategy: str) -> list[SamplePlan]:
    chosen = [s for s in samples if s.kind == "preference" and s.strategy == strategy]
    assert chosen, strategy
    return chosen


def test_same_plan_in_any_order_and_process() -> None:
    config = SamplingConfig()
    index = ManifestIndex.from_table(TABLE, config)
    forward = [plan(index, config, 9, i) for i in range(600)]
    other = pickle.loads(pickle.dumps(index))
    for i in reversed(range(600)):
        again = plan(other, SamplingConfig(), 9, i)
        assert repr(again) == repr(forward[i])
    assert any(repr(plan(index, config, 10, i)) != repr(forward[i]) for i in range(5))


_TABLE_CONFIG = SamplingConfig(source_weights={"a": 2.0})


def _planned(samples: range) -> list[str]:
    index = ManifestIndex.from_table(TABLE, _TABLE_CONFIG)
    return [repr(plan(index, _TABLE_CONFIG, 9, i)) for i in samples]


def test_one_process_and_eight_plan_the_same_stream() -> None:
    """A run that resumes at sample 300 draws what the uninterrupted one drew."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["robometer.sampling"])
    with context.Pool(8) as pool:
        parts = pool.map(_planned, [range(worker, 600, 8) for worker in range(8)], chunksize=1)
    whole = _planned(range(600))
    assert [parts[i % 8][i // 8] for i in range(600)] == whole
    assert _planned(range(300, 600)) == whole[300:]


def test_every_strategy_is_reached(samples: list[SamplePlan]) -> None:
    assert {sample.strategy for sample in samples} == set(STRATEGIES) - {"paired"}


@pytest.mark.parametrize("kind", ["rewind", "suboptimal", "different_task", "reverse"])
def test_preference_ratio_of_zero_is_never_drawn(kind: str) -> None:
    config = SamplingConfig(progress=0.0)
    setattr(config.preference_strategies, kind, 0.0)
    drawn = {sample.strategy for sample in plans(config)}
    assert drawn.isdisjoint({kind, "partial_success"} if kind == "suboptimal" else {kind})
    assert len(drawn) >= 3


@pytest.mark.parametrize("kind", ["forward", "reverse", "rewind", "different_instruction"])
def test_progress_ratio_of_zero_is_never_drawn(kind: str) -> None:
    config = SamplingConfig(preference=0.0)
    setattr(config.progress_strategies, kind, 0.0)
    assert len({s.strategy for s in plans(config)} - {kind}) == 3
    assert kind not in {s.strategy for s in plans(config)}


def test_kinds_come_in_their_ratio() -> None:
    kinds = Counter(sample.kind for sample in plans(SamplingConfig(preference=3.0, progress=1.0), 1000))
    assert kinds == {"preference": 750, "progress": 250}
    assert {sample.kind for sample in plans(SamplingConfig(preference=0.0))} == {"progress"}
    assert {sample.kind for sample in plans(SamplingConfig(progress=0.0))} == {"preference"}


def test_every_row_is_an_item_once_per_epoch() -> None:
    rows = [{"task": f"task {i}", "num_frames": 6 + i % 20} for i in range(37)]
    config = SamplingConfig(preference=0.0)
    config.progress_strategies = ProgressStrategies(forward=1.0, reverse=0.0, rewind=0.0, different_instruction=0.0)
    index = ManifestIndex.from_table(manifest(rows), config)
    epochs = [[plan(index, config, 5, epoch * 37 + i).a.row for i in range(37)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(37)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_forward_segments_are_spread_as_three_points_are() -> None:
    """Of 32 frames, starts average a quarter, ends three quarters, and spans are at least 2."""
    config = SamplingConfig(preference=0.0, max_frames=32, min_frames_per_trajectory=3)
    config.progress_strategies = ProgressStrategies(forward=1.0, reverse=0.0, rewind=0.0, different_instruction=0.0)
    index = ManifestIndex.from_table(manifest([{}]), config)
    ends = np.array([plan(index, config, 0, i).a.positions[[0, -1]] for i in range(10_000)])
    assert (ends[:, 1] - ends[:, 0] >= 2).all()
    np.testing.assert_allclose(ends.mean(axis=0), [7.25, 23.75], atol=0.3)  # k * 33 / 4 - 1, k = 1, 3


def test_segments_of_a_hundred_thousand_draws() -> None:
    """Checked on the draw itself."""
    triples = [draw_triple(Draws(1, i), 32, "forward", 8) for i in range(100_000)]
    starts, ends = (np.array([triple[side] for triple in triples if triple]) for side in (0, 2))
    assert len(starts) == 100_000 and (ends - starts >= 2).all() and starts.min() == 0 and ends.max() == 31
    np.testing.assert_allclose([starts.mean(), ends.mean()], [7.25, 23.75], atol=0.06)


def test_strategies_share_equally_among_those_possible() -> None:
    """A third each if the task has no unsuccessful rows, else a quarter each."""
    config = SamplingConfig(progress=0.0)
    plain = manifest([{"task": "one"}, {"task": "two"}])
    index = ManifestIndex.from_table(plain, config)
    shares = Counter(plan(index, config, 0, i).strategy for i in range(20_000))
    assert set(shares) == {"rewind", "reverse", "different_task"}
    np.testing.assert_allclose([n / 20_000 for n in shares.values()], 1 / 3, atol=0.01)
    full = manifest([{"task": "one"}, {"task": "two"}, {"task": "one", "quality_label": "failure"}])
    index = ManifestIndex.from_table(full, config)
    shares = Counter(s.strategy for s in (plan(index, config, 0, i) for i in range(30_000)) if index_item(s) == 0)
    np.testing.assert_allclose([n / shares.total() for n in shares.values()], 1 / 4, atol=0.01)
    assert len(shares) == 4


def index_item(sample: SamplePlan) -> int:
    """The row that was drawn for a pair: the chosen one, or the rejected one if both clips are shown whole."""
    assert sample.rejected is not None
    ends = [clip.positions[[0, -1]].tolist() for clip in (sample.chosen, sample.rejected)]
    return sample.rejected.row if ends == [[0, 31], [0, 31]] else sample.chosen.row


def test_ungraded_unsuccessful_rows_are_rejected_and_shown_whole(samples: list[SamplePlan]) -> None:
    for sample in samples:
        clips = (sample.a, sample.b)
        rows = [clip.row for clip in clips if clip is not None]
        if any(QUALITY[row] != "successful" and PARTIAL[row] is None for row in rows):
            assert sample.kind == "preference" and sample.strategy == "suboptimal"
            assert sample.rejected is not None
            assert QUALITY[sample.chosen.row] == "successful"
            assert TASKS[sample.chosen.row] == TASKS[sample.rejected.row]
    only = SamplingConfig(progress=0.0)
    rows = manifest([{"quality_label": "failure"}, {"num_frames": 9}])
    only.preference_strategies = PreferenceStrategies(rewind=0.0, reverse=0.0, different_task=0.0)
    index = ManifestIndex.from_table(rows, only)
    clips = [(s.chosen.positions.tolist(), s.rejected) for s in (plan(index, only, 0, i) for i in range(40))]
    whole = [rejected for chosen, rejected in clips if chosen == list(range(9))]
    assert len(whole) >= 20  # the failure is drawn for every second sample
    spread = np.rint(np.linspace(0, 31, 16)).tolist()
    assert sum(rejected is not None and rejected.positions.tolist() == spread for rejected in whole) >= 20


def test_an_unsuccessful_row_whose_task_has_no_success_is_the_chosen_one() -> None:
    """There is no success to beat it, and of two ungraded failures neither is known to be worse."""
    tasks = ["hopeless", "hopeless", "hopeless", "alone", "done", "done"]
    quality = ["failure", "suboptimal", "failure", "failure", "successful", "failure"]
    table = manifest([{"task": t, "quality_label": q} for t, q in zip(tasks, quality, strict=True)])
    config = SamplingConfig(progress=0.0)
    index = ManifestIndex.from_table(table, config)
    strategies: dict[int, set[str]] = {}
    for sample in (plan(index, config, 5, i) for i in range(600)):
        assert sample.rejected is not None and sample.kind == "preference"
        chosen, rejected = sample.chosen, sample.rejected
        if chosen.row > 3:  # of the task with a success, to which the failure loses
            assert chosen.row == 4 and (sample.strategy != "suboptimal" or rejected.row == 5)
            continue
        strategies.setdefault(chosen.row, set()).add(sample.strategy)
        assert sample.task == tasks[chosen.row] and (np.diff(chosen.positions) > 0).all()
        for clip in (chosen, rejected):
            assert not clip.success_label.any() and clip.success_mask.all()
            assert not clip.progress_mask.any() or tasks[clip.row] == "done"
        if sample.strategy in ("rewind", "reverse"):
            assert rejected.row == chosen.row
            assert (np.diff(rejected.positions) < 0).any()
        else:
            assert rejected.row == 4
    assert strategies == {i: {"rewind", "reverse", "different_task"} for i in range(4)}


def test_partial_success_pairs_are_far_enough_apart(samples: list[SamplePlan]) -> None:
    gaps = set()
    for sample in pairs(samples, "partial_success"):
        assert sample.rejected is not None
        gap = PARTIAL[sample.chosen.row] - PARTIAL[sample.rejected.row]
        assert gap >= 0.2 - 1e-6 and TASKS[sample.chosen.row] == TASKS[sample.rejected.row]
        gaps.add(round(gap, 3))
    assert 0.2 in gaps and 0.1 not in gaps  # 0.8 against 0.6 is allowed, 0.6 against 0.5 is not


def test_different_task_shows_another_task_without_progress(samples: list[SamplePlan]) -> None:
    """A task with another spelling is the same task."""
    for sample in pairs(samples, "different_task"):
        assert sample.rejected is not None
        assert QUALITY[sample.rejected.row] == "successful"
        assert not sample.rejected.progress_target.any() and not sample.rejected.success_label.any()
        assert sample.rejected.success_mask.all()
        assert normalise_task(sample.task) == TASKS[sample.chosen.row]


def test_spelling_is_no_difference() -> None:
    config = SamplingConfig()
    for sample in plans(config):
        if sample.strategy in ("different_task", "different_instruction"):
            clip = sample.rejected or sample.a
            assert TASKS[clip.row] != normalise_task(sample.task)


def test_different_instruction_mismatches_video_and_text() -> None:
    drawn = [s for s in plans(SamplingConfig()) if s.strategy == "different_instruction"]
    assert drawn
    for sample in drawn:
        assert TASKS[sample.a.row] != normalise_task(sample.task)
        assert not sample.a.progress_target.any() and not sample.a.success_label.any()


def test_rewinds_peak_once_and_reversals_never_rise() -> None:
    for sample in plans(SamplingConfig(max_frames=8)):
        clip = sample.rejected or sample.a
        steps = np.diff(clip.positions)
        if sample.strategy == "rewind":
            turn = int((steps < 0).argmax())
            assert 0 < turn < len(clip) - 1
            assert (steps[:turn] > 0).all() and (steps[turn:] < 0).all()
            assert clip.positions[-1] > clip.positions[0]
        if sample.strategy == "reverse":
            assert (steps < 0).all() and (np.diff(clip.progress_target) <= 0).all()


def test_order_of_the_pair_is_a_fair_coin(samples: list[SamplePlan]) -> None:
    labels = [sample.preference_label for sample in samples if sample.kind == "preference"]
    assert 0.45 < np.mean(labels) < 0.55
    for sample in samples:
        if sample.b is not None:
            assert (sample.chosen is sample.a) == (sample.preference_label == 1.0)


def test_unsuccessful_rows_train_no_success_and_only_graded_ones_progress(samples: list[SamplePlan]) -> None:
    for sample in samples:
        for clip in (sample.a, sample.b):
            if clip is not None and QUALITY[clip.row] != "successful":
                assert not clip.success_label.any() and clip.success_mask.all()
                assert clip.progress_mask.all() == (PARTIAL[clip.row] is not None)


def test_preference_only_sources_train_no_progress() -> None:
    rows = [{"source": "roboarena"}, {"source": "roboarena", "task": "another"}, {"source": "lab"}]
    config = SamplingConfig()
    index = ManifestIndex.from_table(manifest(rows), config)
    for i in range(500):
        sample = plan(index, config, 0, i)
        for clip in (sample.a, sample.b):
            assert clip is None or clip.progress_mask.any() == (clip.row == 2)
        assert sample.kind == "preference" or sample.a.row in (1, 2)


def test_same_source_probability_decides_where_the_other_task_comes_from() -> None:
    rows = [{"task": f"{source} {i}", "source": source} for source in "ab" for i in range(3)]
    for probability, expected in ((1.0, {True}), (0.0, {True, False})):
        config = SamplingConfig(progress=0.0, same_source_probability=probability)
        config.preference_strategies = PreferenceStrategies(rewind=0.0, reverse=0.0, suboptimal=0.0)
        index = ManifestIndex.from_table(manifest(rows), config)
        same_source = set()
        for i in range(300):
            sample = plan(index, config, 0, i)
            assert sample.rejected is not None
            same_source.add((sample.chosen.row < 3) == (sample.rejected.row < 3))
        assert same_source == expected


@pytest.mark.parametrize("max_frames", [2, 3])
def test_short_clips_are_never_a_rewind_that_only_runs_forward(max_frames: int) -> None:
    for sample in plans(SamplingConfig(max_frames=max_frames), 500):
        for clip in (sample.a, sample.b):
            assert clip is None or 1 <= len(clip) <= max_frames
        assert sample.strategy != "rewind" or max_frames >= 3
        assert sample.strategy != "reverse" or max_frames >= 2


def test_padding_repeats_the_last_frame_and_its_targets() -> None:
    for sample in plans(SamplingConfig(pad_frames=True), 200):
        assert len(sample.a) == 16
        if sample.strategy == "forward":
            repeated = sample.a.positions == sample.a.positions[-1]
            assert len(set(sample.a.progress_target[repeated].tolist())) == 1


def test_frames_lie_in_the_trajectory(samples: list[SamplePlan]) -> None:
    for sample in samples:
        for clip in (sample.a, sample.b):
            assert clip is None or (clip.positions.min() >= 0 and clip.positions.max() < FRAMES[clip.row])


def test_split_and_length_decide_who_takes_part() -> None:
    rows: list[dict[str, Any]] = [{"split": "held_out"}, {"num_frames": 4}, {"num_frames": 5}, {"num_frames": 6}]
    index = ManifestIndex.from_table(manifest(rows), SamplingConfig())
    assert index.preference_rows.tolist() == [2, 3]


def test_nothing_to_sample_is_one_sentence() -> None:
    with pytest.raises(SamplingError, match=r"no trajectory of split 'held_out'.*choose another sampling.split"):
        ManifestIndex.from_table(TABLE, SamplingConfig(split="held_out"))
    with pytest.raises(SamplingError, match="no trajectory of split 'train'"):
        ManifestIndex.from_table(TABLE.slice(0, 0), SamplingConfig())
    failures = manifest([{"quality_label": "failure"}])
    only = PreferenceStrategies(rewind=0.0, reverse=0.0)
    with pytest.raises(SamplingError, match="can make a preference sample"):
        ManifestIndex.from_table(failures, SamplingConfig(preference_strategies=only))


def test_another_configuration_or_a_negative_index_is_refused() -> None:
    index = ManifestIndex.from_table(TABLE, SamplingConfig())
    with pytest.raises(SamplingError, match="other sampling settings"):
        plan(index, replace(index.config, max_frames=4), 0, 0)
    with pytest.raises(SamplingError, match="negative"):
        plan(index, index.config, 0, -1)


def test_describe_counts_strategies_and_sources() -> None:
    config = SamplingConfig()
    index = ManifestIndex.from_table(TABLE, config)
    drawn = [plan(index, config, 0, i) for i in range(400)]
    counts = describe_mix(index, drawn)
    assert sum(counts["strategies"].values()) == 400
    assert sum(counts["sources"].values()) == sum(1 + (s.b is not None) for s in drawn)
    assert set(counts["sources"]) == {"a", "b", "roboreward_x"}


def test_the_mix_of_a_stream_is_one_line() -> None:
    rows = [{"source": f"lab {i % 12}", "task": f"task {i % 3}"} for i in range(60)]
    index = ManifestIndex.from_table(manifest(rows), SamplingConfig(progress=0.0))
    mix = effective_mix(index, 3)
    assert sum(mix["strategies"].values()) == 4096 and sum(mix["sources"].values()) == 2 * 4096
    words = in_words(mix)
    assert "preference/rewind 33." in words and words.endswith("and 2 more sources") and "\n" not in words
    assert mix == effective_mix(index, 3) != effective_mix(index, 4)
