"""Mode strategy_first: kind, strategy, source and trajectory are drawn in that order."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from robometer.sampling.config import PreferenceStrategies, SamplingConfig
from robometer.sampling.index import ManifestIndex
from robometer.sampling.plan import plan
from robometer.sampling.types import SamplePlan, SamplingError
from robometer.trajectory import normalise_task
from tests.sampling.manifest import manifest, mixed_manifest


def settings(**changes: Any) -> SamplingConfig:
    return SamplingConfig(**{"mode": "strategy_first", "progress": 0.0} | changes)


def only(strategy: str) -> PreferenceStrategies:
    return PreferenceStrategies(
        **dict.fromkeys(("rewind", "suboptimal", "different_task", "reverse"), 0.0) | {strategy: 1.0}
    )


def plans(rows: list[dict[str, Any]], config: SamplingConfig, count: int = 8000) -> Iterator[SamplePlan]:
    index = ManifestIndex.from_table(manifest(rows), config)
    return (plan(index, config, 11, i) for i in range(count))


def lab(source: str, count: int, **facts: Any) -> list[dict[str, Any]]:
    """Rows of two tasks that all sources share."""
    return [{"source": source, "task": f"task {i % 2}"} | facts for i in range(count)]


def item_shares(rows: list[dict[str, Any]], config: SamplingConfig, rejected: bool = False) -> dict[str, float]:
    """Share of samples by the source of their chosen (or rejected) clip."""
    samples = list(plans(rows, config))
    clips = [sample.rejected if rejected else sample.chosen for sample in samples]
    counts = Counter(rows[clip.row]["source"] for clip in clips if clip is not None)
    return {source: count / len(samples) for source, count in sorted(counts.items())}


def test_sources_count_alike_however_large_they_are() -> None:
    shares = item_shares(lab("a", 400) + lab("b", 4) + lab("c", 40), settings(preference_strategies=only("rewind")))
    np.testing.assert_allclose([shares[s] for s in "abc"], 1 / 3, atol=0.02)


def test_sources_are_drawn_by_weight_and_an_unnamed_one_weighs_one() -> None:
    config = settings(preference_strategies=only("rewind"), source_weights={"a": 3.0, "c": 0.0})
    shares = item_shares(lab("a", 4) + lab("b", 400) + lab("c", 40), config)
    assert set(shares) == {"a", "b"} and abs(shares["a"] - 0.75) < 0.02


def test_trajectories_of_a_source_are_drawn_uniformly() -> None:
    counts = Counter(s.chosen.row for s in plans(lab("a", 20), settings(preference_strategies=only("reverse"))))
    assert set(counts) == set(range(20))
    np.testing.assert_allclose([count / 8000 for count in counts.values()], 1 / 20, atol=0.012)


def test_strategies_come_in_their_ratio_whatever_the_sources_hold() -> None:
    """Mode trajectory_first differs: failures make quality pairs, and few successes have a failure to beat."""
    rows = lab("a", 100) + lab("b", 2, quality_label="failure")
    weights = PreferenceStrategies(rewind=4.0, suboptimal=2.0, different_task=1.0, reverse=1.0)
    counts = Counter(s.strategy for s in plans(rows, settings(preference_strategies=weights, sources=["a", "b"])))
    shares = [counts[name] / 8000 for name in ("rewind", "suboptimal", "different_task", "reverse")]
    np.testing.assert_allclose(shares, [4 / 8, 2 / 8, 1 / 8, 1 / 8], atol=0.02)


def test_suboptimal_pairs_are_drawn_of_every_source_that_has_them() -> None:
    rows = [row for s in ("lab", "soar_rfm", "other") for row in lab(s, 4) + lab(s, 4, quality_label="failure")]
    shares = item_of_quality_pairs(rows, settings(preference_strategies=only("suboptimal")))
    np.testing.assert_allclose([shares[s] for s in ("lab", "soar_rfm", "other")], 1 / 3, atol=0.02)


def item_of_quality_pairs(rows: list[dict[str, Any]], config: SamplingConfig) -> dict[str, float]:
    """Share of sources among drawn rows: a row that is shown whole is the rejected clip, any other the chosen one."""
    counts: Counter[str] = Counter()
    for sample in plans(rows, config):
        assert sample.strategy == "suboptimal" and sample.rejected is not None
        whole = all(clip.positions[[0, -1]].tolist() == [0, 31] for clip in (sample.chosen, sample.rejected))
        counts[rows[(sample.rejected if whole else sample.chosen).row]["source"]] += 1
    return {source: count / counts.total() for source, count in counts.items()}


def test_rows_that_cannot_serve_take_nothing_from_their_source() -> None:
    """Every second row of `roboreward_x` has another grade of its task as a partner."""
    graded = {"source": "roboreward_x", "quality_label": "failure"}
    rows = lab("many", 6) + lab("many", 6, quality_label="failure")
    rows += [graded | {"task": f"lone {i}", "partial_success": 0.5} for i in range(6)]
    rows += [graded | {"task": "both", "partial_success": value} for value in (0.2, 0.8) for _ in range(3)]
    shares = item_shares(rows, settings(preference_strategies=only("suboptimal")))
    assert abs(shares["roboreward_x"] - 1 / 2) < 0.02


def test_kinds_come_in_their_ratio() -> None:
    kinds = Counter(s.kind for s in plans(lab("a", 40), settings(preference=3.0, progress=1.0)))
    assert abs(kinds["preference"] / 8000 - 0.75) < 0.001


def test_progress_is_asked_only_where_it_is_trained() -> None:
    graded = [{"source": "roboreward_x", "quality_label": "failure", "partial_success": 0.5}]
    rows = lab("a", 4) + lab("b", 4, quality_label="failure") + lab("epic", 4) + graded
    samples = list(plans(rows, settings(preference=0.0, progress=1.0)))
    assert {rows[s.a.row]["source"] for s in samples if s.strategy != "different_instruction"} == {"a", "roboreward_x"}
    assert all(s.a.progress_mask.all() for s in samples if s.strategy != "different_instruction")


def test_what_is_asked_of_a_row_it_can_serve() -> None:
    """As in mode trajectory_first."""
    table = mixed_manifest()
    config = settings(progress=1.0)
    index = ManifestIndex.from_table(table, config)
    tasks = [normalise_task(task) for task in table["task"].to_pylist()]
    quality, partial = table["quality_label"].to_pylist(), table["partial_success"].to_pylist()
    seen = set()
    for i in range(4000):
        sample = plan(index, config, 3, i)
        seen.add(sample.strategy)
        if sample.rejected is None:
            continue
        chosen, rejected = sample.chosen.row, sample.rejected.row
        if sample.strategy == "suboptimal":
            assert quality[chosen] == "successful" != quality[rejected] and tasks[chosen] == tasks[rejected]
        elif sample.strategy == "partial_success":
            assert partial[chosen] - partial[rejected] >= 0.2 - 1e-6 and tasks[chosen] == tasks[rejected]
        elif sample.strategy == "different_task":
            assert tasks[chosen] != tasks[rejected]
            assert not sample.rejected.progress_target.any()
        else:
            assert chosen == rejected
    assert {"rewind", "reverse", "different_task", "different_instruction", "forward"} <= seen
    assert "partial_success" in seen and ("suboptimal" in seen)


def test_same_plan_in_any_order_and_process() -> None:
    config = settings(progress=1.0, source_weights={"a": 2.0})
    index = ManifestIndex.from_table(mixed_manifest(), config)
    forward = [repr(plan(index, config, 9, i)) for i in range(300)]
    other = pickle.loads(pickle.dumps(index))
    assert [repr(plan(other, config, 9, i)) for i in reversed(range(300))] == forward[::-1]


def test_nothing_to_draw_is_one_sentence() -> None:
    failures = lab("a", 4, quality_label="failure")
    with pytest.raises(SamplingError, match=r"can make a preference sample with these sampling.preference_strategies"):
        ManifestIndex.from_table(manifest(failures), settings(preference_strategies=only("suboptimal")))
    with pytest.raises(SamplingError, match="can make a progress sample"):
        ManifestIndex.from_table(manifest(failures), settings(preference=0.0, progress=1.0))
