"""The gRPC side of Ray Serve's proxy: each call becomes a POST to the `Front` in the same process (`grpc_calls`).

So the token, the limits, the retries and the metrics of the HTTP endpoint hold for gRPC, and a replica knows one
protocol. Ray's own gRPC server listens at every address, takes messages of 2 GB before anybody has seen a token, and
answers calls of its own; `install` puts `BoundedServer` in its place.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc.aio._server import Server
from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put
from ray.serve._private import grpc_util
from starlette.types import ASGIApp

from pipelines.serving.grpc_calls import Calls
from pipelines.serving.tls import trust
from robometer.configs.stages import ServeConfig
from robometer.settings import ConfigError

SERVICER = f"{__name__}.add_service"
"""What Ray's proxy is told to call with its server."""

MAX_CALLS = 256
"""Calls that may be open at a time; more are refused by gRPC itself."""

_SETTINGS = b"robometer.grpc"
_CHECK_S = 10.0


@dataclass(frozen=True)
class GrpcSettings:
    """Settings of the gRPC server of a cluster's proxies.

    Attributes:
        host: address to listen on.
        max_message_bytes: limit of one message.
        max_arriving: messages that may be on their way at a time, and streams that may be open; more wait, or are
            refused.
        idle_timeout_s: how long an open stream may wait for its next message.
        tls: files of a certificate and its key; none: no TLS.
    """

    host: str
    max_message_bytes: int
    max_arriving: int
    idle_timeout_s: float
    tls: Sequence[str] = ()

    @classmethod
    def of(cls, serve: ServeConfig) -> GrpcSettings:
        """The settings of an endpoint: messages on their way take as much memory as bodies may."""
        arriving = serve.max_held_bytes // serve.max_upload_bytes
        tls = [str(Path(path).absolute()) for path in (serve.tls_certificate, serve.tls_key) if path]
        return cls(serve.host, serve.max_upload_bytes, arriving, serve.request_timeout_s, tls)

    def publish(self) -> None:
        """Leave the settings in the cluster's store, where its proxies look when they start."""
        _internal_kv_put(_SETTINGS, json.dumps(asdict(self)).encode(), overwrite=True)


def grpc_options(serve: ServeConfig) -> dict[str, Any] | None:
    """Ray Serve's options for its gRPC server; None: it starts none."""
    if not serve.grpc_port:
        return None
    return {"port": serve.grpc_port, "grpc_servicer_functions": [SERVICER], "enable_reflection": False}


def check_grpc(serve: ServeConfig) -> None:
    """Make sure, before any client can call, that a `BoundedServer` listens at our address.

    Raises:
        ConfigError: Ray Serve ran before, with another gRPC port or without one, or its proxy has no limits.
    """
    if not serve.grpc_port:
        return
    check = _check_tls if serve.tls_certificate else _check_plain
    if not check(serve):
        where = _address(serve.host, serve.grpc_port)
        raise ConfigError(
            f"Ray Serve of this cluster has no such gRPC server at {where}. End it with `serve shutdown`, so that it "
            "starts anew with serve.grpc_port, or set serve.grpc_port=0"
        )


def _check_plain(serve: ServeConfig) -> bool:
    with grpc.insecure_channel(_address(_reachable(serve.host), serve.grpc_port)) as channel:
        of_ray = channel.unary_unary("/ray.serve.RayServeAPIService/Healthz")  # which a `BoundedServer` does not have
        try:
            of_ray(b"", timeout=_CHECK_S, wait_for_ready=True)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNIMPLEMENTED)
    return False


def _check_tls(serve: ServeConfig) -> bool:
    """Ray's own server has no TLS, so that our certificate is a sign of a `BoundedServer`."""
    context = trust(serve.tls_certificate)
    assert not isinstance(context, bool)
    try:
        with socket.create_connection((_reachable(serve.host), serve.grpc_port), _CHECK_S) as connection:
            context.wrap_socket(connection).close()
    except OSError:
        return False
    return True


def install() -> Callable[[ASGIApp], ASGIApp]:
    """Make Ray's proxy start a `BoundedServer`, if it starts a gRPC server; returns what gives it its application."""
    stored = _internal_kv_get(_SETTINGS)
    if not stored:
        return lambda app: app
    settings = GrpcSettings(**json.loads(stored))
    calls = Calls(settings.max_arriving, settings.idle_timeout_s)

    def bounded(*_: object, **__: object) -> BoundedServer:
        return BoundedServer(settings, calls)

    def behind(app: ASGIApp) -> ASGIApp:
        calls.app = app
        return app

    grpc_util.gRPCGenericServer = bounded  # type: ignore[assignment, misc]
    return behind


def add_service(_: object, server: object) -> None:
    """Ray's proxy calls this with its server, which has the service already.

    Raises:
        RuntimeError: the server has no limits.
    """
    if not isinstance(server, BoundedServer):
        raise RuntimeError("Ray Serve's proxy runs without the limits of this endpoint; see docs/serving.md")


class BoundedServer(Server):  # type: ignore[misc]
    """A gRPC server with limits that listens at one address and has one service."""

    def __init__(self, settings: GrpcSettings, calls: Calls) -> None:
        options = (
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.so_reuseport", 0),  # else two servers would share a port, and nobody would notice
            # Clients that wait for a long answer ask every 30 s whether the connection lives.
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
        )
        super().__init__(None, (calls,), (), options, MAX_CALLS, None)
        self._settings = settings

    def add_insecure_port(self, address: str) -> int:
        """Listen at the port of `address`, whose host nobody chose; with TLS where there is a certificate."""
        here = _address(self._settings.host, int(address.rpartition(":")[2]))
        if not self._settings.tls:
            return int(super().add_insecure_port(here))
        certificate, key = (Path(path).read_bytes() for path in self._settings.tls)
        return int(self.add_secure_port(here, grpc.ssl_server_credentials([(key, certificate)])))

    def add_generic_rpc_handlers(self, generic_rpc_handlers: object) -> None:
        """Ignore services of others: their messages would have no limits."""

    def add_registered_method_handlers(self, service_name: str, method_handlers: object) -> None:
        """See `add_generic_rpc_handlers`."""


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
