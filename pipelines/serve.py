"""Serve one Scorer over HTTP with Ray Serve: `Ingress` replicas in front of `Model` replicas.

Later parts have their place: upstream's routes and a page are routers of `pipelines.serving.api`; a session is a
third kind of job beside `ScoreJob` and `CompareJob`.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import httpx
import ray
from ray import serve
from ray.serve.config import ProxyLocation
from ray.serve.exceptions import RayServeException

from pipelines.cluster import cause_of, connected
from pipelines.serving.front import DRAIN, ENVIRONMENT
from pipelines.serving.guard import GuardSettings
from pipelines.serving.ingress import Ingress
from pipelines.serving.jobs import Limits
from pipelines.serving.model import Model, ScorerLoader
from robometer.configs.schema import Config, ConfigError
from robometer.frames import FrameSettings, overridden
from robometer.scorers import CheckpointReference, load_scorer

logger = logging.getLogger(__name__)

APP_NAME = "robometer"

_INGRESS_CPUS = 0.1
_NOTHING: Mapping[str, int] = {}
_QUIET = {"log_level": "WARNING", "enable_access_log": False}  # /metrics counts requests
_REQUEST_TIMEOUT_S = 120.0
_HEALTH_PERIOD_S = 1.0  # a dead replica is noticed, and replaced, after at most this long
_DRAIN_KEY = secrets.token_hex(16)  # with it this process tells the HTTP proxy to take no more requests
_RAISED = re.compile(r"[A-Za-z_.]+(Error|Exception): (?P<sentence>.+)")


def build_app(
    config: Config, loader: ScorerLoader = load_scorer, given: Mapping[str, int] = _NOTHING
) -> serve.Application:
    """The Ray Serve application; `loader` makes the Scorer in each model replica.

    Args:
        given: settings of frames (see `FrameSettings`) in the place of those that the model was trained with.
    """
    # A replica's working directory may be another.
    reference = _reference(config).for_workers()
    c = replace(config.serve, checkpoint=reference.source, token="")
    patience: dict[str, Any] = {
        "health_check_period_s": _HEALTH_PERIOD_S,
        "graceful_shutdown_timeout_s": c.drain_timeout_s,
        "graceful_shutdown_wait_loop_s": 0.2,
    }
    model = serve.deployment(
        **patience,
        num_replicas=c.replicas,
        ray_actor_options={"num_cpus": c.num_cpus, "num_gpus": c.num_gpus},
        # One batch computes while the next one fills.
        max_ongoing_requests=2 * c.max_batch_size,
        max_queued_requests=c.max_queued_requests,
        # A checkpoint that cannot be loaded fails again; replicas that ran once are restarted whatever this says.
        max_constructor_retry_count=1,
        logging_config=_QUIET,
    )(Model)
    # All that a model can hold or queue; what comes on top is refused before its body is read.
    capacity = 2 * c.max_batch_size * c.replicas + c.max_queued_requests
    guard = GuardSettings(
        token=token_of(config),
        max_upload_bytes=c.max_upload_bytes,
        max_in_flight=capacity,
        timeout_s=_REQUEST_TIMEOUT_S,
        body_timeout_s=c.body_timeout_s,
        max_held_bytes=c.max_held_bytes,
        drain_key=_DRAIN_KEY,
        instance=uuid.uuid4().hex,
    )
    ingress = serve.deployment(
        **patience,
        num_replicas=c.replicas,
        ray_actor_options={"num_cpus": _INGRESS_CPUS},
        # Above the guard's own bound, so that it is the guard who answers, and probes pass when it is reached.
        max_ongoing_requests=2 * capacity + 100,
        logging_config=_QUIET,
    )(Ingress)
    trained = reference.frames() if loader is load_scorer else FrameSettings()
    return ingress.bind(model.bind(loader, c), Limits.from_config(config, overridden(trained, given)), guard)


def _reference(config: Config) -> CheckpointReference:
    return CheckpointReference(config.serve.checkpoint, config.tracking.uri)


def token_of(config: Config) -> str:
    """The bearer token: `serve.token`, else the environment's ROBOMETER_TOKEN; empty: none.

    Raises:
        ConfigError: no header could carry it.
    """
    token = (config.serve.token or os.environ.get("ROBOMETER_TOKEN", "")).strip()  # files end with a line break
    if not token.isprintable():
        raise ConfigError("the token (serve.token or ROBOMETER_TOKEN) holds control characters: choose another")
    return token


def start(config: Config, loader: ScorerLoader = load_scorer, given: Mapping[str, int] = _NOTHING) -> str:
    """Start the endpoint on the Ray that is connected, wait until it is ready, and return its URL.

    Raises:
        ConfigError: the port is taken, the model cannot be loaded, or the cluster's Ray Serve is not one for us.
    """
    ran_before = bool(serve.status().proxies)
    if not ran_before:  # else it holds the port itself
        _check_port(config)
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options={"host": config.serve.host, "port": config.serve.port},
        logging_config=_QUIET,
    )
    try:
        _check_front(config)
    except ConfigError:
        if not ran_before:
            serve.shutdown()
        raise
    try:
        serve.run(build_app(config, loader, given), name=APP_NAME, route_prefix="/")
    except (RuntimeError, RayServeException) as error:
        cause = _cause_of_failure() or cause_of(error).splitlines()[0]
        stop()
        raise ConfigError(f"the model of serve.checkpoint={config.serve.checkpoint} did not start: {cause}") from error
    except KeyboardInterrupt:  # while the model loads
        stop()
        raise
    return _url(config)


def end(config: Config) -> None:
    """Drain and stop the endpoint, unless another start on this cluster has taken its place."""
    is_ours = True
    try:
        is_ours = drain(config)
    finally:  # a second Ctrl-C ends the wait
        if is_ours:
            stop()


def drain(config: Config) -> bool:
    """Take no more requests, and wait until those that were accepted are answered, for `serve.drain_timeout_s`.

    Returns:
        Whether the endpoint is the one that this process started.
    """
    deadline_s = time.monotonic() + config.serve.drain_timeout_s
    headers = {"Authorization": f"Bearer {_DRAIN_KEY}"}
    while True:
        try:
            answer = httpx.post(f"{_url(config)}{DRAIN}", headers=headers, trust_env=False, timeout=5)
            if answer.status_code == 404:  # another start does not know our key
                return False
            if answer.is_success and answer.json()["in_flight"] == 0:
                return True
        except httpx.ConnectError:  # nothing listens any more
            return True
        except httpx.TransportError:  # busy: nobody knows yet how many there are
            pass
        if time.monotonic() > deadline_s:
            logger.warning("accepted requests are given up after %g s", config.serve.drain_timeout_s)
            return True
        time.sleep(0.1)


def stop() -> None:
    """Stop the endpoint, and Ray Serve where it runs nothing else; the Ray session stays."""
    if set(serve.status().applications) - {APP_NAME}:
        serve.delete(APP_NAME)
    else:
        serve.shutdown()


def run_serve(
    config: Config,
    blocking: bool = True,
    loader: ScorerLoader = load_scorer,
    given: Mapping[str, int] = _NOTHING,
) -> None:
    """Serve until Ctrl-C or SIGTERM, answer what was accepted, and leave no process.

    With `blocking=False`, see `start`.
    """
    if not blocking:
        start(config, loader, given)
        return
    # What cannot work is one sentence before Ray starts, which takes a while.
    if not (ray.is_initialized() or os.environ.get("RAY_ADDRESS")):
        _check_port(config)
    if loader is load_scorer:
        _reference(config).frames()
    if not (token_of(config) or config.serve.host.startswith("127.") or config.serve.host in ("localhost", "::1")):
        logger.warning("serve.host=%s lets others in, and no serve.token keeps them out", config.serve.host)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logger.info("starting Ray")
    try:
        with connected(config, ENVIRONMENT):
            # Ray's own SIGTERM handler, which it has set meanwhile, exits before Serve could end its replicas.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            logger.info("loading %s", config.serve.checkpoint)
            url = start(config, loader, given)
            try:
                logger.info("serving %s at %s", config.serve.checkpoint, url)
                signal.pause()
            finally:
                logger.info("ending: accepted requests are answered, new ones refused")
                end(config)
    except KeyboardInterrupt:
        logger.info("ended")


def _check_port(config: Config) -> None:
    with socket.socket(socket.AF_INET6 if ":" in config.serve.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.serve.host, config.serve.port))
        except OSError as error:
            where = f"{config.serve.host}:{config.serve.port}"
            raise ConfigError(f"cannot listen at {where} ({error.strerror}): set serve.host or serve.port") from error


def _check_front(config: Config) -> None:
    """Raise `ConfigError` unless a `Front` answers at our address, before anything can be asked there."""
    try:
        answer = httpx.get(f"{_url(config)}/-/routes", trust_env=False)  # Ray's own route, which `Front` hides
    except httpx.TransportError as error:
        raise ConfigError(
            f"Ray Serve of this cluster does not answer at {_url(config)}: run this on its head node, and where Serve "
            "runs already set serve.host and serve.port to its own, or end it with `serve shutdown`"
        ) from error
    if answer.status_code != 404:
        [(name, value)] = ENVIRONMENT.items()
        raise ConfigError(
            "Ray Serve of this cluster lacks what keeps uploads from harming it: end it with `serve shutdown`, "
            f"and start Ray with {name}={value} in its environment"
        )


def _url(config: Config) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.serve.host, config.serve.host)
    return f"http://[{host}]:{config.serve.port}" if ":" in host else f"http://{host}:{config.serve.port}"


def _cause_of_failure() -> str:
    """What the model's constructor raised; Ray Serve reports it as a message with a whole traceback."""
    application = serve.status().applications.get(APP_NAME)
    deployments = application.deployments.values() if application else ()
    lines = [line.strip() for deployment in deployments for line in deployment.message.splitlines()]
    raised = [match["sentence"] for line in lines if (match := _RAISED.match(line))]
    return raised[-1] if raised else ""
