"""Where journals are."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["tmp_path", "bucket"])
def path(request: pytest.FixtureRequest) -> str:
    """Where a journal is to be: on a disk, and in a bucket."""
    return f"{request.getfixturevalue(request.param)}/journal"
