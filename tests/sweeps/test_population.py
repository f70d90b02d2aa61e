"""Population based training: who goes on from whom, and with which weights."""

from __future__ import annotations

import math

import numpy as np
import pytest

from robometer.sweeps.journal import Event, Journal, TrialRecord
from robometer.sweeps.population import boundaries, heirs
from robometer.sweeps.space import FACTORS, Space

SPACE = Space.parse(["loss.progress_weight=uniform(0.1,1)"])


def _run(name: str, voc: float, error: str = "") -> TrialRecord:
    values = {"loss.progress_weight": 0.1 + 0.1 * int(name[:4])}
    return TrialRecord(name, values, [{"step": 2, "seen/voc": 1 - voc}, {"step": 4, "seen/voc": voc}], True, error)


def _sources(runs: list[TrialRecord], mode: str = "max", generation: int = 1, seed: int = 42) -> dict[str, str]:
    return {heir.name: heir.source for heir in heirs(SPACE, seed, generation, runs, "seen/voc", mode)}


def test_generations_end_at_equal_steps_and_the_last_one_at_the_end() -> None:
    assert boundaries(2, 8) == [2, 4, 6, 8]
    assert boundaries(3, 8) == [3, 6, 8]


def test_the_worst_quarter_goes_on_from_the_best_by_the_last_validation_and_the_others_from_themselves() -> None:
    runs = [_run(name, voc) for name, voc in (("0000", 0.1), ("0001", 0.9), ("0002", 0.5), ("0003", 0.7))]
    assert _sources(runs) == {
        "0000-gen1": "0001",
        "0001-gen1": "0001",
        "0002-gen1": "0002",
        "0003-gen1": "0003",
    }
    assert _sources(runs, "min")["0001-gen1"] == "0000" and _sources(runs, "min")["0000-gen1"] == "0000"
    values = {heir.name: heir.values for heir in heirs(SPACE, 42, 1, runs, "seen/voc", "max")}
    assert values["0001-gen1"] == runs[1].values and values["0003-gen1"] == runs[3].values
    assert values["0000-gen1"]["loss.progress_weight"] / 0.2 in map(pytest.approx, FACTORS)


def test_the_next_generation_has_the_names_of_its_trials() -> None:
    runs = [_run(f"{i:04d}-gen1", 0.1 * i) for i in range(4)]
    assert _sources(runs, generation=2) == {
        "0000-gen2": "0003-gen1",
        "0001-gen2": "0001-gen1",
        "0002-gen2": "0002-gen1",
        "0003-gen2": "0003-gen1",
    }


def test_of_eight_two_go_on_from_two_and_a_seed_decides() -> None:
    runs = [_run(f"{i:04d}", 0.1 * i) for i in range(8)]
    drawn = []
    for seed in range(20):
        sources = _sources(runs, seed=seed)
        assert sources == _sources(runs, seed=seed)
        moved = {name: source for name, source in sources.items() if not name.startswith(source)}
        assert set(moved) == {"0000-gen1", "0001-gen1"} and set(moved.values()) <= {"0006", "0007"}
        drawn.append(tuple(moved.values()))
    assert len(set(drawn)) == 4
    assert len({_sources(runs, generation=one)[f"0000-gen{one}"] for one in range(1, 9)}) == 2


def test_a_run_that_went_wrong_is_replaced_first_and_none_is_a_source() -> None:
    runs = [_run("0000", 0.1), _run("0001", 0.9, "the loss is not finite"), _run("0002", 0.5), _run("0003", math.nan)]
    moved = {"0001-gen1": "0002", "0003-gen1": "0002"}
    assert _sources(runs) == {"0000-gen1": "0000", "0002-gen1": "0002"} | moved
    assert _sources([*runs[:3], _run("0003", 0.7)]) == {
        "0000-gen1": "0000",
        "0001-gen1": "0003",
        "0002-gen1": "0002",
        "0003-gen1": "0003",
    }
    assert _sources([_run("0000", math.nan), _run("0001", 0.5, "gone")]) == {}


def test_a_perturbed_number_stays_within_its_limits_and_steps() -> None:
    space = Space.parse(
        ["a=uniform(1,10)", "b=quniform(0,1,0.25)", "c=randint(1,11)", "d=choice(x,y,z)", "e=loguniform(1,10)"]
    )
    before = {"a": 9.0, "b": 0.75, "c": 10, "d": "z", "e": 2.0}
    seen: dict[str, set[object]] = {key: set() for key in before}
    for seed in range(40):
        after = space.perturbed(before, np.random.default_rng(seed))
        for key, value in after.items():
            seen[key].add(value)
    assert seen == {
        "a": {9.0 * 0.8, 10.0},
        "b": {0.5, 1.0},  # 0.6 and 0.9, rounded
        "c": {8, 10},
        "d": {"y", "z"},
        "e": {1.6, 2.4},
    }
    assert all(type(value) is int for value in seen["c"])


def test_perturbed_weights_keep_their_sum_and_each_moves_by_a_factor() -> None:
    space = Space.parse(["p+q+r=simplex(3)"])
    before = {"p": 1.5, "q": 1.0, "r": 0.5}
    ratios = set()
    for seed in range(40):
        after = space.perturbed(before, np.random.default_rng(seed))
        assert sum(after.values()) == pytest.approx(3)
        ratios.add(tuple(round(after[key] / before[key] / (after["r"] / before["r"]), 6) for key in "pq"))
    assert ratios == {(a, b) for a in (0.666667, 1, 1.5) for b in (0.666667, 1, 1.5)} - {
        (0.666667, 1.5),
        (1.5, 0.666667),
    }


def test_what_a_trial_of_a_population_measured_is_what_led_to_it(path: str) -> None:
    journal = Journal(path)
    runs = [
        ("0000", "", {"a": 1.0}, {2: 0.1}),
        ("0001", "", {"a": 2.0}, {2: 0.9}),
        ("0000-gen1", "0001", {"a": 1.6}, {2: 0.9, 4: 0.8}),
        ("0001-gen1", "0001", {"a": 2.0}, {2: 0.9, 4: 0.7}),
    ]
    for name, source, values, reports in runs:
        journal.append(Event("start", name, values, source=source))
        for step, voc in reports.items():
            journal.append(Event("report", name, metrics={"step": step, "seen/voc": voc}))
        journal.append(Event("end", name))
    for one in (journal, Journal(path)):
        first, second = one.evolved()
        assert [first.name, first.values, first.ended, first.step] == ["0000", {"a": 1.6}, True, 4]
        assert [report["seen/voc"] for report in first.reports] == [0.9, 0.8]
        assert [report["seen/voc"] for report in second.reports] == [0.9, 0.7]
        assert [run.name for run in one.ancestry("0000")] == ["0001", "0000-gen1"]
