"""The HTTP interface on raw sockets: whatever a client sends gets the right answer, or is refused soon."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest

from pipelines import serve
from pipelines.serving import heads
from pipelines.serving.errors import AGAIN_HEADER
from pipelines.serving.front import ADMIT, BODY, DRAIN, FRONT_HEADER, PERMISSION_S, Admission, Front
from pipelines.serving.tokens import Client
from robometer.baselines.trivial import FrameDifference
from robometer.configs import Config, load
from robometer.scoring import Clip, ClipScore
from tests.local_endpoint import endpoint, serving

FAULTS = Path(__file__).resolve().parents[4] / "shared/data/serve_faults"
MIB = 1 << 20


class Gated(FrameDifference):
    """Answers the task 'wait' when the test lets it, and always fails on the task 'fail'."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go = threading.Semaphore(0), threading.Event()

    def score(self, clips: list[Clip]) -> list[ClipScore]:  # type: ignore[override]
        if clips[0].task == "wait":
            self.asked.release()
            assert self.go.wait(30)
        if clips[0].task == "fail":
            raise RuntimeError("of this test")
        return super().score(clips)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with endpoint(FrameDifference()) as url:
        yield url


def npy(num_frames: int = 2) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros((num_frames, 8, 8, 3), np.uint8))
    return stream.getvalue()


IMAGE = base64.b64encode(cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes())


def part(name: str, data: bytes, filename: str = "", more: str = "") -> bytes:
    file = f'; filename="{filename}"' if filename else ""
    return f'--BB\r\nContent-Disposition: form-data; name="{name}"{file}\r\n{more}\r\n'.encode() + data + b"\r\n"


def odd_part(header: str) -> bytes:
    return part("task", b"eA==", more=f"{header}\r\n") + END


END = b"--BB--\r\n"
TASK, FRAMES = part("task", b"open the drawer"), part("frames", npy(), "f.npy")
FORM = TASK + FRAMES + END
MULTIPART = "multipart/form-data; boundary=BB"


def post(body: bytes, kind: str = MULTIPART, more: str = "", length: str = "") -> bytes:
    """A whole raw request; `more` are header lines, each with its line break."""
    head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {kind}\r\n{more}"
    return f"{head}Content-Length: {length or len(body)}\r\n\r\n".encode("latin-1") + body


@contextmanager
def connection(url: str) -> Iterator[socket.socket]:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        yield client


def read(client: socket.socket) -> tuple[int, bytes, bytes]:
    """Status, head and body of the answer on a connection that the server closes; status 0: there was no answer."""
    answer = b""
    while chunk := client.recv(65536):
        answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, head, body


def talk(url: str, request: bytes) -> tuple[int, bytes, bytes]:
    with connection(url) as client:
        client.sendall(request)
        return read(client)


def sentence(answer: tuple[int, bytes, bytes], *statuses: int) -> str:
    """The sentence of a refusal, after checking that it is one short line with the id of the header."""
    status, head, body = answer
    assert status in statuses, (status, body[:300])
    answer_json = json.loads(body)
    assert set(answer_json) == {"type", "title", "status", "detail", "error", "request_id"}
    assert b"content-type: application/problem+json" in head.lower() and len(body) < 800
    assert (answer_json["status"], answer_json["detail"]) == (status, answer_json["error"])
    assert f"x-request-id: {answer_json['request_id']}".encode() in head.lower()
    error = str(answer_json["error"])
    assert 0 < len(error) < 330 and "\n" not in error and "site-packages" not in error
    return error


def test_the_form_that_others_are_made_of_is_answered(url: str) -> None:
    status, _, body = talk(url, post(FORM))
    assert status == 200 and json.loads(body)["task"] == "open the drawer"
    assert len(json.loads(body)["progress"]) == 2


@pytest.mark.parametrize(
    ("name", "statuses"),
    [
        ("charset_undefined", (400,)),
        ("charset_unicode_escape_surrogate", (400,)),
        ("frames_twice", (422,)),
        ("json_lone_surrogate_task", (422,)),
        ("x_request_id_latin1", (400,)),
    ],
)
def test_recorded_faults(url: str, name: str, statuses: tuple[int, ...]) -> None:
    if not FAULTS.is_dir():
        pytest.skip("../shared/data/serve_faults is absent: recorded requests are not part of the project")
    sentence(talk(url, (FAULTS / f"{name}.http").read_bytes()), *statuses)


FORMS: dict[str, tuple[bytes, str, int, str]] = {
    "charset": (FORM, MULTIPART + "; charset=rot13", 400, "Charset"),
    "charset twice": (FORM, MULTIPART + "; charset=utf-8; charset=utf-8", 400, "malformed or has a parameter twice"),
    "charset of a part": (odd_part("Content-Type: text/plain; charset=utf-16"), MULTIPART, 400, "Charset"),
    "encoding of a part": (odd_part("Content-Transfer-Encoding: base64"), MULTIPART, 400, "transfer encoding"),
    "latin-1 task": (part("task", b"\xe9") + FRAMES + END, MULTIPART, 422, "not UTF-8"),
    "surrogate in UTF-8": (part("task", b"\xed\xa0\x80") + FRAMES + END, MULTIPART, 422, "not UTF-8"),
    "nul in the task": (part("task", b"open\x00") + FRAMES + END, MULTIPART, 422, "control characters"),
    "escape in the task": (part("task", b"\x1b[31m") + FRAMES + END, MULTIPART, 422, "control characters"),
    "task twice": (TASK + TASK + FRAMES + END, MULTIPART, 422, "'task' is given more than once"),
    "frames twice": (TASK + FRAMES + FRAMES + END, MULTIPART, 422, "'frames' is given more than once"),
    "task as a file": (part("task", b"x", "t.txt") + FRAMES + END, MULTIPART, 422, "'task' is missing"),
    "no boundary": (FORM, "multipart/form-data", 400, "boundary"),
    "empty boundary": (FORM, 'multipart/form-data; boundary=""', 400, "boundary"),
    "long boundary": (FORM, "multipart/form-data; boundary=" + "B" * 71, 400, "boundary"),
    "another boundary": (FORM, "multipart/form-data; boundary=CC", 400, "start with its boundary"),
    "boundary in latin-1": (FORM, "multipart/form-data; boundary=\xe9", 400, "malformed"),
    "open quote": (FORM, 'multipart/form-data; boundary="BB', 400, "malformed"),
    "no end": (TASK + FRAMES, MULTIPART, 400, "cut short"),
    "cut short": (FORM[:-80], MULTIPART, 400, "cut short"),
    "preamble": (b"hello\r\n" + FORM, MULTIPART, 400, "start with its boundary"),
    "epilogue": (FORM + b"hello", MULTIPART, 400, "after its last boundary"),
    "long epilogue": (FORM + b"\r\n" * 1000, MULTIPART, 400, "after its last boundary"),
    "no headers": (b"--BB\r\n\r\nx\r\n" + END, MULTIPART, 400, "Content-Disposition"),
    "no name": (b"--BB\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END, MULTIPART, 400, "Content-Disposition"),
    "name twice": (part('task"; name="frames', b"x") + END, MULTIPART, 400, "parameter twice"),
    "header twice": (odd_part('Content-Disposition: form-data; name="y"'), MULTIPART, 400, "header twice"),
    "header in latin-1": (odd_part("X: y").replace(b"X: y", b"X: \xe9"), MULTIPART, 400, "not UTF-8"),
    "long header": (odd_part("X: " + "y" * 5000), MULTIPART, 400, "no header"),
    "long name": (part("n" * 3000, b"x") + END, MULTIPART, 422, "Unknown field"),
    "many parts": (part("task", b"x") * 10_000 + END, MULTIPART, 422, "more than once"),
    "no part": (END, MULTIPART, 422, "'task' is missing"),
    "no body": (b"", MULTIPART, 400, "start with its boundary"),
    "no type": (FORM, "", 415, "not supported"),
    "long type": (FORM, "x" * 5000, 415, "not supported"),
    "mixed": (FORM, "multipart/mixed; boundary=BB", 415, "not supported"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_malformed_forms_are_refused(url: str, name: str) -> None:
    body, kind, status, expected = FORMS[name]
    assert expected in sentence(talk(url, post(body, kind)), status)


DOCUMENTS: dict[str, tuple[bytes, int, str]] = {
    "surrogate in the task": (rb'{"task": "\ud800 open", "frames_base64": ["%s"]}' % IMAGE, 422, "surrogate"),
    "surrogate in a name": (rb'{"task": "x", "\udfff": 1}', 422, "Unknown field"),
    "surrogate in an image": (rb'{"task": "x", "frames_base64": ["\ud800"]}', 422, "frames_base64"),
    "control character": (rb'{"task": "\u0007", "frames_base64": ["%s"]}' % IMAGE, 422, "control characters"),
    "latin-1": (b'{"task": "\xe9"}', 400, "not UTF-8"),
    "utf-16": ('{"task": "x"}'.encode("utf-16"), 400, "not UTF-8"),
    "byte order mark": (b"\xef\xbb\xbf{}", 400, "not JSON"),
    "name twice": (b'{"task": "x", "task": "x"}', 422, "'task' is given more than once"),
    "name twice inside": (b'{"task": {"a": 1, "a": 2}}', 422, "'a' is given more than once"),
    "not a number": (b'{"task": NaN}', 400, "not JSON"),
    "infinity": (b'{"task": -Infinity}', 400, "not JSON"),
    "number": (b'{"task": 1e999999}', 422, "'task' is missing"),
    "object as image": (b'{"task": "x", "frames_base64": [{}]}', 422, "must be a list"),
    "nothing": (b"", 400, "not JSON"),
    "two values": (b"{}{}", 400, "not JSON"),
    "long name": (b'{"' + b"n" * 5000 + b'": 1}', 422, "Unknown field"),
    "deep": (b"[" * 5000, 400, "not JSON"),
    "deep objects": (b'{"a":' * 2000, 400, "not JSON"),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_malformed_json_is_refused(url: str, name: str) -> None:
    body, status, expected = DOCUMENTS[name]
    assert expected in sentence(talk(url, post(body, "application/json")), status)


def test_json_that_is_right_is_answered_however_it_is_escaped(url: str) -> None:
    escaped = IMAGE.replace(b"/", rb"\/")
    for kind in ("application/json", "Application/JSON; Charset=UTF-8"):
        status, _, body = talk(
            url, post(rb'{"task": "\u00f6ffne \ud83d\ude00", "frames_base64": ["%s"]}' % escaped, kind)
        )
        assert status == 200 and json.loads(body)["task"] == "öffne 😀"


@pytest.mark.parametrize("request_id", ["\xe9\xff", "", "a b", "x" * 129, "<script>", 'a"b', "{}"])
def test_request_ids_that_are_not_safe_are_refused(url: str, request_id: str) -> None:
    refusal = sentence(talk(url, post(FORM, more=f"X-Request-ID: {request_id}\r\n")), 400)
    assert refusal.startswith("Send one x-request-id of")


def test_a_safe_request_id_is_echoed(url: str) -> None:
    status, _, body = talk(url, post(FORM, more="X-Request-ID: trace/42:a=b+c@d\r\n"))
    assert status == 200 and json.loads(body)["request_id"] == "trace/42:a=b+c@d"


@pytest.mark.parametrize(
    "line", ["X-Request-ID: a\r\nX-Request-ID: b", f"Content-Type: {MULTIPART}", "Authorization: a\r\nAuthorization: b"]
)
def test_headers_that_are_given_twice_are_refused(url: str, line: str) -> None:
    sentence(talk(url, post(FORM, more=f"{line}\r\n")), 400)


def test_a_content_encoding_is_refused(url: str) -> None:
    assert "encoding" in sentence(talk(url, post(FORM, more="Content-Encoding: gzip\r\n")), 415)


HEAD = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: multipart/form-data; boundary=BB\r\n"
PROTOCOL: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "shorter than it says": (post(FORM, length=str(len(FORM) - 9)), (200, 400)),
    "longer than it says": (post(FORM, length=str(len(FORM) + 9)), (0, 400)),
    "control character": (post(FORM, more="X-Request-ID: a\x01b\r\n"), (400,)),
    "negative length": (post(FORM, length="-1"), (400,)),
    "no length": (HEAD + b"\r\n", (400,)),
    "length in words": (post(FORM, length="many"), (400,)),
    "huge length": (post(b"", length=str(10**15)), (413,)),
    "length beyond 64 bits": (post(b"", length="9" * 40), (400, 413)),
    "length twice": (post(FORM, more="Content-Length: 3\r\n"), (400,)),
    "length and chunks": (post(FORM, more="Transfer-Encoding: chunked\r\n"), (400,)),
    "gzip transfer": (HEAD + b"Transfer-Encoding: gzip\r\n\r\n" + FORM, (400,)),
    "broken chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", (0, 400)),
    "unknown method": (b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n", (400,)),
    "no request": (b"\x16\x03\x01\x02\x00\x01\x00", (400,)),
    "another version": (b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", (400,)),
    "path in latin-1": (b"GET /h\xe9 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", (400, 404)),
    "escaped path": (b"GET /%ff%00 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", (404,)),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", (404, 405)),
    "connect": (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", (400, 404, 405)),
    "another method": (b"DELETE /v1/score HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", (405,)),
    "put with a body": (post(FORM).replace(b"POST", b"PUT"), (405,)),
    "slash at the end": (post(FORM).replace(b"/v1/score", b"/v1/score/"), (404,)),
    "ray's routes": (b"GET /-/routes HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", (404,)),
    "the inner route": (b"GET /-/admit HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", (404,)),
    "draining by anybody": (b"POST /-/drain HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", (404,)),
    "websocket": (
        b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        (101,),  # it is told why as its first message (see test_sessions.py)
    ),
}


@pytest.mark.parametrize("name", PROTOCOL)
def test_broken_http_is_refused(url: str, name: str) -> None:
    request, statuses = PROTOCOL[name]
    with connection(url) as client:
        client.sendall(request)
        if name == "longer than it says":
            client.shutdown(socket.SHUT_WR)
        status, _, body = read(client)
    assert status in statuses, body  # 0: closed without an answer, for nobody waits for one


@pytest.mark.parametrize("head", [b"X: " + b"y" * MIB, b"X: y\r\n" * (MIB // 6)], ids=["one line", "many lines"])
def test_heads_are_bounded(url: str, head: bytes) -> None:
    with connection(url) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n")
        with suppress(ConnectionError):  # it does not wait for the end of it
            client.sendall(head)
            assert client.recv(100).startswith(b"HTTP/1.1 400")
    assert httpx.get(f"{url}/health").status_code == 200


CHUNKED = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("begun", [b"0\r\nX: ", b"1;x="], ids=["trailer", "extension of a chunk"])
@pytest.mark.parametrize("route", [b"POST /v1/score", b"GET /health"])
def test_lines_about_a_body_are_bounded(url: str, route: bytes, begun: bytes) -> None:
    with connection(url) as client:
        client.sendall(CHUNKED.replace(b"POST /v1/score", route) + begun)
        with pytest.raises(ConnectionError):  # /health is answered without its body, which is not read for ever
            for _ in range(50):
                client.sendall(b"y" * MIB)


def test_a_trailer_is_no_header(url: str) -> None:
    trailer = b"0\r\nX-Request-Id: of a trailer\r\nContent-Type: text/plain\r\n\r\n"
    request = CHUNKED.replace(b"Host", b"X-Request-Id: of-the-head\r\nConnection: close\r\nHost") + trailer
    assert "of-the-head" in str(talk(url, request)) and "not supported" in sentence(talk(url, request), 415)


def test_an_answered_request_is_not_read_for_ever(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "REST_TIMEOUT_S", 0.5)
    with connection(url) as client:
        client.sendall(post(FORM, more="X-Request-ID: not safe\r\n", length="10000").replace(b"close", b"keep-alive"))
        started_s = time.monotonic()
        assert read(client)[0] == 400 and 0.4 < time.monotonic() - started_s < 10
    with httpx.Client(base_url=url) as client:  # a body that is in is no rest
        for _ in range(2):
            assert client.post("/health", content=b"x").status_code == 405
            time.sleep(0.8)


def test_heads_that_do_not_come_are_not_waited_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "HEAD_TIMEOUT_S", 0.5)
    for begun in (b"", b"GET /hea", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea"):
        with connection(url) as client:
            client.sendall(begun)
            started_s, answered = time.monotonic(), read(client)[0]
            assert answered == (200 if begun.endswith(b"\n\r\nGET /hea") else 0)
            assert time.monotonic() - started_s < 10
    with httpx.Client(base_url=url) as kept:  # an idle connection is no head
        for _ in range(2):
            assert kept.get("/health").status_code == 200
            time.sleep(0.8)


def test_http_1_0_and_chunks_and_expect_are_understood(url: str) -> None:
    assert talk(url, post(FORM).replace(b"HTTP/1.1", b"HTTP/1.0"))[0] == 200
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in (FORM[:100], FORM[100:])) + b"0\r\n\r\n"
    assert talk(url, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)[0] == 200
    with connection(url) as client:
        client.sendall(post(FORM, more="Expect: 100-continue\r\n")[: -len(FORM)])
        assert client.recv(65536).startswith(b"HTTP/1.1 100")
        client.sendall(FORM)
        assert read(client)[0] == 200
    with connection(url) as client:  # refused before the body is asked for
        client.sendall(post(FORM, more="Expect: 100-continue\r\n", length=str(10**12))[: -len(FORM)])
        assert client.recv(65536).startswith(b"HTTP/1.1 413")


def test_head_is_answered_like_get_without_the_body(url: str) -> None:
    for route in ("/health", "/ready", "/v1/model", "/docs", "/metrics"):
        got, head = httpx.get(url + route), httpx.head(url + route)
        assert head.status_code == got.status_code == 200 and head.content == b""
        assert head.headers["content-type"] == got.headers["content-type"]


def test_docs_need_no_other_host_and_ask_for_the_token() -> None:
    with endpoint(FrameDifference(), token="geheim ü") as url:
        page = httpx.get(f"{url}/docs").text
        links = re.findall(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)""", page)
        assert {"docs/swagger-ui.js", "docs/swagger-ui.css", "openapi.json"} <= set(links)
        assert not [link for link in links if "//" in link]
        for link in links:
            assert link.startswith("data:") or httpx.get(f"{url}/{link}").status_code == 200
        schema = httpx.get(f"{url}/openapi.json").json()
        assert schema["components"]["securitySchemes"]["HTTPBearer"] == {"type": "http", "scheme": "bearer"}
        assert schema["paths"]["/v1/score"]["post"]["security"] == [{"HTTPBearer": []}]
        for route, operations in schema["paths"].items():
            assert route == "/health" or all({"401", "503"} <= set(op["responses"]) for op in operations.values())
        for scheme in ("Bearer", "bearer", "BEARER"):
            line = f"Authorization: {scheme} geheim ü\r\n".encode()
            assert talk(url, post(FORM).replace(b"Host: x\r\n", b"Host: x\r\n" + line))[0] == 200
        for line in ("Basic geheim", "Bearer", "Bearer geheim", "geheim ü", "Bearer \xe9\xff"):
            sentence(talk(url, post(FORM, more=f"Authorization: {line}\r\n")), 401)


def test_slow_senders_take_no_place_and_are_sent_away() -> None:
    with endpoint(FrameDifference(), max_in_flight=1, body_timeout_s=1.5) as url:
        slow = [socket.create_connection(url.removeprefix("http://").split(":"), timeout=30) for _ in range(50)]
        for client in slow:
            client.sendall(post(FORM)[:-10])
        started_s = time.monotonic()
        assert talk(url, post(FORM))[0] == 200
        assert time.monotonic() - started_s < 1.4, "it had to wait for those"
        for client in slow:
            assert "serve.body_timeout_s" in sentence(read(client), 408)
            client.close()


def test_a_body_that_does_not_say_its_length_is_bounded_as_it_comes() -> None:
    kind = {"content-type": "multipart/form-data; boundary=x"}
    with endpoint(FrameDifference(), max_upload_bytes=1000) as url:
        answers = [
            httpx.post(f"{url}/v1/score", content=(b"x" * 300 for _ in range(chunks)), headers=kind)
            for chunks in (3, 4)
        ]
    assert [answer.status_code for answer in answers] == [400, 413]
    assert "larger than 1000 bytes" in answers[1].json()["error"]


def test_bodies_on_their_way_are_bounded_together() -> None:
    with endpoint(FrameDifference(), max_upload_bytes=8 * MIB, max_held_bytes=10 * MIB) as url:
        with connection(url) as first:
            first.sendall(post(b"x" * 7 * MIB, length=str(8 * MIB)))
            time.sleep(0.3)
            assert "Too many request bodies" in sentence(talk(url, post(b"x" * 4 * MIB)), 503)
        time.sleep(0.3)
        assert "start with its boundary" in sentence(talk(url, post(b"x" * 4 * MIB)), 400)


def test_frames_that_wait_for_the_model_are_bounded_together() -> None:
    image = base64.b64encode(cv2.imencode(".png", np.zeros((100, 100, 3), np.uint8))[1].tobytes())

    def request(task: bytes) -> bytes:  # some 200 bytes, whose frame has 30,000
        return post(b'{"task": "%s", "frames_base64": ["%s"]}' % (task, image), "application/json")

    model = Gated()
    with endpoint(model, max_upload_bytes=40_000, max_held_bytes=40_000, timeout_s=10.0) as url:
        with connection(url) as first:
            first.sendall(request(b"wait"))
            assert model.asked.acquire(timeout=10)
            assert "wait for the model" in sentence(talk(url, request(b"x")), 503)
            model.go.set()
            assert read(first)[0] == 200
        assert talk(url, request(b"x"))[0] == 200
        model.go.clear()
        with connection(url) as first:  # leaves while the model is at it
            first.sendall(request(b"wait"))
            assert model.asked.acquire(timeout=10)
        model.go.set()
        deadline_s = time.monotonic() + 10
        while (status := talk(url, request(b"x"))[0]) != 200 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert status == 200
        assert [talk(url, request(task))[0] for task in (b"fail", b"x", b"fail", b"x")] == [500, 200, 500, 200]


def test_a_client_that_leaves_frees_its_place_and_is_no_failure_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    model = Gated()
    with endpoint(model, max_in_flight=1) as url, caplog.at_level(logging.INFO):
        with connection(url) as client:
            client.sendall(post(part("task", b"wait") + FRAMES + END))
            assert model.asked.acquire(timeout=10)
        with connection(url) as client:  # leaves in mid body
            client.sendall(post(FORM)[:-20])
        with connection(url) as client:  # leaves in mid head
            client.sendall(b"POST /v1/score HTTP/1.1\r\nHo")
        model.go.set()
        deadline_s = time.monotonic() + 10
        while (status := talk(url, post(FORM))[0]) != 200 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        assert status == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_draining_answers_what_was_accepted_and_refuses_the_rest() -> None:
    model = Gated()
    with endpoint(model, drain_key="key", instance="one") as url, ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(talk, url, post(part("task", b"wait") + FRAMES + END))
        assert model.asked.acquire(timeout=10)
        drain = (
            b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer key\r\n\r\n" % DRAIN.encode()
        )
        status, _, body = talk(url, drain)
        assert status == 200 and json.loads(body) == {"in_flight": 1}
        status, head, body = talk(url, post(FORM))
        assert "shutting down" in sentence((status, head, body), 503) and b"retry-after: 5" in head.lower()
        assert httpx.get(f"{url}/health").headers["connection"] == "close"  # its next request goes elsewhere
        model.go.set()
        assert accepted.result(30)[0] == 200
        assert json.loads(talk(url, drain)[2]) == {"in_flight": 0}


def config_at(url: str) -> Config:
    return load([f"serve.port={url.rpartition(':')[2]}", "serve.drain_timeout_s=10"])


def test_an_endpoint_that_another_start_replaced_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stops: list[None] = []
    monkeypatch.setattr(serve, "stop", lambda: stops.append(None))
    monkeypatch.setattr(serve, "_DRAIN_KEY", "key")
    with endpoint(FrameDifference(), drain_key="of the other", instance="two") as url:
        serve.end(config_at(url))
        assert talk(url, post(FORM))[0] == 200 and not stops
    with endpoint(FrameDifference(), drain_key="key", instance="one") as url:
        serve.end(config_at(url))
        assert talk(url, post(FORM))[0] == 503 and len(stops) == 1
    serve.end(config_at(url))  # nothing listens there any more
    assert len(stops) == 2


class Busy(BaseHTTPRequestHandler):
    """The front of an endpoint whose replica has just died; the next one answers one request."""

    answers = [(503, b"{}"), (500, b"Internal Server Error"), (200, b'{"in_flight": 1}'), (200, b'{"in_flight": 0}')]

    def do_POST(self) -> None:
        status, body = self.answers.pop(0)
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return None


def test_draining_is_not_over_while_nobody_knows_what_is_in_flight() -> None:
    with serving(Busy) as url:
        assert serve.drain(config_at(url))
    assert not Busy.answers


BOMBS: dict[str, Callable[[], bytes]] = {
    "empty lists": lambda: post(b"[" + b"[]," * (5 * MIB) + b"[]]", "application/json"),
    "deep": lambda: post(b"[" * (15 * MIB), "application/json"),
    "number": lambda: post(b'{"task": ' + b"1" * (15 * MIB) + b"}", "application/json"),
    "name": lambda: post(b'{"' + b"n" * (15 * MIB) + b'": 1}', "application/json"),
    "escapes": lambda: post(b'{"task": "' + rb"\n" * (7 * MIB) + b'"}', "application/json"),
    "text": lambda: post(b'{"task": "' + "é".encode() * (7 * MIB) + b'"}', "application/json"),
    "one image": lambda: post(b'{"task": "x", "frames_base64": ["' + b"A" * (15 * MIB) + b'"]}', "application/json"),
    "part": lambda: post(part("frames", b"\r\n--B" * (3 * MIB), "f.npy") + END),
    "parts": lambda: post(part("task", b"x") * (MIB // 4) + END),
    "boundary": lambda: post(b"\r\n--" + b"B" * (15 * MIB), "multipart/form-data; boundary=" + "B" * 70),
}


@pytest.mark.parametrize("name", BOMBS)
def test_health_answers_while_a_bomb_is_read(url: str, name: str) -> None:
    request = BOMBS[name]()
    # Of three, since other work on this machine makes anything wait; what holds the interpreter does so each time.
    assert any(max(waits_s_beside(url, request)) < 0.5 for _ in range(3))


def waits_s_beside(url: str, request: bytes) -> list[float]:
    """Seconds of each answer of /health while `request` is refused."""
    waits_s = []
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=url, timeout=30) as probe:
        pending = pool.submit(talk, url, request)
        while not pending.done():
            started_s = time.monotonic()
            assert probe.get("/health").status_code == 200
            waits_s.append(time.monotonic() - started_s)
    sentence(pending.result(), 400, 413, 415, 422)
    return waits_s


def test_a_replica_that_dies_costs_a_request_nothing() -> None:
    """The proxy's application ends without an answer, or in the middle of one, where its replica died."""
    bodies: list[bytes] = []

    async def dying(scope, receive, send):  # type: ignore[no-untyped-def]
        if scope["path"] == ADMIT:
            return await respond(send, Admission(99, 1.0, 99, "one", Client()).response_body())
        bodies.append(scope[BODY])
        if len(bodies) == 1:
            return None
        if len(bodies) == 2:
            raise RuntimeError("the proxy's own trouble")
        if len(bodies) == 3:
            return await send({"type": "http.response.start", "status": 200, "headers": OURS})
        if len(bodies) == 4:
            return await respond(send, b"Ray's own words", headers=[], status=503)
        return await respond(send, b"answer")

    sent = asyncio.run(request_of(Front(dying), b"body"))
    assert bodies == [b"body"] * 5
    assert sent[0]["status"] == 200 and sent[1]["body"] == b"answer"


def test_a_permission_to_send_a_body_is_used_again_for_a_moment() -> None:
    asked, now_s = list[bytes](), [100.0]

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        token = dict(scope["headers"]).get(b"authorization", b"")
        if scope["path"] == ADMIT:
            asked.append(token)
            status = 200 if token == b"Bearer good" else 401
            return await respond(send, Admission(9, 1.0, 99, "one", Client()).response_body(), status=status)
        await respond(send, b"answer")

    front = Front(app, lambda: now_s[0])

    def status(token: bytes, later_s: float = 0.0, size: int = 4) -> int:
        now_s[0] += later_s
        headers = [(b"authorization", token), (b"content-length", str(size).encode())]
        sent = asyncio.run(request_of(front, size * b"x", headers=headers))
        return int(sent[0]["status"])

    assert [status(b"Bearer good") for _ in range(3)] == [200, 200, 200] and len(asked) == 1
    assert status(b"Bearer good", size=10) == 413 and len(asked) == 1  # by its head, before it is read
    assert [status(b"Bearer bad") for _ in range(2)] == [401, 401] and len(asked) == 3  # a refusal is not kept
    assert status(b"Bearer good", PERMISSION_S - 0.1) == 200 and len(asked) == 3
    assert status(b"Bearer good", 0.2) == 200 and len(asked) == 4


def test_nobody_is_asked_again_for_a_client_that_has_gone() -> None:
    """Ray's proxy ends without an answer where the client leaves; a replica would only compute for nobody."""
    asked: list[str] = []

    async def left(scope, receive, send):  # type: ignore[no-untyped-def]
        asked.append(scope["path"])
        while (await receive())["type"] != "http.disconnect":
            pass

    async def receive():  # type: ignore[no-untyped-def]
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path": "/v1/model", "headers": []}
    asyncio.run(asyncio.wait_for(Front(left)(scope, receive, None), 10))
    assert asked == ["/v1/model"]


def test_no_client_steers_the_proxy_by_headers() -> None:
    seen: list[bytes] = []

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        seen.extend(name for name, _ in scope["headers"])
        await respond(send, b"{}")

    given = [(b"x-request-timeout-seconds", b"0.001"), (b"serve_multiplexed_model_id", b"\xff"), (b"accept", b"*/*")]
    given.append((FRONT_HEADER.encode(), b"forged"))
    asyncio.run(request_of(Front(app), b"", "GET", "/health", given))
    assert sorted(seen) == [b"accept", b"x-request-id", FRONT_HEADER.encode()]


OURS = [(b"x-robometer-replica", b"r")]


async def respond(send, body, headers=OURS, status=200):  # type: ignore[no-untyped-def]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def request_of(app, body, method="POST", path="/v1/score", headers=()):  # type: ignore[no-untyped-def]
    sent: list[dict] = []
    asked = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive():  # type: ignore[no-untyped-def]
        return next(asked, None) or await asyncio.Future()

    async def send(message):  # type: ignore[no-untyped-def]
        sent.append(message)

    await app({"type": "http", "method": method, "path": path, "headers": list(headers)}, receive, send)
    return sent


def test_a_request_for_another_replica_of_other_version_is_passed_on_until_one_answers() -> None:
    asked: list[str] = []

    async def app(scope, receive, send):  # type: ignore[no-untyped-def]
        asked.append(scope["path"])
        if len(asked) < 3:
            return await respond(send, b"{}", [*OURS, (AGAIN_HEADER.encode(), b"1")], status=503)
        await respond(send, b"{}")

    sent = asyncio.run(request_of(Front(app), b"", "GET", "/v1/model"))
    assert asked == ["/v1/model"] * 3 and sent[0]["status"] == 200


def test_without_the_checks_of_the_proxy_nothing_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where `serve deploy` finds a Ray that was started without the variable."""
    monkeypatch.setattr("tests.local_endpoint.Front", lambda api: api)
    with endpoint(FrameDifference()) as url:
        for path in ("/health", "/openapi.json", "/v1/model", "/nothing"):
            answer = httpx.get(url + path)
            assert answer.status_code == 503 and "without its checks of uploads" in answer.json()["error"]
