"""The search space of a sweep: entries such as `loss.progress_weight=loguniform(0.1,3)`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import numpy as np
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from robometer.settings import ConfigError

Values = dict[str, Any]
"""Settings of a trial, by their dotted keys."""

FACTORS = (0.8, 1.2)
"""By which a number is multiplied when it is perturbed (Jaderberg et al., arXiv 1711.09846, appendix A.1)."""

DIGITS = 12  # of a multiple of a step: 3 * 0.1 is 0.3
_ENTRY = re.compile(r"([\w.+ ]+?)\s*=\s*(\w+)\((.*?)\)(?:\s+if\s+([\w.]+)\s*=\s*(\S+))?")


class Dimension(Protocol):
    """One entry of the space. Optuna draws its parameters, which follow from its settings and the other way around."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The settings that it decides."""
        ...

    def parameters(self) -> dict[str, BaseDistribution]:
        """What Optuna draws."""
        ...

    def values(self, drawn: Mapping[str, Any]) -> Values:
        """The settings that follow from what was drawn."""
        ...

    def drawn(self, values: Values) -> dict[str, Any] | None:
        """What was drawn for these settings; None if they lie outside."""
        ...

    def perturbed(self, values: Values, generator: np.random.Generator) -> Values:
        """Settings a step away from these, within the limits."""
        ...


@dataclass(frozen=True)
class Number:
    """A number; `step` is that of numbers drawn on a logarithmic scale, for which Optuna has none."""

    key: str
    distribution: FloatDistribution | IntDistribution
    step: float = 0.0

    @property
    def keys(self) -> tuple[str, ...]:
        """See `Dimension`."""
        return (self.key,)

    def parameters(self) -> dict[str, BaseDistribution]:
        """See `Dimension`."""
        return {self.key: self.distribution}

    def values(self, drawn: Mapping[str, Any]) -> Values:
        """See `Dimension`."""
        value = drawn[self.key]
        step = self.step or self.distribution.step or 0
        return {self.key: value if isinstance(value, int) or not step else _multiple(value, step)}

    def drawn(self, values: Values) -> dict[str, Any] | None:
        """See `Dimension`."""
        value = values[self.key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.distribution._contains(value):
            return None
        return {self.key: value} if not self.step or math.isclose(value, _multiple(value, self.step)) else None

    def perturbed(self, values: Values, generator: np.random.Generator) -> Values:
        """See `Dimension`."""
        one, kind = self.distribution, type(self.distribution.low)
        value = values[self.key] * float(generator.choice(FACTORS))
        step = self.step or one.step or 0
        return {self.key: kind(min(max(_multiple(value, step) if step else value, one.low), one.high))}


@dataclass(frozen=True)
class Choice:
    """One of some values, of any type: Optuna draws its place."""

    key: str
    options: Sequence[Any]
    grid: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """See `Dimension`."""
        return (self.key,)

    def parameters(self) -> dict[str, BaseDistribution]:
        """See `Dimension`."""
        return {} if self.grid else {self.key: CategoricalDistribution(range(len(self.options)))}

    def values(self, drawn: Mapping[str, Any]) -> Values:
        """See `Dimension`."""
        return {self.key: self.options[drawn[self.key]]}

    def drawn(self, values: Values) -> dict[str, Any] | None:
        """See `Dimension`."""
        places = [place for place, option in enumerate(self.options) if _same(option, values[self.key])]
        return {self.key: places[0]} if places else None

    def perturbed(self, values: Values, generator: np.random.Generator) -> Values:
        """See `Dimension`: the option before or after."""
        drawn = self.drawn(values)
        place = (drawn[self.key] if drawn else 0) + int(generator.choice((-1, 1)))
        return {self.key: self.options[min(max(place, 0), len(self.options) - 1)]}


@dataclass(frozen=True)
class Simplex:
    """Weights of a given sum, all such weights equally likely: one parameter fewer than weights.

    The weights are broken off a stick one by one. What is left for k weights after this one leaves it a share of at
    most x with probability 1 - (1 - x)^k, whose inverse turns a uniform parameter into the share.
    """

    weights: tuple[str, ...]
    total: float

    @property
    def keys(self) -> tuple[str, ...]:
        """See `Dimension`."""
        return self.weights

    def parameters(self) -> dict[str, BaseDistribution]:
        """See `Dimension`."""
        return {key: FloatDistribution(0.0, 1.0) for key in self.weights[:-1]}

    def values(self, drawn: Mapping[str, Any]) -> Values:
        """See `Dimension`."""
        left, values = self.total, {}
        for key, after in self._broken_off():
            values[key] = left * (1 - (1 - drawn[key]) ** (1 / after))
            left -= values[key]
        return values | {self.weights[-1]: left}

    def drawn(self, values: Values) -> dict[str, Any] | None:
        """See `Dimension`."""
        weights = [float(values[key]) for key in self.weights]
        if min(weights) < 0 or not math.isclose(sum(weights), self.total, rel_tol=1e-6):
            return None
        left, drawn = self.total, {}
        for key, after in self._broken_off():
            share = values[key] / left if left > 0 else 0.0
            drawn[key] = 1 - (1 - min(share, 1.0)) ** after
            left -= values[key]
        return drawn

    def perturbed(self, values: Values, generator: np.random.Generator) -> Values:
        """See `Dimension`: each weight by itself, then all brought back to the sum."""
        weights = [values[key] * float(generator.choice(FACTORS)) for key in self.weights]
        return {key: weight * self.total / sum(weights) for key, weight in zip(self.weights, weights, strict=True)}

    def _broken_off(self) -> Iterator[tuple[str, int]]:
        """Each weight but the last, with the number of weights after it."""
        return ((key, len(self.weights) - 1 - i) for i, key in enumerate(self.weights[:-1]))


@dataclass(frozen=True)
class Entry:
    """An entry of the space, and the choice without which it is left as it is."""

    text: str
    dimension: Dimension
    condition: tuple[str, Any] | None = None

    def active(self, values: Values) -> bool:
        """Whether the settings that were decided before let this entry decide something."""
        return self.condition is None or (
            self.condition[0] in values and _same(values[self.condition[0]], self.condition[1])
        )


@dataclass(frozen=True)
class Space:
    """All entries, in their order."""

    entries: Sequence[Entry]

    @classmethod
    def parse(cls, texts: Sequence[str]) -> Space:
        """The space of `sweep.space`.

        Raises:
            ConfigError: an entry cannot be read, decides a key again, or depends on what no earlier entry chooses.
        """
        entries: list[Entry] = []
        for text in texts:
            try:
                entry = _entry(text, entries)
            except (TypeError, ValueError, yaml.YAMLError) as error:
                raise ConfigError(f"sweep.space entry {text!r}: {error}") from error
            entries.append(entry)
        if not entries:
            raise ConfigError("sweep.space is empty: there is nothing to search")
        return cls(entries)

    @property
    def keys(self) -> list[str]:
        """The settings that trials differ in."""
        return [key for entry in self.entries for key in entry.dimension.keys]

    @property
    def grid(self) -> list[Values]:
        """The combinations of all grids, of which the last changes fastest; a single empty one without any."""
        grids = [one for entry in self.entries if isinstance(one := entry.dimension, Choice) and one.grid]
        return [
            {one.key: option for one, option in zip(grids, options, strict=True)}
            for options in product(*(one.options for one in grids))
        ]

    @property
    def only_grids(self) -> bool:
        """Whether nothing is drawn."""
        return not any(entry.dimension.parameters() for entry in self.entries)

    def draw(self, trial: Trial, cell: Values) -> Values:
        """The settings of a trial that Optuna draws, in one combination of the grids."""
        values: Values = {}
        for entry in self.entries:
            if not entry.active(values):
                continue
            drawn = {name: _suggest(trial, name, one) for name, one in entry.dimension.parameters().items()}
            values |= entry.dimension.values(drawn) if drawn else {key: cell[key] for key in entry.dimension.keys}
        return values

    def perturbed(self, values: Values, generator: np.random.Generator) -> Values:
        """Settings a step away from these in every entry."""
        return {key: one for entry in self.entries for key, one in entry.dimension.perturbed(values, generator).items()}

    def drawn(self, values: Values) -> tuple[dict[str, Any], dict[str, BaseDistribution]] | None:
        """What Optuna drew where a trial has these settings, and from what; None if they lie outside."""
        every: dict[str, Any] = {}
        distributions: dict[str, BaseDistribution] = {}
        for entry in self.entries:
            if not entry.active(values):
                continue
            drawn = entry.dimension.drawn(values)
            if drawn is None:
                return None
            parameters = entry.dimension.parameters()
            every |= {name: drawn[name] for name in parameters}
            distributions |= parameters
        return every, distributions


def _entry(text: str, before: Sequence[Entry]) -> Entry:
    match = _ENTRY.fullmatch(text.strip())
    if not match or match[2] not in DISTRIBUTIONS:
        raise ValueError(
            f"it is not KEY={'|'.join(DISTRIBUTIONS)}(ARGUMENTS), with ` if KEY=VALUE` where it depends on a choice"
        )
    keys, kind, arguments = [key.strip() for key in match[1].split("+")], match[2], yaml.safe_load(f"[{match[3]}]")
    taken = {key for entry in before for key in entry.dimension.keys}
    if twice := next((key for i, key in enumerate(keys) if key in taken or key in keys[:i]), None):
        raise ValueError(f"{twice} is decided twice")
    condition = _condition(match[4], yaml.safe_load(match[5]), before) if match[4] else None
    if kind == "simplex":
        return Entry(text, _simplex(tuple(keys), arguments), condition)
    if len(keys) > 1:
        raise ValueError(f"{kind} decides one key, only simplex several")
    if kind in ("choice", "grid"):
        if not arguments:
            raise ValueError("there is nothing to choose from")
        if kind == "grid" and condition:
            raise ValueError("a grid depends on nothing: each of its values gets as many trials; use choice")
        return Entry(text, Choice(keys[0], arguments, kind == "grid"), condition)
    return Entry(text, _number(keys[0], kind, [float(argument) for argument in arguments]), condition)


def _condition(key: str, value: Any, before: Sequence[Entry]) -> tuple[str, Any]:
    choices = {entry.dimension.key: entry.dimension for entry in before if isinstance(entry.dimension, Choice)}
    if key not in choices:
        raise ValueError(f"{key} is no choice or grid of an entry before it")
    if not any(_same(option, value) for option in choices[key].options):
        raise ValueError(f"{key} is never {value}")
    return key, value


def _simplex(keys: tuple[str, ...], arguments: Sequence[Any]) -> Simplex:
    if len(keys) < 2 or len(arguments) != 1 or not float(arguments[0]) > 0:
        raise ValueError("it is not KEY+KEY=simplex(SUM), with two keys or more and a sum above 0")
    return Simplex(keys, float(arguments[0]))


def _number(key: str, kind: str, arguments: Sequence[float]) -> Number:
    """A number between limits; the upper one is excluded of `randint` and `lograndint`, as in Ray Tune."""
    stepped, logarithmic, whole = kind.startswith("q"), "log" in kind, kind.endswith("randint")
    if len(arguments) != 2 + stepped:
        raise ValueError(f"{kind} has {2 + stepped} arguments: low, high{', step' if stepped else ''}")
    low, high, step = arguments[0], arguments[1], arguments[2] if stepped else 0.0
    if not low < high or not all(map(math.isfinite, arguments)):
        raise ValueError("low must be below high")
    if logarithmic and low <= 0:
        raise ValueError("a logarithmic scale begins above 0")
    if stepped and not (step > 0 and all(math.isclose(end, _multiple(end, step)) for end in (low, high))):
        raise ValueError("low and high must be multiples of the step, which is above 0")
    if whole:
        if any(argument != int(argument) for argument in arguments):
            raise ValueError(f"{kind} takes whole numbers")
        last = int(high) if stepped else int(high) - 1
        return Number(key, IntDistribution(int(low), last, log=logarithmic, step=int(step) or 1))
    if logarithmic:
        return Number(key, FloatDistribution(low, high, log=True), step)
    return Number(key, FloatDistribution(low, high, step=step or None))


DISTRIBUTIONS = (
    "choice",
    "grid",
    "uniform",
    "quniform",
    "loguniform",
    "qloguniform",
    "randint",
    "qrandint",
    "lograndint",
    "simplex",
)


def _suggest(trial: Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, FloatDistribution):
        return trial.suggest_float(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(
            name, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    assert isinstance(distribution, CategoricalDistribution)
    return trial.suggest_categorical(name, distribution.choices)


def _multiple(value: float, step: float) -> float:
    """The multiple of `step` that is nearest to a value."""
    return round(round(value / step) * step, DIGITS)


def _same(one: Any, other: Any) -> bool:
    """Whether two values mean the same setting, of which one may be a number in words, as in `choice(1e-3,1e-2)`."""
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        return str(one) == str(other)
