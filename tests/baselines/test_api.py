"""The client of chat models against real sockets: it retries, keeps its limits, and never asks twice."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import numpy as np
import pytest

from robometer.baselines import api
from robometer.baselines.api import ApiClient, ProviderError
from robometer.baselines.config import BaselineConfig
from robometer.baselines.providers import Answer, Question
from robometer.configs import load
from robometer.errors import RobometerError
from robometer.scoring import MissingAnswer
from robometer.settings import ConfigError
from tests.baselines.chat_server import ChatServer, Reply, Seen, failure, gemini, openai, settings

SHAPES = {"gemini": gemini, "openai": openai}
KEYS = {"gemini": "GEMINI_API_KEY", "openai": "OPENAI_API_KEY"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No real API keys, and short pauses."""
    for name in KEYS.values():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(api, "BACKOFF_S", 0.01)


def client(server: ChatServer, tmp_path: Path, **changes: object) -> ApiClient:
    return ApiClient(settings(server, tmp_path / "answers", **changes), {})


def one(server: ChatServer, tmp_path: Path, **changes: object) -> Answer | RobometerError:
    return client(server, tmp_path, **changes).ask([Question(["which?"])])[0]


def questions(count: int) -> list[Question]:
    return [Question([f"question {i}"]) for i in range(count)]


def echo(seen: Seen) -> Reply:
    return openai(f"to {seen.parts[0]}")


@pytest.mark.parametrize("provider", SHAPES)
def test_text_and_tokens_come_back_and_the_key_travels_in_a_header_only(
    provider: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEYS[provider], "secret-key")
    with ChatServer([SHAPES[provider]("seen")]) as server:
        assert one(server, tmp_path, provider=provider) in (
            Answer("seen", "STOP", 300, 25),
            Answer("seen", "stop", 300, 25),
        )
    (seen,) = server.seen
    path, header = {
        "gemini": ("/v1/models/tiny:generateContent", ("x-goog-api-key", "secret-key")),
        "openai": ("/v1/chat/completions", ("authorization", "Bearer secret-key")),
    }[provider]
    assert seen.path == path and header in seen.headers.items()
    sampling = seen.body.get("generationConfig", seen.body)
    assert (sampling["temperature"], sampling["seed"]) == (0.0, 0)
    assert "secret-key" not in json.dumps(seen.body)
    assert not any(b"secret-key" in file.read_bytes() for file in (tmp_path / "answers").rglob("*.json"))


def test_a_server_that_counts_no_tokens_is_answered_for_all_the_same(tmp_path: Path) -> None:
    message = {"message": {"content": "yes"}, "finish_reason": None}
    for i, usage in enumerate(({}, {"usage": None}, {"usage": {"prompt_tokens": None}})):
        with ChatServer([Reply({"choices": [message]} | usage)]) as server:
            assert one(server, tmp_path / str(i)) == Answer("yes", "no reason given")


@pytest.mark.parametrize("provider", SHAPES)
def test_red_stays_red_on_its_way_to_the_provider(provider: str, tmp_path: Path) -> None:
    frame = np.zeros((32, 48, 3), np.uint8)
    frame[:, :24, 0], frame[:, 24:, 2] = 250, 250
    with ChatServer([SHAPES[provider]("seen")]) as server:
        client(server, tmp_path, provider=provider).texts([Question(["before", frame, "after"])])
    before, picture, after = server.seen[0].parts
    assert (before, after) == ("before", "after") and isinstance(picture, np.ndarray)
    assert picture[16, 8, 0] > 200 and picture[16, 8, 2] < 50, "left is red"
    assert picture[16, 40, 2] > 200 and picture[16, 40, 0] < 50, "right is blue"


@pytest.mark.parametrize("provider", SHAPES)
def test_json_is_asked_for_by_schema_unless_that_is_off(provider: str, tmp_path: Path) -> None:
    question = Question(["which?"], {"type": "object", "properties": {"type": {"type": "string"}}})
    with ChatServer([SHAPES[provider]("{}")]) as server:
        for structured in (True, False):
            client(server, tmp_path, provider=provider, structured=structured).texts([question])
    with_schema, without = (json.dumps(seen.body) for seen in server.seen)
    schema = '"responseSchema": {"type": "OBJECT"' if provider == "gemini" else '"schema": {"type": "object"'
    assert schema in with_schema and schema not in without


def test_a_temperature_of_null_is_not_sent(tmp_path: Path) -> None:
    assert load(["baseline.temperature=null"]).baseline.temperature is None
    with ChatServer(echo) as server:
        one(server, tmp_path, temperature=None)
    assert "temperature" not in server.seen[0].body


def test_429_is_tried_again_no_sooner_than_it_asks(tmp_path: Path) -> None:
    with ChatServer([failure(429, "slow down", retry_after="1"), openai("yes")]) as server:
        patient = client(server, tmp_path)
        assert patient.texts([Question(["which?"])]) == ["yes"]
    first, second = server.seen
    assert second.at_s - first.at_s >= 1
    assert (patient.usage.requests, patient.usage.retries, patient.usage.failures) == (2, 1, 0)


def test_a_wait_is_asked_for_as_a_date_or_in_the_body_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "MAX_WAIT_S", 0.3)  # both replies ask for more, and the back-off would pause for less
    date = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    in_body = failure(429, "quota")
    in_body.body["error"]["details"] = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "37.5s"}]
    with ChatServer([failure(503, "later", retry_after=date), in_body, openai("yes")]) as server:
        assert isinstance(one(server, tmp_path), Answer)
    assert np.diff([seen.at_s for seen in server.seen]).min() >= 0.3


def test_an_answer_that_never_gets_well_is_one_sentence_after_six_tries(tmp_path: Path) -> None:
    with ChatServer([failure(500, "Internal\nerror.")]) as server:
        error = one(server, tmp_path)
    assert isinstance(error, ProviderError) and len(server.seen) == api.ATTEMPTS == 6
    assert str(error) == f"tiny at {server.url} failed 6 times; the last time: it answered 500: Internal error."


def test_a_refusal_is_told_at_once_and_the_others_are_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")

    def reply(seen: Seen) -> Reply:
        refused = seen.parts[0] == "question 1"
        return failure(401, "Incorrect API key provided: secret-key.") if refused else echo(seen)

    with ChatServer(reply) as server:
        first, error, last = client(server, tmp_path).ask(questions(3))
    assert isinstance(first, Answer) and isinstance(last, Answer)
    assert (first.text, last.text) == ("to question 0", "to question 2")
    assert isinstance(error, ProviderError) and len(server.seen) == 3
    assert str(error) == f"tiny at {server.url} answered 401: Incorrect API key provided: (key)."


@pytest.mark.parametrize(
    "body",
    [b'{"choices": [', b"<html>hello</html>", {"choices": "none"}, {}, [], {"choices": [{"message": {"content": 3}}]}],
)
def test_a_reply_that_is_none_says_what_to_check(body: object, tmp_path: Path) -> None:
    with ChatServer([Reply(body)]) as server:
        error = one(server, tmp_path)
    assert isinstance(error, ProviderError) and "in the format of openai; check baseline.base_url" in str(error)
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("provider", "reply", "reason"),
    [
        ("gemini", Reply({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {}}), "SAFETY"),
        ("gemini", Reply({"candidates": [], "modelVersion": "tiny"}), "no candidates"),
        ("gemini", Reply({"candidates": [{"finishReason": "MAX_TOKENS", "index": 0}]}), "MAX_TOKENS"),
        ("openai", openai(None, refusal="I cannot look at this."), "I cannot look at this."),
        ("openai", Reply({"choices": [], "usage": None}), "no choices"),
        ("openai", openai(" \n"), "stop"),
    ],
)
def test_an_answer_without_text_is_missing_and_asked_again_by_the_next_run(
    provider: str, reply: Reply, reason: str, tmp_path: Path
) -> None:
    with ChatServer([reply, SHAPES[provider]("yes")]) as server:
        error = one(server, tmp_path, provider=provider)
        assert isinstance(error, MissingAnswer) and str(error).endswith(f"gave no text ({reason})")
        assert isinstance(one(server, tmp_path, provider=provider), Answer)


def test_a_slow_answer_is_given_up_and_asked_for_again(tmp_path: Path) -> None:
    slow = openai("late")
    slow.after_s = 30
    with ChatServer([slow, openai("in time")]) as server:
        patient = client(server, tmp_path, timeout_s=1)
        assert patient.texts([Question(["which?"])]) == ["in time"]
    assert patient.usage.retries >= 1


def test_nobody_there_is_one_sentence(tmp_path: Path) -> None:
    with ChatServer(echo) as server:
        pass
    error = one(server, tmp_path)
    assert isinstance(error, ProviderError) and "failed 6 times; the last time: no connection (ConnectError" in str(
        error
    )


@pytest.mark.parametrize("provider", SHAPES)
def test_an_answer_that_is_kept_is_not_asked_for_again(provider: str, tmp_path: Path) -> None:
    with ChatServer(lambda seen: SHAPES[provider](f"to {seen.parts[0]}")) as server:
        first = client(server, tmp_path, provider=provider).ask(questions(3))
        again = client(server, tmp_path, provider=provider)
        assert again.ask(questions(3)) == first and len(server.seen) == 3
        assert (again.usage.cache_hits, again.usage.requests, again.usage.input_tokens) == (3, 0, 0)
        client(server, tmp_path, provider=provider, seed=1).ask(questions(3))
        client(server, tmp_path, provider=provider, model="other").ask(questions(3))
    assert len(server.seen) == 9


@pytest.mark.parametrize(
    "damage", [b"", b'{"text": "to que', b"[1]", b"null", b'{"text": 3, "finish": "stop"}', b"\xff"]
)
def test_a_damaged_answer_on_disk_is_asked_for_again(damage: bytes, tmp_path: Path) -> None:
    with ChatServer(echo) as server:
        first = client(server, tmp_path).ask(questions(1))
        (file,) = (tmp_path / "answers").rglob("*.json")
        file.write_bytes(damage)
        assert client(server, tmp_path).ask(questions(1)) == first and len(server.seen) == 2
        assert client(server, tmp_path).ask(questions(1)) == first and len(server.seen) == 2


ASK_SIX = """
import sys
from robometer.baselines.api import ApiClient
from robometer.baselines.providers import Question
from robometer.baselines.config import BaselineConfig

url, cache = sys.argv[1:]
config = BaselineConfig(provider="openai", model="tiny", base_url=url, cache=cache, concurrency=1,
                        requests_per_minute=1e6)
ApiClient(config, {}).ask([Question([f"question {i}"]) for i in range(6)])
"""


def test_what_was_answered_before_a_kill_is_not_asked_again(tmp_path: Path) -> None:
    killed: list[subprocess.Popen[bytes]] = []

    def reply(seen: Seen) -> Reply:
        if len(server.seen) == 4:
            deadline_s = time.monotonic() + 30
            while len(list((tmp_path / "answers").rglob("*.json"))) < 3 and time.monotonic() < deadline_s:
                time.sleep(0.01)
            killed[0].kill()
        return echo(seen)

    with ChatServer(reply) as server:
        killed.append(subprocess.Popen([sys.executable, "-c", ASK_SIX, server.url, str(tmp_path / "answers")]))
        assert killed[0].wait() == -signal.SIGKILL and len(server.seen) == 4
        again = client(server, tmp_path)
        assert again.texts(questions(6)) == [f"to question {i}" for i in range(6)]
    assert (len(server.seen), again.usage.cache_hits) == (4 + 3, 3)


def test_requests_are_spread_evenly_under_the_rate_limit(tmp_path: Path) -> None:
    with ChatServer(echo) as server:
        patient = client(server, tmp_path, requests_per_minute=300)
        started_s = time.monotonic()
        patient.ask(questions(6))
    assert server.seen[-1].at_s - started_s >= 1, "five intervals of a fifth of a second"


def test_as_many_requests_are_in_flight_as_allowed_and_no_more(tmp_path: Path) -> None:
    together = threading.Barrier(3, timeout=20)

    def reply(seen: Seen) -> Reply:
        together.wait()
        answer = echo(seen)
        answer.after_s = 0.1
        return answer

    with ChatServer(reply) as server:
        assert client(server, tmp_path, concurrency=3).texts(questions(9)) == [f"to question {i}" for i in range(9)]
    assert server.most_in_flight == 3


def test_a_question_asked_twice_at_once_is_sent_once(tmp_path: Path) -> None:
    with ChatServer(echo) as server:
        assert client(server, tmp_path).texts(questions(1) * 4) == ["to question 0"] * 4
    assert len(server.seen) == 1


def test_a_failure_is_not_waited_for_again_by_the_same_client(tmp_path: Path) -> None:
    with ChatServer([failure(500, "broken")]) as server:
        patient = client(server, tmp_path)
        with pytest.raises(ProviderError):
            patient.texts(questions(1))
        with pytest.raises(ProviderError):
            patient.texts(questions(1))
    assert len(server.seen) == 6


def test_a_caller_whose_own_loop_is_running_gets_answers(tmp_path: Path) -> None:
    async def inside() -> list[str]:
        return client(server, tmp_path).texts(questions(2))

    with ChatServer(echo) as server:
        assert asyncio.run(inside()) == ["to question 0", "to question 1"]


def test_no_question_is_no_request(tmp_path: Path) -> None:
    with ChatServer(echo) as server:
        patient = client(server, tmp_path)
        assert patient.ask([]) == []
        patient.close()
    assert server.seen == []


def test_settings_that_cannot_work_say_what_to_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for change, message in {
        "provider=cohere": "none of gemini, openai",
        "base_url=127.0.0.1:8001": "must start with http://",
        "requests_per_minute=0": "above 0",
        "concurrency=0": "at least 1",
        "max_frames=1": "0 or at least 2",
    }.items():
        with pytest.raises(ConfigError, match=message):
            load([f"baseline.{change}"])
    cache = str(tmp_path / "answers")
    with pytest.raises(ConfigError, match="needs its API key in GEMINI_API_KEY"):
        ApiClient(BaselineConfig(cache=cache), {"gemini": "tiny"})
    with pytest.raises(ConfigError, match=r"baseline.base_url needs baseline.model"):
        ApiClient(BaselineConfig(cache=cache, base_url="http://127.0.0.1:1/v1"), {"gemini": "tiny"})
    with pytest.raises(ConfigError, match=r"http://host:port.* is invalid"):
        ApiClient(BaselineConfig(cache=cache, base_url="http://host:port", model="tiny"), {})
    monkeypatch.setenv("GEMINI_API_KEY", "schlüssel\N{MINUS SIGN}")
    with pytest.raises(ConfigError, match="GEMINI_API_KEY is invalid"):
        ApiClient(BaselineConfig(cache=cache), {"gemini": "tiny"})
