"""Strategy `paired`: a success beats a rewind of the other embodiment's at the same task (upstream never draws it)."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from robometer.sampling.config import PreferenceStrategies, SamplingConfig
from robometer.sampling.index import ManifestIndex
from robometer.sampling.plan import plan
from robometer.sampling.types import SamplePlan, SamplingError
from tests.sampling.manifest import manifest

ONLY = PreferenceStrategies(rewind=0.0, suboptimal=0.0, different_task=0.0, reverse=0.0, paired=1.0)

ROWS: list[dict[str, Any]] = [
    {"task": "pour", "is_robot": True},
    {"task": "pour", "is_robot": True},
    {"task": "Pour.", "is_robot": False},
    {"task": "pour", "is_robot": False, "quality_label": "failure"},
    {"task": "wipe", "is_robot": True},
    {"task": "wipe", "is_robot": False, "quality_label": "suboptimal"},
    {"task": "fold", "is_robot": False, "source": "epic"},
    {"task": "fold", "is_robot": True},
]
"""`pour` and `fold` have successes of both embodiments, `wipe` does not, and `epic` trains preferences only."""


def samples(rows: list[dict[str, Any]], config: SamplingConfig, count: int = 2000) -> list[SamplePlan]:
    index = ManifestIndex.from_table(manifest(rows), config)
    return [plan(index, config, 5, i) for i in range(count)]


@pytest.mark.parametrize("mode", ["trajectory_first", "strategy_first"])
def test_a_success_of_the_other_embodiment_is_shown_as_a_rewind(mode: str) -> None:
    config = SamplingConfig(mode=mode, progress=0.0, preference_strategies=ONLY)
    pairs: Counter[tuple[int, int]] = Counter()
    for sample in samples(ROWS, config):
        assert sample.strategy == "paired" and sample.rejected is not None
        pairs[sample.chosen.row, sample.rejected.row] += 1
        assert (np.diff(sample.chosen.positions) > 0).all()
        steps = np.diff(sample.rejected.positions)
        turn = int((steps < 0).argmax())
        assert 0 < turn < len(steps) and (steps[:turn] > 0).all() and (steps[turn:] < 0).all()
        assert sample.task == ROWS[sample.chosen.row]["task"]
    assert set(pairs) == {(0, 2), (1, 2), (2, 0), (2, 1), (6, 7), (7, 6)}


def test_both_clips_train_their_progress_unless_their_source_is_preference_only() -> None:
    for sample in samples(ROWS, SamplingConfig(progress=0.0, preference_strategies=ONLY)):
        for clip in (sample.a, sample.b):
            assert clip is not None and clip.progress_mask.all() == (ROWS[clip.row].get("source") != "epic")
            assert clip.progress_mask.any() == clip.progress_mask.all()


def test_it_shares_with_the_other_strategies_by_weight() -> None:
    config = SamplingConfig(progress=0.0)
    assert "paired" not in {sample.strategy for sample in samples(ROWS, config)}
    config.preference_strategies = PreferenceStrategies(suboptimal=0.0, paired=3.0)
    counts = Counter(s.strategy for s in samples(ROWS[:3], config, 6000))  # one task: no different_task
    np.testing.assert_allclose([counts[n] / 6000 for n in ("rewind", "reverse", "paired")], [0.2, 0.2, 0.6], atol=0.02)


@pytest.mark.parametrize("rows", [ROWS[:2], ROWS[4:6], [{"is_robot": None}, {"is_robot": True}]])
def test_without_both_embodiments_nothing_is_paired(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(SamplingError, match="can make a preference sample"):
        ManifestIndex.from_table(manifest(rows), SamplingConfig(progress=0.0, preference_strategies=ONLY))


def test_two_frames_cannot_show_a_rewind() -> None:
    with pytest.raises(SamplingError, match="can make a preference sample"):
        samples(ROWS, SamplingConfig(max_frames=2, progress=0.0, preference_strategies=ONLY))
