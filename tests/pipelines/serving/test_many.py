"""Many clips in one request: `/v1/scores` and `/v1/rank` answer each clip for itself."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from pipelines.serving.backend import ModelRequest, Outcome, ScoreRequest
from pipelines.serving.errors import unavailable, updating
from robometer.scoring import Clip, ClipScore
from tests.local_endpoint import LocalBackend, endpoint
from tests.pipelines.serving.test_options import IMAGES, Seen, video

TASK = "open the drawer"


class Moody(Seen):
    """Its tasks make it fail."""

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        if clips[0].task == "stumble":
            raise ArithmeticError
        return super().score(clips)


async def busy(backend: LocalBackend, request: ModelRequest) -> Outcome:
    """A backend whose queue is full for one task."""
    if isinstance(request, ScoreRequest) and request.clip.task == "wait":
        raise unavailable("The model's queue is full. Try again later.")
    return await RUN(backend, request)


RUN = LocalBackend.run


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, endpoint(Moody()) as url:
        patch.setattr(LocalBackend, "run", busy)
        yield url


def npy(*colours: int, size: int = 4) -> bytes:
    """One frame for each colour."""
    stream = io.BytesIO()
    np.save(stream, np.stack([np.full((size, size, 3), colour, np.uint8) for colour in colours]))
    return stream.getvalue()


def post(url: str, route: str, files: dict[str, bytes], **data: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/{route}", data=data, files=files, timeout=60)


def errors(clips: list[dict[str, Any]]) -> list[int]:
    return [clip["error"]["status"] if "error" in clip else 200 for clip in clips]


def test_each_clip_has_the_answer_that_it_has_alone(url: str) -> None:
    files = {"video_1": video(), "frames_0": npy(10, 30), "frames_2": npy(50)}
    answer = post(url, "scores", files, task=TASK, task_2="close it", end_frame="1").json()
    assert answer["mode"] == "whole" and answer["model"] == {"name": "seen", "revision": ""}
    for number, (name, task) in enumerate([("frames_0", TASK), ("video_1", TASK), ("frames_2", "close it")]):
        alone = post(url, "score", {name[:-2]: files[name]}, task=task, end_frame="1").json()
        assert answer["clips"][number].items() <= alone.items()
    assert [clip["progress"] for clip in answer["clips"]] == [pytest.approx([p]) for p in (0.01, 0.0, 0.05)]
    assert [clip["task"] for clip in answer["clips"]] == [TASK, TASK, "close it"]


def test_a_bad_clip_has_its_error_and_spoils_no_other(url: str) -> None:
    files = {
        "frames_0": npy(10),
        "video_1": b"no video",
        "frames_2": b"",
        "frames_3": npy(30),
        "frames_4": npy(40),
        "video_4": video(),
        "frames_5": npy(50),
        "frames_6": npy(60),
        "frames_7": npy(70),
        "frames_8": npy(80),
    }
    tasks = {"task_3": " ", "task_5": "stumble", "task_6": "wait", "task_9": "no clip"}
    response = post(url, "scores", files, task=TASK, **tasks)
    assert response.status_code == 200
    clips = response.json()["clips"]
    assert errors(clips) == [200, 415, 422, 422, 422, 500, 503, 200, 200, 422]
    sentences = [clip["error"]["sentence"] for clip in clips if "error" in clip]
    for words, sentence in zip(
        ("'video_1'", "'frames_2' is empty", "'task_3'", "exactly one", "model failed", "queue is full", "'video_9'"),
        sentences,
        strict=True,
    ):
        assert words in sentence
    assert clips[8]["reward"] == pytest.approx(0.08)


def test_clips_as_images_and_prefixes(url: str) -> None:
    body = {"frames_base64_0": IMAGES[:3], "frames_base64_1": IMAGES[4:6], "task_0": TASK, "task_1": "é" * 1999}
    answer = httpx.post(f"{url}/v1/scores", json=body | {"mode": "prefix"}, timeout=60).json()
    assert answer["mode"] == "prefix"
    assert answer["clips"][0]["success"] == pytest.approx([0.01, 0.02, 0.03])
    assert answer["clips"][1]["success"] == pytest.approx([0.01, 0.02])
    wrong: dict[str, Any] = {"frames_base64_0": 3, "frames_base64_1": ["x"]}
    bad = httpx.post(f"{url}/v1/scores", json=body | wrong, timeout=60).json()
    assert errors(bad["clips"]) == [422, 422]


@pytest.mark.parametrize(
    ("fields", "data", "status", "words"),
    [
        ({}, {"task": TASK}, 422, "There is no clip. Send 'video_0'"),
        ({"frames_0": npy(1), "frames_2": npy(1)}, {"task": TASK}, 422, "Clip 1 is missing, and there is a clip 2"),
        ({"frames_1": npy(1)}, {"task": TASK}, 422, "Clip 0 is missing"),
        ({"frames_01": npy(1)}, {"task": TASK}, 422, "Unknown field 'frames_01'"),
        ({"frames": npy(1)}, {"task": TASK}, 422, "Unknown field 'frames'"),
        ({"frames_0": npy(1)}, {"task": TASK, "frames_base64_0": "x"}, 422, "Unknown field 'frames_base64_0'"),
        ({"frames_0": npy(1)}, {"task": " "}, 422, "'task' is missing or empty"),
        ({"frames_0": npy(1)}, {"task": TASK, "mode": "dense"}, 422, "'mode' must be"),
        ({f"frames_{i}": b"" for i in range(257)}, {"task": TASK}, 413, "has 257 clips; the limit is 256"),
        ({"frames_0": npy(1)}, {"task": "wait"}, 503, "queue is full"),
    ],
)
@pytest.mark.parametrize("route", ["scores", "rank"])
def test_a_request_that_is_wrong_as_a_whole(
    url: str, route: str, fields: dict[str, bytes], data: dict[str, str], status: int, words: str
) -> None:
    files = {name: (name, content) for name, content in fields.items()}
    texts = {name: (None, text) for name, text in data.items()}
    refusal = httpx.post(f"{url}/v1/{route}", files=files | texts, timeout=60)
    assert refusal.status_code == status and words in refusal.json()["error"]


def test_a_task_is_needed_and_rank_has_one(url: str) -> None:
    assert errors(post(url, "scores", {"frames_0": npy(1)}, mode="whole").json()["clips"]) == [422]
    refusal = post(url, "rank", {"frames_0": npy(1)}, mode="whole")
    assert refusal.status_code == 422 and "'task' is missing" in refusal.json()["error"]
    refusal = post(url, "rank", {"frames_0": npy(1)}, task=TASK, task_0=TASK)
    assert refusal.status_code == 422 and "Unknown field 'task_0'" in refusal.json()["error"]


def test_rank_orders_by_the_last_progress_then_mean_success(url: str) -> None:
    """Progress is the colour, and success the number of frames: 0 and 3 end alike, and 3 has more frames."""
    files = {
        "frames_0": npy(90, 40),
        "frames_1": npy(0, 70),
        "frames_2": b"bad",
        "frames_3": npy(0, 0, 40),
        "frames_4": npy(10, 40),
    }
    answer = post(url, "rank", files, task=TASK).json()
    assert answer["order"] == [1, 3, 0, 4] and answer["task"] == TASK
    assert errors(answer["clips"]) == [200, 200, 422, 200, 200]
    assert [clip["reward"] for clip in answer["clips"] if "reward" in clip] == pytest.approx([0.04, 0.07, 0.04, 0.04])
    assert answer["clips"][3] == {"reward": pytest.approx(0.04), "mean_success": pytest.approx(0.03), "num_frames": 3}


@pytest.mark.parametrize("route", ["rank", "compare"])
def test_clips_of_two_models_are_not_mixed(route: str) -> None:
    """In an update the proxy sends the request again, and one model answers for all clips."""

    class Replaced(Seen):
        names = iter(["a@1", "b@2", "b@2", "b@2"])

        @property
        def name(self) -> str:  # type: ignore[override]
            return next(self.names)

    with endpoint(Replaced()) as url:
        answer = post(url, route, {"frames_0": npy(10), "frames_1": npy(20)}, task=TASK).json()
    assert answer["model"]["name"] == "b@2" and len(answer["order"]) == 2
    assert next(Replaced.names, None) is None  # both clips were asked again


def test_in_an_update_the_whole_request_goes_to_another_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """One clip met a model that sees other frames: that is no error of this clip."""
    refusals = iter([updating()])

    async def update(backend: LocalBackend, request: ModelRequest) -> Outcome:
        if refusal := next(refusals, None):
            raise refusal
        return await RUN(backend, request)

    monkeypatch.setattr(LocalBackend, "run", update)
    with endpoint(Seen()) as url:
        answer = post(url, "scores", {"frames_0": npy(10), "frames_1": npy(20)}, task=TASK).json()
    assert errors(answer["clips"]) == [200, 200] and next(refusals, None) is None


@pytest.mark.parametrize(("held_clips", "at_once"), [(100, 8), (4, 2), (1, 1)])
def test_many_clips_take_no_more_memory_than_allowed(
    held_clips: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the memory is for them, and 8 places of the model for one request; they wait and none is refused."""
    running, most = 0, 0

    async def slow(backend: LocalBackend, request: ModelRequest) -> Outcome:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1
        return await RUN(backend, request)

    monkeypatch.setattr(LocalBackend, "run", slow)
    png = cv2.imencode(".png", np.zeros((400, 500, 3), np.uint8))[1].tobytes()
    images = {f"frames_base64_{i}": [base64.b64encode(png).decode()] for i in range(20)}
    with endpoint(Seen(), max_held_bytes=held_clips * 600_000) as url:
        answer = httpx.post(f"{url}/v1/scores", json={"task": TASK} | images, timeout=60).json()
    assert errors(answer["clips"]) == [200] * 20
    assert most == at_once or 2 < most < at_once == 8
