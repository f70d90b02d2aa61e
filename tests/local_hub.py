"""A model hub on loopback: enough of the Hugging Face hub's REST interface to upload a folder and to fetch it again.

Every file counts as a regular one, so that it travels inside of the commit; the large-file transfer is not here.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import urlparse

COMMIT = "c" * 40


class LocalHub:
    """What was committed, and what was asked."""

    def __init__(self) -> None:
        self.url = ""
        self.files: dict[str, bytes] = {}
        self.repo = ""
        self.private = False
        self.tokens: set[str] = set()

    def answer(self, method: str, path: str, body: bytes) -> tuple[dict[str, str], bytes] | None:
        """Headers and body, or None for what does not exist."""
        if path == "/api/repos/create":
            asked = json.loads(body)
            self.repo, self.private = f"{asked['organization']}/{asked['name']}", asked.get("visibility") == "private"
            return {}, _json({"url": f"{self.url}/{self.repo}", "id": self.repo, "name": self.repo})
        if path == "/api/validate-yaml":
            return {}, _json({"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            names = [file["path"] for file in json.loads(body)["files"]]
            return {}, _json(
                {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
            )
        if path.endswith("/commit/main"):
            entries = [json.loads(line) for line in body.splitlines()]
            self.files |= {
                e["value"]["path"]: base64.b64decode(e["value"]["content"]) for e in entries if e["key"] == "file"
            }
            return {}, _json(
                {"commitUrl": f"{self.url}/{self.repo}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}
            )
        if path.startswith(f"/api/models/{self.repo}/tree/"):
            return {}, _json(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for name, content in self.files.items()
                ]
            )
        if path.startswith(f"/api/models/{self.repo}"):
            siblings = [{"rfilename": name} for name in self.files]
            return {}, _json({"id": self.repo, "modelId": self.repo, "sha": COMMIT, "siblings": siblings, "tags": []})
        content = self.files.get(path.partition(f"/{self.repo}/resolve/")[2].partition("/")[2])
        if content is None:
            return None
        return {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}, content


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """Serve a hub for the time of the block."""
    hub = LocalHub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if token := self.headers.get("Authorization"):
                hub.tokens.add(token)
            found = hub.answer(self.command, urlparse(self.path).path, body)
            headers, content = found or ({"X-Error-Code": "RepoNotFound"}, b"{}")
            self.send_response(404 if found is None else 200)
            for name, value in ({"Content-Type": "application/json"} | headers).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_POST = do_HEAD = _reply

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
