"""Which Ray a job runs on: the cluster it was submitted to, the one RAY_ADDRESS names, or a local one."""

from __future__ import annotations

import logging
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import ray
from ray._private.state import jobs
from ray.data import DataContext
from ray.exceptions import ActorDiedError
from ray.experimental import tqdm_ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.foreign import silence
from robometer.configs.schema import Config, ConfigError
from robometer.errors import RobometerError

silence()  # again, since Ray's import asks for its deprecations to be shown

logger = logging.getLogger(__name__)

LINE_EVERY_S = 10.0

ADDRESS, API_SERVER = "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"

PATIENCE_S = 5.0
"""How long a cluster may take to accept a connection."""

Progress = Callable[[int, Mapping[str, float]], None]
"""Shows how far work is: (done, values)."""

MIN_LOCAL_CPUS = 4
"""Logical CPUs of a local Ray: an endpoint's replicas and a few workers find a place on a small machine too."""

SETTLE_S = 10.0
"""How long the end of a job waits for other threads to leave Ray. After an error it waits 1 s: some never leave."""

WARN_AFTER_S = 30.0
"""Without a step, after which a job says what it waits for."""

RETRIES = -1
"""Of a task by its actor: for ever, so that the actor's own `max_restarts` is what ends it. A node that is gone refuses
every task until Ray has noticed, and would use up any number within a second."""

_started_here = False
"""Whether this process started the Ray that it is connected to."""

_stall_timeout_s = 0.0
"""`ray.stall_timeout_s` of the job that runs in this process."""


class ClusterError(RobometerError):
    """A cluster that cannot be joined; the message says what to do."""


@contextmanager
def connected(config: Config, environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """A Ray session for the duration of the block; one that was there before is left as it is.

    `environment` is set in all processes of a session that starts here.

    Raises:
        ClusterError: RAY_ADDRESS names no cluster that can be joined, or a local Ray did not start.
    """
    DataContext.get_current().raise_original_map_exception = True  # else only its traceback says what a task raised
    global _started_here, _stall_timeout_s
    _stall_timeout_s = config.ray.stall_timeout_s
    if ray.is_initialized():
        yield
        return
    before = {name: os.environ.get(name) for name in (ADDRESS, API_SERVER)}
    own = set[threading.Thread]()
    try:
        if address := cluster_address():
            _join(address, environment or {})
        else:
            _start(config, environment or {})
        own = set(threading.enumerate())
        _spend_warning()
        yield
    finally:
        _started_here = False
        if not ray.is_initialized() or _left_alone(own, SETTLE_S if sys.exc_info()[0] is None else 1.0):
            ray.shutdown()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _left_alone(own: set[threading.Thread], patience_s: float) -> bool:
    """Wait until no thread but Ray's `own` is inside Ray.

    A thread that drops a reference while Ray shuts down ends the process with status 1 and no message.

    Returns:
        False: a thread is still there. Then Ray is shut down when the process ends.
    """
    deadline_s = time.monotonic() + patience_s
    while others := _inside_ray(own):
        if time.monotonic() > deadline_s:
            logger.debug("still inside Ray: %s", others)
            for name in ("ray", "ray.data"):  # what they say when Ray is gone helps nobody
                logging.getLogger(name).setLevel(logging.CRITICAL)
            return False
        time.sleep(0.01)
    return True


def _inside_ray(own: set[threading.Thread]) -> list[str]:
    others = {thread.ident: thread.name for thread in set(threading.enumerate()) - own - {threading.current_thread()}}
    return [
        others[ident]
        for ident, frame in sys._current_frames().items()
        if ident in others
        and any(
            below.f_globals.get("__name__", "").partition(".")[0] in ("ray", __package__)
            for below, _ in traceback.walk_stack(frame)
        )
    ]


def _start(config: Config, environment: Mapping[str, str]) -> None:
    global _started_here
    os.environ.pop(ADDRESS, None)  # what runs on the local Ray must not look for another
    # Ray Train frees what a killed trial held once its state API says so, and that asks whichever cluster was last
    # started on this machine by `ray start`, dead or alive, unless it is told where its own is.
    os.environ.update(environment)
    port = free_port()
    os.environ[API_SERVER] = f"http://127.0.0.1:{port}"
    try:
        ray.init(
            address="local",
            num_cpus=config.ray.num_cpus or max(MIN_LOCAL_CPUS, os.cpu_count() or 1),
            object_store_memory=config.ray.object_store_mb * 1024 * 1024,
            logging_level=logging.WARNING,
            dashboard_port=port,
        )
    except Exception as error:  # whatever kept its processes from starting, in Ray's own words
        raise ClusterError(
            f"Ray did not start on this machine ({cause_of(error)}): end what else keeps it busy and try again, or "
            "change ray.num_cpus and ray.object_store_mb"
        ) from error
    _started_here = True


def cluster_address() -> str:
    """RAY_ADDRESS, where it names the cluster to run on; empty: a local Ray.

    Raises:
        ClusterError: it names none, or nobody answers there.
    """
    address = os.environ.get(ADDRESS, "").strip()
    if address == "local" or not address:
        return ""
    if address.startswith(("http://", "https://")):
        logger.warning("RAY_ADDRESS=%s is where jobs are submitted: this command runs on this machine alone", address)
        return ""
    if "://" in address:
        raise ClusterError(
            f"RAY_ADDRESS={address} is the address of a remote client, which cannot run this: submit the command with "
            "`ray job submit`, or unset RAY_ADDRESS to run on this machine alone"
        )
    host, _, port = address.rpartition(":")
    if address == "auto" or not port.isdigit():  # whose own mistakes Ray tells at once
        return address
    try:  # which Ray itself tries for minutes, and then ends the process
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"nobody answers at RAY_ADDRESS={address} ({error}): start that cluster, give HOST:PORT of one that runs, "
            "or unset RAY_ADDRESS to run on this machine alone"
        ) from error
    return address


def _join(address: str, environment: Mapping[str, str]) -> None:
    runtime_env = {"env_vars": dict(environment)} if environment else None
    try:
        ray.init(address=address, logging_level=logging.WARNING, runtime_env=runtime_env)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ClusterError(
            f"RAY_ADDRESS={address} is no cluster that can be joined ({reason}): give HOST:PORT of one that runs, with "
            "its token, or unset RAY_ADDRESS to run on this machine alone"
        ) from error


class _Nobody:
    def __init__(self, given: None) -> None:
        pass


def _spend_warning() -> None:
    """Print, while this process's standard error leads nowhere, what it would print at its first pool of actors.

    It is the first of `pipelines.foreign.LINES`. Workers' lines come through Ray, which can be told to leave some out;
    the driver's own native part writes to the descriptor, this line once, whoever the actor is.
    """
    nowhere = NodeAffinitySchedulingStrategy("0f" * 28, soft=False)  # so that no process is started for it
    nobody = ray.remote(num_cpus=0, max_restarts=1)(_Nobody).options(scheduling_strategy=nowhere)
    given = ray.put(None)
    screen, void = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(void, 2)
    try:
        nobody.remote(given)
    finally:
        os.dup2(screen, 2)
        os.close(screen)
        os.close(void)


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


class Stalled(RobometerError):
    """Work that made no step for `ray.stall_timeout_s`; the message says what it lacks."""


@dataclass(frozen=True)
class Needs:
    """What work must have at once to make any step: `places` of so many CPUs and GPUs each, wherever they are."""

    places: int = 1
    cpus: float = 1.0
    gpus: float = 0.0

    def fit(self) -> int:
        """How many times over the cluster has room for this, were it empty."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(int(min(self._on(node), 1e9)) for node in nodes) // self.places

    def _on(self, node: Mapping[str, float]) -> float:
        wanted = {"CPU": self.cpus, "GPU": self.gpus}
        return min((node.get(name, 0.0) // amount for name, amount in wanted.items() if amount), default=1e9)

    def __str__(self) -> str:
        each = f"{_count(self.cpus, 'CPU')}" + (f" and {_count(self.gpus, 'GPU')}" if self.gpus else "")
        return each if self.places == 1 else f"{self.places} times {each}"


def _count(number: float, name: str) -> str:
    return f"{number:g} {name}{'' if number == 1 else 's'}"


def what_there_is() -> str:
    """What the cluster has, how much of it is in use, and whose other jobs run on it, in words."""
    total, free = ray.cluster_resources(), ray.available_resources()
    words = []
    for name in ("CPU", "GPU"):
        if name == "CPU" or total.get(name):
            used = total.get(name, 0.0) - free.get(name, 0.0)
            words.append(f"{_count(total.get(name, 0.0), name)}, {used:g} in use")
    own = ray.get_runtime_context().get_job_id()
    others = [job["Entrypoint"] for job in jobs() if not job["IsDead"] and job["JobID"] != own]
    nodes = _count(sum(node["Alive"] for node in ray.nodes()), "node")
    return f"{nodes} with {', '.join(words)}" + (f"; jobs beside it: {'; '.join(others)}" if others else "")


def check_room(what: str, needs: Needs, remedy: str) -> None:
    """Say so when `needs` can never be met: for good on a Ray that this job started, since no other will grow.

    Raises:
        ConfigError: the Ray of this job is too small.
    """
    if needs.fit():
        return
    if _started_here:
        raise ConfigError(f"{what} needs {needs} and this Ray has {what_there_is()}: raise ray.num_cpus or {remedy}")
    logger.warning("%s needs %s, and the cluster has %s: it waits until there are more", what, needs, what_there_is())


Result = TypeVar("Result")


def watched(
    results: Iterable[Result], what: str, needs: Needs | None = None, pulse: Callable[[], str] = str
) -> Iterator[Result]:
    """`results` as they come, taken in a thread of its own, since nothing can end a wait within Ray.

    A step is a result, or that `pulse()` says something else. What waits because the cluster is too small, or was taken
    by others when this began, says so after a while.

    Args:
        needs: a CPU, unless given.

    Raises:
        Stalled: no step for `ray.stall_timeout_s`.
    """
    needs = needs or Needs()
    arrived = queue.SimpleQueue[tuple[str, Result | BaseException | None]]()

    def take() -> None:
        try:
            for result in results:
                arrived.put(("result", result))
            arrived.put(("end", None))
        except BaseException as error:  # whatever it is, it is raised where the results are awaited
            arrived.put(("error", error))

    threading.Thread(target=take, name=f"{what} results", daemon=True).start()
    last, beat, warned, taken = time.monotonic(), pulse(), False, _short(needs)
    while True:
        try:
            kind, value = arrived.get(timeout=1.0)
        except queue.Empty:
            waited = time.monotonic() - last
            if (now := pulse()) != beat:
                last, beat, warned, taken = time.monotonic(), now, False, False
            elif _stall_timeout_s and waited > _stall_timeout_s:
                raise Stalled(f"{_stall(what, needs, waited, beat)}; ray.stall_timeout_s lets it wait longer") from None
            elif waited > WARN_AFTER_S and not warned and (taken or not needs.fit()):
                warned = True
                logger.warning("%s", _stall(what, needs, waited, beat))
            continue
        if kind == "end":
            return
        if kind == "error":
            assert isinstance(value, BaseException)
            raise value
        last, warned, taken = time.monotonic(), False, False
        yield value  # type: ignore[misc]


def _short(needs: Needs) -> bool:
    """Whether less than `needs` is free."""
    free = ray.available_resources()
    cpus, gpus = float(free.get("CPU", 0.0)), float(free.get("GPU", 0.0))
    return cpus < needs.places * needs.cpus or gpus < needs.places * needs.gpus


def _stall(what: str, needs: Needs, waited: float, beat: str) -> str:
    since = f" (since {beat})" if beat else ""
    return f"{what} made no step for {waited:.0f} s{since}: it needs {needs}, and the cluster has {what_there_is()}"


def interactive() -> bool:
    """Whether somebody watches: progress bars in a terminal, plain lines elsewhere."""
    return sys.stderr.isatty()


def progress_bar(name: str, total: int, interactive: bool, clock: Callable[[], float] = time.monotonic) -> Progress:
    """A function (done, values) that shows how far long work is, its rate and the time left.

    It draws a bar in a terminal, and logs a line every 10 s elsewhere. It works in remote workers too, whose bars Ray
    draws on the driver's terminal. The rate counts from the first call on: not what was done before this run, nor the
    time in which workers start.

    Args:
        clock: seconds.
    """
    began = clock()
    if interactive:
        bar = tqdm_ray.tqdm(desc=name, total=total)

        def draw(done: int, values: Mapping[str, float]) -> None:
            bar.set_description(" ".join([name, *_brief(values)]))
            bar.update(done - bar._x)
            if done >= total:
                bar.close()

        return draw
    last = float("-inf")
    first: tuple[int, float] | None = None

    def line(done: int, values: Mapping[str, float]) -> None:
        nonlocal last, first
        now = clock()
        before, since = first = first or (done, now)
        if done >= total or now - last >= LINE_EVERY_S:
            last = now
            pace = _pace(done - before, total - done, now - since)
            took = [f"took {_duration(now - began)}"] if done >= total else []
            logger.info("%s", ", ".join([f"{name} {done}/{total}", *pace, *took, *_brief(values)]))

    return line


def _pace(done: int, left: int, seconds: float) -> list[str]:
    """Rate, and the time that what is left takes at this rate."""
    if done <= 0 or seconds < 1:  # of what comes all at once there is none
        return []
    rate = done / seconds
    words = f"{rate:.3g}/s" if rate >= 1 else f"{rate * 60:.3g}/min"
    return [words, f"about {_duration(left / rate)} left"] if left > 0 else [words]


def _duration(seconds: float) -> str:
    """MM:SS, or H:MM:SS from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes:02}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _brief(values: Mapping[str, float]) -> list[str]:
    return [f"{key} {value:.4g}" for key, value in values.items()]
