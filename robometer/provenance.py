"""Where a model comes from: the corpus that it learned from and the code that trained it."""

from __future__ import annotations

import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from robometer.corpus.corpus import Corpus
from robometer.corpus.summary import summarise


def provenance_of(corpus: Corpus) -> dict[str, Any]:
    """Hash, size and sources of a corpus, and the commit of this code; part of every checkpoint."""
    counts = summarise(corpus)
    return {
        "corpus": counts.content_hash,
        "trajectories": counts.trajectories,
        "sources": counts.by_source,
        "splits": counts.by_split,
        "commit": commit(),
    }


def commit() -> str:
    """Commit of this code: ROBOMETER_COMMIT, or what git says (`-dirty` with changes), else the package's version."""
    if given := os.environ.get("ROBOMETER_COMMIT"):
        return given
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        pass
    try:
        return f"robometer {version('robometer')}"
    except PackageNotFoundError:
        return ""
