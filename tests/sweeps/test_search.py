"""What the next trial tries: a function of seed and number, and with Optuna of what became of the others."""

from __future__ import annotations

import pytest

from robometer.settings import ConfigError
from robometer.sweeps.journal import TrialRecord
from robometer.sweeps.search import check_number, check_search, draw, given_points
from robometer.sweeps.space import Space, Values

MAX = [("seen/voc", "max")]


def _trial(name: str, values: Values, voc: float, ended: bool = True, error: str = "") -> TrialRecord:
    return TrialRecord(name, values, [{"step": 2, "seen/voc": voc}], ended, error)


def test_a_random_trial_follows_from_seed_and_number_alone() -> None:
    space = Space.parse(["a=uniform(0,1)", "b=choice(x,y)"])
    drawn = [draw(space, "random", MAX, 7, i, i) for i in range(6)]
    others = [_trial("0000", {"a": 0.5, "b": "x"}, 1.0)]
    assert [draw(space, "random", MAX, 7, i, i, others) for i in reversed(range(6))] == drawn[::-1]
    assert len({one["a"] for one in drawn}) == 6
    assert draw(space, "random", MAX, 8, 0, 0) != drawn[0]


def test_optuna_goes_where_earlier_trials_were_good() -> None:
    """Twenty trials whose metric is highest at a = 0.2: further ones lie near it, and the other way round for `min`."""
    space = Space.parse(["a=uniform(0,1)"])
    others = [_trial(f"{i:04d}", {"a": i / 20}, -abs(i / 20 - 0.2)) for i in range(20)]
    near = [draw(space, "optuna", MAX, 1, 20 + i, i, others)["a"] for i in range(10)]
    far = [draw(space, "optuna", [("seen/voc", "min")], 1, 20 + i, i, others)["a"] for i in range(10)]
    assert sorted(near)[5] == pytest.approx(0.2, abs=0.1) and sorted(far)[5] > 0.7
    assert near == [draw(space, "optuna", MAX, 1, 20 + i, i, others)["a"] for i in range(10)]


def test_optuna_learns_nothing_from_trials_that_failed_or_lie_outside() -> None:
    space = Space.parse(["a=uniform(0,1)"])
    good = [_trial(f"{i:04d}", {"a": i / 20}, -abs(i / 20 - 0.2)) for i in range(20)]
    odd = [_trial(f"1{i:03d}", {"a": 0.9 + i / 100}, 5.0, error="the loss is not finite") for i in range(8)]
    odd.append(_trial("2000", {"a": 3.0}, 9.0))
    near = [draw(space, "optuna", MAX, 1, 22 + i, i, [*good, *odd])["a"] for i in range(10)]
    assert sorted(near)[5] == pytest.approx(0.2, abs=0.1)


def test_optuna_weighs_several_objectives() -> None:
    """`voc` is best at 0, `kendall` at 0.3, both fall off beyond: nothing above 0.3 can be on the front."""
    space = Space.parse(["a=uniform(0,1)"])
    others = [
        TrialRecord(str(i), {"a": i / 20}, [{"step": 2, "seen/voc": -i, "seen/mae": abs(i - 6)}], True)
        for i in range(20)
    ]
    objectives = [("seen/voc", "max"), ("seen/mae", "min")]
    drawn = [draw(space, "optuna", objectives, 1, 20 + i, i, others)["a"] for i in range(10)]
    assert sum(one < 0.45 for one in drawn) >= 8


@pytest.mark.parametrize(
    ("search", "entries", "objectives", "scheduler", "sentence"),
    [
        ("optuna", ["a=grid(1,2)"], MAX, "fifo", "nothing to learn on a grid"),
        ("optuna", ["a=grid(1,2)", "b=uniform(0,1)"], MAX, "fifo", "knows no grid: write choice instead"),
        ("random", ["a=uniform(0,1)"], [*MAX, ("seen/mae", "min")], "asha", "with several, set fifo"),
    ],
)
def test_what_a_search_cannot_do_is_refused(
    search: str, entries: list[str], objectives: list[tuple[str, str]], scheduler: str, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_search(search, Space.parse(entries), objectives, scheduler)


def test_every_combination_of_a_grid_gets_as_many_trials() -> None:
    grid, mixed = Space.parse(["a=grid(1,2)", "b=grid(1,2,3)"]), Space.parse(["a=grid(1,2)", "b=uniform(0,1)"])
    check_number(grid, 7, 1)
    check_number(mixed, 9, 1)
    with pytest.raises(ConfigError, match=r"sweep.num_trials=8 must be 7: the grids have 6 combinations"):
        check_number(grid, 8, 1)
    with pytest.raises(ConfigError, match=r"must be 1 \(trials whose settings are given\) and a multiple of 2"):
        check_number(mixed, 8, 1)
    with pytest.raises(ConfigError, match="leaves out some of the 3 trials whose settings are given"):
        check_number(mixed, 2, 3)


def test_points_to_try_first_are_read_and_must_lie_in_the_space() -> None:
    space = Space.parse(["kind=choice(a,b)", "depth=randint(1,9) if kind=a"])
    assert given_points(space, ["kind=a; depth=3", "kind=b"]) == [{"kind": "a", "depth": 3}, {"kind": "b"}]
    for wrong, sentence in {
        "kind=a;depth=9": "lies outside sweep.space",
        "kind=c": "lies outside sweep.space",
        "kind=b;depth=3": "lies outside sweep.space",
        "kind=a": "lacks depth",
        "kind=a;width=1": "width is no key of sweep.space",
    }.items():
        with pytest.raises(ConfigError, match=sentence):
            given_points(space, [wrong])
