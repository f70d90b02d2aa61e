"""A set of recorded cases on disk, and where the files lie that its cases name but do not hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robometer.errors import RobometerError


class ParityError(RobometerError):
    """A comparison that cannot begin; the message says why."""


@dataclass(frozen=True)
class RecordedSet:
    """One set of recorded cases; every set has the same layout, whatever seeds it was recorded with.

    Attributes:
        folder: holds one sub-folder per group of cases.
        data: holds `example_videos` and `qwen3_vl_4b_instruct`; None to look for it, see `shared`.
    """

    folder: Path
    data: Path | None = None

    def shared(self, name: str) -> Path:
        """The folder `name` of `data`; without `data`, of the nearest folder `data` in or above `folder`.

        Raises:
            ParityError: there is none.
        """
        if self.data is not None:
            places = [self.data]
        else:
            places = [above / "data" for above in (self.folder.resolve(), *self.folder.resolve().parents)]
        for place in places:
            if (place / name).is_dir():
                return place / name
        where = f"{self.data} has no folder {name}" if self.data else f"No folder data/{name} lies above {self.folder}"
        raise ParityError(f"{where}: name the folder that holds {name} with --data")
