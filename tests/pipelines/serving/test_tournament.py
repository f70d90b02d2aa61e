"""`/v1/compare` of numbered clips: every two in both orders, and what follows from it."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from robometer.evaluation.bradley_terry import bradley_terry
from robometer.scoring import Clip
from tests.local_endpoint import endpoint
from tests.pipelines.serving.test_many import npy, post
from tests.pipelines.serving.test_options import Seen

TASK = "open the drawer"


class Partial(Seen):
    """P(A better) is 1/2 + the difference of the colours in hundredths, and 0.1 more for whatever comes first."""

    name = "partial@1"

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> np.ndarray:
        colours = [(int(a.frames.mean()), int(b.frames.mean())) for a, b in pairs]
        self.asked += colours
        if colours[0] == (90, 10):
            raise ArithmeticError
        return np.array([0.6 + (a - b) / 100 for a, b in colours], np.float32)


@pytest.fixture(scope="module")
def scorer() -> Partial:
    return Partial()


@pytest.fixture(scope="module")
def url(scorer: Partial) -> Iterator[str]:
    with endpoint(scorer, ["serve.max_held_bytes=2000000", "serve.max_upload_bytes=2000000"]) as url:
        yield url


def test_three_clips(url: str, scorer: Partial) -> None:
    """Colours 20, 40 and 10: the mean of both orders is 1/2 + their difference in hundredths."""
    answer = post(url, "compare", {"frames_0": npy(20), "frames_1": npy(40), "frames_2": npy(10)}, task=TASK).json()
    expected = np.array([[0.5, 0.3, 0.6], [0.7, 0.5, 0.8], [0.4, 0.2, 0.5]])
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-6)
    np.testing.assert_allclose(answer["strengths"], bradley_terry(expected), atol=1e-5)
    assert answer["order"] == [1, 0, 2] and answer["task"] == TASK
    assert answer["model"] == {"name": "partial@1", "revision": "1"}
    assert sorted(scorer.asked) == [(10, 20), (10, 40), (20, 10), (20, 40), (40, 10), (40, 20)]


def test_two_clips_with_numbers_do_not_depend_on_them(url: str) -> None:
    """Alike clips are alike, though the model prefers what comes first; `a` and `b` are asked once, as ever."""
    files = {"frames_0": npy(30), "frames_1": npy(30)}
    answer = post(url, "compare", files, task=TASK).json()
    assert answer["probabilities"] == [[0.5, 0.5], [0.5, 0.5]]
    assert answer["strengths"] == [0, 0] and answer["order"] == [0, 1]
    pair = post(url, "compare", {"frames_a": npy(30), "frames_b": npy(30)}, task=TASK).json()
    assert pair.keys() == {"request_id", "model", "task", "probability_a_better", "preferred"}
    assert math.isclose(pair["probability_a_better"], 0.6, abs_tol=1e-6) and pair["preferred"] == "a"


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"frames_0": npy(1)}, 422, "There is one clip. Send two at least."),
        ({"frames_0": npy(1), "frames_a": npy(1)}, 422, "Unknown field 'frames_a'"),
        ({"frames_0": npy(1), "frames_2": npy(1)}, 422, "Clip 1 is missing"),
        ({f"frames_{i}": npy(1) for i in range(17)}, 413, "has 17 clips; the limit is 16"),
        ({"frames_0": npy(1), "frames_1": b"x"}, 422, "'frames_1'"),
        ({"frames_0": npy(10), "frames_1": npy(90)}, 500, "On clips 1 and 0 the model failed"),
        ({"frames_a": npy(1)}, 422, "exactly one of the fields 'video_b'"),
    ],
)
def test_what_cannot_be_compared(url: str, fields: dict[str, bytes], status: int, words: str) -> None:
    refusal = post(url, "compare", fields, task=TASK)
    assert refusal.status_code == status and words in refusal.json()["error"]


def test_clips_that_are_too_large_together_are_refused_and_forgotten(url: str) -> None:
    """Each is 600,000 bytes, and half of `serve.max_held_bytes` is 1,000,000."""
    png = base64.b64encode(cv2.imencode(".png", np.zeros((400, 500, 3), np.uint8))[1].tobytes()).decode()
    body: dict[str, Any] = {"task": TASK, "frames_base64_0": [png], "frames_base64_1": [png]}
    for _ in range(3):
        refusal = httpx.post(f"{url}/v1/compare", json=body, timeout=60)
        assert refusal.status_code == 413 and "1000000 bytes (half of serve.max_held_bytes)" in refusal.json()["error"]
    assert httpx.post(f"{url}/v1/score", json={"task": TASK, "frames_base64": [png]}, timeout=60).status_code == 200
