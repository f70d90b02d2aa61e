"""The search space: what its entries mean, which are refused, and the way back from settings to what was drawn."""

from __future__ import annotations

from collections.abc import Sequence

import optuna
import pytest

from robometer.settings import ConfigError
from robometer.sweeps.space import Space, Values


def _fixed(drawn: dict[str, object]) -> optuna.trial.Trial:
    """An Optuna trial that gets these parameters."""
    study = optuna.create_study()
    study.enqueue_trial(drawn)
    return study.ask()


def _draws(entries: Sequence[str], n: int = 200) -> list[Values]:
    space = Space.parse(entries)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    return [space.draw(study.ask(), space.grid[i % len(space.grid)]) for i in range(n)]


@pytest.mark.parametrize(
    ("entry", "values"),
    [
        ("k=randint(2,5)", {2, 3, 4}),
        ("k=qrandint(2,8,2)", {2, 4, 6, 8}),
        ("k=lograndint(1,4)", {1, 2, 3}),
        ("k=quniform(0,0.5,0.1)", {0.0, 0.1, 0.2, 0.3, 0.4, 0.5}),
        ("k=qloguniform(0.1,0.5,0.1)", {0.1, 0.2, 0.3, 0.4, 0.5}),
        ("k=choice(causal,[1,2],null)", {"causal", "[1, 2]", "None"}),
    ],
)
def test_a_distribution_draws_all_of_its_values_and_no_other(entry: str, values: set[object]) -> None:
    drawn = [one["k"] for one in _draws([entry])]
    assert {value if isinstance(value, int | float) else str(value) for value in drawn} == values


def test_continuous_distributions_stay_inside_and_a_logarithmic_one_gives_each_decade_as_much() -> None:
    drawn = _draws(["u=uniform(2,3)", "l=loguniform(0.01,1)"], 400)
    assert all(2 <= one["u"] <= 3 and 0.01 <= one["l"] <= 1 for one in drawn)
    assert 160 <= sum(one["l"] < 0.1 for one in drawn) <= 240


def test_weights_on_a_simplex_have_their_sum_and_one_parameter_fewer_than_weights() -> None:
    """Broken off by hand: 3 * (1 - sqrt(1 - 0.75)) = 1.5 for the first, half of what is left for the second."""
    space = Space.parse(["a+b+c=simplex(3)"])
    assert list(space.entries[0].dimension.parameters()) == ["a", "b"]
    assert space.draw(_fixed({"a": 0.75, "b": 0.5}), {}) == pytest.approx({"a": 1.5, "b": 0.75, "c": 0.75})
    drawn = space.drawn({"a": 1.5, "b": 0.75, "c": 0.75})
    assert drawn and drawn[0] == pytest.approx({"a": 0.75, "b": 0.5})
    assert space.drawn({"a": 1.0, "b": 1.0, "c": 1.5}) is None


def test_all_points_of_a_simplex_are_equally_likely() -> None:
    """The mean of each weight is a third of the sum; a weight is above half the sum with probability 1/4."""
    drawn = _draws(["a+b+c=simplex(1)"], 2000)
    for key in "abc":
        assert sum(one[key] for one in drawn) / 2000 == pytest.approx(1 / 3, abs=0.02)
        assert sum(one[key] > 0.5 for one in drawn) / 2000 == pytest.approx(0.25, abs=0.03)


def test_a_grid_has_every_combination_the_last_key_changing_fastest() -> None:
    space = Space.parse(["a=grid(1,2)", "u=uniform(0,1)", "b=grid(x,y,z)"])
    assert [(cell["a"], cell["b"]) for cell in space.grid] == [(a, b) for a in (1, 2) for b in "xyz"]
    drawn = _draws(["a=grid(1,2)", "u=uniform(0,1)", "b=grid(x,y,z)"], 6)
    assert [(one["a"], one["b"]) for one in drawn] == [(a, b) for a in (1, 2) for b in "xyz"]
    assert len({one["u"] for one in drawn}) == 6


def test_a_conditional_key_is_drawn_only_where_its_choice_fell() -> None:
    drawn = _draws(["kind=choice(a,b)", "depth=randint(1,9) if kind=a", "z=uniform(0,1)"])
    assert {("depth" in one) for one in drawn if one["kind"] == "a"} == {True}
    assert {("depth" in one) for one in drawn if one["kind"] == "b"} == {False}
    space = Space.parse(["kind=choice(a,b)", "depth=choice(1,2) if kind=a", "width=uniform(0,1) if depth=2"])
    assert space.draw(_fixed({"kind": 1}), {}) == {"kind": "b"}
    assert space.draw(_fixed({"kind": 0, "depth": 0}), {}) == {"kind": "a", "depth": 1}
    assert set(space.draw(_fixed({"kind": 0, "depth": 1, "width": 0.5}), {})) == {"kind", "depth", "width"}


def test_settings_lead_back_to_what_was_drawn() -> None:
    entries = ["a+b+c=simplex(2)", "d=choice(1e-3,1e-2)", "e=qloguniform(1,8,1) if d=1e-2", "f=randint(0,9)"]
    space = Space.parse(entries)
    for values in _draws(entries, 50):
        known = space.drawn(values)
        assert known is not None
        assert space.draw(_fixed(known[0]), {}) == pytest.approx(values)
    assert space.drawn({"a": 1, "b": 1, "c": 0, "d": 0.001, "f": 9}) is None  # the upper end of randint
    inside = space.drawn({"a": 1, "b": 1, "c": 0, "d": 0.01, "e": 3.0, "f": 8})
    assert inside and inside[0]["d"] == 1 and inside[0]["e"] == 3.0


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        (["a"], "it is not KEY="),
        (["a=normal(0,1)"], "it is not KEY="),
        (["a=uniform(1,2,3)"], "uniform has 2 arguments"),
        (["a=quniform(1,2)"], "quniform has 3 arguments: low, high, step"),
        (["a=uniform(2,1)"], "low must be below high"),
        (["a=loguniform(0,1)"], "begins above 0"),
        (["a=quniform(0,1,0.3)"], "multiples of the step"),
        (["a=randint(0,1.5)"], "takes whole numbers"),
        (["a=uniform(x,1)"], "could not convert"),
        (["a=choice()"], "nothing to choose from"),
        (["a=uniform(0,1)", "a=choice(1,2)"], "a is decided twice"),
        (["a+a=simplex(1)"], "a is decided twice"),
        (["a+b=uniform(0,1)"], "only simplex several"),
        (["a=simplex(1)"], "it is not KEY\\+KEY=simplex"),
        (["a+b=simplex(0)"], "it is not KEY\\+KEY=simplex"),
        (["a=uniform(0,1) if b=1"], "b is no choice or grid of an entry before it"),
        (["b=choice(1,2)", "a=uniform(0,1) if b=3"], "b is never 3"),
        (["b=choice(1,2)", "a=grid(0,1) if b=1"], "a grid depends on nothing"),
        ([], "sweep.space is empty"),
    ],
)
def test_a_mistake_is_named(entries: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Space.parse(entries)
