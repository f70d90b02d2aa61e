"""A server on a real socket that answers like the providers of chat models and records its requests."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from robometer.baselines.config import BaselineConfig
from robometer.frames.video import decode_jpeg


@dataclass
class Seen:
    """One request and its time."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at_s: float = field(default_factory=time.monotonic)

    @property
    def parts(self) -> list[str | np.ndarray]:
        """Its texts and its RGB pictures in order, from either provider's format."""
        if "contents" in self.body:
            parts = self.body["contents"][0]["parts"]
            return [part["text"] if "text" in part else _picture(part["inlineData"]["data"]) for part in parts]
        parts = self.body["messages"][0]["content"]
        urls = [part.get("image_url", {}).get("url", "") for part in parts]
        return [part["text"] if not url else _picture(url.split(",")[1]) for part, url in zip(parts, urls, strict=True)]

    @property
    def pictures(self) -> list[np.ndarray]:
        """Its pictures."""
        return [part for part in self.parts if isinstance(part, np.ndarray)]


def _picture(data: str) -> np.ndarray:
    return decode_jpeg(base64.b64decode(data))


@dataclass
class Reply:
    """One answer; a body other than bytes is sent as JSON."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    after_s: float = 0.0


def gemini(text: str) -> Reply:
    """A successful reply from Gemini, with its thoughts among the parts."""
    parts = [{"text": "Let me look at the pictures.", "thought": True}, {"text": text}]
    candidate = {"content": {"parts": parts, "role": "model"}, "finishReason": "STOP", "index": 0}
    usage = {
        "promptTokenCount": 300,
        "candidatesTokenCount": 20,
        "thoughtsTokenCount": 5,
        "totalTokenCount": 325,
        "promptTokensDetails": [{"modality": "IMAGE", "tokenCount": 258}],
    }
    return Reply({"candidates": [candidate], "usageMetadata": usage, "modelVersion": "tiny", "responseId": "r"})


def openai(text: str | None, **message: Any) -> Reply:
    """A successful reply from chat completions."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text, "refusal": None} | message}
    choice |= {"logprobs": None, "finish_reason": "stop"}
    usage = {"prompt_tokens": 300, "completion_tokens": 25, "total_tokens": 325, "prompt_tokens_details": None}
    return Reply({"id": "c", "object": "chat.completion", "model": "tiny", "choices": [choice], "usage": usage})


def failure(status: int, message: str, **headers: str) -> Reply:
    """An error reply, in the format that both providers share."""
    error = {"code": status, "message": message, "status": "SOME_STATUS"}
    return Reply({"error": error}, status, {name.replace("_", "-"): value for name, value in headers.items()})


class ChatServer:
    """Answers while the block runs.

    Args:
        reply: makes the answer to a request, or a list of answers for as many requests, the last one for all others.
    """

    def __init__(self, reply: Callable[[Seen], Reply] | Sequence[Reply]) -> None:
        self._reply = reply
        self.seen: list[Seen] = []
        self.most_in_flight = 0
        self._in_flight = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> ChatServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, seen: Seen) -> Reply:
        """Record the request and return its answer."""
        with self._lock:
            self.seen.append(seen)
            number = len(self.seen)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        reply = self._reply(seen) if callable(self._reply) else self._reply[min(number, len(self._reply)) - 1]
        time.sleep(reply.after_s)
        with self._lock:
            self._in_flight -= 1
        return reply

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                reply = server.answer(Seen(self.path, headers, body))
                data = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                try:
                    self.send_response(reply.status)
                    for name, value in {**reply.headers, "content-length": str(len(data))}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)
                except ConnectionError:  # the client gave up or was killed
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                return None

        return Handler


def settings(server: ChatServer, cache: Path, **changes: Any) -> BaselineConfig:
    """A configuration that asks the server without waiting between requests."""
    values = {"provider": "openai", "model": "tiny", "base_url": server.url, "requests_per_minute": 1e6}
    return BaselineConfig(**values | {"cache": str(cache)} | changes)
