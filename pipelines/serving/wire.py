"""Messages in the wire format of Protocol Buffers, read field by field and without copies.

The library makes an object of every item: 64 MiB of empty items became 1.3 GB and took 4 s, and half of a request is
fields that nobody reads. Here they are skipped, and a message with too many fields is refused.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.serving.errors import ApiError

CONTENT_TYPE = "application/x-protobuf"

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Kinds of values."""

Value = int | memoryview

_SIZES = {FIXED64: 8, FIXED32: 4}
_MAX_VARINT_BYTES = 10


class Reader:
    """Reads one message and those inside it, of `max_fields` fields together."""

    def __init__(self, max_fields: int) -> None:
        self._max_fields = self._fields_left = max_fields

    def fields(self, message: memoryview) -> Iterator[tuple[int, int, Value]]:
        """Number, kind and value of each field: a whole number from 0 for `VARINT`, else the bytes.

        Raises:
            ApiError: 400, the message is malformed or cut short; 413, it has too many fields.
        """
        position = 0
        while position < len(message):
            self._fields_left -= 1
            if self._fields_left < 0:
                raise ApiError(413, f"The message has more than {self._max_fields} fields. Send a shorter trajectory.")
            tag, position = _varint(message, position)
            number, kind = tag >> 3, tag & 7
            if number == 0:
                raise _malformed()
            if kind == VARINT:
                value, position = _varint(message, position)
                yield number, kind, value
                continue
            size = _SIZES.get(kind, 0)
            if kind == BYTES:
                size, position = _varint(message, position)
            if not (size or kind == BYTES) or size > len(message) - position:
                raise _malformed()
            yield number, kind, message[position : position + size]
            position += size


def text(value: Value, kind: int, field: str) -> str:
    """The text in a field.

    Raises:
        ApiError: 400, it is not text.
    """
    try:
        return str(inner(value, kind), "utf-8")
    except UnicodeDecodeError:
        raise ApiError(400, f"Field '{field}' is not UTF-8.") from None


def inner(value: Value, kind: int) -> memoryview:
    """The message or the bytes in a field.

    Raises:
        ApiError: 400, it holds something else.
    """
    if kind != BYTES or isinstance(value, int):
        raise _malformed()
    return value


def int32s(value: Value, kind: int, limit: int, field: str) -> list[int]:
    """The numbers in one field: one, or several that are packed.

    Raises:
        ApiError: 400, it holds something else; 413, there are more than `limit`.
    """
    if kind == VARINT and isinstance(value, int):
        return [_signed(value)]
    packed, numbers, position = inner(value, kind), list[int](), 0
    while position < len(packed):
        if len(numbers) == limit:
            raise ApiError(413, f"Field '{field}' has more than {limit} numbers. Ask for fewer.")
        number, position = _varint(packed, position)
        numbers.append(_signed(number))
    return numbers


def varint(value: int) -> bytes:
    """A whole number from 0, to write."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def chunk(number: int, content: bytes) -> bytes:
    """A field that holds bytes, text in UTF-8, packed numbers or a message, to write."""
    return varint(number << 3 | BYTES) + varint(len(content)) + content


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """The number at `position`, and the position after it."""
    value = 0
    for shift, byte in enumerate(message[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, position + shift + 1
    raise _malformed()


def _signed(value: int) -> int:
    """As an int32 reads it: the lowest 32 bits."""
    low = value & 0xFFFFFFFF
    return low - (1 << 32) if low >> 31 else low


def _malformed() -> ApiError:
    return ApiError(400, "The message is malformed or cut short. Send what relabel.proto describes.")
