"""The Ray that a job runs on: the cluster it was submitted to, the one that RAY_ADDRESS names, or a local one."""

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
from robometer.configs.schema import Config
from robometer.errors import RobometerError
from robometer.settings import ConfigError

silence()  # again, since importing Ray turns its deprecation warnings on

logger = logging.getLogger(__name__)

LINE_EVERY_S = 10.0

ADDRESS, API_SERVER = "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"

PATIENCE_S = 5.0
"""How long to wait for a cluster to accept a connection."""

Progress = Callable[[int, Mapping[str, float]], None]
"""Shows the progress of work: (done, values)."""

MIN_LOCAL_CPUS = 4
"""Logical CPUs of a local Ray, so that an endpoint's replicas or a few workers fit on a small machine too."""

SETTLE_S = 10.0
"""How long a job waits at its end for other threads to leave Ray; after an error 1 s, since some never leave."""

WARN_AFTER_S = 30.0
"""Time without a step after which a job says what it waits for."""

RETRIES = -1
"""Retries of an actor's task: no limit, so that the actor's `max_restarts` is the limit. A lost node refuses every task
until Ray notices, which would use up any number within a second."""

_started_here = False
"""Whether this process started the Ray that it uses."""

_stall_timeout_s = 0.0
"""`ray.stall_timeout_s` of the job in this process."""


class ClusterError(RobometerError):
    """The cluster cannot be used; the message says what to do."""


@contextmanager
def connected(config: Config, environment: Mapping[str, str] | None = None) -> Iterator[None]:
    """Connect to Ray for the duration of the block; a session that exists already is left alone.

    Args:
        environment: variables that are set in all processes of a session that starts here.

    Raises:
        ClusterError: RAY_ADDRESS names no cluster that can be joined, or a local Ray did not start.
    """
    DataContext.get_current().raise_original_map_exception = True  # else only the traceback has a task's exception
    global _started_here, _stall_timeout_s
    _stall_timeout_s = config.ray.stall_timeout_s
    if ray.is_initialized():
        yield
        return
    before = {name: os.environ.get(name) for name in (ADDRESS, API_SERVER)}
    ray_threads = set[threading.Thread]()
    try:
        if address := cluster_address():
            _join(address, environment or {})
        else:
            _start(config, environment or {})
        ray_threads = set(threading.enumerate())
        _spend_warning()
        yield
    finally:
        _started_here = False
        patience_s = SETTLE_S if sys.exc_info()[0] is None else 1.0
        if not ray.is_initialized() or _other_threads_left(ray_threads, patience_s):
            ray.shutdown()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _other_threads_left(ray_threads: set[threading.Thread], patience_s: float) -> bool:
    """Wait until no thread but Ray's own is inside Ray.

    A thread that drops a reference while Ray shuts down ends the process with status 1 and no message.

    Returns:
        False if a thread is still there. Then Ray shuts down when the process ends.
    """
    deadline_s = time.monotonic() + patience_s
    while others := _inside_ray(ray_threads):
        if time.monotonic() > deadline_s:
            logger.debug("Still inside Ray: %s", others)
            for name in ("ray", "ray.data"):  # their errors after Ray's end mean nothing
                logging.getLogger(name).setLevel(logging.CRITICAL)
            return False
        time.sleep(0.01)
    return True


def _inside_ray(ray_threads: set[threading.Thread]) -> list[str]:
    """Names of the threads that run code of Ray, besides `ray_threads` and this one."""
    threads = set(threading.enumerate()) - ray_threads - {threading.current_thread()}
    others = {thread.ident: thread.name for thread in threads}
    return [
        others[ident]
        for ident, frame in sys._current_frames().items()
        if ident in others
        and any(
            caller.f_globals.get("__name__", "").partition(".")[0] in ("ray", __package__)
            for caller, _ in traceback.walk_stack(frame)
        )
    ]


def _start(config: Config, environment: Mapping[str, str]) -> None:
    global _started_here
    os.environ.pop(ADDRESS, None)  # workers of the local Ray must not look for another
    # Ray Train frees the resources of a killed trial once its state API says so. Without an address, that API asks the
    # cluster that `ray start` last started on this machine, dead or alive.
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
    except Exception as error:  # Ray raises many kinds where its processes do not start
        raise ClusterError(
            f"Ray did not start on this machine ({cause_of(error)}): free some of its CPU and memory and try again, or "
            "set ray.num_cpus and ray.object_store_mb lower"
        ) from error
    _started_here = True


def cluster_address() -> str:
    """RAY_ADDRESS, where it names a cluster to join; empty: a local Ray.

    Raises:
        ClusterError: it does not name a cluster, or nothing answers there.
    """
    address = os.environ.get(ADDRESS, "").strip()
    if address == "local" or not address:
        return ""
    if address.startswith(("http://", "https://")):
        logger.warning("RAY_ADDRESS=%s is for submitting jobs. This command runs on this machine only.", address)
        return ""
    if "://" in address:
        raise ClusterError(
            f"RAY_ADDRESS={address} is the address of a remote client, which cannot run this: submit the command with "
            "`ray job submit`, or unset RAY_ADDRESS to run on this machine only"
        )
    host, _, port = address.rpartition(":")
    if address == "auto" or not port.isdigit():  # Ray itself reports mistakes in these at once
        return address
    try:  # Ray would try for minutes, then end the process
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"nothing answers at RAY_ADDRESS={address} ({error}): start that cluster, give HOST:PORT of a running one, "
            "or unset RAY_ADDRESS to run on this machine only"
        ) from error
    return address


def _join(address: str, environment: Mapping[str, str]) -> None:
    runtime_env = {"env_vars": dict(environment)} if environment else None
    try:
        ray.init(address=address, logging_level=logging.WARNING, runtime_env=runtime_env)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ClusterError(
            f"the cluster at RAY_ADDRESS={address} cannot be joined ({reason}): give HOST:PORT of a running cluster, "
            "with its token, or unset RAY_ADDRESS to run on this machine only"
        ) from error


class _Nobody:
    def __init__(self, argument: None) -> None:
        pass


def _spend_warning() -> None:
    """Make Ray print, with standard error closed, a warning that the driver prints once at its first pool of actors.

    It is the first of `pipelines.foreign.LINES`. Ray can be told to leave out lines of workers, but the driver's native
    part writes this one to the file descriptor itself.
    """
    nowhere = NodeAffinitySchedulingStrategy("0f" * 28, soft=False)  # so that no process starts for the actor
    nobody = ray.remote(num_cpus=0, max_restarts=1)(_Nobody).options(scheduling_strategy=nowhere)
    argument = ray.put(None)
    screen, void = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(void, 2)
    try:
        nobody.remote(argument)
    finally:
        os.dup2(screen, 2)
        os.close(screen)
        os.close(void)


def cause_of(error: BaseException) -> str:
    """What a task raised, without what Ray wraps around it, in one line."""
    while isinstance(inner := getattr(error, "cause", None), BaseException):
        error = inner
    if isinstance(error, ActorDiedError):  # where an actor could not start, the last line of the traceback says why
        return str(error).strip().splitlines()[-1]
    name = "" if isinstance(error, RobometerError) else f"{type(error).__name__}: "
    return f"{name}{next(iter(str(error).splitlines()), '')}"


def free_port(host: str = "127.0.0.1") -> int:
    """A port that is not in use now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class Stalled(RobometerError):
    """Work made no step for `ray.stall_timeout_s`; the message says what it lacks."""


@dataclass(frozen=True)
class Needs:
    """What work needs at once to make any step: `places`, on any nodes, of so many CPUs and GPUs each."""

    places: int = 1
    cpus: float = 1.0
    gpus: float = 0.0

    def fit(self) -> int:
        """How many times this fits into the cluster if nothing else runs there."""
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(int(min(self._on(node), 1e9)) for node in nodes) // self.places

    def _on(self, node: Mapping[str, float]) -> float:
        amounts = {"CPU": self.cpus, "GPU": self.gpus}
        return min((node.get(name, 0.0) // amount for name, amount in amounts.items() if amount), default=1e9)

    def __str__(self) -> str:
        each = f"{_count(self.cpus, 'CPU')}" + (f" and {_count(self.gpus, 'GPU')}" if self.gpus else "")
        return each if self.places == 1 else f"{self.places} times {each}"


def _count(number: float, name: str) -> str:
    return f"{number:g} {name}{'' if number == 1 else 's'}"


def cluster_resources() -> str:
    """The cluster's resources, how much is in use, and the other jobs that run there, in words."""
    total, free = ray.cluster_resources(), ray.available_resources()
    words = []
    for name in ("CPU", "GPU"):
        if name == "CPU" or total.get(name):
            used = total.get(name, 0.0) - free.get(name, 0.0)
            words.append(f"{_count(total.get(name, 0.0), name)}, {used:g} in use")
    own = ray.get_runtime_context().get_job_id()
    others = [job["Entrypoint"] for job in jobs() if not job["IsDead"] and job["JobID"] != own]
    nodes = _count(sum(node["Alive"] for node in ray.nodes()), "node")
    return f"{nodes} with {', '.join(words)}" + (f"; other jobs: {'; '.join(others)}" if others else "")


def check_room(what: str, needs: Needs, remedy: str) -> None:
    """Check that `needs` fit into the cluster. One that this job did not start may grow, so that it only warns there.

    Raises:
        ConfigError: the Ray that this job started is too small.
    """
    if needs.fit():
        return
    if _started_here:
        raise ConfigError(
            f"{what} needs {needs}; this Ray has {cluster_resources()}. Set ray.num_cpus higher, or {remedy}."
        )
    logger.warning("%s needs %s; the cluster has %s. Waiting for more.", _capital(what), needs, cluster_resources())


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


Item = TypeVar("Item")


def watched(
    results: Iterable[Item], what: str, needs: Needs | None = None, pulse: Callable[[], str] = str
) -> Iterator[Item]:
    """Yield `results` as they come, and raise where none comes for too long.

    A thread of its own takes them, since a wait inside Ray cannot be ended. A step is a result, or a new value of
    `pulse()`. Work that waits because the cluster is too small, or was busy when it began, says so after a while.

    Args:
        what: names the work in messages.
        needs: what the work needs; default: one CPU.
        pulse: how far the work is, where results are rare.

    Raises:
        Stalled: no step for `ray.stall_timeout_s`.
    """
    needs = needs or Needs()
    arrived = queue.SimpleQueue[tuple[str, Item | BaseException | None]]()

    def take() -> None:
        try:
            for result in results:
                arrived.put(("result", result))
            arrived.put(("end", None))
        except BaseException as error:  # noqa: BLE001  raised below, where the results are awaited
            arrived.put(("error", error))

    threading.Thread(target=take, name=f"{what} results", daemon=True).start()
    last, beat, warned, was_busy = time.monotonic(), pulse(), False, _is_busy(needs)
    while True:
        try:
            kind, value = arrived.get(timeout=1.0)
        except queue.Empty:
            waited = time.monotonic() - last
            if (now := pulse()) != beat:
                last, beat, warned, was_busy = time.monotonic(), now, False, False
            elif _stall_timeout_s and waited > _stall_timeout_s:
                stall = _stall(what, needs, waited, beat)
                raise Stalled(f"{stall}. Set ray.stall_timeout_s higher to wait longer.") from None
            elif waited > WARN_AFTER_S and not warned and (was_busy or not needs.fit()):
                warned = True
                logger.warning("%s.", _capital(_stall(what, needs, waited, beat)))
            continue
        if kind == "end":
            return
        if kind == "error":
            assert isinstance(value, BaseException)
            raise value
        last, warned, was_busy = time.monotonic(), False, False
        yield value  # type: ignore[misc]


def _is_busy(needs: Needs) -> bool:
    """Whether less than `needs` is free now."""
    free = ray.available_resources()
    cpus, gpus = float(free.get("CPU", 0.0)), float(free.get("GPU", 0.0))
    return cpus < needs.places * needs.cpus or gpus < needs.places * needs.gpus


def _stall(what: str, needs: Needs, waited: float, beat: str) -> str:
    since = f" (since {beat})" if beat else ""
    return f"{what} made no step for {waited:.0f} s{since}: it needs {needs}; the cluster has {cluster_resources()}"


def interactive() -> bool:
    """Whether to draw progress bars: in a terminal. Elsewhere there are plain lines."""
    return sys.stderr.isatty()


def progress_bar(name: str, total: int, interactive: bool, clock: Callable[[], float] = time.monotonic) -> Progress:
    """A function (done, values) that shows the progress of long work, its rate and the time left.

    It draws a bar in a terminal, and logs a line every 10 s elsewhere. It works in remote workers too; Ray draws their
    bars on the driver's terminal. The rate counts from the first call: it leaves out what was done before this run, and
    the time in which workers start.

    Args:
        clock: gives seconds.
    """
    started_s = clock()
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
        done_before, first_s = first = first or (done, now)
        if done >= total or now - last >= LINE_EVERY_S:
            last = now
            pace = _pace(done - done_before, total - done, now - first_s)
            duration = [f"took {_duration(now - started_s)}"] if done >= total else []
            logger.info("%s", ", ".join([f"{name} {done}/{total}", *pace, *duration, *_brief(values)]))

    return line


def _pace(done: int, left: int, seconds: float) -> list[str]:
    """The rate, and the time left at this rate."""
    if done <= 0 or seconds < 1:  # what comes all at once has no rate
        return []
    rate = done / seconds
    words = f"{rate:.3g}/s" if rate >= 1 else f"{rate * 60:.3g}/min"
    return [words, f"about {_duration(left / rate)} left"] if left > 0 else [words]


def _duration(seconds: float) -> str:
    """MM:SS, or H:MM:SS from one hour."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes:02}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _brief(values: Mapping[str, float]) -> list[str]:
    return [f"{key} {value:.4g}" for key, value in values.items()]
