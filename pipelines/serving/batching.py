"""Gathers the requests that wait for a model into batches.

Ray's `serve.batch` forms a batch while the one before it is still in the model: unless it waits, nearly all batches
hold one request. This forms a batch when the model is free, of what has come by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

Key = TypeVar("Key")
Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True, eq=False)
class _Waiting(Generic[Key, Item, Answer]):
    key: Key
    item: Item
    answer: asyncio.Future[Answer]


class Batches(Generic[Key, Item, Answer]):
    """Answers items in batches of one key, one batch after another; the key that has waited longest comes first.

    A client that is alone waits for nobody: a batch waits for others only after one of several items, until it has as
    many or `wait_s` have passed.

    Args:
        answer_all: the answer to each item of a batch.
        max_size: items of a batch, at most.
    """

    def __init__(
        self, answer_all: Callable[[Key, list[Item]], Awaitable[Sequence[Answer]]], max_size: int, wait_s: float
    ) -> None:
        self._answer_all, self._max_size, self._wait_s = answer_all, max_size, wait_s
        self._waiting = list[_Waiting[Key, Item, Answer]]()
        self._arrived, self._last_size = asyncio.Event(), 1
        self._task: asyncio.Task[None] | None = None

    async def answer(self, key: Key, item: Item) -> Answer:
        """The answer to one item. Raises what `answer_all` raises for its batch."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(key, item, answer))
        self._arrived.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._answer_waiting())
        return await answer

    async def _answer_waiting(self) -> None:
        while self._waiting:
            await self._wait_for_others()
            key = self._waiting[0].key
            batch = [one for one in self._waiting if one.key is key][: self._max_size]
            self._waiting = [one for one in self._waiting if one not in batch]
            batch = [one for one in batch if not one.answer.done()]  # the clients of others have gone
            if batch:
                self._last_size = len(batch)
                await self._answer_batch(key, batch)

    async def _answer_batch(self, key: Key, batch: list[_Waiting[Key, Item, Answer]]) -> None:
        try:
            answers = await self._answer_all(key, [one.item for one in batch])
            outcomes = [partial(one.answer.set_result, a) for one, a in zip(batch, answers, strict=True)]
        except Exception as error:  # noqa: BLE001  whoever waits must know
            outcomes = [partial(one.answer.set_exception, error) for one in batch]
        for one, tell in zip(batch, outcomes, strict=True):
            if not one.answer.done():
                tell()

    async def _wait_for_others(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._wait_s):
                while len(self._waiting) < self._last_size:
                    self._arrived.clear()
                    await self._arrived.wait()
