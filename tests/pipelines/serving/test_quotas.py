"""Limits of tokens, by hand on a clock of the test."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from pipelines.serving.errors import ApiError
from pipelines.serving.quotas import Quotas
from pipelines.serving.tokens import Client, TokenLimits


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def ask(quotas: Quotas, client: Client, size_bytes: int | None = 0) -> int:
    """The seconds of Retry-After; 0: the request may pass."""
    try:
        with quotas.place(client, size_bytes):
            return 0
    except ApiError as error:
        return int(error.headers["Retry-After"]) if error.status == 429 and client.name in error.sentence else -1


def test_no_minute_has_more_requests_than_the_limit_and_retry_after_is_right(clock: Clock) -> None:
    quotas, client = Quotas(clock), Client("a", TokenLimits(requests_per_minute=3))
    for now_s, wait_s in [(0, 0), (10.5, 0), (20, 0), (30, 30), (59.2, 1), (60, 0), (60.1, 11), (70.4, 1), (70.5, 0)]:
        clock.now_s = 1000 + now_s
        assert ask(quotas, client) == wait_s, now_s
        assert ask(quotas, Client("b", client.limits)) in (0, wait_s)  # others have a count of their own
    clock.now_s = 1080.0
    assert ask(quotas, client) == 0
    assert ask(quotas, Client("a", TokenLimits(requests_per_minute=1))) == 60  # a limit that was lowered


def test_requests_at_a_time_are_freed_at_their_end(clock: Clock) -> None:
    quotas, client = Quotas(clock), Client("a", TokenLimits(requests_at_a_time=2))
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(quotas.place(client, None))
        second.enter_context(quotas.place(client, None))
        assert ask(quotas, client) == 1
        first.close()
        assert ask(quotas, client) == 0
        with pytest.raises(RuntimeError), quotas.place(client, None):
            raise RuntimeError
        assert ask(quotas, client) == 0


def test_no_minute_has_more_bytes_than_the_limit(clock: Clock) -> None:
    quotas, client = Quotas(clock), Client("a", TokenLimits(bytes_per_minute=100))
    for now_s, size, wait_s in [
        (0, 40, 0),
        (10, 30, 0),
        (20, 30, 0),
        (30, 1, 30),
        (30, 41, 40),
        (30, 100, 50),
        (60, 40, 0),
    ]:
        clock.now_s = 1000 + now_s
        assert ask(quotas, client, size) == wait_s, (now_s, size)
    for size, status in ((101, 413), (None, 411)):
        with pytest.raises(ApiError) as refused, quotas.place(client, size):
            pass
        assert refused.value.status == status


def test_a_client_without_limits_leaves_no_trace(clock: Clock) -> None:
    quotas = Quotas(clock)
    assert not any(ask(quotas, Client("a"), None) for _ in range(100)) and not quotas._usage
