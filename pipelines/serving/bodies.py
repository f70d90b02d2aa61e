"""From a request body to clips. Whatever is wrong with it is an `ApiError` of one sentence."""

from __future__ import annotations

import asyncio
import json
import unicodedata
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from pipelines.serving.decoding import Decoders
from pipelines.serving.errors import ApiError
from pipelines.serving.jobs import MAX_TASK_CHARS
from pipelines.serving.multipart import Part, check_charset, parse_form, split_header
from robometer.scoring import Clip

_CHUNK_BYTES = 1 << 20
_ASCII = bytes(range(128))


@dataclass(frozen=True)
class Input:
    """A clip and where its frames come from: positions in the source, and frames per second where known."""

    clip: Clip
    frame_index: list[int]
    fps: float | None


async def read_inputs(request: Request, suffixes: Sequence[str], decoders: Decoders, held: ExitStack) -> list[Input]:
    """One clip for each suffix: fields `video{suffix}` or `frames{suffix}`, or JSON `frames_base64{suffix}`.

    Args:
        held: whose end says that the frames are not needed any more.

    Raises:
        ApiError: 400, 413, 415, 422 or 503.
    """
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ApiError(415, "a content encoding is not understood: send the body as it is")
    kind, parameters = split_header(request.headers.get("content-type", ""))
    check_charset(parameters)
    if kind == "application/json":
        return await _from_json(await request.body(), suffixes, decoders, held)
    if kind == "multipart/form-data":
        return await _from_form(await request.body(), parameters.get("boundary", ""), suffixes, decoders, held)
    raise ApiError(415, f"content type {kind[:80]!r} is not understood: send multipart/form-data or application/json")


async def _from_form(
    body: bytes, boundary: str, suffixes: Sequence[str], decoders: Decoders, held: ExitStack
) -> list[Input]:
    known = ["task", *(f"{name}{suffix}" for suffix in suffixes for name in ("video", "frames"))]
    parts = await asyncio.to_thread(parse_form, body, boundary, known)
    task = _task(_text(parts.get("task")))
    inputs = []
    for suffix in suffixes:
        given = [name for name in ("video", "frames") if f"{name}{suffix}" in parts]
        if len(given) != 1:
            raise ApiError(422, f"send exactly one of the fields 'video{suffix}' (mp4) and 'frames{suffix}' (npy)")
        field = f"{given[0]}{suffix}"
        if parts[field].filename is None:
            raise ApiError(422, f"field '{field}' must be a file part, with a filename")
        decode = decoders.video if given == ["video"] else decoders.npy
        decoded = await decode(parts[field].data, field)
        held.enter_context(decoders.holding(decoded.frames))
        inputs.append(Input(Clip(decoded.frames, task), decoded.frame_index, decoded.fps))
    return inputs


async def _from_json(body: bytes, suffixes: Sequence[str], decoders: Decoders, held: ExitStack) -> list[Input]:
    names = [f"frames_base64{suffix}" for suffix in suffixes]
    value = await asyncio.to_thread(_parse_json, body, len(names) * decoders.limits.max_source_frames)
    if not isinstance(value, dict):
        raise ApiError(422, "the JSON body must be an object with the keys 'task' and 'frames_base64'")
    unknown = next((name for name in value if name not in ("task", *names)), None)
    if unknown is not None:
        raise ApiError(422, f"field {unknown[:80]!r} is unknown; this route knows task, {', '.join(names)}")
    task = _task(value.get("task"))
    inputs = []
    for name in names:
        decoded = await decoders.images(value.get(name), name)
        held.enter_context(decoders.holding(decoded.frames))
        inputs.append(Input(Clip(decoded.frames, task), decoded.frame_index, decoded.fps))
    return inputs


def _parse_json(body: bytes, max_items: int) -> Any:
    """The JSON value of a body that was bounded before any object is made of it.

    Its only lists hold images, so that there are about as many marks ([ { : ,) as images; besides these only the task
    may hold some, and only the task may hold letters that are not ASCII. The same goes for escapes, but that some
    writers put one before each slash of base64. No number is part of a body: none is converted, whatever its length.
    """
    marks_left, letters_left = max_items + MAX_TASK_CHARS + 100, 4 * MAX_TASK_CHARS
    escapes_left = len(body) // 16 + 6 * MAX_TASK_CHARS
    for start in range(0, len(body), _CHUNK_BYTES):
        chunk = body[start : start + _CHUNK_BYTES]
        marks_left -= sum(chunk.count(mark) for mark in b"[{:,")
        escapes_left -= chunk.count(b"\\")
        letters_left -= len(chunk.translate(None, delete=_ASCII))
        if min(marks_left, escapes_left, letters_left) < 0:
            sentence = f"the JSON body holds more items, escapes or letters than a task and {max_items} images need"
            raise ApiError(413, f"{sentence}: send fewer")
    try:
        return json.loads(
            body.decode(),
            object_pairs_hook=_without_doubles,
            parse_int=lambda digits: None,
            parse_float=lambda digits: None,
            parse_constant=_refuse_constant,
        )
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not JSON: it is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, item in pairs:
        if name in value:
            raise ApiError(422, f"field {name[:80]!r} is given more than once")
        value[name] = item
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


def _text(part: Part | None) -> str | None:
    if part is None or part.filename is not None:
        return None
    try:
        return part.data.decode()
    except UnicodeDecodeError:
        raise ApiError(422, "field 'task' is not UTF-8") from None


def _task(value: Any) -> str:
    """The instruction, checked once for all that comes after: text that can be encoded and printed."""
    if not isinstance(value, str) or not value.strip():
        raise ApiError(422, "field 'task' is missing or empty: say in words what the robot should do")
    if len(value) > MAX_TASK_CHARS:
        raise ApiError(422, f"field 'task' has {len(value)} characters, more than {MAX_TASK_CHARS}")
    if any(unicodedata.category(char) in ("Cc", "Cs") and char not in "\t\r\n" for char in value):
        raise ApiError(422, "field 'task' holds control characters or half of a surrogate pair: send plain text")
    return value.strip()
