"""Clips by URL, from real servers: what the allow-list allows is fetched, and nothing else is reached."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from pipelines.serving import fetching
from pipelines.serving.errors import ApiError
from pipelines.serving.fetching import Fetcher, is_public
from robometer.configs.allow_list import AllowList
from tests.local_endpoint import endpoint, serving
from tests.pipelines.serving.test_many import errors, npy
from tests.pipelines.serving.test_options import Seen, video

TASK = "open the drawer"
ASKED: list[tuple[str, dict[str, str]]] = []


class Files(BaseHTTPRequestHandler):
    """A server of clips, and of what a server should not do."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        ASKED.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        path = self.path.partition("?")[0]
        if path == "/clips/video.mp4":
            self.answer(video())
        elif path == "/clips/frames.npy":
            self.answer(npy(10, 30))
        elif path == "/clips/text":
            self.answer(b"no video")
        elif path == "/clips/nothing":
            self.answer(b"")
        elif path == "/clips/redirect":
            self.answer(b"", 302, {"Location": "/clips/video.mp4"})
        elif path == "/clips/packed":
            self.answer(b"x", headers={"Content-Encoding": "gzip"})
        elif path == "/clips/declared":
            self.answer(b"x", headers={"Content-Length": "999999999"})
        elif path in ("/clips/huge", "/clips/slow"):
            self.stream(b"x" * 65536 if path == "/clips/huge" else b"x", 0 if path == "/clips/huge" else 0.05)
        else:
            self.answer(b"", 404)

    def answer(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def stream(self, chunk: bytes, pause_s: float) -> None:
        """A body of unknown length that never ends."""
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            while True:
                self.wfile.write(chunk)
                time.sleep(pause_s)
        except OSError:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def files() -> Iterator[str]:
    with serving(Files) as url:
        yield url


@pytest.fixture(scope="module")
def url(files: str) -> Iterator[str]:
    settings = [
        f"serve.url_allow_list=['{files}/clips']",
        "serve.body_timeout_s=1",
        "serve.max_upload_bytes=6000000",
    ]
    with endpoint(Seen(), settings) as url:
        yield url


def score(url: str, address: str, **options: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/score", json={"task": TASK, "url": address, **options}, timeout=60)


def test_a_clip_by_url_has_the_answer_of_its_upload(url: str, files: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    by_name = {"task": TASK, "end_frame": "7", "url": f"{files}/clips/video.mp4?key=1"}
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as http:
        by_url = http.post("/v1/score", files={name: (None, text) for name, text in by_name.items()}).json()
        content = {"video": video()}
        uploaded = http.post("/v1/score", data={"task": TASK, "end_frame": "7"}, files=content).json()
    assert by_url | {"request_id": ""} == uploaded | {"request_id": ""} and by_url["num_frames"] == 7
    path, headers = ASKED[-1]
    assert path == "/clips/video.mp4?key=1" and headers["host"] == files.removeprefix("http://")
    assert headers.keys() == {"host", "accept-encoding", "user-agent"}


def test_urls_of_two_clips_and_of_several(url: str, files: str) -> None:
    a, b = f"{files}/clips/video.mp4", f"{files}/clips/frames.npy"
    assert score(url, b).json()["progress"] == pytest.approx([0.01, 0.03])
    pair = httpx.post(f"{url}/v1/compare", json={"task": TASK, "url_a": a, "url_b": b}, timeout=60)
    assert pair.json()["probability_a_better"] == 0.5
    body = {"task": TASK, "url_0": b, "url_1": f"{files}/other", "url_2": f"{files}/clips/none", "url_3": a}
    answer = httpx.post(f"{url}/v1/scores", json=body, timeout=60).json()
    assert errors(answer["clips"]) == [200, 422, 422, 200]


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/clips/redirect", 422, "is a redirect (302)"),
        ("/clips/none", 422, "answered 404"),
        ("/clips/packed", 422, "content encoding"),
        ("/clips/declared", 413, "larger than 6000000 bytes"),
        ("/clips/huge", 413, "larger than 6000000 bytes"),
        ("/clips/slow", 408, "did not arrive within 1 s"),
        ("/clips/text", 415, "'url' cannot be decoded"),
        ("/clips/nothing", 422, "'url' is empty"),
        ("/other", 422, "not on the list"),
        ("/clips/../other", 422, "dot segments"),
    ],
)
def test_what_cannot_be_fetched(url: str, files: str, path: str, status: int, words: str) -> None:
    asked = len(ASKED)
    refusal = score(url, files + path)
    assert refusal.status_code == status and words in refusal.json()["error"]
    assert files not in refusal.text
    assert len(ASKED) == asked + path.startswith("/clips/") * ("dot" not in words)


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/clips", "https://localhost/", "file:///etc/passwd", 7, None])
def test_other_addresses_are_not_reached(url: str, address: Any) -> None:
    refusal = score(url, address)
    assert refusal.status_code == 422 and "'url'" in refusal.json()["error"]


def test_one_clip_is_named_once_and_by_text(url: str, files: str) -> None:
    body = {"task": TASK, "url": f"{files}/clips/video.mp4", "frames_base64": ["x"]}
    refusal = httpx.post(f"{url}/v1/score", json=body, timeout=60)
    assert refusal.status_code == 422 and "exactly one" in refusal.json()["error"]
    parts = {"url": ("url", f"{files}/clips/video.mp4")}
    refusal = httpx.post(f"{url}/v1/score", data={"task": TASK}, files=parts, timeout=60)
    assert refusal.status_code == 422 and "must be a URL" in refusal.json()["error"]


def test_no_url_is_taken_if_none_is_allowed(files: str) -> None:
    with endpoint(Seen()) as url:
        refusal = score(url, f"{files}/clips/video.mp4")
    assert refusal.status_code == 422 and "serve.url_allow_list is empty" in refusal.json()["error"]


def get(entries: list[str], address: str, tls: ssl.SSLContext | None = None) -> bytes:
    async def fetch() -> bytes:
        async with Fetcher(AllowList.of(entries), 10**6, 5, tls).fetched(address, "url") as content:
            return content

    return asyncio.run(fetch())


def resolve_to(monkeypatch: pytest.MonkeyPatch, *ips: str) -> list[str]:
    """Let every name have these addresses; returns the names that were asked for."""
    asked = []

    def getaddrinfo(host: str, port: int, *args: Any, **kwargs: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ips]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize("ips", [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["169.254.169.254"]])
def test_an_allowed_name_may_not_lead_inside(files: str, ips: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """None of its addresses, as a name may have several and change them from one question to the next."""
    name, asked = files.replace("127.0.0.1", "data.example.org"), len(ASKED)
    resolve_to(monkeypatch, *ips)
    with pytest.raises(ApiError, match="not public"):
        get([name], f"{name}/clips/frames.npy")
    assert len(ASKED) == asked


def test_the_connection_goes_to_the_address_that_was_checked(files: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, names = files.replace("127.0.0.1", "data.example.org"), resolve_to(monkeypatch, "127.0.0.1")
    monkeypatch.setattr(fetching, "is_public", lambda ip: ip == "127.0.0.1")
    assert get([name], f"{name}/clips/frames.npy") == npy(10, 30)
    assert names.count("data.example.org") == 1 and set(names) <= {"data.example.org", "127.0.0.1"}
    assert ASKED[-1][1]["host"] == name.removeprefix("http://")


@pytest.mark.parametrize(
    ("ip", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        *((ip, False) for ip in ("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0")),
        *((ip, False) for ip in ("100.64.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::1", "::", "fe80::1")),
        *((ip, False) for ip in ("fc00::1", "ff02::1", "::ffff:127.0.0.1", "64:ff9b::a00:1", "2002:7f00:1::")),
        ("::ffff:93.184.216.34", True),
        ("fe80::1%eth0", False),
    ],
)
def test_which_addresses_are_public(ip: str, public: bool) -> None:
    assert is_public(ip) == public


@contextmanager
def https(folder: Path) -> Iterator[tuple[int, ssl.SSLContext]]:
    """Port of a server whose certificate is for data.example.org, and a context that trusts it."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    name = ["-subj", "/CN=data.example.org", "-addext", "subjectAltName=DNS:data.example.org"]
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*make, *name, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1], ssl.create_default_context(cafile=str(certificate))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_a_certificate_must_be_that_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "is_public", lambda ip: True)
    with https(tmp_path) as (port, trusting):
        resolve_to(monkeypatch, "127.0.0.1")
        right, wrong = (f"{name}.example.org:{port}" for name in ("data", "other"))
        assert get([right], f"https://{right}/clips/frames.npy", trusting) == npy(10, 30)
        for name, tls in ((wrong, trusting), (right, None)):
            with pytest.raises(ApiError, match="cannot be fetched"):
                get([name], f"https://{name}/clips/frames.npy", tls)


def test_a_name_that_is_not_known_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ApiError, match="cannot be fetched \\(gaierror\\)"):
        get(["data.example.org"], "https://data.example.org/x")
