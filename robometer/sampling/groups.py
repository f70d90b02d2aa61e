"""Data sources by name: upstream's groups of sources, their members in a corpus, and configured weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
import yaml

from robometer.sampling.types import SamplingError

NAMES_SHOWN = 30
"""Most source names that a message lists."""


@lru_cache(maxsize=1)
def _file() -> dict[str, Any]:
    text = resources.files("robometer.sampling").joinpath("groups.yaml").read_text(encoding="utf-8")
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def group_names() -> tuple[str, ...]:
    """Names of all groups."""
    return tuple(_file()["groups"])


def members(name: str) -> tuple[str, ...]:
    """Members of a group, by upstream's names; any other name is a source, which is its own only member."""
    return tuple(_file()["groups"].get(name, (name,)))


def caches() -> dict[str, tuple[str, ...]]:
    """By member of a group, the names that upstream's processed cache directory of it may have, likeliest first."""
    return {name: (value,) if isinstance(value, str) else tuple(value) for name, value in _file()["caches"].items()}


def resolve(names: Sequence[str], available: Sequence[str]) -> list[str]:
    """The sources among `available` that `names` stand for, each once, in the order of `names`.

    Args:
        names: sources, groups, or the start of source names followed by `*`.
        available: names of all sources of the corpus.

    Raises:
        SamplingError: a source, or a member of a group, is not available (upstream skips it with a warning).
    """
    sources: dict[str, None] = {}
    missing: dict[str, None] = {}
    for name in names:
        for member in members(name):
            matches = _matches(member, available)
            sources |= dict.fromkeys(matches)
            if not matches:
                missing[member if member == name else f"{member} (of group {name})"] = None
    if missing:
        listed = sorted(available)[:NAMES_SHOWN] + ["..."] * (len(available) > NAMES_SHOWN)
        raise SamplingError(
            f"the corpus has no trajectory of {', '.join(missing)}: ingest them, or name only "
            f"sources of the corpus ({', '.join(listed)})"
        )
    return list(sources)


def _matches(member: str, available: Sequence[str]) -> list[str]:
    for name in (member, _file()["written_as"].get(member, member)):
        if matches := [source for source in available if fnmatchcase(source, name)]:
            return matches
    return []


def source_weights(weights: Mapping[str, float], available: Sequence[str]) -> np.ndarray:
    """Weight of each available source, float64 [S]: its own, else its group's, else 1 as in upstream.

    Raises:
        SamplingError: a name is not available, or two groups give one source different weights.
    """
    number = {source: i for i, source in enumerate(available)}
    values = np.ones(len(available))
    group_of: dict[str, str] = {}
    for name in sorted(weights, key=number.__contains__):  # sources last: their own weight overrides their group's
        for source in resolve([name], available):
            if name not in number and weights[group_of.setdefault(source, name)] != weights[name]:
                raise SamplingError(
                    f"sampling.source_weights gives {source} two weights, through {group_of[source]} and {name}: "
                    "set one under its own name"
                )
            values[number[source]] = weights[name]
    return values
