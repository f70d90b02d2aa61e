"""Which way a request's arguments go; that they arrive is tested in `test_serve`, on a real Ray Serve."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.serving.backend import CompareRequest, ModelRequest, OpenSession, PushFrames, ReadSession, ScoreRequest
from pipelines.serving.backend import size_bytes as bytes_of
from pipelines.serving.calls import SHARED_BYTES, way
from robometer.scoring import Clip

FRAME = np.zeros((10, 20, 3), np.uint8)
CLIP = Clip(np.stack([FRAME] * 4), "open the drawer", {"encoder": np.zeros((4, 5), np.float32)})


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (ScoreRequest(CLIP), 4 * 600 + 80),
        (CompareRequest(CLIP, CLIP), 2 * (4 * 600 + 80)),
        (PushFrames("s", [FRAME, FRAME]), 1200),
        (OpenSession("s", ["a", "b"], reference=CLIP, frames=[[FRAME], [FRAME, FRAME]]), 2480 + 1800),
        (ReadSession("s"), 0),
    ],
)
def test_the_size_of_a_request_is_that_of_its_arrays(request_: ModelRequest, expected: int) -> None:
    assert bytes_of(request_) == expected


def test_large_arguments_go_through_shared_memory_and_small_ones_do_not() -> None:
    assert way(SHARED_BYTES) == {"_by_reference": True} and way(SHARED_BYTES - 1) == {"_by_reference": False}
