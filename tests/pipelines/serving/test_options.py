"""A part of a clip, fewer frames, and prefixes, asked of `/v1/score` for a video, an array and images."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import av
import cv2
import httpx
import numpy as np
import pytest

from robometer.client import RemoteScorer, ScoringError
from robometer.scoring import Clip, ClipScore, PrefixScorer, ScorerInfo, Session, score_prefixes
from robometer.sessions import WindowSession
from tests.local_endpoint import endpoint

FRAMES = np.stack([np.full((32, 48, 3), 10 * t, np.uint8) for t in range(20)])
"""20 frames, whose colour tells which they are."""


class Seen:
    """Progress is the number of the frame that was seen, success the number of frames of the clip, in hundredths."""

    name = "seen"
    info = ScorerInfo()

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        return [
            ClipScore(
                np.round(clip.frames.mean((1, 2, 3)) / 10).astype(np.float32) / 100,
                np.full(len(clip), len(clip) / 100, np.float32),
            )
            for clip in clips
        ]

    def compare(self, pairs: Sequence[tuple[Clip, Clip]]) -> np.ndarray:
        return np.full(len(pairs), 0.5, np.float32)

    def open_session(self, task: str) -> Session:
        return WindowSession(self, task)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with endpoint(Seen()) as url:
        yield url


def video(container: str = "mp4", codec: str = "libx264", times_ms: Sequence[int] = range(0, 2000, 100)) -> bytes:
    """20 frames, 10 a second if nothing else is said."""
    stream = io.BytesIO()
    with av.open(stream, "w", format=container) as file:
        track = file.add_stream(codec, rate=10, options={"crf": "10", "g": "6"})
        track.width, track.height, track.pix_fmt = 48, 32, "yuv420p"
        for pixels, time_ms in zip(FRAMES, times_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time_ms // 100, Fraction(1, 10)
            file.mux(track.encode(frame))
        file.mux(track.encode(None))
    return stream.getvalue()


def npy() -> bytes:
    stream = io.BytesIO()
    np.save(stream, FRAMES)
    return stream.getvalue()


IMAGES = [base64.b64encode(cv2.imencode(".png", frame)[1].tobytes()).decode() for frame in FRAMES]


def ask(url: str, kind: str, **options: Any) -> httpx.Response:
    if kind == "images":
        body = {"task": "open the drawer", "frames_base64": IMAGES, **options}
        return httpx.post(f"{url}/v1/score", json=body, timeout=60)
    files = {"video": video()} if kind == "video" else {"frames": npy()}
    data = {"task": "open the drawer", **{name: str(value) for name, value in options.items()}}
    return httpx.post(f"{url}/v1/score", data=data, files=files, timeout=60)


def post_video(url: str, content: bytes, options: dict[str, Any]) -> httpx.Response:
    data = {"task": "open the drawer", **{name: str(value) for name, value in options.items()}}
    return httpx.post(f"{url}/v1/score", data=data, files={"video": content}, timeout=60)


KINDS = pytest.mark.parametrize("kind", ["video", "npy", "images"])


@KINDS
@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({}, range(20)),
        ({"start_frame": 0, "end_frame": 20}, range(20)),
        ({"start_frame": 7}, range(7, 20)),
        ({"end_frame": 3}, range(3)),
        ({"start_frame": 5, "end_frame": 6}, [5]),
        ({"start_frame": 13, "end_frame": 20}, range(13, 20)),
        ({"max_frames": 3, "start_frame": 4, "end_frame": 15}, [4, 9, 14]),
        ({"max_frames": 2}, [0, 19]),
        ({"max_frames": 100}, range(20)),
    ],
)
def test_a_part_is_scored_as_if_nothing_else_had_been_sent(
    url: str, kind: str, options: dict[str, Any], seen: Sequence[int]
) -> None:
    answer = ask(url, kind, **options).json()
    assert answer["frame_index"] == list(seen)
    assert answer["progress"] == pytest.approx([number / 100 for number in seen])
    assert answer["success"] == pytest.approx([len(seen) / 100] * len(seen))
    assert answer["num_frames"] == len(seen) and answer["mode"] == "whole"


@pytest.mark.parametrize(
    ("start_s", "end_s", "seen"),
    [
        (0, 2, range(20)),
        (0.5, None, range(5, 20)),
        (None, 0.3, range(3)),
        (1.0, 1.5, range(10, 15)),
        (0.52, 1.04, range(5, 10)),  # the frames that begin nearest
        (0.71, 0.72, [7]),  # a moment has one frame
    ],
)
def test_a_part_in_seconds(url: str, start_s: float | None, end_s: float | None, seen: Sequence[int]) -> None:
    """10 frames a second: LeRobot joins many episodes in one file and names each by its times."""
    times = {"start_s": start_s, "end_s": end_s}
    answer = ask(url, "video", **{name: value for name, value in times.items() if value is not None}).json()
    assert answer["frame_index"] == list(seen)
    assert answer["progress"] == pytest.approx([number / 100 for number in seen])


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"fps": 10}, range(20)),
        ({"fps": 10.1}, range(20)),
        ({"fps": 5, "end_frame": 11}, [0, 2, 4, 6, 8, 10]),
        ({"fps": 1, "start_frame": 0, "end_frame": 11}, [0, 10]),
        ({"fps": 2, "start_s": 0.3, "end_s": 1.9}, [3, 8, 13, 18]),
        ({"fps": 0.01}, [0, 19]),
        ({"fps": 5, "start_frame": 7, "end_frame": 8}, [7]),
    ],
)
@pytest.mark.parametrize(("container", "codec"), [("mp4", "libx264"), ("avi", "mpeg4")])
def test_frames_per_second(url: str, container: str, codec: str, options: dict[str, Any], seen: Sequence[int]) -> None:
    """Evenly in time, with the first and the last; also where only the average rate is known."""
    answer = post_video(url, video(container, codec), options).json()
    assert answer["frame_index"] == list(seen)
    assert answer["progress"] == pytest.approx([number / 100 for number in seen])


def test_frames_per_second_follow_the_times_of_the_frames(url: str) -> None:
    """10 frames in the first second and 1 in each of the next ten: one a second is frame 0, 10, 11, 12, ..."""
    times = [100 * t for t in range(10)] + [1000 * t for t in range(1, 11)]
    answer = post_video(url, video(times_ms=times), {"fps": 1}).json()
    assert answer["frame_index"] == [0, *range(10, 20)]


def test_no_more_frames_per_second_than_there_are(url: str) -> None:
    refusal = post_video(url, video(), {"fps": 12})
    assert refusal.status_code == 422
    assert "has 10 frames per second, fewer than 12" in refusal.json()["error"]
    for kind in ("npy", "images"):
        refusal = ask(url, kind, fps=2)
        assert refusal.status_code == 422 and "max_frames, not fps" in refusal.json()["error"]


@KINDS
def test_prefixes_in_one_request(url: str, kind: str) -> None:
    """Each frame is scored from those up to it: the clip of the third frame has three frames."""
    answer = ask(url, kind, mode="prefix", start_frame=2, end_frame=7).json()
    assert answer["mode"] == "prefix"
    assert answer["progress"] == pytest.approx([0.02, 0.03, 0.04, 0.05, 0.06])
    assert answer["success"] == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05])


@KINDS
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"mode": "dense"}, "'prefix' or 'session'"),
        ({"mode": ""}, "'prefix' or 'session'"),
        ({"start_frame": -1}, "'start_frame' must be a whole number"),
        ({"end_frame": "x"}, "'end_frame' must be a whole number"),
        ({"start_frame": "²"}, "'start_frame' must be a whole number"),
        ({"start_frame": 10**12}, "'start_frame' must be a whole number"),
        ({"start_frame": 1.5}, "'start_frame' must be a whole number"),
        ({"start_s": -0.5}, "'start_s' must be a number of seconds"),
        ({"end_s": "nan"}, "'end_s' must be a number of seconds"),
        ({"end_s": "1e999"}, "'end_s' must be a number of seconds"),
        ({"start_frame": 3, "end_frame": 3}, "ends at 3, before or where it starts"),
        ({"end_frame": 0}, "ends at 0, before or where it starts"),
        ({"start_s": 2, "end_s": 1}, "ends at 1.0, before or where it starts (2.0)"),
        ({"start_frame": 1, "end_s": 1}, "in frames or in seconds, not both"),
        ({"max_frames": 1}, "at least 2"),
        ({"max_frames": 0}, "at least 2"),
        ({"fps": 0}, "'fps' must be a number of frames per second, above 0 and at most 1000"),
        ({"fps": "nan"}, "'fps' must be a number of frames per second"),
        ({"fps": 1001}, "'fps' must be a number of frames per second"),
        ({"fps": True}, "'fps' must be a number of frames per second"),
        ({"fps": 2, "max_frames": 4}, "fps or max_frames, not both"),
    ],
)
def test_options_without_meaning(url: str, kind: str, options: dict[str, Any], sentence: str) -> None:
    refusal = ask(url, kind, **options)
    assert refusal.status_code == 422 and sentence in refusal.json()["error"]


@KINDS
@pytest.mark.parametrize("options", [{"start_frame": 20}, {"end_frame": 21}, {"start_frame": 15, "end_frame": 30}])
def test_a_part_that_is_not_there_is_refused(url: str, kind: str, options: dict[str, int]) -> None:
    refusal = ask(url, kind, **options)
    assert refusal.status_code == 422
    assert "20 frames, so it does not hold frames" in refusal.json()["error"]


def test_seconds_need_a_video_and_lie_in_it(url: str) -> None:
    for kind in ("npy", "images"):
        refusal = ask(url, kind, start_s=0.5)
        assert refusal.status_code == 422 and "start_frame" in refusal.json()["error"]
    refusal = ask(url, "video", start_s=99)
    assert refusal.status_code == 422 and "does not hold" in refusal.json()["error"]


@pytest.mark.parametrize(
    ("container", "codec"), [("mp4", "libx264"), ("matroska", "libx264"), ("avi", "mpeg4"), ("mpegts", "libx264")]
)
def test_a_part_beyond_the_end_is_refused_in_every_container(url: str, container: str, codec: str) -> None:
    """The time of a frame is proven in some containers and computed in others; the answers are the same."""

    def ask_for(**options: Any) -> httpx.Response:
        data = {"task": "x", **{name: str(value) for name, value in options.items()}}
        return httpx.post(f"{url}/v1/score", data=data, files={"video": video(container, codec)}, timeout=60)

    assert ask_for(start_s=1.5, end_s=2.0).json()["frame_index"] == [15, 16, 17, 18, 19]
    for options in ({"end_s": 2.2}, {"end_s": 99}, {"start_s": 99}, {"start_frame": 5000, "end_frame": 5010}):
        refusal = ask_for(**options)
        assert refusal.status_code == 422 and "does not hold" in refusal.json()["error"], (options, refusal.text)
        assert "has 5000 frames" not in refusal.json()["error"], "that is what was asked for, not what there is"


def test_limits_are_those_of_the_part(url: str) -> None:
    """All 20 frames would decode to more bytes than this endpoint takes, and 3 of them do not."""
    with endpoint(Seen(), ["serve.max_upload_bytes=300000"]) as small:
        data = {"task": "x", "max_frames": "20"}
        refusal = httpx.post(f"{small}/v1/score", data=data, files={"video": video()}, timeout=60)
        assert refusal.status_code == 413
        part = httpx.post(f"{small}/v1/score", data=data | {"end_frame": "1"}, files={"video": video()}, timeout=60)
        assert part.json()["frame_index"] == [0]


def test_prefixes_of_very_many_frames_are_refused(url: str) -> None:
    """The work grows with the square of the frames, and a model cannot be stopped."""
    stream = io.BytesIO()
    np.save(stream, np.zeros((1001, 2, 2, 3), np.uint8))
    data, files = {"task": "x", "mode": "prefix"}, {"frames": stream.getvalue()}
    refusal = httpx.post(f"{url}/v1/score", data=data, files=files, timeout=60)
    assert refusal.status_code == 413 and "with prefixes the limit is 1000" in refusal.json()["error"]
    assert httpx.post(f"{url}/v1/score", data={"task": "x"}, files=files, timeout=60).status_code == 200


def test_only_a_score_has_options(url: str) -> None:
    clips = {"video_a": video(), "video_b": video()}
    refusal = httpx.post(f"{url}/v1/compare", data={"task": "x", "mode": "prefix"}, files=clips, timeout=60)
    assert refusal.status_code == 422 and "Unknown field 'mode'" in refusal.json()["error"]
    refusal = ask(url, "images", start="1")
    assert refusal.status_code == 422 and "Unknown field 'start'" in refusal.json()["error"]
    assert "start_frame" in refusal.json()["error"]


def test_the_client_asks_for_parts_and_prefixes(url: str) -> None:
    """Prefixes take one request for a clip, with the numbers of one request for each frame."""
    clips = [Clip(FRAMES[:4], "open the drawer"), Clip(FRAMES[7:9], "close it")]
    with RemoteScorer(url) as remote:
        assert isinstance(remote, PrefixScorer)
        for score, expected in zip(score_prefixes(remote, clips), score_prefixes(Seen(), clips), strict=True):
            np.testing.assert_array_equal(score.progress, expected.progress)
            np.testing.assert_array_equal(score.success, expected.success)
        part = remote.score_video(video(), "open the drawer", start_s=1.0, end_s=1.5, mode="prefix")
        assert part.progress.tolist() == pytest.approx([0.1, 0.11, 0.12, 0.13, 0.14])
        assert part.success.tolist() == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05])
        with pytest.raises(ScoringError, match="must be 'whole', 'prefix' or 'session'"):
            remote.score_video(video(), "open the drawer", mode="dense")
