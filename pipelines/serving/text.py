"""Text of a request: JSON that cannot become more objects than memory holds, and instructions."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from typing import Any

from pipelines.serving.backend import MAX_TASK_CHARS
from pipelines.serving.errors import ApiError

_CHUNK_BYTES = 1 << 20
_ASCII = bytes(range(128))
_MAX_DIGITS, _MAX_CHARS = 9, 32


def parse_json(
    texts: Sequence[bytes],
    max_items: int,
    contents: str,
    nan: bool = False,
    tasks: int = 1,
    names: Sequence[str] = ("The body",),
) -> list[Any]:
    """Parse JSON texts, after checking that together they cannot become more objects than a valid request has.

    A valid request has about one mark ([ { : ,) for each of `max_items`; only instructions may hold more, and only they
    may hold letters that are not ASCII. The same goes for escapes, except that some writers escape each slash of
    base64. Whole numbers of up to 9 digits and others of up to 32 characters are read; longer ones become None, as
    they take long to convert.

    Args:
        contents: what the items are, for the error.
        nan: whether to read NaN and Infinity, which Python writes and JSON does not have, as None.
        tasks: how many instructions all texts may hold.
        names: of the texts, for the error.

    Raises:
        ApiError: 400 for what is not JSON, 413 for too many items, 422 for a repeated key.
    """
    _check_counts(texts, max_items, contents, tasks)
    return [_parsed(text, nan, name) for text, name in zip(texts, names, strict=True)]


def _check_counts(texts: Sequence[bytes], max_items: int, contents: str, tasks: int) -> None:
    marks_left, letters_left = max_items + MAX_TASK_CHARS + 100, 4 * MAX_TASK_CHARS * tasks
    escapes_left = sum(map(len, texts)) // 16 + 6 * MAX_TASK_CHARS * tasks
    for text in texts:
        for start in range(0, len(text), _CHUNK_BYTES):
            chunk = text[start : start + _CHUNK_BYTES]
            marks_left -= sum(chunk.count(mark) for mark in b"[{:,")
            escapes_left -= chunk.count(b"\\")
            letters_left -= len(chunk.translate(None, delete=_ASCII))
            if min(marks_left, escapes_left, letters_left) < 0:
                raise ApiError(413, f"The JSON holds more items, escapes or letters than {contents}. Send fewer.")


def _parsed(text: bytes, nan: bool, name: str) -> Any:
    try:
        return json.loads(
            text.decode(),
            object_pairs_hook=_without_doubles,
            parse_int=lambda digits: int(digits) if len(digits) <= _MAX_DIGITS else None,
            parse_float=lambda digits: float(digits) if len(digits) <= _MAX_CHARS else None,
            parse_constant=(lambda name: None) if nan else _refuse_constant,
        )
    except UnicodeDecodeError:
        raise ApiError(400, f"{name} is not JSON: it is not UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"{name} is not JSON: {error}.") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, item in pairs:
        if name in value:
            raise ApiError(422, f"Field {name[:80]!r} is given more than once.")
        value[name] = item
    return value


def checked_task(value: Any, field: str = "task", may_be_empty: bool = False) -> str:
    """The instruction, which from here on can be encoded and printed.

    Raises:
        ApiError: 422, there is none, it is too long, or it is not plain text.
    """
    if value is None and may_be_empty:
        return ""
    if not isinstance(value, str) or not (value.strip() or may_be_empty):
        raise ApiError(422, f"Field '{field}' is missing or empty. Say in words what the robot should do.")
    if len(value) > MAX_TASK_CHARS:
        raise ApiError(422, f"Field '{field}' has {len(value)} characters; the limit is {MAX_TASK_CHARS}.")
    if any(unicodedata.category(char) in ("Cc", "Cs") and char not in "\t\r\n" for char in value):
        raise ApiError(422, f"Field '{field}' holds control characters or half of a surrogate pair. Send plain text.")
    return value.strip()
