"""The audit log: one line for each request, whoever refuses it, with its stages, and neither token nor task."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from pipelines.serving import audit
from pipelines.serving.audit import AuditLog, check_audit_log
from pipelines.serving.tokens import TokenLimits, add_token
from robometer.baselines.trivial import FrameDifference
from robometer.scoring import Clip, ClipScore
from robometer.settings import ConfigError
from tests.local_endpoint import endpoint
from tests.pipelines.serving.test_http import FORM, MULTIPART, TASK, npy, part


class Slow(FrameDifference):
    name = "slow@abc"

    def score(self, clips: Sequence[Clip]) -> list[ClipScore]:
        time.sleep(0.2)
        return super().score(clips)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_request_is_one_line_whoever_answers_it(tmp_path: Path) -> None:
    log, tokens = tmp_path / "audit.jsonl", tmp_path / "tokens.yaml"
    token = add_token(tokens, "arm-3", TokenLimits(requests_per_minute=2))
    guard = {"audit_log": str(log), "token_file": str(tokens), "max_upload_bytes": len(FORM)}
    with endpoint(Slow(), **guard) as url:
        headers = {"Content-Type": MULTIPART, "Authorization": f"Bearer {token}", "x-request-id": "one"}
        answer = httpx.post(f"{url}/v1/score", content=FORM, headers=headers)
        assert answer.status_code == 200 and "x-robometer-record" not in answer.headers
        httpx.post(f"{url}/v1/score", content=iter([FORM, b" "]), headers=headers)  # too large, in the proxy
        httpx.post(f"{url}/v1/score", content=FORM, headers=headers)  # too many, in the proxy
        httpx.post(f"{url}/v1/score", content=FORM, headers=headers | {"Authorization": "Bearer guess"})
        httpx.get(f"{url}/v1/model?{token}", headers={"Authorization": f"Bearer {token}"})
        httpx.get(f"{url}/{token}")
        httpx.get(f"{url}/health", headers={"x-request-id": "no id"})
        metrics = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {token}"}).text
    lines = lines_of(log)
    assert [(line["route"], line["status"], line["token"]) for line in lines] == [
        ("/v1/score", 200, "arm-3"),
        ("/v1/score", 413, "arm-3"),
        ("/v1/score", 429, "arm-3"),
        ("/v1/score", 401, "anonymous"),
        ("/v1/model", 200, "arm-3"),
        ("other", 401, "anonymous"),
        ("other", 400, ""),
        ("/metrics", 200, "arm-3"),
    ]
    first, ms = lines[0], lines[0]["ms"]
    assert first["request_id"] == "one" and first["remote"] == "127.0.0.1" and first["time"].endswith("+00:00")
    assert first["model"] == "slow@abc" and first["bytes"] == len(FORM) and first["frames"] == 2
    assert list(ms) == ["body", "decode", "queue", "model", "total"]
    assert 200 <= ms["model"] <= ms["total"] and sum(ms.values()) <= 2 * ms["total"] + 0.5
    assert token not in log.read_text() and "open the drawer" not in log.read_text()
    labels = 'model="slow@abc",replica="local",route="/v1/score",status="200",token="arm-3"'
    assert f"robometer_requests_total{{{labels}}} 1.0" in metrics
    uploads = [line for line in metrics.splitlines() if re.match(r"robometer_requests_total.*(score|admit)", line)]
    assert len(uploads) == 2, "an upload that was answered, and one that might not come"
    assert 'route="/-/admit",status="401",token="anonymous"} 1.0' in metrics
    assert 'robometer_stage_seconds_count{replica="local",route="/v1/score",stage="model"} 1.0' in metrics


def test_a_websocket_is_one_line_at_its_end(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    with endpoint(FrameDifference(), audit_log=str(log), token="secret") as url:
        for coded in ("bearer.c2VjcmV0", "bearer.Z3Vlc3M"):  # secret, guess
            with connect(f"ws{url[4:]}/v1/sessions", subprotocols=["robometer", coded]) as socket:  # type: ignore[list-item]
                assert socket.response is not None and "x-robometer-record" not in socket.response.headers
                if coded == "bearer.c2VjcmV0":
                    socket.send("{}")
                    socket.recv()
                    socket.close(1000)
                with suppress(ConnectionClosed):
                    socket.recv()
                    socket.recv()
        with connect(f"ws{url[4:]}/v1/sessions", additional_headers={"x-request-id": "no id"}) as socket:
            assert "x-request-id" in str(socket.recv())
        deadline_s = time.monotonic() + 5
        while len(log.read_text().splitlines() if log.exists() else ()) < 3 and time.monotonic() < deadline_s:
            time.sleep(0.05)
    first, second, malformed = lines_of(log)
    assert (first["route"], first["token"]) == ("/v1/sessions", "default") and first["bytes"] == 2
    assert (second["token"], second["status"]) == ("anonymous", 1008)
    assert (malformed["token"], malformed["status"], malformed["request_id"] != "no id") == ("", 1008, True)


def test_two_clips_of_one_request_add_up(tmp_path: Path) -> None:
    log = tmp_path / "audit.jsonl"
    form = TASK + part("frames_a", npy(3), "f.npy") + part("frames_b", npy(4), "f.npy") + b"--BB--\r\n"
    with endpoint(FrameDifference(), audit_log=str(log)) as url:
        assert httpx.post(f"{url}/v1/compare", content=form, headers={"Content-Type": MULTIPART}).status_code == 200
    assert [(line["frames"], line["token"]) for line in lines_of(log)] == [(7, "anonymous")]


def test_a_full_file_is_renamed_and_old_ones_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_BYTES", 100)
    monkeypatch.setattr(audit, "KEPT", 2)
    log, path = AuditLog(), tmp_path / "audit.jsonl"
    log.write(lost="nobody has named a file")
    log.name_file(str(path))
    for number in range(9):
        log.write(number=number)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    assert lines_of(path)[-1]["number"] == 8
    log.name_file("")
    log.write(lost="turned off")
    assert "lost" not in path.read_text()


def test_a_file_that_cannot_be_written_is_one_sentence_and_stops_no_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = str(tmp_path / "none" / "audit.jsonl")
    with pytest.raises(ConfigError, match=r"serve.audit_log=.* cannot be written"):
        check_audit_log(nowhere)
    check_audit_log("")
    with endpoint(FrameDifference(), audit_log=nowhere) as url:
        assert httpx.get(f"{url}/health").status_code == 200
    assert "The audit log cannot be written" in caplog.text and '"route": "/health"' in caplog.text
