"""The client against real sockets: equal numbers, retries after 503, and errors that say what to do."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest

from robometer import calls
from robometer.baselines.trivial import FrameDifference, Random
from robometer.client import RemoteScorer, ScoringError
from robometer.scoring import Clip, ClipScore
from tests.local_endpoint import endpoint, serving


class Slow(FrameDifference):
    """Half a second per call."""

    def score(self, clips: list[Clip]) -> list[ClipScore]:  # type: ignore[override]
        time.sleep(0.5)
        return super().score(clips)


class Held(FrameDifference):
    """Says that a call has come, and answers when it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.released = threading.Event(), threading.Event()

    def score(self, clips: list[Clip]) -> list[ClipScore]:  # type: ignore[override]
        self.called.set()
        assert self.released.wait(60)
        return super().score(clips)


@pytest.fixture
def clips() -> list[Clip]:
    rng = np.random.default_rng(0)
    return [Clip(rng.integers(0, 255, (3 + i, 20, 30, 3), dtype=np.uint8), f"task {i}") for i in range(5)]


def test_numbers_survive_the_wire_bit_by_bit(clips: list[Clip]) -> None:
    local = Random(seed=3)
    with endpoint(local) as url, RemoteScorer(url) as remote:
        assert remote.name == "random"
        for got, expected in zip(remote.score(clips), local.score(clips), strict=True):
            assert got.progress.dtype == np.float32
            np.testing.assert_array_equal(got.progress, expected.progress)
        pairs = [(clips[0], clips[1].with_task("task 0")), (clips[2], clips[3].with_task("task 2"))]
        np.testing.assert_array_equal(remote.compare(pairs), local.compare(pairs))
        assert remote.score([]) == [] and len(remote.compare([])) == 0


def test_burst_beyond_capacity_comes_through(clips: list[Clip]) -> None:
    with endpoint(Slow(), max_in_flight=2) as url, RemoteScorer(url) as remote:
        assert len(remote.score(clips)) == 5


def test_answer_that_takes_too_long_is_503(clips: list[Clip]) -> None:
    with endpoint(Slow(), timeout_s=0.2) as url, RemoteScorer(url, patience_s=0) as remote:
        with pytest.raises(ScoringError, match=r"answered 503: No answer within 0.2 s.*tried once"):
            remote.score(clips[:1])


def test_token_is_sent(clips: list[Clip]) -> None:
    with endpoint(FrameDifference(), token="geheim ü") as url:
        for token in ("geheim ü", " geheim ü\n"):
            assert len(RemoteScorer(url, token=token).score(clips[:1])) == 1
        with pytest.raises(ScoringError, match="the token has control characters, which a header cannot carry"):
            RemoteScorer(url, token="ge\nheim")
        with pytest.raises(ScoringError, match=r"401.*not the one.*revoked\.$"):
            RemoteScorer(url, token="guess")
        with pytest.raises(ScoringError, match=r"401.*required.*Give it as ROBOMETER_TOKEN"):
            RemoteScorer(url)


def test_limits_are_whole_numbers_where_they_count(clips: list[Clip]) -> None:
    with endpoint(FrameDifference(), ["serve.max_upload_bytes=1000"]) as url, RemoteScorer(url) as remote:
        with pytest.raises(ScoringError, match=r"bytes are more than .* accepts \(1000\)"):
            remote.score(clips[:1])


class Unwell(BaseHTTPRequestHandler):
    """A server without the endpoint: 503 for a while, then an HTML page."""

    seen: list[float] = []

    def do_GET(self) -> None:
        self.seen.append(time.monotonic())
        self.send_response(503 if len(self.seen) < 3 else 200)
        self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(b"<html>hello</html>")

    def log_message(self, *_: object) -> None:
        return None


class Another(Unwell):
    """A server with the same route and other answers."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"id": "m", "object": "model"}')


def test_another_server_that_has_the_route_is_recognised() -> None:
    with serving(Another) as url, pytest.raises(ScoringError, match="is not a Robometer endpoint, or has another"):
        RemoteScorer(url)


class Odd(Unwell):
    """A server with malformed headers."""

    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Retry-After", "\xb2")
        self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(b"no gzip" if self.path.endswith("model") else b"")


def test_headers_of_another_server_that_make_no_sense_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "START_PATIENCE_S", 0.1)
    with serving(Odd) as url, pytest.raises(ScoringError, match="no endpoint answers at"):
        RemoteScorer(url)
    assert calls.pause_s("\xb2", 1) == 0.25


def test_retry_after_is_honoured_and_another_server_is_recognised() -> None:
    Unwell.seen = []
    with serving(Unwell) as url:
        with pytest.raises(ScoringError, match="answered 200: the answer is not from a Robometer endpoint"):
            RemoteScorer(url)
    assert len(Unwell.seen) == 3
    assert min(np.diff(Unwell.seen)) >= 0.95


def test_nobody_there_and_nonsense_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "START_PATIENCE_S", 0.5)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(ScoringError, match=r"no endpoint answers at http://127.0.0.1"):
            RemoteScorer(f"http://127.0.0.1:{unused.getsockname()[1]}")
    for url in ("nonsense", "ftp://127.0.0.1", "http://[1"):
        with pytest.raises(ScoringError):
            RemoteScorer(url)


class Breaking(BaseHTTPRequestHandler):
    """A failing proxy: closes without an answer, then in mid-answer, answers 500 and 502, and finally recovers."""

    tries: list[str] = []

    def do_GET(self) -> None:
        self.tries.append(self.path)
        trouble = len(self.tries)
        if trouble == 1:
            return
        self.send_response({3: 500, 4: 502}.get(trouble, 200))
        answer = b'{"name": "m@1", "revision": "1", "provenance": {}, "limits": {}, "frames": {}}'
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        words = {2: answer[:9], 3: b"Internal Server Error".ljust(len(answer)), 4: b"Bad Gateway".ljust(len(answer))}
        self.wfile.write(words.get(trouble, answer))

    def log_message(self, *_: object) -> None:
        return None


def test_broken_connections_and_the_words_of_a_proxy_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "START_PATIENCE_S", 30.0)  # its pauses alone take 3.75 s
    Breaking.tries = []
    with serving(Breaking) as url:
        assert RemoteScorer(url).name == "m@1"
    assert Breaking.tries == ["/v1/model"] * 5


class Closing(BaseHTTPRequestHandler):
    """Closes every connection without an answer."""

    def do_GET(self) -> None:
        return None


def test_trying_again_has_an_end_which_says_what_happened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "START_PATIENCE_S", 2.0)  # its pauses take 1.75 s
    with (
        serving(Closing) as url,
        pytest.raises(ScoringError, match=r"no endpoint answers at .*\(tried [2-4] times in \d s\)"),
    ):
        RemoteScorer(url)


def test_admission_refuses_before_the_body_is_read() -> None:
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    scorer = Held()
    with endpoint(scorer, max_in_flight=1) as url, ThreadPoolExecutor(1) as pool, RemoteScorer(url) as remote:
        busy = pool.submit(remote.score, [Clip(frames, "first")])
        assert scorer.called.wait(60)
        head = "POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 10\r\n\r\n"
        with socket.create_connection(url.removeprefix("http://").split(":"), timeout=60) as connection:
            connection.sendall(f"{head}{{".encode())  # and no more
            answer = connection.recv(2**16).decode().lower()
        scorer.released.set()
        assert answer.startswith("http/1.1 503 ") and "\r\nretry-after: 1\r\n" in answer
        assert len(busy.result()) == 1
