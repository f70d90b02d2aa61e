"""Where the files lie that recorded cases name but do not hold: example videos and the public tokenizer."""

from __future__ import annotations

from pathlib import Path

from robometer.parity.run import ParityError


def find(folder: Path, name: str) -> Path:
    """The folder `data/<name>` of the set at `folder` or of one around it, or `shared/data/<name>` near where we are.

    Raises:
        ParityError: there is none.
    """
    around = [folder.resolve(), *folder.resolve().parents]
    here = [Path.cwd(), *Path.cwd().parents]
    for candidate in [*(at / "data" / name for at in around), *(at / "shared" / "data" / name for at in here)]:
        if candidate.is_dir():
            return candidate
    raise ParityError(f"there is no folder data/{name} beside {folder} or above it, and no shared/data/{name}")
