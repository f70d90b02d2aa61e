"""The frames that a score is made from, as an array; and the files of the page, without a browser."""

from __future__ import annotations

import base64
import io
import json
import re
import time
from collections.abc import Iterator

import cv2
import httpx
import numpy as np
import pytest

from pipelines.serving.frames import FRAMES_HEADER
from pipelines.serving.page_routes import PAGE_FILES
from tests.local_endpoint import endpoint
from tests.pipelines.serving.test_options import FRAMES, Seen, video


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with endpoint(Seen(), ["serve.max_source_frames=2000"]) as url:
        yield url


def array_of(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/octet-stream"
    return np.load(io.BytesIO(answer.content), allow_pickle=False)


def about(answer: httpx.Response) -> dict[str, object]:
    return json.loads(answer.headers[FRAMES_HEADER])


def npy(frames: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, frames)
    return file.getvalue()


def test_the_frames_of_a_video_score_as_the_video_does(url: str) -> None:
    files = {"video": ("clip.mp4", video())}
    part = {"start_s": "0.5", "end_s": "1.5", "max_frames": "4"}
    answer = httpx.post(f"{url}/v1/frames", files=files, data=part)
    frames = array_of(answer)
    assert frames.dtype == np.uint8 and about(answer) == {"frame_index": [5, 8, 11, 14], "fps": 10.0}
    assert [round(value / 10) for value in frames.mean((1, 2, 3))] == [5, 8, 11, 14]
    task = {"task": "open the drawer"}
    of_video = httpx.post(f"{url}/v1/score", files=files, data=task | part).json()
    of_frames = httpx.post(f"{url}/v1/score", files={"frames": ("f.npy", npy(frames))}, data=task).json()
    assert of_video["frame_index"] == [5, 8, 11, 14]
    for name in ("progress", "success", "reward"):
        assert of_video[name] == of_frames[name]


def test_arrays_and_images_come_back_as_they_are(url: str) -> None:
    answer = httpx.post(
        f"{url}/v1/frames", files={"frames": ("f.npy", npy(FRAMES))}, data={"start_frame": "2", "end_frame": "5"}
    )
    np.testing.assert_array_equal(array_of(answer), FRAMES[2:5])
    assert about(answer) == {"frame_index": [2, 3, 4], "fps": None}
    images = [base64.b64encode(cv2.imencode(".png", frame)[1].tobytes()).decode() for frame in FRAMES[:3]]
    answer = httpx.post(f"{url}/v1/frames", json={"frames_base64": images})
    np.testing.assert_array_equal(array_of(answer), FRAMES[:3])


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"task": "open the drawer"}, 422, "task"),
        ({"mode": "prefix"}, 422, "'mode' has no meaning here"),
        ({"start_frame": "20"}, 422, "20 frames, so it does not hold"),
    ],
)
def test_what_has_no_meaning_for_frames_is_refused(url: str, fields: dict[str, str], status: int, words: str) -> None:
    answer = httpx.post(f"{url}/v1/frames", files={"frames": ("f.npy", npy(FRAMES))}, data=fields)
    assert answer.status_code == status and words in answer.json()["error"]


def test_so_many_frames_that_no_header_holds_their_numbers_are_refused(url: str) -> None:
    many = npy(np.zeros((1001, 2, 2, 3), np.uint8))
    answer = httpx.post(f"{url}/v1/frames", files={"frames": ("f.npy", many)})
    assert answer.status_code == 413 and "limit of 1000" in answer.json()["error"]
    assert len(array_of(httpx.post(f"{url}/v1/frames", files={"frames": ("f.npy", many)}, data={"max_frames": "1000"})))


def test_answers_that_nobody_takes_are_bounded() -> None:
    large = npy(np.zeros((12, 1000, 1000, 3), np.uint8))  # 36 MB, which no socket holds
    with endpoint(Seen(), max_held_bytes=50_000_000) as url, httpx.Client(base_url=url, timeout=30) as http:
        with http.stream("POST", "/v1/frames", files={"frames": ("f.npy", large)}) as answer:
            assert answer.status_code == 200  # and its body is not read
            refused = http.post("/v1/frames", files={"frames": ("f.npy", large)})
            assert refused.status_code == 503 and "Too many request bodies" in refused.json()["error"]
        end_s = time.monotonic() + 10
        while http.post("/v1/frames", files={"frames": ("f.npy", large)}).status_code != 200:
            assert time.monotonic() < end_s


def test_the_page_needs_no_token_and_frames_do() -> None:
    with endpoint(Seen(), token="secret") as url:
        http = httpx.Client(base_url=url)
        for path, name in PAGE_FILES.items():
            answer = http.get(path)
            assert answer.status_code == 200, name
            assert answer.headers["content-security-policy"].startswith("default-src 'self';")
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
        assert http.get("/page/").status_code == 401
        refused = http.post("/v1/frames", files={"frames": ("f.npy", npy(FRAMES))})
        assert refused.status_code == 401


def test_the_page_names_only_files_that_there_are_and_no_other_host(url: str) -> None:
    http = httpx.Client(base_url=url)
    for path in PAGE_FILES:
        content = http.get(path).text
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|\son[a-z]+=\"|style=", content), path
        for name in re.findall(r'(?:from|src=|href=)\s*"(?:\./|page/)([^"]+)"', content):
            assert f"/page/{name}" in PAGE_FILES, name
