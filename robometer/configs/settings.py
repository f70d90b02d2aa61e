"""Every setting with its type, default and meaning, for pages and help: read from the configuration's dataclasses."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, get_type_hints


@dataclasses.dataclass(frozen=True)
class Setting:
    """One key of the configuration.

    Attributes:
        key: dotted, such as `train.steps`.
        hint: the type of its values.
        default: its value where nothing else is said.
        meaning: the docstring below the field; empty where there is none.
    """

    key: str
    hint: Any
    default: Any
    meaning: str


def settings(prefix: str, section: type) -> Iterator[Setting]:
    """The settings of a dataclass of the configuration, and of dataclasses inside it, in their order."""
    hints, texts, defaults = get_type_hints(section), meanings(section), section()
    for field in dataclasses.fields(section):
        key, default = f"{prefix}.{field.name}", getattr(defaults, field.name)
        if dataclasses.is_dataclass(default):
            yield from settings(key, type(default))
        else:
            yield Setting(key, hints[field.name], default, texts.get(field.name, ""))


def meanings(section: type) -> dict[str, str]:
    """The docstring below each field of a dataclass, on one line, by the field's name."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }
