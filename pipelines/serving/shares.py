"""Requests of many clips: some of a request's clips at a time, so that others get their share of the model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


class Shares:
    """What requests of many clips leave to others, and to each other.

    Attributes:
        places: those in the model's queue that all requests of many clips have together.
    """

    def __init__(self, places: int) -> None:
        self.places = asyncio.Semaphore(places)
        self._share = max(1, places // 4)

    async def each(self, count: int, work: Callable[[int], Awaitable[T]]) -> list[T]:
        """What `work` returns for 0, 1, ..., some at a time, in their order; the first failure ends the others."""
        own = asyncio.Semaphore(self._share)

        async def run(position: int) -> T:
            async with own:
                return await work(position)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(run(i)) for i in range(count)]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return [task.result() for task in tasks]
