"""Which Ray a job runs on: the cluster it was submitted to, the one RAY_ADDRESS names, or a local one."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import ray
from ray.data import DataContext
from ray.exceptions import ActorDiedError
from ray.experimental import tqdm_ray

from robometer.configs.schema import Config
from robometer.errors import RobometerError

logger = logging.getLogger(__name__)

LINE_EVERY_S = 10.0

API_SERVER = "RAY_API_SERVER_ADDRESS"

Progress = Callable[[int, Mapping[str, float]], None]
"""Shows how far work is: (done, values)."""

MIN_LOCAL_CPUS = 4
"""Logical CPUs of a local Ray: a trainer, its workers and the data stages must all find a place on a small machine."""


@contextmanager
def connected(config: Config) -> Iterator[None]:
    """A Ray session for the duration of the block; one that was there before is left as it is."""
    DataContext.get_current().raise_original_map_exception = True  # else only its traceback says what a task raised
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_DATA_LOG_LEVEL", "WARNING")
    os.environ.setdefault("RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS", "0")
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING)
    else:
        # Ray Train frees what a killed trial held once its state API says so, and that asks whichever cluster was last
        # started on this machine by `ray start`, dead or alive, unless it is told where its own is.
        port = free_port()
        os.environ[API_SERVER] = f"http://127.0.0.1:{port}"
        ray.init(
            address="local",
            num_cpus=config.ray.num_cpus or max(MIN_LOCAL_CPUS, os.cpu_count() or 1),
            object_store_memory=config.ray.object_store_mb * 1024 * 1024,
            logging_level=logging.WARNING,
            dashboard_port=port,
        )
    try:
        yield
    finally:
        ray.shutdown()
        if not os.environ.get("RAY_ADDRESS"):  # what is set beside it is the user's
            os.environ.pop(API_SERVER, None)


def cause_of(error: BaseException) -> str:
    """What a task raised, inside all that Ray wraps around it, in one line."""
    while isinstance(inner := getattr(error, "cause", None), BaseException):
        error = inner
    if isinstance(error, ActorDiedError):  # of one that could not start, the last line of its traceback says why
        return str(error).strip().splitlines()[-1]
    name = "" if isinstance(error, RobometerError) else f"{type(error).__name__}: "
    return f"{name}{next(iter(str(error).splitlines()), '')}"


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def warn_if_short(config: Config, runs: int = 1) -> None:
    """Say so when `runs` trainings at a time want more CPUs than there are: they would wait for each other.

    Only a warning, since a cluster may grow.
    """
    train = config.train
    wanted = runs * (train.num_workers * train.cpus_per_worker + train.data_actors * train.data_cpus)
    wanted += runs * train.validate_async
    there = ray.cluster_resources().get("CPU", 0.0)
    if wanted > there:
        logger.warning("training wants %g CPUs and the cluster has %g: it waits until there are more", wanted, there)


def interactive() -> bool:
    """Whether somebody watches: progress bars in a terminal, plain lines elsewhere."""
    return sys.stderr.isatty()


def progress_bar(name: str, total: int, interactive: bool) -> Progress:
    """A function (done, values) that shows how far long work is: a bar in a terminal, lines elsewhere.

    It works in remote workers too, whose bars Ray draws on the driver's terminal.
    """
    if interactive:
        bar = tqdm_ray.tqdm(desc=name, total=total)

        def draw(done: int, values: Mapping[str, float]) -> None:
            bar.set_description(f"{name} {_brief(values)}")
            bar.update(done - bar._x)
            if done >= total:
                bar.close()

        return draw
    last = time.monotonic()

    def line(done: int, values: Mapping[str, float]) -> None:
        nonlocal last
        if done >= total or time.monotonic() - last > LINE_EVERY_S:
            last = time.monotonic()
            logger.info("%s %d/%d %s", name, done, total, _brief(values))

    return line


def _brief(values: Mapping[str, float]) -> str:
    return " ".join(f"{key} {value:.4g}" for key, value in values.items())
