"""From a request body to clips. Anything wrong with the body is an `ApiError`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from starlette.requests import Request

from pipelines.serving.decoding import Decoders, cut_frames
from pipelines.serving.errors import ApiError
from pipelines.serving.multipart import FormPart, check_charset, parse_form, split_header
from pipelines.serving.options import OPTIONS, ScoreOptions, read_options
from pipelines.serving.text import checked_task, parse_json
from robometer.scoring import Clip


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
    request: Request, suffixes: Sequence[str], decoders: Decoders, frames_in_memory: ExitStack, optional: bool = False
) -> tuple[list[UploadedClip], ScoreOptions]:
    """Read one clip for each suffix, from fields `video{suffix}` or `frames{suffix}`, or JSON `frames_base64{suffix}`.

    Args:
        frames_in_memory: close it when the frames are not needed any more.
        optional: whether the route takes `OPTIONS` too.

    Raises:
        ApiError: 400, 413, 415, 422 or 503.
    """
    kind, parameters = content_type(request)
    options = OPTIONS if optional else ()
    if kind == "application/json":
        return await _from_json(await request.body(), suffixes, decoders, frames_in_memory, options)
    if kind == "multipart/form-data":
        boundary = parameters.get("boundary", "")
        return await _from_form(await request.body(), boundary, suffixes, decoders, frames_in_memory, options)
    raise ApiError(415, f"Content type {kind[:80]!r} is not supported. Send multipart/form-data or application/json.")


def content_type(request: Request) -> tuple[str, dict[str, str]]:
    """The content type of a body and its parameters.

    Raises:
        ApiError: 400 for a malformed header or another charset than UTF-8, 415 for a content encoding.
    """
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ApiError(415, "Content encodings are not supported. Send the body as it is.")
    kind, parameters = split_header(request.headers.get("content-type", ""))
    check_charset(parameters)
    return kind, parameters


async def _from_form(
    body: bytes,
    boundary: str,
    suffixes: Sequence[str],
    decoders: Decoders,
    frames_in_memory: ExitStack,
    optional: Sequence[str],
) -> tuple[list[UploadedClip], ScoreOptions]:
    names = ["task", *(f"{name}{suffix}" for suffix in suffixes for name in ("video", "frames")), *optional]
    parts = await asyncio.to_thread(parse_form, body, boundary, names)
    task = checked_task(_text(parts, "task"))
    options = read_options({name: _text(parts, name) for name in optional if name in parts})
    clips = []
    for suffix in suffixes:
        kinds = [name for name in ("video", "frames") if f"{name}{suffix}" in parts]
        if len(kinds) != 1:
            raise ApiError(422, f"Send exactly one of the fields 'video{suffix}' (mp4) and 'frames{suffix}' (npy).")
        field = f"{kinds[0]}{suffix}"
        if parts[field].filename is None:
            raise ApiError(422, f"Field '{field}' must be a file part with a filename.")
        if kinds == ["video"]:
            decoded = await decoders.video(parts[field].data, field, options.cut)
        else:
            decoded = cut_frames(await decoders.npy(parts[field].data, field), options.cut, field)
        frames_in_memory.enter_context(decoders.counted(decoded.frames))
        clips.append(UploadedClip(Clip(decoded.frames, task), decoded.frame_index, decoded.fps))
    return clips, options


async def _from_json(
    body: bytes, suffixes: Sequence[str], decoders: Decoders, frames_in_memory: ExitStack, optional: Sequence[str]
) -> tuple[list[UploadedClip], ScoreOptions]:
    names = [f"frames_base64{suffix}" for suffix in suffixes]
    max_items = len(names) * decoders.limits.max_source_frames
    [value] = await asyncio.to_thread(parse_json, [body], max_items, f"a task and {max_items} images need")
    if not isinstance(value, dict):
        raise ApiError(422, "The JSON body must be an object with the keys 'task' and 'frames_base64'.")
    unknown = next((name for name in value if name not in ("task", *names, *optional)), None)
    if unknown is not None:
        raise ApiError(
            422, f"Unknown field {unknown[:80]!r}. This route takes {', '.join(['task', *names, *optional])}."
        )
    task = checked_task(value.get("task"))
    options = read_options({option: value[option] for option in optional if option in value})
    clips = []
    for name in names:
        decoded = cut_frames(await decoders.images(value.get(name), name), options.cut, name)
        frames_in_memory.enter_context(decoders.counted(decoded.frames))
        clips.append(UploadedClip(Clip(decoded.frames, task), decoded.frame_index, decoded.fps))
    return clips, options


def _text(parts: Mapping[str, FormPart], name: str) -> str | None:
    part = parts.get(name)
    if part is None or part.filename is not None:
        return None
    try:
        return part.data.decode()
    except UnicodeDecodeError:
        raise ApiError(422, f"Field '{name}' is not UTF-8.") from None
