"""What one request was about and where its time went: kept beside it and told to the proxy, never in the answer."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Any

from pipelines.serving.backend import Backend, ModelRequest, Outcome

HEADER = b"x-robometer-record"
"""Carries a record from a replica to the proxy, which takes it out of the answer."""

STAGES = ("decode", "queue", "model")
"""Decode: from bytes to frames. Queue: waiting for a batch, and the way to the model and back. Model: the batch."""


@dataclass
class Record:
    """What a replica knows of a request.

    Attributes:
        audit_log: the file that wants to know; empty: none.
        client: name of the token.
        route: as metrics name it.
        model: name of the scorer that answered; empty: none did.
        frames: that the model was shown, or would have been.
        seconds: by stage. Of many clips in one request, decode is the sum, queue and model are of the slowest clip.
    """

    audit_log: str = ""
    client: str = ""
    route: str = ""
    model: str = ""
    frames: int = 0
    seconds: dict[str, float] = field(default_factory=dict)

    def as_header(self) -> bytes:
        """The value of `HEADER`."""
        return json.dumps(asdict(self)).encode()


_current = ContextVar[Record]("record")


def begin(record: Record) -> None:
    """Make this the record of the running request."""
    _current.set(record)


def current() -> Record:
    """The record of the running request; outside of requests one that nobody reads."""
    return _current.get(None) or Record()


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Add the seconds of the block to a stage."""
    started_s = time.monotonic()
    try:
        yield
    finally:
        seconds = current().seconds
        seconds[name] = seconds.get(name, 0.0) + time.monotonic() - started_s


class Recorded:
    """A `Backend` whose answers are recorded."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    async def run(self, request: ModelRequest) -> Outcome:
        """See `Backend.run`."""
        started_s = time.monotonic()
        outcome = await self._backend.run(request)
        waited_s = max(0.0, time.monotonic() - started_s - outcome.model_s)
        record = current()
        record.model = outcome.model
        for name, seconds in (("queue", waited_s), ("model", outcome.model_s)):
            record.seconds[name] = max(record.seconds.get(name, 0.0), seconds)
        return outcome
