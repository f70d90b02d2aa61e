"""The limits of each token on its requests, counted in one place: the HTTP proxy, through which all go."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from pipelines.serving.errors import ApiError
from pipelines.serving.tokens import Client, TokenLimits

WINDOW_S = 60.0


@dataclass
class _Usage:
    """What one client has used: its requests of the last minute as (time, bytes), and those not answered yet."""

    recent: deque[tuple[float, int]] = field(default_factory=deque)
    at_a_time: int = 0


class Quotas:
    """Counts by the names of clients. The window slides, so that no minute has more than the limit."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._usage: dict[str, _Usage] = {}

    @contextmanager
    def place(self, client: Client, size_bytes: int | None) -> Iterator[None]:
        """Count one request while the block runs. Requests that are refused here do not count.

        Args:
            size_bytes: of the body, as declared; None: it was not.

        Raises:
            ApiError: 429 with Retry-After where the client has used up a limit; 411 where it has a limit of bytes and
                declares none; 413 where the body alone is more than that.
        """
        if client.limits == TokenLimits():
            yield
            return
        usage = self._usage.setdefault(client.name, _Usage())
        self._check(client, usage, size_bytes)
        usage.recent.append((self._now_s(), size_bytes or 0))
        usage.at_a_time += 1
        try:
            yield
        finally:
            usage.at_a_time -= 1

    def _check(self, client: Client, usage: _Usage, size_bytes: int | None) -> None:
        limits, now_s = client.limits, self._now_s()
        while usage.recent and usage.recent[0][0] + WINDOW_S <= now_s:
            usage.recent.popleft()
        if limits.requests_at_a_time is not None and usage.at_a_time >= limits.requests_at_a_time:
            raise _too_many(client, f"{limits.requests_at_a_time} requests at a time", 1.0)
        if limits.requests_per_minute is not None:
            excess = len(usage.recent) - limits.requests_per_minute
            if excess >= 0:
                wait_s = usage.recent[excess][0] + WINDOW_S - now_s
                raise _too_many(client, f"{limits.requests_per_minute} requests per minute", wait_s)
        if limits.bytes_per_minute is not None:
            self._check_bytes(client, usage, size_bytes, limits.bytes_per_minute, now_s)

    def _check_bytes(self, client: Client, usage: _Usage, size_bytes: int | None, limit: int, now_s: float) -> None:
        if size_bytes is None:
            raise ApiError(411, "The token has a limit of bytes: declare the size of the body as Content-Length.")
        if size_bytes > limit:
            raise ApiError(413, f"The request body is larger than the {limit} bytes per minute of this token.")
        excess = sum(used for _, used in usage.recent) + size_bytes - limit
        for began_s, used in usage.recent:
            if excess <= 0:
                return
            excess -= used
            wait_s = began_s + WINDOW_S - now_s
            if excess <= 0:
                raise _too_many(client, f"{limit} bytes per minute", wait_s)


def _too_many(client: Client, what: str, wait_s: float) -> ApiError:
    """A 429: after the seconds of Retry-After there is room again, if nobody else of this name takes it."""
    seconds = max(1, math.ceil(wait_s))
    sentence = f"The token {client.name} may have {what}. Try again in {seconds} s."
    return ApiError(429, sentence, {"Retry-After": str(seconds)})
