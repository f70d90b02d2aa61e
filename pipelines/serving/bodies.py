"""From a request body to clips. Anything wrong with the body is an `ApiError`."""

from __future__ import annotations

import asyncio
import json
import unicodedata
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from pipelines.serving.backend import MAX_TASK_CHARS
from pipelines.serving.decoding import Decoders
from pipelines.serving.errors import ApiError
from pipelines.serving.multipart import FormPart, check_charset, parse_form, split_header
from robometer.scoring import Clip

_CHUNK_BYTES = 1 << 20
_ASCII = bytes(range(128))


@dataclass(frozen=True)
class UploadedClip:
    """A clip that was uploaded.

    Attributes:
        frame_index: [T], position of each frame in the source.
        fps: frames per second of the source, where it is known.
    """

    clip: Clip
    frame_index: list[int]
    fps: float | None


async def read_clips(
    request: Request, suffixes: Sequence[str], decoders: Decoders, frames_in_memory: ExitStack
) -> list[UploadedClip]:
    """Read one clip for each suffix, from fields `video{suffix}` or `frames{suffix}`, or JSON `frames_base64{suffix}`.

    Args:
        frames_in_memory: close it when the frames are not needed any more.

    Raises:
        ApiError: 400, 413, 415, 422 or 503.
    """
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ApiError(415, "Content encodings are not supported. Send the body as it is.")
    kind, parameters = split_header(request.headers.get("content-type", ""))
    check_charset(parameters)
    if kind == "application/json":
        return await _from_json(await request.body(), suffixes, decoders, frames_in_memory)
    if kind == "multipart/form-data":
        boundary = parameters.get("boundary", "")
        return await _from_form(await request.body(), boundary, suffixes, decoders, frames_in_memory)
    raise ApiError(415, f"Content type {kind[:80]!r} is not supported. Send multipart/form-data or application/json.")


async def _from_form(
    body: bytes, boundary: str, suffixes: Sequence[str], decoders: Decoders, frames_in_memory: ExitStack
) -> list[UploadedClip]:
    names = ["task", *(f"{name}{suffix}" for suffix in suffixes for name in ("video", "frames"))]
    parts = await asyncio.to_thread(parse_form, body, boundary, names)
    task = _task(_text(parts.get("task")))
    clips = []
    for suffix in suffixes:
        kinds = [name for name in ("video", "frames") if f"{name}{suffix}" in parts]
        if len(kinds) != 1:
            raise ApiError(422, f"Send exactly one of the fields 'video{suffix}' (mp4) and 'frames{suffix}' (npy).")
        field = f"{kinds[0]}{suffix}"
        if parts[field].filename is None:
            raise ApiError(422, f"Field '{field}' must be a file part with a filename.")
        decode = decoders.video if kinds == ["video"] else decoders.npy
        decoded = await decode(parts[field].data, field)
        frames_in_memory.enter_context(decoders.counted(decoded.frames))
        clips.append(UploadedClip(Clip(decoded.frames, task), decoded.frame_index, decoded.fps))
    return clips


async def _from_json(
    body: bytes, suffixes: Sequence[str], decoders: Decoders, frames_in_memory: ExitStack
) -> list[UploadedClip]:
    names = [f"frames_base64{suffix}" for suffix in suffixes]
    value = await asyncio.to_thread(_parse_json, body, len(names) * decoders.limits.max_source_frames)
    if not isinstance(value, dict):
        raise ApiError(422, "The JSON body must be an object with the keys 'task' and 'frames_base64'.")
    unknown = next((name for name in value if name not in ("task", *names)), None)
    if unknown is not None:
        raise ApiError(422, f"Unknown field {unknown[:80]!r}. This route takes task, {', '.join(names)}.")
    task = _task(value.get("task"))
    clips = []
    for name in names:
        decoded = await decoders.images(value.get(name), name)
        frames_in_memory.enter_context(decoders.counted(decoded.frames))
        clips.append(UploadedClip(Clip(decoded.frames, task), decoded.frame_index, decoded.fps))
    return clips


def _parse_json(body: bytes, max_items: int) -> Any:
    """Parse a JSON body, after checking that it cannot become more objects than a valid body has.

    A valid body has about one mark ([ { : ,) for each image; only the task may hold more, and only the task may hold
    letters that are not ASCII. The same goes for escapes, except that some writers escape each slash of base64. A valid
    body has no numbers, so none is converted, however long it is.
    """
    marks_left, letters_left = max_items + MAX_TASK_CHARS + 100, 4 * MAX_TASK_CHARS
    escapes_left = len(body) // 16 + 6 * MAX_TASK_CHARS
    for start in range(0, len(body), _CHUNK_BYTES):
        chunk = body[start : start + _CHUNK_BYTES]
        marks_left -= sum(chunk.count(mark) for mark in b"[{:,")
        escapes_left -= chunk.count(b"\\")
        letters_left -= len(chunk.translate(None, delete=_ASCII))
        if min(marks_left, escapes_left, letters_left) < 0:
            sentence = f"The JSON body holds more items, escapes or letters than a task and {max_items} images need."
            raise ApiError(413, f"{sentence} Send fewer.")
    try:
        return json.loads(
            body.decode(),
            object_pairs_hook=_without_doubles,
            parse_int=lambda digits: None,
            parse_float=lambda digits: None,
            parse_constant=_refuse_constant,
        )
    except UnicodeDecodeError:
        raise ApiError(400, "The body is not JSON: it is not UTF-8.") from None
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not JSON: {error}.") from None


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, item in pairs:
        if name in value:
            raise ApiError(422, f"Field {name[:80]!r} is given more than once.")
        value[name] = item
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON value")


def _text(part: FormPart | None) -> str | None:
    if part is None or part.filename is not None:
        return None
    try:
        return part.data.decode()
    except UnicodeDecodeError:
        raise ApiError(422, "Field 'task' is not UTF-8.") from None


def _task(value: Any) -> str:
    """The instruction, which from here on can be encoded and printed."""
    if not isinstance(value, str) or not value.strip():
        raise ApiError(422, "Field 'task' is missing or empty. Say in words what the robot should do.")
    if len(value) > MAX_TASK_CHARS:
        raise ApiError(422, f"Field 'task' has {len(value)} characters; the limit is {MAX_TASK_CHARS}.")
    if any(unicodedata.category(char) in ("Cc", "Cs") and char not in "\t\r\n" for char in value):
        raise ApiError(422, "Field 'task' holds control characters or half of a surrogate pair. Send plain text.")
    return value.strip()
