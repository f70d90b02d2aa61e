"""From a request body to clips. Whatever is wrong with it is an `ApiError` of one sentence."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from pipelines.serving.decoding import Decoded, Decoders
from pipelines.serving.errors import ApiError
from pipelines.serving.jobs import MAX_TASK_CHARS
from robometer.scoring import Clip


@dataclass(frozen=True)
class Input:
    """A clip and where its frames come from: positions in the source, and frames per second where known."""

    clip: Clip
    frame_index: list[int]
    fps: float | None


async def read_inputs(request: Request, suffixes: Sequence[str], decoders: Decoders) -> list[Input]:
    """One clip for each suffix: fields `video{suffix}` or `frames{suffix}`, or JSON `frames_base64{suffix}`.

    Raises:
        ApiError: 400, 413, 415 or 422.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _from_form(request, suffixes, decoders)
    if kind == "application/json":
        body = await request.body()
        return await _from_json(body, suffixes, decoders)
    raise ApiError(415, f"content type {kind[:80]!r} is not understood: send multipart/form-data or application/json")


async def _from_form(request: Request, suffixes: Sequence[str], decoders: Decoders) -> list[Input]:
    known = ["task", *(name + suffix for suffix in suffixes for name in ("video", "frames"))]
    try:
        form = await request.form(max_files=len(known), max_fields=len(known))
    except HTTPException as error:
        raise ApiError(400, f"the multipart body is malformed: {error.detail}") from error
    async with form_closing(form):
        _check_fields(list(form.keys()), known)
        task = _task(form.get("task"))
        inputs = []
        for suffix in suffixes:
            decoded = await _from_fields(form.get(f"video{suffix}"), form.get(f"frames{suffix}"), suffix, decoders)
            inputs.append(Input(Clip(decoded.frames, task), decoded.frame_index, decoded.fps))
        return inputs


class form_closing:  # noqa: N801 - used like contextlib.aclosing, which calls aclose where a form has close
    """Close a form, and with it its temporary files, at the end of the block."""

    def __init__(self, form: Any) -> None:
        self._form = form

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(self, *_: object) -> None:
        await self._form.close()


async def _from_fields(video: Any, frames: Any, suffix: str, decoders: Decoders) -> Decoded:
    if (video is None) == (frames is None):
        raise ApiError(422, f"send exactly one of the fields 'video{suffix}' (mp4) and 'frames{suffix}' (npy)")
    name, upload, decode = ("frames", frames, decoders.npy) if video is None else ("video", video, decoders.video)
    if not isinstance(upload, UploadFile):
        raise ApiError(422, f"field '{name}{suffix}' must be a file part, with a filename")
    return await decode(await upload.read(), f"{name}{suffix}")


async def _from_json(body: bytes, suffixes: Sequence[str], decoders: Decoders) -> list[Input]:
    try:
        value = await asyncio.to_thread(json.loads, body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ApiError(422, "the JSON body must be an object with the keys 'task' and 'frames_base64'")
    names = [f"frames_base64{suffix}" for suffix in suffixes]
    _check_fields(list(value), ["task", *names])
    task = _task(value.get("task"))
    inputs = []
    for name in names:
        decoded = await decoders.images(value.get(name), name)
        inputs.append(Input(Clip(decoded.frames, task), decoded.frame_index, decoded.fps))
    return inputs


def _check_fields(given: Sequence[str], known: Sequence[str]) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ApiError(422, f"field {unknown[0][:80]!r} is unknown; this route knows {', '.join(known)}")
    doubled = sorted({name for name in given if list(given).count(name) > 1})
    if doubled:
        raise ApiError(422, f"field {doubled[0]!r} is given more than once")


def _task(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ApiError(422, "field 'task' is missing or empty: say in words what the robot should do")
    if len(value) > MAX_TASK_CHARS:
        raise ApiError(422, f"field 'task' has {len(value)} characters, more than {MAX_TASK_CHARS}")
    return value.strip()
