"""Fetch a clip from a URL that the allow-list names, so that no client can reach what the endpoint can reach.

The name is resolved once, all its addresses must be public, and the connection goes to the first of them: a name that
means another address a moment later changes nothing. There is no redirect, no proxy, no cookie and no credential.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from pipelines.serving.errors import ApiError
from robometer.configs.allow_list import Address, AllowList, UrlError

DOWNLOADS = 4
"""Clips that one ingress replica fetches, or holds while it decodes them, at a time; more wait."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Fetcher:
    """Fetches what an allow-list allows, within a size and a time."""

    def __init__(self, allowed: AllowList, max_bytes: int, timeout_s: float, tls: ssl.SSLContext | None = None) -> None:
        """Fetch nothing yet.

        Args:
            tls: whose certificates to trust; None: those of the public authorities.
        """
        self._allowed, self._max_bytes, self._timeout_s = allowed, max_bytes, timeout_s
        self._tls = tls or httpx.create_ssl_context(trust_env=False)
        self._slots = asyncio.Semaphore(DOWNLOADS)

    def check(self, url: object, field: str) -> Address:
        """The address that a URL names.

        Raises:
            ApiError: 422, the allow-list does not allow it.
        """
        if not self._allowed.entries:
            sentence = f"Field '{field}' is not taken: this endpoint fetches nothing (serve.url_allow_list is empty)."
            raise ApiError(422, f"{sentence} Upload the file.")
        if not isinstance(url, str):
            raise ApiError(422, f"Field '{field}' must be a URL.")
        try:
            return self._allowed.find(url)
        except UrlError as error:
            raise ApiError(422, f"Field '{field}' {error}.") from None

    @asynccontextmanager
    async def fetched(self, url: object, field: str) -> AsyncIterator[bytes]:
        """What is at a URL. End the block soon: others wait for it.

        Raises:
            ApiError: 422 where it may not or cannot be fetched, 408 where it does not come in time, 413 where it is
                too large.
        """
        address = self.check(url, field)
        async with self._slots:
            try:
                async with asyncio.timeout(self._timeout_s):
                    content = await self._get(address, field)
            except TimeoutError:
                limit = f"{self._timeout_s:g} s (serve.body_timeout_s)"
                raise ApiError(408, f"What field '{field}' names did not arrive within {limit}.") from None
            except (httpx.TransportError, OSError, UnicodeError) as error:
                cause = type(error).__name__
                raise ApiError(422, f"What field '{field}' names cannot be fetched ({cause}).") from error
            yield content

    async def _get(self, address: Address, field: str) -> bytes:
        ip = await self._resolve(address, field)
        target = f"{address.path}?{address.query}" if address.query else address.path
        request = httpx.Request(
            "GET",
            httpx.URL(scheme=address.scheme, host=ip, port=address.port, raw_path=target.encode()),
            headers={"Host": address.host_and_port, "Accept-Encoding": "identity", "User-Agent": "robometer"},
            # The certificate must be that of the name, though the connection is to an address.
            extensions={"sni_hostname": address.host, "timeout": httpx.Timeout(self._timeout_s).as_dict()},
        )
        async with httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False) as transport:
            response = await transport.handle_async_request(request)
            try:
                self._check(response, field)
                return await self._body(response, field)
            finally:
                await response.aclose()

    async def _resolve(self, address: Address, field: str) -> str:
        """An IP address of the host; all that it has must be public, except one that an entry names itself."""
        found = await asyncio.get_running_loop().getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        ips = [str(entry[4][0]) for entry in found]
        if not ips or not all(is_public(ip) or ip == address.host for ip in ips):
            raise ApiError(422, f"Field '{field}' names a host whose address is not public. Upload the file.")
        return ips[0]

    def _check(self, response: httpx.Response, field: str) -> None:
        status, encoding = response.status_code, response.headers.get("content-encoding", "identity")
        if 300 <= status < 400:
            sentence = f"What field '{field}' names is a redirect ({status})."
            raise ApiError(422, f"{sentence} Give the address of the file itself.")
        if status != 200:
            raise ApiError(422, f"The server that field '{field}' names answered {status}.")
        if encoding.strip().lower() != "identity":
            raise ApiError(422, f"What field '{field}' names has a content encoding. It must come as it is.")

    async def _body(self, response: httpx.Response, field: str) -> bytes:
        declared, body = response.headers.get("content-length", ""), bytearray()
        too_large = declared.isdecimal() and int(declared[:20]) > self._max_bytes
        if not too_large:
            async for chunk in response.aiter_raw():
                body += chunk
                too_large = len(body) > self._max_bytes
                if too_large:
                    break
        if too_large:
            limit = f"{self._max_bytes} bytes (serve.max_upload_bytes)"
            raise ApiError(413, f"What field '{field}' names is larger than {limit}.")
        return bytes(body)


def is_public(ip: str) -> bool:
    """Whether an address belongs to the public internet, and to one machine; also where IPv6 holds one of IPv4."""
    address = ipaddress.ip_address(ip)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return is_public(str(address.ipv4_mapped))
        if address.sixtofour or address.teredo or address in _NAT64 or address.scope_id:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)
