"""The walk of mode trajectory_first visits every row once before any row twice, and sources by their weights."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from robometer.sampling.config import ProgressStrategies, SamplingConfig
from robometer.sampling.index import ManifestIndex
from robometer.sampling.plan import plan
from robometer.sampling.walk import Walk, permuted
from tests.sampling.manifest import manifest


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 1000])
def test_permutation_is_a_bijection(count: int) -> None:
    for epoch in range(3):
        assert sorted(permuted(i, count, 4, epoch) for i in range(count)) == list(range(count))


def weighted(weights: dict[str, float], sizes: dict[str, int]) -> tuple[ManifestIndex, SamplingConfig]:
    rows = [{"source": name, "task": f"{name} {i}"} for name, size in sizes.items() for i in range(size)]
    config = SamplingConfig(preference=0.0, source_weights=weights)
    config.progress_strategies = ProgressStrategies(reverse=0.0, rewind=0.0, different_instruction=0.0)
    return ManifestIndex.from_table(manifest(rows), config), config


def test_sources_are_drawn_by_weight() -> None:
    index, config = weighted({"big": 1.0, "small": 3.0, "none": 0.0}, {"big": 400, "small": 5, "none": 9})
    counts = Counter(index.columns.source_of(plan(index, config, 1, i).a.row) for i in range(20_000))
    assert set(counts) == {"big", "small"}
    assert abs(counts["small"] / 20_000 - 0.75) < 0.01


def test_a_source_that_is_not_named_weighs_one() -> None:
    index, config = weighted({"a": 2.0}, {"a": 7, "b": 7})
    counts = Counter(index.columns.source_of(plan(index, config, 1, i).a.row) for i in range(10_000))
    assert abs(counts["a"] / 10_000 - 2 / 3) < 0.015


def test_over_a_block_shares_are_exact_and_every_source_is_walked_evenly() -> None:
    index, _ = weighted({"a": 1.0, "b": 2.0, "c": 1e-9}, {"a": 1000, "b": 10, "c": 3})
    walk = index.progress_walk
    block = int(walk.slots[-1])
    visits = Counter(walk.row(5, step) for step in range(2 * block))
    of_source = Counter(index.columns.source_of(row) for row in visits.elements())
    slots = dict(zip("abc", np.diff(walk.slots).tolist(), strict=True))
    assert dict(of_source) == {name: 2 * count for name, count in slots.items()}
    assert slots["c"] == 1 and abs(slots["b"] / slots["a"] - 2) < 1e-3
    for source in "abc":
        times = [visits[row] for row in range(len(index)) if index.columns.source_of(row) == source]
        assert max(times) - min(times) <= 1, source


def test_rows_of_a_source_do_not_repeat_before_all_were_seen() -> None:
    index, _ = weighted({"a": 1.0, "b": 1.0}, {"a": 40_000, "b": 40_000})
    rows = [index.progress_walk.row(5, step) for step in range(30_000)]
    assert len(set(rows)) == len(rows)


def test_without_weights_all_rows_count_alike() -> None:
    index, config = weighted({}, {"big": 90, "small": 10})
    rows = [plan(index, config, 1, i).a.row for i in range(100)]
    assert sorted(rows) == list(range(100))
    assert isinstance(index.progress_walk, Walk) and len(index.progress_walk) == 100
