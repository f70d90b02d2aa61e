"""TLS of the endpoint: its certificate is checked before Ray starts, and the endpoint's own probes trust only that."""

from __future__ import annotations

import ssl
from functools import lru_cache

from robometer.settings import ConfigError

NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which Python has no name for."""


SETTINGS = ("serve.tls_certificate", "serve.tls_key")
"""The settings that name the files of a certificate and its key."""


def check_pair(certificate: str, key: str, settings: tuple[str, str] = SETTINGS) -> None:
    """Check that a certificate and its key work, by a handshake in memory. Empty names: no TLS.

    Args:
        settings: how errors name the two.

    Raises:
        ConfigError: one is missing or cannot be used, they don't belong together, or the certificate is not valid now.
    """
    of_certificate, of_key = settings
    if bool(certificate) != bool(key):
        raise ConfigError(f"give both {of_certificate} and {of_key}, or none of them")
    if not certificate:
        return
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for name, path in ((of_certificate, certificate), (of_key, key)):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise ConfigError(f"{name}={path} cannot be read ({error.strerror})") from error
    try:
        client = _trusting(certificate)
    except ssl.SSLError as error:
        raise ConfigError(f"{of_certificate}={certificate} holds no whole certificate in PEM form") from error
    try:
        server.load_cert_chain(certificate, key, password=lambda: b"")  # else OpenSSL asks the terminal
    except (ssl.SSLError, ValueError) as error:
        reason = getattr(error, "reason", "")
        if reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{of_key}={key} is not the key of {of_certificate}={certificate}") from error
        raise ConfigError(
            f"{of_key}={key} cannot be used with {of_certificate}={certificate}: it must hold a key in PEM "
            f"form without a password ({reason or error})"
        ) from error
    try:
        _handshake(server, client)
    except ssl.SSLCertVerificationError as error:
        raise ConfigError(f"no client can use {of_certificate}={certificate}: {error.verify_message}") from error


@lru_cache
def trust(certificate: str) -> ssl.SSLContext | bool:
    """What the endpoint's own probes verify with: this certificate as it was at the first call, for any host.

    It may be renewed on disk or run out while the endpoint runs, and must still be told to drain.
    """
    if not certificate:
        return True
    context = _trusting(certificate)
    context.verify_flags |= NO_CHECK_TIME
    return context


def _trusting(certificate: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the probes come over loopback
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it need not be signed by itself
    context.load_verify_locations(certificate)
    return context


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    while sides:
        for side in list(sides):
            try:
                side.do_handshake()
                sides.remove(side)
            except ssl.SSLWantReadError:
                continue
