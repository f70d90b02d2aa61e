"""From a request about a session to what the model is asked. Anything wrong with it is an `ApiError`."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from starlette.requests import Request

from pipelines.serving.backend import OpenSession, PushFrames
from pipelines.serving.bodies import content_type
from pipelines.serving.decoding import Decoders, check_source
from pipelines.serving.errors import ApiError
from pipelines.serving.multipart import FormPart, parse_form
from pipelines.serving.npy import HEAD_BYTES, read_npy, read_npy_header
from pipelines.serving.text import checked_task, parse_json
from pipelines.serving.tokens import Client
from robometer.frames.window import num_held
from robometer.scoring import Clip

MAX_TRAJECTORIES = 1000
"""Trajectories of one session, at most."""

_SESSION_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KEY = re.compile(r"[A-Za-z0-9_-]{16,64}")
_OPEN_FIELDS = ("task", "tasks", "pushes", "pushed", "key")
_PUSH_FIELDS = ("index", "reset", "compare")


@dataclass(frozen=True)
class PushOptions:
    """What a client asks of a push; see `PushFrames`."""

    index: int | None = None
    reset: Sequence[int] = ()
    compare: bool = False


def checked_id(session_id: str) -> str:
    """The id of a session.

    Raises:
        ApiError: 404, no session has such an id.
    """
    if not _SESSION_ID.fullmatch(session_id):
        raise ApiError(404, "There is no such session. POST /v1/sessions opens one.")
    return session_id


def open_session(values: Mapping[str, Any], key: str, client: Client) -> OpenSession:
    """The request to open a session, from the fields of a body: `task` or `tasks`; `pushes` and `pushed` to continue.

    Args:
        key: where the body has none: equal for the same request, which may be sent more than once.

    Returns:
        The request with the key in place of an id, see `with_id`.

    Raises:
        ApiError: 422.
    """
    unknown = next((name for name in values if name not in _OPEN_FIELDS), None)
    if unknown is not None:
        raise ApiError(422, f"Unknown field {unknown[:80]!r}. A session takes {', '.join(_OPEN_FIELDS)}.")
    if ("task" in values) == ("tasks" in values):
        raise ApiError(422, "Send exactly one of the fields 'task', for one trajectory, and 'tasks', for several.")
    given = [values["task"]] if "task" in values else values["tasks"]
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_TRAJECTORIES:
        raise ApiError(422, f"Field 'tasks' must be a list of 1 to {MAX_TRAJECTORIES} instructions.")
    tasks = [checked_task(task, "task" if "task" in values else f"tasks[{i}]") for i, task in enumerate(given)]
    pushed = _numbers(values.get("pushed", []), "pushed")
    if pushed and len(pushed) != len(tasks):
        raise ApiError(422, f"Field 'pushed' must hold the number of frames of each of the {len(tasks)} trajectories.")
    [pushes] = _numbers([values.get("pushes", max(pushed, default=0))], "pushes")
    key = values.get("key", key)
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise ApiError(422, "Field 'key' must be 16 to 64 letters, digits, _ and - that nobody else can guess.")
    return OpenSession(key, tasks, client.name, None, pushes, pushed, most=client.limits.session_trajectories)


def with_id(request: OpenSession) -> OpenSession:
    """The request with the id of its session in place of its key: equal for equal requests, and nobody can guess it."""
    said = [request.session_id, request.owner, list(request.tasks), request.pushes, list(request.pushed)]
    digest = hashlib.sha256(json.dumps(said).encode())
    shown = [request.reference.frames] if request.reference else []
    for array in [*shown, *(frame for frames in request.frames for frame in frames)]:
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
    return replace(request, session_id=base64.urlsafe_b64encode(digest.digest()[:18]).decode())


def with_frames(request: OpenSession, frames: np.ndarray | None, max_frames: int | None) -> OpenSession:
    """The request with the frames [N, H, W, 3] that the windows of its trajectories held, one after another.

    Raises:
        ApiError: 422, there are too many or too few.
    """
    counts = [num_held(pushed, max_frames) for pushed in request.pushed]
    given = 0 if frames is None else len(frames)
    if sum(counts) != given:
        raise ApiError(
            422, f"To continue, a session needs the {sum(counts)} frames that it held, in field 'frames', not {given}."
        )
    if frames is None:
        return request
    ends = np.cumsum(counts)
    return replace(request, frames=[list(part) for part in np.split(frames, ends[:-1])])


def push_options(values: Mapping[str, Any]) -> PushOptions:
    """The options of a push, from the fields of a body.

    Raises:
        ApiError: 422.
    """
    unknown = next((name for name in values if name not in _PUSH_FIELDS), None)
    if unknown is not None:
        raise ApiError(422, f"Unknown field {unknown[:80]!r}. A push takes frames and {', '.join(_PUSH_FIELDS)}.")
    compare = values.get("compare", False)
    if not isinstance(compare, bool):
        raise ApiError(422, "Field 'compare' must be true or false.")
    index = _numbers([values["index"]], "index")[0] if "index" in values else None
    return PushOptions(index, _numbers(values.get("reset", []), "reset"), compare)


def push_frames(session_id: str, owner: str, frames: np.ndarray, options: PushOptions) -> PushFrames:
    """The request to push frames [n, H, W, 3], one for each trajectory."""
    return PushFrames(session_id, list(frames), owner, options.index, options.reset, options.compare)


async def npy_frames(data: bytes, field: str, decoders: Decoders) -> np.ndarray:
    """Frames [n, H, W, 3] of an `.npy` file that holds n frames, or one without its first axis.

    Raises:
        ApiError: 413 or 422.
    """
    header = read_npy_header(data[:HEAD_BYTES], field)
    if len(header.shape) != 3:
        return (await decoders.npy(data, field)).frames
    if header.dtype != np.uint8 or header.shape[-1] != 3:
        raise ApiError(422, f"Field '{field}' must hold uint8 [H, W, 3] or [n, H, W, 3] RGB frames, not {header}.")
    check_source(1, header.shape[0] * header.shape[1], field, decoders.limits)
    return read_npy(data, header, field)[None]


async def read_open(
    request: Request, key: str, client: Client, decoders: Decoders, held: ExitStack, max_frames: int | None
) -> OpenSession:
    """The request to open a session: JSON, or a form that may hold a reference or the frames to continue from.

    Args:
        key: see `open_session`.
        held: close it when the frames are not needed any more.

    Raises:
        ApiError: 400, 413, 415, 422 or 503.
    """
    values, parts = await _body(request, ("video_reference", "frames_reference", "frames"))
    opened = open_session(values, key, client)
    frames = await npy_frames(parts["frames"].data, "frames", decoders) if "frames" in parts else None
    if "video_reference" in parts and "frames_reference" in parts:
        raise ApiError(422, "Send one of the fields 'video_reference' and 'frames_reference', not both.")
    if "video_reference" in parts:
        decoded = await decoders.video(parts["video_reference"].data, "video_reference")
        opened = replace(opened, reference=Clip(decoded.frames, opened.tasks[0]))
    elif "frames_reference" in parts:
        decoded = await decoders.npy(parts["frames_reference"].data, "frames_reference")
        opened = replace(opened, reference=Clip(decoded.frames, opened.tasks[0]))
    shown = opened.reference.frames if opened.reference else None
    held.enter_context(decoders.counted(*(array for array in (frames, shown) if array is not None)))
    return await asyncio.to_thread(with_id, with_frames(opened, frames, max_frames))


async def read_push(request: Request, session_id: str, owner: str, decoders: Decoders, held: ExitStack) -> PushFrames:
    """The request to push frames: a form with `frames` (npy), or JSON with `frames_base64`.

    Args:
        held: close it when the frames are not needed any more.

    Raises:
        ApiError: 400, 413, 415, 422 or 503.
    """
    values, parts = await _body(request, ("frames",))
    if "frames" in parts:
        frames = await npy_frames(parts["frames"].data, "frames", decoders)
    elif "frames_base64" in values:
        frames = (await decoders.images(values.pop("frames_base64"), "frames_base64")).frames
    else:
        raise ApiError(422, "Send the frames: a form's field 'frames' (npy), or 'frames_base64' in JSON.")
    held.enter_context(decoders.counted(frames))
    return push_frames(session_id, owner, frames, push_options(values))


def parsed(text: bytes) -> dict[str, Any]:
    """The JSON object of a body or a message.

    Raises:
        ApiError: 400, 413 or 422.
    """
    items = 4 * MAX_TRAJECTORIES
    [value] = parse_json([text], items, f"{MAX_TRAJECTORIES} trajectories need", tasks=MAX_TRAJECTORIES)
    if not isinstance(value, dict):
        raise ApiError(422, "The JSON must be an object.")
    return value


async def _body(request: Request, files: Sequence[str]) -> tuple[dict[str, Any], Mapping[str, FormPart]]:
    """The values of a body, as JSON has them, and the file parts of a form."""
    kind, parameters = content_type(request)
    body = await request.body()
    if kind == "application/json":
        return await asyncio.to_thread(parsed, body), {}
    if kind != "multipart/form-data":
        raise ApiError(415, f"Content type {kind[:80]!r} is not supported. Send multipart/form-data or JSON.")
    parts = await asyncio.to_thread(parse_form, body, parameters.get("boundary", ""))
    values: dict[str, Any] = {}
    for name, part in parts.items():
        if part.filename is not None and name not in files:
            raise ApiError(422, f"Unknown file {name[:80]!r}. This route takes {', '.join(files)}.")
        if part.filename is None and name in files:
            raise ApiError(422, f"Field '{name}' must be a file part with a filename.")
        if part.filename is None:  # text stands for itself in these; all else is JSON
            values[name] = _text(part, name) if name in ("task", "key") else _json_value(part, name)
    return values, {name: part for name, part in parts.items() if part.filename is not None}


def _text(part: FormPart, name: str) -> str:
    try:
        return part.data.decode()
    except UnicodeDecodeError:
        raise ApiError(422, f"Field '{name}' is not UTF-8.") from None


def _json_value(part: FormPart, name: str) -> Any:
    return parse_json(
        [part.data], 4 * MAX_TRAJECTORIES, "a session needs", tasks=MAX_TRAJECTORIES, names=[f"Field {name[:80]!r}"]
    )[0]


def _numbers(values: Any, name: str) -> list[int]:
    ok = isinstance(values, list) and len(values) <= MAX_TRAJECTORIES
    if not ok or any(not isinstance(value, int) or isinstance(value, bool) or value < 0 for value in values):
        raise ApiError(422, f"Field '{name}' must hold whole numbers, none below 0.")
    return list(values)
