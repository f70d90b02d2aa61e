"""Multipart forms and header parameters, read strictly: anything ambiguous is refused.

The parser searches the whole body at C speed, so that no body can take long, however it is built.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from pipelines.serving.errors import ApiError

MAX_HEADER_BYTES = 4096
"""Limit of the header lines of one part."""

MAX_PARTS = 3000
"""Limit of the parts of a form whose names are free."""

_STEP_BYTES = 1 << 20

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105
_PARAMETER = re.compile(rf'\s*;\s*({_TOKEN})=(?:({_TOKEN})|"((?:[^"\\]|\\.)*)")', re.DOTALL)
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_PLAIN_ENCODINGS = ("7bit", "8bit", "binary")


@dataclass(frozen=True)
class FormPart:
    """One field of a form; `filename` is None where it is text."""

    data: bytes
    filename: str | None


def split_header(value: str) -> tuple[str, dict[str, str]]:
    """Split a header such as `text/plain; charset=utf-8` into its value and its parameters, in lower case.

    Raises:
        ApiError: 400, it is malformed or has a parameter twice.
    """
    head, semicolon, rest = value.partition(";")
    rest = (semicolon + rest).rstrip("; \t")
    parameters: dict[str, str] = {}
    position = 0
    while position < len(rest):
        match = _PARAMETER.match(rest, position)
        if match is None or match[1].lower() in parameters:
            raise ApiError(400, f"The header value {value[:80]!r} is malformed or has a parameter twice.")
        parameters[match[1].lower()] = match[2] or re.sub(r"\\(.)", r"\1", match[3] or "", flags=re.DOTALL)
        position = match.end()
    return head.strip().lower(), parameters


def check_charset(parameters: dict[str, str]) -> None:
    """Refuse text whose charset is not UTF-8.

    Raises:
        ApiError: 400.
    """
    charset = parameters.get("charset", "utf-8")
    if charset.lower() not in ("utf-8", "utf8", "us-ascii"):
        raise ApiError(400, f"Charset {charset[:40]!r} is not supported. Send text as UTF-8.")


def parse_form(body: bytes, boundary: str, names: Collection[str] | None = None) -> dict[str, FormPart]:
    """The fields of a multipart/form-data body by name; it may hold each of `names` once, or any name.

    Raises:
        ApiError: 400 for a malformed body, 413 for too many fields, 422 for a field that is unknown or repeated.
    """
    if not _BOUNDARY.fullmatch(boundary):
        raise ApiError(400, "The multipart boundary is missing or malformed. It has 1 to 70 plain characters.")
    delimiter = b"\r\n--" + boundary.encode()
    if not body.startswith(delimiter[2:]):
        raise ApiError(400, "The multipart body does not start with its boundary.")
    parts: dict[str, FormPart] = {}
    position = len(delimiter) - 2
    while not body.startswith(b"--", position):
        # A boundary may be followed by blanks.
        line_end = body.find(b"\r\n", position, position + 80)
        if line_end < 0 or body[position:line_end].strip(b" \t"):
            raise ApiError(400, "The multipart body is malformed: a boundary is not followed by a line break or '--'.")
        head_end = body.find(b"\r\n\r\n", line_end, line_end + MAX_HEADER_BYTES)
        data_end = -1 if head_end < 0 else _find(body, delimiter, head_end + 4)
        if data_end < 0:
            raise ApiError(400, "The multipart body is malformed or cut short: a part has no header or no end.")
        name, filename = _described(body[line_end + 2 : head_end])
        if len(parts) == MAX_PARTS:
            raise ApiError(413, f"The multipart body has more than {MAX_PARTS} parts. Send fewer samples.")
        if names is not None and name not in names:
            raise ApiError(422, f"Unknown field {name[:80]!r}. This route takes {', '.join(names)}.")
        if name in parts:
            raise ApiError(422, f"Field {name[:80]!r} is given more than once.")
        parts[name] = FormPart(body[head_end + 4 : data_end], filename)
        position = data_end + len(delimiter)
    if body[position + 2 : position + 80].strip(b" \t\r\n") or len(body) > position + 80:
        raise ApiError(400, "The multipart body goes on after its last boundary.")
    return parts


def _find(body: bytes, delimiter: bytes, start: int) -> int:
    """`body.find` in steps, between which other threads can run."""
    for start_of_step in range(start, len(body), _STEP_BYTES):
        position = body.find(delimiter, start_of_step, start_of_step + _STEP_BYTES + len(delimiter) - 1)
        if position >= 0:
            return position
    return -1


def _described(head: bytes) -> tuple[str, str | None]:
    """Name and filename of a part from its header lines."""
    try:
        lines = [line.partition(":") for line in head.decode().split("\r\n")]
    except UnicodeDecodeError:
        raise ApiError(400, "A part of the multipart body has a header that is not UTF-8.") from None
    headers = {name.strip().lower(): value.strip() for name, _, value in lines}
    if len(headers) < len(lines):
        raise ApiError(400, "A part of the multipart body has a header twice.")
    if headers.get("content-transfer-encoding", "binary").lower() not in _PLAIN_ENCODINGS:
        raise ApiError(400, "A part of the multipart body has a transfer encoding. Send its bytes as they are.")
    check_charset(split_header(headers.get("content-type", ""))[1])
    kind, parameters = split_header(headers.get("content-disposition", ""))
    if kind != "form-data" or "name" not in parameters:
        raise ApiError(400, "A part of the multipart body has no header 'Content-Disposition: form-data; name=...'.")
    filename = parameters.get("filename", parameters.get("filename*"))
    return parameters["name"], filename
