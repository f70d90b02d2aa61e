"""The endpoint for `serve deploy`, Ray Serve's own command: `cluster/serve.yaml` names `app` and its settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ray import serve

from pipelines.serve import build_app
from pipelines.serving.audit import check_audit_log
from pipelines.serving.front import ENVIRONMENT
from robometer.configs import load
from robometer.configs.loading import override
from robometer.configs.schema import Config
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
        ConfigError: an unknown setting, a value that it cannot have, a Ray without the protection of uploads, or jobs
            without a folder that outlives an update.
    """
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
    return build_app(config, frame_overrides=_frame_overrides(args, config))


def _frame_overrides(args: Mapping[str, Any], config: Config) -> dict[str, int]:
    settings = FrameSettings.of(config.ingest).as_dict()
    return {name: value for name, value in settings.items() if f"ingest.{name}" in args}
