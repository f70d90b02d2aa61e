"""Raw formats: one module each, which says what there is (`units`) and reads it (`episodes`).

A module of this package, or any importable module that `ingest.source` names by its dotted path, is a format if it has

    units(input: str, source: str) -> Iterator[Unit | Refused]
        What lies at `input`, in a fixed order, found out cheaply: names of files, rows of an annotation file. It runs
        once, on the driver. `source` is the name of the data set that the user wants, empty for the format's own.
    episodes(unit: Unit) -> Iterator[Episode | Refused]
        The trajectories of one unit, one after the other, none of them decoded. It runs on a worker, which may die and
        be replaced: the same unit must give the same episodes. What it raises ends its unit, whose earlier episodes
        are kept, and becomes a row in quarantine.

Modules are found by name, so that the libraries of one format are imported by those only who read it.
"""

from __future__ import annotations

import hashlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any

from robometer.errors import RobometerError
from robometer.trajectory import Episode


class FormatError(RobometerError):
    """Raw data that cannot be read; the message says what is missing or wrong, and where."""


@dataclass(frozen=True)
class Unit:
    """What a worker reads in one go: a file, a folder, a row of an annotation file.

    Attributes:
        key: names the unit within its format and data set; the corpus remembers by it what was read.
        source: the data set its episodes belong to.
        uri: file or folder.
        count: about how many trajectories it holds; shards and progress are measured by it.
        data: what else `episodes` needs to know, as JSON values.
        files: all files and folders that it is read from, labels included, where that is more or less than `uri`: by
            them an ingest sees that something changed.
    """

    key: str
    source: str
    uri: str
    count: int = 1
    data: Mapping[str, Any] = field(default_factory=dict)
    files: Sequence[str] = ()

    def digest(self, format: str) -> str:
        """24 hex digits that name the unit in the corpus."""
        name = "\x1f".join((format, self.source, self.key))
        return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:24]


@dataclass(frozen=True)
class Refused:
    """Something of the raw data that is no episode, and why; it becomes a row in quarantine.

    `skipped` marks what is left out by design, such as a camera that was not connected: it counts as nothing bad.
    """

    uri: str
    error: str
    source: str = ""
    episode_key: str = ""
    view: str = ""
    skipped: bool = False


def names() -> list[str]:
    """The formats of this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "common")


@lru_cache(maxsize=16)
def find(name: str) -> ModuleType:
    """The module of a format.

    Raises:
        FormatError: there is none of this name, or it needs a package that is not installed.
    """
    local = name in names()
    try:
        module = import_module(f"{__name__}.{name}" if local else name)
    except ImportError as error:
        if local:
            raise FormatError(f"ingest.source={name} needs a package that is not installed ({error})") from error
        raise FormatError(f"ingest.source={name!r} is none of {', '.join(names())}, nor a module: {error}") from error
    if not (hasattr(module, "units") and hasattr(module, "episodes")):
        raise FormatError(f"the module ingest.source={name} has no functions `units` and `episodes`")
    return module


def list_units(format: str, input: str, source: str = "") -> Iterator[Unit | Refused]:
    """Everything that `input` holds in `format`, in the data's own order.

    Raises:
        FormatError: an unknown format, or no such data.
    """
    yield from find(format).units(input, source)


def read_unit(format: str, unit: Unit) -> Iterator[Episode | Refused]:
    """The trajectories of a unit; raises whatever its format does."""
    yield from find(format).episodes(unit)
