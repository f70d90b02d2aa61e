"""Raw formats. Each is a module that lists what the raw data holds (`units`) and reads it (`episodes`).

A module of this package, or any importable module that `ingest.format` names by its dotted path, is a format if it has

    units(input: str, source: str) -> Iterator[Unit | Refused]
        Lists the units at `input` in a fixed order. It runs once, on the driver, and must be cheap: read the names of
        files or the rows of an annotation file. `source` is the user's name for the data set; if it is empty, the
        format chooses the name.
    episodes(unit: Unit) -> Iterator[Episode | Refused]
        Reads the trajectories of one unit without decoding them. It runs on a worker, which may die and be replaced:
        the same unit must always give the same episodes. An exception ends the unit. Its earlier episodes are stored,
        and the exception becomes a row in quarantine.

A format of this package may also say which files `units` reads: `LISTING_READS` and `LISTING_NEEDS_A_DISK`, for raw
data in a bucket (`robometer.corpus.remote_input`). A unit's `files` must then be all that `episodes` reads.

Modules are imported by name, so only who reads a format needs its libraries.
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
from robometer.settings import not_a_choice
from robometer.trajectory import Episode


class FormatError(RobometerError):
    """Raw data that cannot be read. The message says what is missing or wrong, and where."""


@dataclass(frozen=True)
class Unit:
    """What a worker reads at a time: a file, a folder, or a row of an annotation file.

    Attributes:
        key: names the unit within its format and data set. The corpus uses it to remember what was read.
        source: the data set that its episodes belong to.
        uri: file or folder.
        count: about how many trajectories it holds. Sizes of shards and progress are estimated from it.
        data: what else `episodes` needs to know, as JSON values.
        files: all files and folders that the unit is read from, labels included, if `uri` is not just that. The next
            ingest looks at them to see whether something changed.
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
    """Raw data that gives no episode, and why. It becomes a row in quarantine.

    `skipped` marks what is left out by design, such as a camera that was not connected. It does not count as bad.
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
        FormatError: no format has this name, or it needs a package that is not installed.
    """
    local = name in names()
    wrong = f"{not_a_choice('ingest.format', name, names())} A format of your own is the dotted path of its module"
    if not all(part.isidentifier() for part in name.split(".")):
        raise FormatError(f"{wrong}.")
    try:
        module = import_module(f"{__name__}.{name}" if local else name)
    except ImportError as error:
        if local:
            raise FormatError(f"ingest.format={name} needs a package that is not installed ({error})") from error
        raise FormatError(f"{wrong} ({error}).") from error
    if not (hasattr(module, "units") and hasattr(module, "episodes")):
        raise FormatError(f"the module ingest.format={name} has no functions `units` and `episodes`")
    return module


def list_units(format: str, input: str, source: str = "") -> Iterator[Unit | Refused]:
    """Everything that `input` holds in `format`, in the order of the data.

    Raises:
        FormatError: the format is unknown, or `input` holds no such data.
    """
    yield from find(format).units(input, source)


def read_unit(format: str, unit: Unit) -> Iterator[Episode | Refused]:
    """The trajectories of a unit. Raises whatever its format raises."""
    yield from find(format).episodes(unit)
