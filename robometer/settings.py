"""What settings are made of: dataclass fields with a type, a default, a meaning, and for a few their choices.

The class of each section stands beside the code that it configures (`robometer/training/config.py`, ...), and
`robometer.configs` composes them into one tree. Choices are annotated as `Literal`, ranges as `Annotated[float,
Range(...)]`; both are checked here. The docstring below a field and its range are its meaning, in `--help` and on the
page of settings.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import textwrap
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from robometer.errors import RobometerError


class ConfigError(RobometerError):
    """A configuration that cannot run; the message is one sentence that says what to change."""


def require(condition: bool, message: str) -> None:
    """Raise `ConfigError` with this message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a setting may be, each limit left out where there is none.

    Attributes:
        least: the smallest.
        most: the largest.
        above: all are larger.
        below: all are smaller.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.least is not None and self.most is not None:
            return f"from {self.least} to {self.most}"
        limits = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{word} {limit}" for word, limit in limits.items() if limit is not None)


Count = Annotated[int, Range(least=1)]
Share = Annotated[float, Range(least=0, most=1)]
NotNegative = Annotated[float, Range(least=0)]
Positive = Annotated[float, Range(above=0)]
WholeNumber = Annotated[int, Range(least=0)]


class Settings:
    """Base of the dataclasses of settings.

    Attributes:
        section: where its fields stand in the tree, such as `train` or `model.lora`.
    """

    section: ClassVar[str] = ""
    # Read by pydantic, which builds the tree: unknown keys are errors, and a number may stand where a text belongs.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "coerce_numbers_to_str": True}

    def __init_subclass__(cls, section: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.section = section or cls.section

    def __post_init__(self) -> None:
        """Check choices and ranges; a subclass checks the rest after `super().__post_init__()`."""
        for name, hint in get_type_hints(type(self), include_extras=True).items():
            value, key = getattr(self, name, None), f"{self.section}.{name}"
            if get_origin(hint) is Literal and value not in get_args(hint):
                raise ConfigError(not_a_choice(key, value, get_args(hint)))
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{key}={value} is no number that can be used.")
            for limits in _ranges(hint):
                require(value is None or value in limits, f"{key}={value} must be {limits}.")


def _ranges(hint: Any) -> list[Range]:
    """The ranges of an annotation."""
    return [one for one in getattr(hint, "__metadata__", ()) if isinstance(one, Range)]


def not_a_choice(key: str, value: object, choices: Iterable[object]) -> str:
    """The sentence about a value that is none of its choices."""
    names = [str(choice) or "nothing" for choice in choices]
    return f"{key}={value!r} is none of {', '.join(names)}.{did_you_mean(str(value), names)}"


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """` Did you mean X?` for the candidate that is nearest to a mistyped name; empty where none is near."""
    nearest = get_close_matches(name, list(candidates), n=1)
    return f" Did you mean {nearest[0]}?" if nearest else ""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One key of the configuration.

    Attributes:
        key: dotted, such as `train.steps`.
        hint: the type of its values.
        default: its value, unless a recipe or the user sets another.
        meaning: the docstring below the field, and its range; empty where there is neither.
    """

    key: str
    hint: Any
    default: Any
    meaning: str


def settings(prefix: str, section: type) -> Iterator[Setting]:
    """The settings of a dataclass of the configuration, and of dataclasses inside it, in their order."""
    hints, texts, defaults = get_type_hints(section, include_extras=True), meanings(section), section()
    for field in dataclasses.fields(section):
        key, default = f"{prefix}.{field.name}", getattr(defaults, field.name)
        if dataclasses.is_dataclass(default):
            yield from settings(key, type(default))
        else:
            limits = [f"{str(one)[0].upper()}{str(one)[1:]}." for one in _ranges(hints[field.name])]
            meaning = " ".join(filter(None, [texts.get(field.name, ""), *limits]))
            yield Setting(key, get_type_hints(section)[field.name], default, meaning)


def meanings(section: type) -> dict[str, str]:
    """The docstring below each field of a dataclass and of its bases, on one line, by the field's name."""
    texts: dict[str, str] = {}
    for base in reversed(section.__mro__[:-1]):
        texts |= _own_meanings(base)
    return texts


def _own_meanings(section: type) -> dict[str, str]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }
