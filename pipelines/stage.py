"""The one way to run a stage on Ray Data: items in, answers out as they come, with progress and a failure message.

Each item is a block of its own, so that after the death of a worker only its item runs again. Work that runs twice on
an item must therefore leave the same files once.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import ray
from ray.data import ActorPoolStrategy
from ray.exceptions import RayError

from pipelines.cluster import RETRIES, Needs, cause_of, check_room, interactive, progress_bar, watched
from robometer.corpus.storage import Storage
from robometer.errors import RobometerError

ACTOR_DEATHS = 16
"""Deaths of one actor after which the stage fails; Ray Data's own default would restart it for ever."""

MAX_TASKS = 1024
"""Default limit of the tasks of a stage without actors: where there are more items, tasks take several."""

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Block = dict[str, np.ndarray]


@dataclass(frozen=True)
class Actors:
    """A pool of workers that keep something expensive, such as a model, between items.

    Attributes:
        count: their largest number; each has one CPU.
        num_gpus: GPUs of each; a fraction lets them share one.
        runtime_env: Ray's, where they need packages that conflict with ours.
    """

    count: int = 1
    num_gpus: float = 0.0
    runtime_env: Mapping[str, Any] | None = None


def run_stage(
    name: str,
    items: Sequence[Item],
    work: Callable[[Item], Answer],
    failure: type[RobometerError],
    *,
    max_tasks: int = MAX_TASKS,
    size: Callable[[Item], int] = lambda item: 1,
    values: Callable[[], Mapping[str, float]] = dict,
    runtime_env: Mapping[str, Any] | None = None,
) -> Iterator[Answer]:
    """Process the items in tasks of one CPU; yields the answers in any order.

    Args:
        name: for progress and messages.
        failure: raised where a worker fails, with the cause.
        max_tasks: limit of the tasks; where there are more items, tasks take several.
        size: what an item counts in the progress.
        values: further values of the progress, read after the caller has processed an answer.
        runtime_env: Ray's, of the tasks.

    Raises:
        Stalled: no answer came for `ray.stall_timeout_s`.
    """
    if not items:
        return
    answered = _blocks(items, max_tasks).map_batches(
        _titled(work), batch_size=1, num_cpus=1, **_environment(runtime_env)
    )
    yield from _collected(name, items, answered, failure, Needs(), size, values)


def run_actors(
    name: str,
    items: Sequence[Item],
    start: Callable[[], Callable[[Item], Answer]],
    failure: type[RobometerError],
    actors: Actors,
    *,
    size: Callable[[Item], int] = lambda item: 1,
) -> Iterator[Answer]:
    """As `run_stage`, in a pool of actors. Each calls `start()` once, and the result on each of its items.

    Raises:
        ConfigError: the Ray that this job started cannot hold one of them.
        Stalled: no answer came for `ray.stall_timeout_s`.
    """
    if not items:
        return
    needs = Needs(gpus=actors.num_gpus)
    check_room(name, needs, f"set {name}.num_gpus lower")
    answered = _blocks(items, len(items)).map_batches(
        _actor_class(start),
        fn_constructor_args=(start,),
        batch_size=1,
        compute=ActorPoolStrategy(size=min(actors.count, len(items))),
        num_cpus=1,
        num_gpus=actors.num_gpus or None,
        max_restarts=ACTOR_DEATHS,
        max_task_retries=RETRIES,
        **_environment(actors.runtime_env),
    )
    yield from _collected(name, items, answered, failure, needs, size, dict)


def run_task(name: str, failure: type[RobometerError], work: Callable[..., Answer], *arguments: Any) -> Answer:
    """Run one task of one CPU, without progress."""
    task = ray.remote(num_cpus=1)(work).remote(*arguments)
    with _failing_as(failure):
        (answer,) = watched(map(ray.get, [task]), name)
    return answer  # type: ignore[return-value]


@contextmanager
def crash_mark(storage: Storage, name: str, content: bytes = b"") -> Iterator[bytes | None]:
    """Keep a file during the block. One that exists at the beginning is of a worker that died (or failed) in it.

    Yields:
        The content of that file; None without one.
    """
    before = storage.read_bytes(name) if storage.exists(name) else None
    storage.write_bytes(name, content if before is None else before)
    yield before
    storage.remove(name)


def _environment(runtime_env: Mapping[str, Any] | None) -> dict[str, Any]:
    return {"runtime_env": dict(runtime_env)} if runtime_env else {}


def _blocks(items: Sequence[Item], count: int) -> ray.data.Dataset:
    rows = [{"number": number, "item": pickle.dumps(item)} for number, item in enumerate(items)]
    return ray.data.from_items(rows, override_num_blocks=min(len(rows), count))


def _answer_block(work: Callable[[Item], Answer], block: Block) -> Block:
    answers = [pickle.dumps(work(pickle.loads(item))) for item in block["item"]]
    return {"number": block["number"], "answer": np.array(answers, dtype=object)}


def _titled(work: Callable[[Item], Answer]) -> Callable[[Block], Block]:
    """`_answer_block` with the name of `work`, which Ray shows in its dashboard and in process titles."""

    def answer_block(block: Block) -> Block:
        return _answer_block(work, block)

    answer_block.__name__ = answer_block.__qualname__ = _name_of(work)
    return answer_block


class _Actor:
    def __init__(self, start: Callable[[], Callable[[Any], Any]]) -> None:
        self._work = start()

    def __call__(self, block: Block) -> Block:
        return _answer_block(self._work, block)


def _actor_class(start: Callable[..., Any]) -> type:
    """`_Actor` with the name of what it holds, which Ray shows in its dashboard and in process titles."""
    return type(_name_of(start), (_Actor,), {})


def _name_of(work: Any) -> str:
    return str(getattr(work.func if isinstance(work, partial) else work, "__name__", type(work).__name__))


def _collected(
    name: str,
    items: Sequence[Item],
    answered: ray.data.Dataset,
    failure: type[RobometerError],
    needs: Needs,
    size: Callable[[Item], int],
    values: Callable[[], Mapping[str, float]],
) -> Iterator[Any]:
    show, done = progress_bar(name, sum(map(size, items)), interactive()), 0
    with _failing_as(failure):
        for row in watched(answered.iter_rows(), name, needs):
            yield pickle.loads(row["answer"])
            done += size(items[row["number"]])
            show(done, values())


@contextmanager
def _failing_as(failure: type[RobometerError]) -> Iterator[None]:
    try:
        yield
    except RayError as error:
        raise failure(
            f"a worker failed: {cause_of(error).rstrip('.')}. Fix the cause, then rerun the same command."
        ) from error
