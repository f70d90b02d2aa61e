"""The async client on real sockets: the numbers, retries and errors of the sync one, and a bound on its requests."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest

from robometer import calls
from robometer.async_client import AsyncRemoteScorer
from robometer.baselines.trivial import FrameDifference, Random
from robometer.client import RemoteScorer, ScoringError
from robometer.frames.video import VideoError
from robometer.scoring import Clip
from tests.local_endpoint import endpoint, serving
from tests.pipelines.serving.test_options import video
from tests.test_client import Breaking, Closing, Slow


class Counting(BaseHTTPRequestHandler):
    """An endpoint that counts the requests at a time, each of which takes a while; it fails on the task 'fail'."""

    lock = threading.Lock()
    now = most = calls = 0

    def do_GET(self) -> None:
        limits = {"max_upload_bytes": 10**6}
        self.reply(200, {"name": "m@1", "revision": "1", "provenance": {}, "limits": limits, "frames": {}})

    def do_POST(self) -> None:
        with Counting.lock:
            Counting.now, Counting.calls = Counting.now + 1, Counting.calls + 1
            Counting.most = max(Counting.most, Counting.now)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(0.05)
        with Counting.lock:
            Counting.now -= 1
        failed = b"fail" in body
        self.reply(500 if failed else 200, {"error": "No."} if failed else {"progress": [0.5], "success": [0.5]})

    def reply(self, status: int, answer: dict[str, object]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        return None


def clip(seed: int, task: str = "task") -> Clip:
    return Clip(np.random.default_rng(seed).integers(0, 255, (3 + seed % 3, 20, 30, 3), dtype=np.uint8), task)


def test_it_answers_as_the_sync_client(tmp_path: Path) -> None:
    clips, pairs = [clip(i) for i in range(5)], [(clip(0), clip(1)), (clip(2), clip(3))]
    film = tmp_path / "film.mp4"
    film.write_bytes(video())

    async def ask(url: str) -> None:
        async with AsyncRemoteScorer(url) as remote:
            assert (remote.name, remote.limits, remote.info) == (sync.name, sync.limits, sync.info)
            for got, expected in (
                (await remote.score(clips), sync.score(clips)),
                (await remote.score_prefixes(clips), sync.score_prefixes(clips)),
            ):
                for one, other in zip(got, expected, strict=True):
                    np.testing.assert_array_equal(one.progress, other.progress)
                    np.testing.assert_array_equal(one.success, other.success)
            np.testing.assert_array_equal(await remote.compare(pairs), sync.compare(pairs))
            assert await remote.score([]) == [] and len(await remote.compare([])) == 0
            part = await remote.score_video(film, "task", start_s=1.0, end_s=1.5)
            np.testing.assert_array_equal(
                part.progress, sync.score_video(video(), "task", start_frame=10, end_frame=15).progress
            )
            assert await remote.compare_videos(film, video(), "task") == sync.compare_videos(film, film, "task")
            with pytest.raises(VideoError, match="cannot be read"):
                await remote.score_video(tmp_path / "none.mp4", "task")

    with endpoint(Random(seed=3)) as url, RemoteScorer(url) as sync:
        asyncio.run(ask(url))


def test_requests_at_a_time_are_bounded_and_one_failure_ends_the_others() -> None:
    async def ask(url: str) -> None:
        async with AsyncRemoteScorer(url, concurrency=3) as remote:
            alone = [remote.score([clip(i)]) for i in range(4)]
            await asyncio.gather(*alone, remote.score([clip(i) for i in range(8)]))
            assert (Counting.calls, Counting.most) == (12, 3)
            with pytest.raises(ScoringError, match="answered 500: No"):
                await remote.score([clip(0, "fail"), *(clip(i) for i in range(20))])
            assert Counting.calls < 12 + 21

    with serving(Counting) as url:
        asyncio.run(ask(url))


def test_a_burst_beyond_capacity_comes_through_and_patience_ends() -> None:
    async def ask(url: str) -> None:
        async with AsyncRemoteScorer(url) as remote:
            assert len(await remote.score([clip(i) for i in range(3)])) == 3
        async with AsyncRemoteScorer(url, patience_s=0) as remote:
            with pytest.raises(ScoringError, match=r"answered 503: .*Try again later.*\(tried once in 0 s\)"):
                await remote.score([clip(i) for i in range(3)])

    with endpoint(Slow(), max_in_flight=1) as url:
        asyncio.run(ask(url))


def test_broken_connections_are_tried_again_and_other_servers_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    async def name_of(url: str) -> str:
        async with AsyncRemoteScorer(url) as remote:
            return remote.name

    monkeypatch.setattr(calls, "pause_s", lambda *_: 0.01)
    Breaking.tries = []
    with serving(Breaking) as url:
        assert asyncio.run(name_of(url)) == "m@1"
    monkeypatch.setattr(calls, "START_PATIENCE_S", 0.1)
    with serving(Closing) as url, pytest.raises(ScoringError, match=r"no endpoint answers at .*\(tried [0-9]+ times"):
        asyncio.run(name_of(url))
    with endpoint(FrameDifference(), token="geheim") as url, pytest.raises(ScoringError, match="answered 401"):
        asyncio.run(name_of(url))
