"""Shared fixtures: a local Ray for the session, and the folder of recorded upstream numbers where it exists."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A local Ray of 4 logical CPUs."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=512 * 1024 * 1024,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of numbers recorded from upstream; a test that asks for it skips where it is absent."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("../shared/golden is absent: upstream's recorded numbers are not part of the project")
    return SHARED / "golden"
