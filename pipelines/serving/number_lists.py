"""Frames as nested lists of numbers in JSON, `[T, H, W, C]`, read without making an object of each number."""

from __future__ import annotations

import re
import secrets

import numpy as np

from pipelines.serving.errors import ApiError

PLACE = secrets.token_hex(16)
"""The key of an object that stands in place of a list: no client can name the list of another sample."""

_FRAMES = re.compile(rb'"frames"\s*:\s*(\[[\[\]0-9,\s]*\])')


def cut_out(text: bytes, first: int) -> tuple[bytes, list[bytes]]:
    """JSON with `{PLACE: number}` in place of each list of frames, counted from `first`, and these lists.

    A list that holds anything but whole numbers stays where it is.
    """
    lists: list[bytes] = []

    def number(match: re.Match[bytes]) -> bytes:
        lists.append(match[1])
        return b'"frames":{"%s":%d}' % (PLACE.encode(), first + len(lists) - 1)

    return _FRAMES.sub(number, text), lists


def read_numbers(text: bytes, field: str, max_bytes: int) -> np.ndarray:
    """The array of a list, uint8.

    Raises:
        ApiError: 413 for more than `max_bytes` numbers, 422 where it is no array of 3 or 4 dimensions.
    """
    bare = text.translate(None, b" \t\r\n")
    skeleton = bare.translate(None, b"0123456789")
    shape = _shape(skeleton)
    if shape is not None and _is_of(skeleton, shape):
        count = int(np.prod(shape, dtype=np.int64))
        if count > max_bytes:
            raise ApiError(413, f"Field '{field}' has {count} numbers; the limit is {max_bytes}.")
        values = _numbers(text)
        # A place without a number makes one less, and blanks in a number make one more in `text` than in `bare`.
        if values is not None and len(values) == count == len(_edges(bare)[0]):
            return values.reshape(shape)
    raise ApiError(422, f"Field '{field}' must be lists of whole numbers from 0 to 255, [T, H, W, 3].")


def _edges(text: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the first digit and after the last digit of each number."""
    letters = np.frombuffer(text, np.uint8)
    is_digit = np.concatenate([[False], (letters >= ord("0")) & (letters <= ord("9")), [False]])
    return np.flatnonzero(is_digit[1:] & ~is_digit[:-1]), np.flatnonzero(is_digit[:-1] & ~is_digit[1:])


def _numbers(text: bytes) -> np.ndarray | None:
    """The numbers in a text, uint8; None if one is above 255."""
    starts, ends = _edges(text)
    lengths = ends - starts
    if lengths.max(initial=0) > 3:
        return None
    digits = np.frombuffer(text, np.uint8) - ord("0")
    values = digits[starts].astype(np.uint16)
    for place in (1, 2):
        longer = lengths > place
        values[longer] = 10 * values[longer] + digits[starts[longer] + place]
    return None if values.max(initial=0) > 255 else values.astype(np.uint8)


def _shape(skeleton: bytes) -> tuple[int, ...] | None:
    """The sizes that the first items of lists without their numbers say; None for a list that is no array."""
    depth = len(skeleton) - len(skeleton.lstrip(b"["))
    if depth not in (3, 4):
        return None
    sizes = []
    for level in range(1, depth + 1):  # from the innermost list out
        end = skeleton.find(b"]" * level)
        if end < 0:
            return None
        inner = skeleton[depth - level : end + level]
        sizes.append(inner.count(b"," + b"[" * (level - 1) if level > 1 else b",") + 1)
    return tuple(reversed(sizes))


def _is_of(skeleton: bytes, shape: tuple[int, ...]) -> bool:
    """Whether an array of this shape looks like this without its numbers."""
    length = 0
    for size in reversed(shape):
        length = 2 + size * length + size - 1
    if length != len(skeleton):  # it may be far longer than the text
        return False
    lists = b""
    for size in reversed(shape):
        lists = b"[" + b",".join([lists] * size) + b"]"
    return lists == skeleton
