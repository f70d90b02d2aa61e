"""Which way a request's arguments go; that they arrive is tested in `test_serve`, on a real Ray Serve."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from pipelines.serving.backend import CompareRequest, ModelRequest, OpenSession, PushFrames, ReadSession, ScoreRequest
from pipelines.serving.backend import size_bytes as bytes_of
from pipelines.serving.calls import BODY, SHARED_BYTES, answer, way
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


@pytest.mark.parametrize("most", [None, 6, 5])
def test_an_answer_too_large_for_its_way_is_none(most: int | None) -> None:
    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        assert scope == {"path": "/x", BODY: b"asked"}
        await send({"type": "http.response.start", "status": 201, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"ans", "more_body": True})
        await send({"type": "http.response.body", "body": b"wer"})

    got = asyncio.run(answer(app, {"path": "/x"}, b"asked", most))
    assert got == (None if most == 5 else (201, [(b"a", b"b")], b"answer"))
