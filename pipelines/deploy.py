"""The endpoint for `serve deploy`, Ray Serve's own command: `cluster/serve.yaml` names `app` and its settings."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

import httpx
import ray
from ray import serve
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray.serve.config import HTTPOptions
from ray.serve.context import _get_global_client
from ray.serve.exceptions import RayServeException

from pipelines.serve import answers_as_front, build_app
from pipelines.serving.audit import check_audit_log
from pipelines.serving.front import ENVIRONMENT
from pipelines.serving.tls import check_pair
from robometer.configs import load
from robometer.configs.loading import override
from robometer.configs.schema import Config
from robometer.errors import RobometerError
from robometer.frames import FrameSettings
from robometer.settings import ConfigError

_ELSEWHERE = {
    "serve.host": "set http_options.host, outside of args",
    "serve.port": "set http_options.port, outside of args",
    "serve.tls_certificate": "set http_options.ssl_certfile, outside of args",
    "serve.tls_key": "set http_options.ssl_keyfile, outside of args",
    "serve.grpc_port": "only `robometer serve` starts gRPC",
    "serve.token": "whoever may read the state of Ray Serve could read it here; set ROBOMETER_TOKEN where Ray starts",
}


def app(args: dict[str, Any]) -> serve.Application:
    """The endpoint of settings `{"serve.checkpoint": ..., ...}`; those of frames override a model's.

    Raises:
        RayServeException: an unknown setting, a value that it cannot have, a Ray without the protection of uploads,
            jobs without a folder that outlives an update, or a proxy that nobody can reach. Of this exception
            `serve status` shows the sentence alone.
    """
    try:
        return _app(args)
    except RobometerError as error:
        raise RayServeException(str(error)) from error


def _app(args: dict[str, Any]) -> serve.Application:
    for key, remedy in _ELSEWHERE.items():
        if key in args:
            raise ConfigError(f"{key} has no place in the args of a Serve config file: {remedy}.")
    for name, value in ENVIRONMENT.items():
        if os.environ.get(name) != value:
            raise ConfigError(
                "Ray was started without the protection against harmful uploads. End it with `ray stop`, and start "
                f"it on every node with {name}={value} in its environment."
            )
    config = override(load(), args)
    check_audit_log(config.serve.audit_log)
    if config.serve.max_jobs and not config.serve.jobs_folder:
        raise ConfigError(
            "Each update would drop the jobs of clients: name a folder for them that every node sees "
            "(serve.jobs_folder), or take none (serve.max_jobs: 0)."
        )
    application = build_app(config, frame_overrides=_frame_overrides(args, config))
    serve_client = _get_global_client(raise_if_no_controller_running=False) if ray.is_initialized() else None
    if serve_client is not None and (fault := ray.get(_fault_of_proxy.remote(serve_client.http_config))):
        raise ConfigError(fault)
    return application


@ray.remote(num_cpus=0, resources={HEAD_NODE_RESOURCE_NAME: 0.001})
def _fault_of_proxy(http: HTTPOptions) -> str:
    return fault_of(http)


def fault_of(http: HTTPOptions, patience_s: float = 60.0) -> str:
    """Why nobody can use the proxy that runs on this machine; empty: all can. Ray calls it healthy in any case."""
    certificate, key = http.ssl_certfile or "", http.ssl_keyfile or ""
    try:
        check_pair(certificate, key, ("http_options.ssl_certfile", "http_options.ssl_keyfile"))
    except ConfigError as error:
        return f"{error}. Mend http_options, and run `serve shutdown` before you deploy again."
    config = override(load(), {"serve.host": http.host, "serve.port": http.port, "serve.tls_certificate": certificate})
    deadline_s = time.monotonic() + patience_s
    while not _is_ours(config):
        if time.monotonic() > deadline_s:
            return (
                f"Ray's proxy does not answer at {http.host}:{http.port}: is the port another program's, or were the "
                "files of TLS changed? Mend http_options, and run `serve shutdown` before you deploy again."
            )
        time.sleep(0.5)
    return ""


def _is_ours(config: Config) -> bool:
    try:
        try:
            return answers_as_front(config)
        except httpx.ConnectError as error:
            if "CERTIFICATE_VERIFY_FAILED" not in str(error):
                raise
            return answers_as_front(config, verify=False)  # was the certificate renewed since the proxy started?
    except httpx.TransportError:
        return False


def _frame_overrides(args: Mapping[str, Any], config: Config) -> dict[str, int]:
    settings = FrameSettings.of(config.ingest).as_dict()
    return {name: value for name, value in settings.items() if f"ingest.{name}" in args}
