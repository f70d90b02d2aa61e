"""The endpoint's tokens: their file, its changes, the command that makes them, requests with them."""

from __future__ import annotations

import base64
import hashlib
import os
import stat
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobs import serve_token
from pipelines.serving import tokens
from pipelines.serving.errors import ApiError
from pipelines.serving.tokens import Client, TokenLimits, Tokens, add_token, read_tokens
from robometer.baselines.trivial import FrameDifference
from robometer.client import RemoteScorer, ScoringError
from robometer.settings import ConfigError
from tests.local_endpoint import endpoint
from tests.pipelines.serving.test_http import FORM, MULTIPART


def sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def scope_of(kind: str = "http", *subprotocols: str, **headers: str) -> dict[str, Any]:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": kind, "headers": raw, "subprotocols": list(subprotocols)}


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tokens.yaml"


def test_a_made_token_is_kept_as_a_hash_and_names_its_client(path: Path) -> None:
    first, second = add_token(path, "arm-3", TokenLimits()), add_token(path, "lab", TokenLimits(5, 2, 1000))
    assert len(first) == len("robometer_") + 43 and first != second  # 43 digits of base 64 hold 256 bits
    assert first not in path.read_text() and second not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    known = Tokens("old token", str(path))
    assert known.authenticate(scope_of(**bearer(first))) == Client("arm-3")
    assert known.authenticate(scope_of(**bearer(second))) == Client("lab", TokenLimits(5, 2, 1000))
    assert known.authenticate(scope_of(**bearer("old token"))) == Client("default")
    assert Tokens().authenticate(scope_of()) == Client("anonymous") and not Tokens().wanted


@pytest.mark.parametrize(
    "headers",
    [{}, bearer(""), bearer("guess"), {"authorization": "Basic TOKEN"}, bearer(sha256("right")), bearer("right x")],
)
def test_what_is_no_token_is_401(path: Path, headers: dict[str, str]) -> None:
    path.write_text(f"- {{name: a, sha256: '{sha256('right')}'}}\n")
    with pytest.raises(ApiError, match="bearer token") as refused:
        Tokens("", str(path)).authenticate(scope_of(**headers))
    assert refused.value.status == 401 and refused.value.headers == {"WWW-Authenticate": "Bearer"}


def test_a_websocket_brings_its_token_as_a_header_or_as_a_subprotocol() -> None:
    known = Tokens("geheim ü~~?")
    encoded = base64.urlsafe_b64encode("geheim ü~~?".encode()).decode().rstrip("=")
    assert "-" in encoded or "_" in encoded
    assert known.authenticate(scope_of("websocket", "robometer.v1", f"bearer.{encoded}")).name == "default"
    assert known.authenticate(scope_of("websocket", **bearer("geheim ü~~?"))).name == "default"
    for wrong in ("bearer.", f"bearer.{encoded}x", "bearer.!!!", "bearer.é", encoded):
        with pytest.raises(ApiError, match="bearer token"):
            known.authenticate(scope_of("websocket", wrong))
    with pytest.raises(ApiError, match="required"):  # a subprotocol is nothing to HTTP
        known.authenticate(scope_of("http", f"bearer.{encoded}"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "must be a YAML list"),
        ("name: a", "must be a YAML list"),
        ("- {name: a", r"is not YAML \(line"),
        ("- a", "must have the keys name and sha256"),
        ("- {name: a}", "must have sha256"),
        ("- {name: a, sha256: ABC}", "must have sha256"),
        ("- {name: yes, sha256: HASH}", "needs a name"),
        ("- {name: a b, sha256: HASH}", "needs a name"),
        ("- {name: default, sha256: HASH}", "taken by the endpoint"),
        ("- {name: a, sha256: HASH, per_minute: 5}", "unknown key 'per_minute'"),
        ("- {name: a, sha256: HASH, requests_per_minute: 0}", "whole number of at least 1"),
        ("- {name: a, sha256: HASH, requests_per_minute: true}", "whole number of at least 1"),
        ("- {name: a, sha256: HASH}\n- {name: b, sha256: HASH}", "entry 2 .* repeats"),
        ("x" * (tokens.MAX_FILE_BYTES + 1), "is larger than"),
    ],
)
def test_a_damaged_file_is_one_sentence(path: Path, content: str, sentence: str) -> None:
    path.write_text(content.replace("HASH", f"'{sha256('t')}'"))
    with pytest.raises(ConfigError, match=sentence):
        Tokens("", str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        Tokens("", f"{path}.none")


def test_a_file_without_tokens_admits_nobody(path: Path) -> None:
    path.write_text("[]")
    with pytest.raises(ApiError, match="required"):
        Tokens("", str(path)).authenticate(scope_of())


def test_a_change_revokes_and_damage_changes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tokens, "CHECK_S", 0)
    first = add_token(path, "first", TokenLimits())
    line, known = path.read_text(), Tokens("", str(path))
    second = add_token(path, "second", TokenLimits())
    assert known.client_of(second.encode()).name == "second"
    for damage in ("", "- {name", None):
        path.unlink() if damage is None else path.write_text(damage)
        assert known.client_of(first.encode()).name == "first" and known.client_of(second.encode()).name == "second"
        assert "nothing is revoked" in caplog.records[-1].message and caplog.records[-1].levelname == "ERROR"
    path.write_text(line)
    assert known.client_of(first.encode()).name == "first"
    with pytest.raises(ApiError, match="revoked"):
        known.client_of(second.encode())
    assert first not in caplog.text and second not in caplog.text


def test_the_file_is_looked_at_once_a_second(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_token(path, "a", TokenLimits())
    known, now_s, looks = Tokens("", str(path)), time.monotonic(), []
    monkeypatch.setattr(tokens, "_signature", lambda path: looks.append(now_s))
    monkeypatch.setattr(tokens, "read_tokens", lambda path: {})
    for later_s in (0.9, 1.2, 1.5, 2.3):
        monkeypatch.setattr(time, "monotonic", lambda later_s=later_s: now_s + later_s)
        with pytest.raises(ApiError):
            known.client_of(b"x")
    assert len(looks) == 2


def test_the_command_prints_the_token_once(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(f"- {{name: first, sha256: '{sha256('x')}'}}")  # without a line break at its end
    assert serve_token.main(["lab", "--file", str(path), "--requests-per-minute", "7"]) == 0
    token = capsys.readouterr().out.strip()
    assert read_tokens(path)[sha256(token)] == Client("lab", TokenLimits(requests_per_minute=7))
    before = path.read_text()
    assert serve_token.main(["lab", "--file", str(path)]) == 2
    assert serve_token.main(["b", "--file", str(path), "--requests-at-a-time", "0"]) == 2
    assert serve_token.main(["b c", "--file", str(path)]) == 2
    assert path.read_text() == before and "has a token of the name lab" in capsys.readouterr().err
    assert serve_token.main(["lab"]) == 2 and "--file" in capsys.readouterr().err


def test_requests_beyond_a_limit_are_429_and_others_go_on(path: Path) -> None:
    few = add_token(path, "few", TokenLimits(requests_per_minute=2))
    small = add_token(path, "small", TokenLimits(bytes_per_minute=len(FORM) + 100))
    free = add_token(path, "free", TokenLimits())
    with endpoint(FrameDifference(), token_file=str(path), token="old") as url:

        def post(token: str, body: Any = FORM) -> httpx.Response:
            headers = {"Content-Type": MULTIPART, "Authorization": f"Bearer {token}"}
            return httpx.post(f"{url}/v1/score", content=body, headers=headers)

        assert [post(few).status_code for _ in range(3)] == [200, 200, 429]
        refused = post(few)
        assert refused.json()["error"].startswith("The token few may have 2 requests per minute.")
        assert 50 <= int(refused.headers["retry-after"]) <= 60
        assert httpx.get(f"{url}/v1/model", headers={"Authorization": f"Bearer {few}"}).status_code == 200
        assert [post(small).status_code for _ in range(2)] == [200, 429]
        assert post(small, FORM + b" " * 101).status_code == 413
        assert post(small, iter([FORM])).status_code == 411
        assert [post(token).status_code for token in (free, free, free, "old", "none")] == [200, 200, 200, 200, 401]
        with RemoteScorer(url, few, patience_s=0) as remote, pytest.raises(ScoringError, match=r"answered 429.*tried"):
            remote.score_video(b"not a video", "open the drawer")
    os.unlink(path)
