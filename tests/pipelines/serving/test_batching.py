"""Batches of requests that wait for a model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pipelines.serving.batching import Batches

A, B = "model a", "model b"


class Slow:
    """Answers each item with itself doubled when it is told to; keeps what its batches held."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.free = asyncio.Semaphore(0)

    async def __call__(self, key: str, items: list[int]) -> list[int]:
        self.batches.append((key, items))
        await self.free.acquire()
        return [2 * item for item in items]


def run(test: Callable[[Slow], Awaitable[Any]]) -> Slow:
    async def body() -> Slow:
        slow = Slow()
        async with asyncio.timeout(5):
            await test(slow)
        return slow

    return asyncio.run(body())


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def asked_in_turn(batches: Batches[str, int, int], count: int) -> list[asyncio.Task[int]]:
    tasks = []
    for item in range(count):
        tasks.append(asyncio.create_task(batches.answer(A, item)))
        await settled()
    return tasks


def test_what_comes_while_the_model_computes_is_the_next_batch() -> None:
    async def test(slow: Slow) -> None:
        batches = Batches(slow, max_size=3, wait_s=0.0)
        tasks = await asked_in_turn(batches, 6)
        slow.free.release()
        await settled()
        assert [task.done() for task in tasks] == [True] + 5 * [False]
        slow.free.release()
        slow.free.release()
        assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8, 10]

    assert run(test).batches == [(A, [0]), (A, [1, 2, 3]), (A, [4, 5])]


def test_a_batch_has_one_key_and_the_longest_waiting_comes_first() -> None:
    async def test(slow: Slow) -> None:
        batches = Batches(slow, max_size=8, wait_s=0.0)
        slow.free = asyncio.Semaphore(9)
        keys = [A, B, A, B, A]
        answers = await asyncio.gather(*(batches.answer(key, item) for item, key in enumerate(keys)))
        assert answers == [0, 2, 4, 6, 8]

    assert run(test).batches == [(A, [0, 2, 4]), (B, [1, 3])]


def test_one_client_waits_for_nobody_and_several_wait_for_each_other() -> None:
    async def test(slow: Slow) -> None:
        batches = Batches(slow, max_size=8, wait_s=3600.0)
        slow.free = asyncio.Semaphore(9)
        assert await batches.answer(A, 1) == 2  # alone: at once, whatever wait_s is
        assert await batches.answer(A, 2) == 4
        await asyncio.gather(*(batches.answer(A, item) for item in (3, 4)))
        first = asyncio.create_task(batches.answer(A, 5))
        await settled()
        assert not first.done()  # the batch before had two
        assert await batches.answer(A, 6) == 12
        assert await first == 10

    assert run(test).batches == [(A, [1]), (A, [2]), (A, [3, 4]), (A, [5, 6])]


def test_others_are_waited_for_no_longer_than_the_setting() -> None:
    async def test(slow: Slow) -> None:
        batches = Batches(slow, max_size=8, wait_s=0.01)
        slow.free = asyncio.Semaphore(9)
        await asyncio.gather(*(batches.answer(A, item) for item in (1, 2)))
        assert await batches.answer(A, 3) == 6
        assert await batches.answer(A, 4) == 8

    assert run(test).batches == [(A, [1, 2]), (A, [3]), (A, [4])]


def test_a_request_whose_client_has_gone_is_not_computed() -> None:
    async def test(slow: Slow) -> None:
        batches = Batches(slow, max_size=8, wait_s=0.0)
        tasks = await asked_in_turn(batches, 4)
        tasks[1].cancel()
        await settled()
        slow.free.release()
        slow.free.release()
        assert [await tasks[i] for i in (0, 2, 3)] == [0, 4, 6]

    assert run(test).batches == [(A, [0]), (A, [2, 3])]


def test_a_failure_reaches_its_batch_and_no_other() -> None:
    async def test(slow: Slow) -> None:
        async def failing(key: str, items: list[int]) -> list[int]:
            if 1 in items:
                raise ArithmeticError("no")
            return await slow(key, items)

        batches = Batches(failing, max_size=8, wait_s=0.0)
        slow.free = asyncio.Semaphore(9)
        outcomes = await asyncio.gather(*(batches.answer(A, item) for item in (1, 2)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ArithmeticError, ArithmeticError]
        assert await batches.answer(A, 3) == 6

    run(test)


def test_a_model_that_answers_too_few_is_an_error_for_all() -> None:
    async def test(slow: Slow) -> None:
        async def short(key: str, items: list[int]) -> list[int]:
            return items[1:]

        with pytest.raises(ValueError, match="shorter"):
            await Batches(short, max_size=8, wait_s=0.0).answer(A, 1)

    run(test)
