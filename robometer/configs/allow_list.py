"""Which addresses the endpoint may fetch a clip from: the entries of `serve.url_allow_list`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

from robometer.settings import ConfigError

_PORTS = {"https": 443, "http": 80}
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_MAX_URL_CHARS = 2000


class UrlError(ValueError):
    """A URL that may not be fetched; the message says why and never quotes it, as it may hold a secret."""


@dataclass(frozen=True)
class Address:
    """A place that a URL or an entry names.

    Attributes:
        scheme: `https` or `http`.
        host: a name or an IP address, in lower case.
        path: with its leading slash, as it was written.
        query: without its question mark.
    """

    scheme: str
    host: str
    port: int
    path: str
    query: str = ""

    def allows(self, url: Address) -> bool:
        """Whether this entry allows a URL: the same scheme, host and port, and a path that is this or below it."""
        if (self.scheme, self.host, self.port) != (url.scheme, url.host, url.port):
            return False
        return url.path == self.path or url.path.startswith(f"{self.path.rstrip('/')}/")

    @property
    def host_and_port(self) -> str:
        """As a `Host` header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True)
class AllowList:
    """Entries such as `data.example.org`, `data.example.org/clips` or `http://10.0.0.7:9000/clips`."""

    entries: tuple[Address, ...] = ()

    @classmethod
    def of(cls, texts: Iterable[str]) -> AllowList:
        """The entries of the setting; one without a scheme means https.

        Raises:
            ConfigError: one is not a host with or without a path.
        """
        return cls(tuple(_entry(text) for text in texts))

    def find(self, url: str) -> Address:
        """The address of a URL that an entry allows.

        Raises:
            UrlError: none does, or the URL has a form that could mean something else to another reader.
        """
        address = _address(url)
        if not any(entry.allows(address) for entry in self.entries):
            raise UrlError("is not on the list of addresses that this endpoint fetches (serve.url_allow_list)")
        return address


def _entry(text: str) -> Address:
    try:
        entry = _address(text if "://" in text else f"https://{text}")
    except UrlError as error:
        raise ConfigError(f"serve.url_allow_list: {text!r} {error}") from error
    if entry.query:
        raise ConfigError(f"serve.url_allow_list: {text!r} has a query: name a host, and a path if you like")
    return entry


def _address(url: str) -> Address:
    if not re.fullmatch(r"[!-~]+", url) or len(url) > _MAX_URL_CHARS or "\\" in url:
        raise UrlError(f"must have up to {_MAX_URL_CHARS} plain characters, others percent-encoded, and no backslash")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise UrlError("has a host or a port that cannot be read") from None
    _check(parts)
    path = parts.path or "/"
    if re.search(r"%(2f|5c|00)", path, re.IGNORECASE) or {".", ".."} & set(unquote(path).split("/")):
        raise UrlError("has a path with dot segments or encoded slashes")
    host = (parts.hostname or "").lower()
    if not _is_address(host) and not _HOST.fullmatch(host):
        raise UrlError("has a host that is neither a name in plain letters nor an IP address")
    return Address(parts.scheme, host, _PORTS[parts.scheme] if port is None else port, path, parts.query)


def _check(parts: SplitResult) -> None:
    if parts.scheme not in _PORTS:
        raise UrlError("must begin with https:// (or http://, where the list says so)")
    if "@" in parts.netloc:
        raise UrlError("holds a user name or a password: leave them out")
    if parts.fragment:
        raise UrlError("has a fragment (#): leave it out")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
