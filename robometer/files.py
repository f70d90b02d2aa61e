"""Files and folders on a disk that appear whole or not at all, whenever the process is killed.

`robometer.corpus.storage` does the same for the files of a corpus, on any filesystem.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A path to write to: its file takes the place of `path` when the block ends without an error."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        yield staging
        staging.replace(target)
    finally:
        staging.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Replace a file's content in one step; text becomes UTF-8."""
    encoded = content.encode() if isinstance(content, str) else content
    with atomic_file(path) as staging:
        staging.write_bytes(encoded)


@contextmanager
def atomic_folder(path: str | Path, overwrite: bool = True) -> Iterator[Path]:
    """The path of a folder to make: it takes the place of `path` when the block ends without an error.

    Args:
        path: the folder that readers see.
        overwrite: replace a folder that is there; without it, one that is not empty is an `OSError`.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    staging, old = (target.with_name(f".{target.name}.{kind}-{os.getpid()}") for kind in ("new", "old"))
    shutil.rmtree(staging, ignore_errors=True)
    try:
        yield staging
        if overwrite and target.exists():
            target.rename(old)
        staging.rename(target)
    finally:
        if not target.exists() and old.exists():
            old.rename(target)
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
