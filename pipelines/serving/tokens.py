"""Who may use the endpoint: its bearer tokens, their names, and their limits.

A file lists tokens by their SHA-256. `robometer serve-token` makes tokens of 256 random bits, which nobody can guess: a
slow hash, which passwords need, would add nothing. The hash of a request's token is compared with every entry, so that
the time does not tell how near a guess came. The file is read again when it changes.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from starlette.datastructures import Headers
from starlette.types import Scope

from pipelines.serving.errors import ApiError
from robometer.settings import ConfigError, did_you_mean

logger = logging.getLogger(__name__)

ANONYMOUS, SINGLE = "anonymous", "default"
"""Names of clients without a token, where none is needed, and with `serve.token`."""

CHECK_S = 1.0
"""How often the file is looked at: a token that is taken out of it is refused after at most this long."""

SUBPROTOCOL = "bearer."
"""How the WebSocket subprotocol begins that carries a token, as base64url without padding: browsers set no headers."""

MAX_FILE_BYTES = 2**18

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class TokenLimits:
    """What one token may use; None: no limit.

    Attributes:
        requests_per_minute: uploads that begin within any 60 s.
        requests_at_a_time: uploads that are not answered yet.
        bytes_per_minute: bytes of the bodies that begin within any 60 s.
        session_trajectories: trajectories in open sessions, on each replica of the model.
        kept_jobs: jobs that have not ended, or whose results are kept.
    """

    requests_per_minute: int | None = None
    requests_at_a_time: int | None = None
    bytes_per_minute: int | None = None
    session_trajectories: int | None = None
    kept_jobs: int | None = None


@dataclass(frozen=True)
class Client:
    """Who sends a request."""

    name: str = ANONYMOUS
    limits: TokenLimits = field(default_factory=TokenLimits)


class Tokens:
    """The tokens of an endpoint: `serve.token`, those of `serve.token_file`, or both."""

    def __init__(self, token: str = "", path: str = "") -> None:
        """Read the file.

        Raises:
            ConfigError: it cannot be read, or an entry is wrong.
        """
        self._token, self._path = token.encode(), path
        self._entries: dict[str, Client] = {}
        self._seen, self._looked_s = _signature(path), time.monotonic()
        if path:
            self._entries = read_tokens(Path(path))

    @property
    def wanted(self) -> bool:
        """Whether requests must carry a token. A file that lists none admits nobody."""
        return bool(self._token or self._path)

    def authenticate(self, scope: Scope) -> Client:
        """Who sends a request or opens a WebSocket: by its `Authorization` header, else by its subprotocol.

        Raises:
            ApiError: 401.
        """
        if not self.wanted:
            return Client()
        token = _presented(scope)
        if not token:
            raise _unauthorized("A bearer token is required. Send the header 'Authorization: Bearer TOKEN'.")
        return self.client_of(token)

    def client_of(self, token: bytes) -> Client:
        """Whose token this is.

        Raises:
            ApiError: 401, it is nobody's.
        """
        self._look()
        found = Client(SINGLE) if self._token and hmac.compare_digest(token, self._token) else None
        digest = hashlib.sha256(token).hexdigest()
        for known, client in self._entries.items():  # all of them, so that the time does not say which
            if hmac.compare_digest(digest, known):
                found = client
        if found is None:
            raise _unauthorized("The bearer token is not the one of this endpoint, or it was revoked.")
        return found

    def _look(self) -> None:
        """Read the file again if it has changed; a damaged one leaves the tokens as they were."""
        if not self._path or time.monotonic() - self._looked_s < CHECK_S:
            return
        self._looked_s = time.monotonic()
        signature = _signature(self._path)
        if signature == self._seen:
            return
        self._seen = signature
        try:
            self._entries = read_tokens(Path(self._path))
            logger.warning("%s has changed: it lists %d tokens.", self._path, len(self._entries))
        except ConfigError as error:
            logger.error("The tokens stay as they were, and nothing is revoked, until this is mended: %s", error)


def read_tokens(path: Path) -> dict[str, Client]:
    """The clients that a token file lists, by the SHA-256 of their tokens.

    Raises:
        ConfigError: it cannot be read, or an entry is wrong.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"serve.token_file={path} cannot be read ({error.strerror}).") from error
    if len(content) > MAX_FILE_BYTES:
        raise ConfigError(f"serve.token_file={path} is larger than {MAX_FILE_BYTES} bytes.")
    return _parsed(content, path)


def _parsed(content: bytes, path: Path) -> dict[str, Client]:
    try:
        entries = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = "" if line is None else f" (line {line + 1})"
        raise ConfigError(f"serve.token_file={path} is not YAML{where}.") from error
    if not isinstance(entries, list):  # also an empty file: an editor may be about to fill it
        make = "make entries with `robometer serve-token NAME`, or write [] to admit nobody"
        raise ConfigError(f"serve.token_file={path} must be a YAML list of tokens: {make}.")
    clients, names = dict[str, Client](), set[str]()
    for number, entry in enumerate(entries, 1):
        where = f"entry {number} of serve.token_file={path}"
        digest, client = _entry(entry, where)
        if digest in clients or client.name in names:
            raise ConfigError(f"{where} repeats the name or the token of another entry.")
        clients[digest] = client
        names.add(client.name)
    return clients


def _entry(entry: Any, where: str) -> tuple[str, Client]:
    keys = ["name", "sha256", *(limit.name for limit in fields(TokenLimits))]
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} must have the keys name and sha256.")
    unknown = next((key for key in entry if key not in keys), None)
    if unknown is not None:
        raise ConfigError(f"{where} has the unknown key {str(unknown)[:80]!r}.{did_you_mean(str(unknown), keys)}")
    name, digest = check_name(entry.get("name"), where), entry.get("sha256")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
        raise ConfigError(f"{where} must have sha256, 64 small hexadecimal digits in quotes.")
    limits = {key: value for key, value in entry.items() if key not in ("name", "sha256")}
    for key, value in limits.items():
        if type(value) is not int or value < 1:
            raise ConfigError(f"{where}: {key} must be a whole number of at least 1; without it there is no limit.")
    return digest, Client(name, TokenLimits(**limits))


def check_name(name: object, where: str) -> str:
    """The name of a token, unchanged.

    Raises:
        ConfigError: it is none, or taken.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where} needs a name of 1 to 64 letters, digits and ._- that starts with a letter or digit."
        )
    if name in (ANONYMOUS, SINGLE):
        raise ConfigError(f"{where}: the name {name} is taken by the endpoint itself. Choose another one.")
    return name


def add_token(path: Path, name: str, limits: TokenLimits) -> str:
    """Make a token, append its hash to a file, which is made if need be, and return the token.

    Raises:
        ConfigError: the name cannot be used or stands in the file already, the file is damaged, or cannot be written.
    """
    check_name(name, "a token")
    content = path.read_bytes() if path.exists() else b""
    if name in {client.name for client in (_parsed(content, path) if content.strip() else {}).values()}:
        raise ConfigError(f"{path} has a token of the name {name}. Choose another name, or delete that line first.")
    token = f"robometer_{secrets.token_urlsafe(32)}"
    entry = {"name": name, "sha256": hashlib.sha256(token.encode()).hexdigest()}
    entry |= {key: value for key, value in asdict(limits).items() if value is not None}
    line = b"" if content.endswith(b"\n") or not content else b"\n"
    line += f"- {json.dumps(entry)}\n".encode()  # JSON is YAML, and its quotes keep a name a text
    _parsed(content + line, path)
    try:
        with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as file:
            file.write(line)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}).") from error
    return token


def _presented(scope: Scope) -> bytes:
    """The token that a scope carries; empty: none that can be read."""
    scheme, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
    if scheme:  # header values are latin-1 to ASGI; the token's bytes are UTF-8
        return token.strip().encode("latin-1") if scheme.lower() == "bearer" else b""
    return next(_of_subprotocols(scope), b"") if scope["type"] == "websocket" else b""


def _of_subprotocols(scope: Scope) -> Iterator[bytes]:
    for subprotocol in scope.get("subprotocols") or ():
        if subprotocol.startswith(SUBPROTOCOL):
            text = subprotocol.removeprefix(SUBPROTOCOL)
            try:
                yield base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            except (binascii.Error, ValueError):
                yield b""


def _unauthorized(sentence: str) -> ApiError:
    return ApiError(401, sentence, {"WWW-Authenticate": "Bearer"})


def _signature(path: str) -> tuple[int, ...] | None:
    """What changes when a file does; None where there is none."""
    try:
        status = os.stat(path) if path else None
    except OSError:
        return None
    return status and (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
