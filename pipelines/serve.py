"""Serve one scorer over HTTP with Ray Serve: `Ingress` replicas in front of `Model` replicas.

New routes are routers of `pipelines.serving.api`.
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
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, ProxyLocation, RequestRouterConfig
from ray.serve.exceptions import RayServeException

from pipelines.cluster import cause_of, connected
from pipelines.serving.audit import check_audit_log
from pipelines.serving.backend import Deployed, Limits
from pipelines.serving.choice import CANARY, Choice
from pipelines.serving.front import DRAIN, ENVIRONMENT
from pipelines.serving.grpc_server import GrpcSettings, check_grpc, grpc_options
from pipelines.serving.guard import GuardSettings
from pipelines.serving.ingress import Ingress
from pipelines.serving.jobs import Jobs
from pipelines.serving.model import Model
from pipelines.serving.scaling import QueueAndLatency
from pipelines.serving.session_router import SessionRouter
from pipelines.serving.tls import check_pair, trust
from pipelines.serving.tokens import Tokens
from robometer.configs.schema import Config
from robometer.configs.stages import ServeConfig
from robometer.frames import overridden
from robometer.scorers import CheckpointReference, ScorerReference
from robometer.settings import ConfigError

logger = logging.getLogger(__name__)

APP_NAME = "robometer"

_INGRESS_CPUS = 0.1
_NO_OVERRIDES: Mapping[str, int] = {}
_QUIET = {"log_level": "WARNING", "enable_access_log": False}  # /metrics counts requests
_HEALTH_PERIOD_S = 1.0  # a dead replica is replaced after at most this long
_DRAIN_KEY = secrets.token_hex(16)  # lets this process tell the HTTP proxy to take no more requests
_RAISED = re.compile(r"[A-Za-z_.]+(Error|Exception): (?P<sentence>.+)")


def build_app(
    config: Config, scorer: ScorerReference | None = None, frame_overrides: Mapping[str, int] = _NO_OVERRIDES
) -> serve.Application:
    """Build the Ray Serve application.

    Args:
        scorer: instead of the checkpoint that `serve.checkpoint` names.
        frame_overrides: settings of frames (see `FrameSettings`) that replace those of the model.
    """
    reference = (scorer or checkpoint_of(config)).for_workers()
    c = replace(config.serve, token="")
    choice = Choice(c.models | ({CANARY: c.canary} if c.canary else {}), c.canary_share)
    others = {
        name: CheckpointReference(checkpoint, config.tracking.uri).for_workers()
        for name, checkpoint in choice.checkpoints.items()
    }
    patience: dict[str, Any] = {
        "health_check_period_s": _HEALTH_PERIOD_S,
        "graceful_shutdown_timeout_s": c.drain_timeout_s,
        "graceful_shutdown_wait_loop_s": 0.2,
        "max_surge_percent": c.max_surge_percent,
    }
    model = serve.deployment(
        **patience,
        **_size(c),
        ray_actor_options={"num_cpus": c.num_cpus, "num_gpus": c.num_gpus},
        # One batch computes while the next one fills.
        max_ongoing_requests=2 * c.max_batch_size,
        max_queued_requests=c.max_queued_requests,
        # A checkpoint that cannot be loaded fails again. Replicas that ran once are restarted in any case.
        max_constructor_retry_count=1,
        logging_config=_QUIET,
        request_router_config=RequestRouterConfig(
            request_router_class=SessionRouter,  # type: ignore[arg-type]
            request_router_kwargs={"num_fallback_replicas": 0},
        ),
    )(Model)
    # What the models can hold or queue; the guard refuses more before it reads a body.
    capacity = 2 * c.max_batch_size * c.most_replicas + c.max_queued_requests
    Tokens(path=c.token_file)  # mistakes end here
    guard = GuardSettings(
        token=token_of(config),
        token_file=c.token_file and str(Path(c.token_file).absolute()),
        cors_origins=tuple(c.cors_origins),
        audit_log=c.audit_log and str(Path(c.audit_log).absolute()),
        max_upload_bytes=c.max_upload_bytes,
        max_in_flight=capacity,
        timeout_s=c.request_timeout_s,
        body_timeout_s=c.body_timeout_s,
        max_held_bytes=c.max_held_bytes,
        drain_key=_DRAIN_KEY,
        instance=uuid.uuid4().hex,
        session_idle_s=c.session_idle_s,
        max_sockets=c.max_sessions,
        models=choice,
    )
    ingress = serve.deployment(
        **patience,
        num_replicas=c.replicas,
        ray_actor_options={"num_cpus": _INGRESS_CPUS},
        # Above the guard's limit, so that the guard answers, and probes and the sockets of sessions still pass.
        max_ongoing_requests=2 * capacity + 100 + c.max_sessions,
        logging_config=_QUIET,
    )(Ingress)
    frames = {name: overridden(other.frames(), frame_overrides) for name, other in others.items()}
    limits = Limits.from_config(config, overridden(reference.frames(), frame_overrides), frames)
    behind = (model.bind(reference, c, others, limits.frames_tag()), limits, guard, Deployed.from_config(c))
    if c.max_jobs == 0:
        return ingress.bind(*behind)
    jobs = serve.deployment(
        **patience,
        num_replicas=1,
        ray_actor_options={"num_cpus": _INGRESS_CPUS},
        max_ongoing_requests=2 * capacity + 100,
        logging_config=_QUIET,
    )(Jobs)
    folder = c.jobs_folder and str(Path(c.jobs_folder).absolute())
    return ingress.bind(*behind, jobs.bind(*behind, replace(c, jobs_folder=folder)))


def _size(c: ServeConfig) -> dict[str, Any]:
    """How many replicas of the model Ray Serve runs."""
    if c.most_replicas == c.replicas:
        return {"num_replicas": c.replicas}
    return {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=c.replicas,
            max_replicas=c.max_replicas,
            target_ongoing_requests=c.max_batch_size,
            upscale_delay_s=c.upscale_delay_s,
            downscale_delay_s=c.downscale_delay_s,
            policy=AutoscalingPolicy(
                policy_function=QueueAndLatency, policy_kwargs={"target_latency_s": c.target_latency_s}
            ),
        )
    }


def checkpoint_of(config: Config) -> CheckpointReference:
    """The checkpoint that `serve.checkpoint` names."""
    return CheckpointReference(config.serve.checkpoint, config.tracking.uri)


def token_of(config: Config) -> str:
    """The bearer token: `serve.token`, else ROBOMETER_TOKEN of the environment; empty: none.

    Raises:
        ConfigError: it holds characters that a header cannot carry.
    """
    token = (config.serve.token or os.environ.get("ROBOMETER_TOKEN", "")).strip()  # files end with a line break
    if not token.isprintable():
        raise ConfigError("the token (serve.token or ROBOMETER_TOKEN) holds control characters: choose another one")
    return token


def start(
    config: Config, scorer: ScorerReference | None = None, frame_overrides: Mapping[str, int] = _NO_OVERRIDES
) -> str:
    """Start the endpoint on the connected Ray, wait until it is ready, and return its URL.

    Raises:
        ConfigError: the port is in use, the model cannot be loaded, or the cluster's Ray Serve cannot be used.
    """
    ran_before = bool(serve.status().proxies)
    if not ran_before:  # else Serve itself uses the port
        _check_port(config)
        GrpcSettings.of(config.serve).publish()
    check_pair(config.serve.tls_certificate, config.serve.tls_key)
    check_audit_log(config.serve.audit_log)
    serve.start(
        proxy_location=ProxyLocation.HeadOnly,
        http_options={"host": config.serve.host, "port": config.serve.port, **_tls_options(config)},
        grpc_options=grpc_options(config.serve),
        logging_config=_QUIET,
    )
    try:
        _check_front(config)
        check_grpc(config.serve)
    except ConfigError:
        if not ran_before:
            serve.shutdown()
        raise
    _warn_of_lost_jobs(config)
    try:
        serve.run(build_app(config, scorer, frame_overrides), name=APP_NAME, route_prefix="/")
    except (RuntimeError, RayServeException) as error:
        cause = _cause_of_failure() or cause_of(error).splitlines()[0]
        stop()
        raise ConfigError(f"the model of serve.checkpoint={config.serve.checkpoint} did not start: {cause}") from error
    except KeyboardInterrupt:  # while the model loads
        stop()
        raise
    with suppress(httpx.TransportError):
        ask(config, "GET", "/health")  # from the answer the proxy learns the name of the audit log
    return _url(config)


def end(config: Config) -> None:
    """Drain and stop the endpoint, unless a later start on this cluster has replaced it."""
    is_ours = True
    try:
        is_ours = drain(config)
    finally:  # also after a second Ctrl-C, which ends the wait
        if is_ours:
            stop()


def drain(config: Config) -> bool:
    """Refuse new requests, and wait at most `serve.drain_timeout_s` until the accepted ones are answered.

    Returns:
        Whether this process started the endpoint that runs now.
    """
    deadline_s = time.monotonic() + config.serve.drain_timeout_s
    headers = {"Authorization": f"Bearer {_DRAIN_KEY}"}
    while True:
        try:
            answer = ask(config, "POST", DRAIN, headers=headers)
            if answer.status_code == 404:  # an endpoint of another start, which does not have our key
                return False
            if answer.is_success and answer.json()["in_flight"] == 0:
                return True
        except httpx.ConnectError:  # it does not listen any more
            return True
        except httpx.TransportError:  # too busy to answer
            pass
        if time.monotonic() > deadline_s:
            logger.warning("Gave up accepted requests after %g s.", config.serve.drain_timeout_s)
            return True
        time.sleep(0.1)


def stop() -> None:
    """Stop the endpoint, and Ray Serve if it runs nothing else. The Ray session stays."""
    if set(serve.status().applications) - {APP_NAME}:
        serve.delete(APP_NAME)
    else:
        serve.shutdown()


def run_serve(
    config: Config,
    blocking: bool = True,
    scorer: ScorerReference | None = None,
    frame_overrides: Mapping[str, int] = _NO_OVERRIDES,
) -> None:
    """Serve until Ctrl-C or SIGTERM, then answer the accepted requests and leave no process.

    With `blocking=False`, see `start`.
    """
    if not blocking:
        start(config, scorer, frame_overrides)
        return
    # Mistakes end here, before Ray starts, which takes a while.
    if not (ray.is_initialized() or os.environ.get("RAY_ADDRESS")):
        _check_port(config)
    check_pair(config.serve.tls_certificate, config.serve.tls_key)
    check_audit_log(config.serve.audit_log)
    (scorer or checkpoint_of(config)).frames()
    wants_token = Tokens(token_of(config), config.serve.token_file).wanted
    if not (wants_token or config.serve.host.startswith("127.") or config.serve.host in ("localhost", "::1")):
        remedy = "Set serve.token or serve.token_file to keep them out."
        logger.warning("serve.host=%s is open to others. %s", config.serve.host, remedy)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logger.info("Starting Ray.")
    try:
        with connected(config, ENVIRONMENT):
            # Ray has set a SIGTERM handler, which would exit before Serve could end its replicas.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            logger.info("Loading %s.", config.serve.checkpoint)
            url = start(config, scorer, frame_overrides)
            try:
                logger.info("Serving %s at %s", config.serve.checkpoint, url)
                signal.pause()
            finally:
                logger.info("Shutting down: answering accepted requests, refusing new ones.")
                end(config)
    except KeyboardInterrupt:
        logger.info("Stopped.")


def _warn_of_lost_jobs(config: Config) -> None:
    application = serve.status().applications.get(APP_NAME)
    if application and "Jobs" in application.deployments and not config.serve.jobs_folder:
        logger.warning(
            "This replaces an endpoint, whose jobs are lost to its clients. To go on with the jobs of a predecessor, "
            "name its folder as serve.jobs_folder."
        )


def _check_port(config: Config) -> None:
    for name in ("port", "grpc_port"):
        port = getattr(config.serve, name)
        with socket.socket(socket.AF_INET6 if ":" in config.serve.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((config.serve.host, port))  # 0, no gRPC, is any free port
            except OSError as error:
                where = f"{config.serve.host}:{port}"
                raise ConfigError(
                    f"cannot listen at {where} ({error.strerror}): set serve.host or serve.{name}"
                ) from error


def _check_front(config: Config) -> None:
    """Raise `ConfigError` unless a `Front` answers at our address, before any client can send a request."""
    try:
        is_front = answers_as_front(config)
    except httpx.TransportError as error:
        raise ConfigError(
            f"Ray Serve of this cluster does not answer at {_url(config)}. Run this on the head node. If Serve runs "
            "already, set serve.host, serve.port and serve.tls_certificate to its own, or end it with `serve shutdown`."
        ) from error
    if not is_front:
        [(name, value)] = ENVIRONMENT.items()
        raise ConfigError(
            "Ray Serve of this cluster runs without the protection against harmful uploads. End it with "
            f"`serve shutdown`, and start Ray with {name}={value} in its environment."
        )


def answers_as_front(config: Config, **more: Any) -> bool:
    """Whether what answers at the address of `serve` is a `Front`: it hides this route of Ray, and numbers requests.

    Raises:
        httpx.TransportError: nothing answers, or its certificate is not trusted.
    """
    answer = ask(config, "GET", "/-/routes", **more)
    return answer.status_code == 404 and "x-request-id" in answer.headers


def ask(config: Config, method: str, path: str, **more: Any) -> httpx.Response:
    """What the endpoint at the address of `serve` answers; only its own certificate is trusted."""
    verify = more.pop("verify", trust(config.serve.tls_certificate))
    return httpx.request(method, f"{_url(config)}{path}", verify=verify, trust_env=False, timeout=5, **more)


def _tls_options(config: Config) -> dict[str, str]:
    names = {"ssl_keyfile": config.serve.tls_key, "ssl_certfile": config.serve.tls_certificate}  # in Ray's order
    return {name: str(Path(path).absolute()) for name, path in names.items() if path}


def _url(config: Config) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.serve.host, config.serve.host)  # noqa: S104
    scheme = "https" if config.serve.tls_certificate else "http"
    return f"{scheme}://[{host}]:{config.serve.port}" if ":" in host else f"{scheme}://{host}:{config.serve.port}"


def _cause_of_failure() -> str:
    """What the model's constructor raised, from the traceback that Ray Serve reports."""
    application = serve.status().applications.get(APP_NAME)
    deployments = application.deployments.values() if application else ()
    lines = [line.strip() for deployment in deployments for line in deployment.message.splitlines()]
    raised = [match["sentence"] for line in lines if (match := _RAISED.match(line))]
    return raised[-1] if raised else ""
