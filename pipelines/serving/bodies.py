"""From a request body to clips. Anything wrong with the body is an `ApiError`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from pipelines.serving.decoding import Decoded, Decoders, cut_frames
from pipelines.serving.errors import ApiError
from pipelines.serving.multipart import FormPart, check_charset, parse_form, split_header
from pipelines.serving.options import OPTIONS, Cut, ScoreOptions, read_options
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


@dataclass(frozen=True)
class Upload:
    """A clip as it was sent.

    Attributes:
        field: where it came from.
        kind: `video`, `frames` (a `.npy` file), `frames_base64` (a list of images) or `url`.
    """

    field: str
    kind: str
    content: Any

    def check(self, decoders: Decoders) -> None:
        """Refuse what can be refused before anything is decoded or fetched.

        Raises:
            ApiError: 413 or 422.
        """
        if self.kind == "url":
            decoders.check_url(self.content, self.field)
        elif self.kind == "frames_base64":
            decoders.check_images(self.content, self.field)

    async def decode(self, cut: Cut, decoders: Decoders) -> Decoded:
        """The frames of a part of it.

        Raises:
            ApiError: 413, 415, 422 or 503; 408 for what a URL names.
        """
        if self.kind == "url":
            return await decoders.url(self.content, self.field, cut)
        if self.kind == "video":
            return await decoders.video(self.content, self.field, cut)
        read = decoders.npy if self.kind == "frames" else decoders.images
        return cut_frames(await read(self.content, self.field), cut, self.field)


class Fields:
    """The fields of a body by name: parts of a form, or values of JSON."""

    def __init__(self, values: Mapping[str, Any], is_form: bool) -> None:
        self._values, self._is_form = values, is_form
        self.clip_kinds = ("video", "frames", "url") if is_form else ("frames_base64", "url")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def only(self, names: Sequence[str]) -> None:
        """Refuse any other field.

        Raises:
            ApiError: 422.
        """
        unknown = next((name for name in self if name not in names), None)
        if unknown is not None:
            raise ApiError(422, f"Unknown field {unknown[:80]!r}. This route takes {', '.join(names)}.")

    def value(self, name: str) -> Any:
        """The text of a part, or a JSON value; None where there is none.

        Raises:
            ApiError: 422, it is not UTF-8.
        """
        value = self._values.get(name)
        return _text(value, name) if isinstance(value, FormPart) else value

    def options(self) -> ScoreOptions:
        """What the body says of `OPTIONS`.

        Raises:
            ApiError: 422, see `read_options`.
        """
        return read_options({name: self.value(name) for name in OPTIONS if name in self._values})

    def upload(self, suffix: str) -> Upload:
        """The clip of the fields with this suffix.

        Raises:
            ApiError: 422, there is none, or more than one.
        """
        kinds = [kind for kind in self.clip_kinds if f"{kind}{suffix}" in self._values]
        if not (kinds or self._is_form):
            kinds = ["frames_base64"]
        if len(kinds) != 1:
            names = f"'video{suffix}' (mp4) and 'frames{suffix}' (npy)" if self._is_form else f"'frames_base64{suffix}'"
            raise ApiError(422, f"Send exactly one of the fields {names}, or 'url{suffix}' where URLs are taken.")
        field = f"{kinds[0]}{suffix}"
        if kinds[0] not in ("video", "frames"):
            return Upload(field, kinds[0], self.value(field))
        part = self._values[field]
        if part.filename is None:
            raise ApiError(422, f"Field '{field}' must be a file part with a filename.")
        return Upload(field, kinds[0], part.data)


@dataclass(frozen=True)
class Asked:
    """What a body asks, with one clip for each name; nothing is decoded yet."""

    task: str
    options: ScoreOptions
    uploads: list[Upload]

    async def decode(self, decoders: Decoders, frames_in_memory: ExitStack) -> list[UploadedClip]:
        """The clips.

        Args:
            frames_in_memory: close it when the frames are not needed any more.

        Raises:
            ApiError: 413, 415, 422 or 503.
        """
        clips = []
        for upload in self.uploads:
            decoded = await upload.decode(self.options.cut, decoders)
            frames_in_memory.enter_context(decoders.counted(decoded.frames))
            clips.append(UploadedClip(Clip(decoded.frames, self.task), decoded.frame_index, decoded.fps))
        return clips


def read_asked(fields: Fields, suffixes: Sequence[str], decoders: Decoders, optional: bool = False) -> Asked:
    """Read one clip for each suffix, from fields `video{suffix}`, `frames{suffix}` or `url{suffix}`.

    JSON has `frames_base64{suffix}` or `url{suffix}`.

    Args:
        optional: whether the route takes `OPTIONS` too.

    Raises:
        ApiError: 413 or 422.
    """
    names = [f"{kind}{suffix}" for suffix in suffixes for kind in fields.clip_kinds]
    fields.only(["task", *names, *(OPTIONS if optional else ())])
    asked = Asked(checked_task(fields.value("task")), fields.options(), [fields.upload(suffix) for suffix in suffixes])
    for upload in asked.uploads:
        upload.check(decoders)
    return asked


async def read_fields(request: Request, max_images: int, tasks: int = 1) -> Fields:
    """Read the fields of a body.

    Args:
        max_images: limit of the images in JSON, of all clips together.
        tasks: how many instructions it may hold.

    Raises:
        ApiError: 400, 413, 415 or 422.
    """
    kind, parameters = content_type(request)
    if kind == "multipart/form-data":
        form = await asyncio.to_thread(parse_form, await request.body(), parameters.get("boundary", ""))
        return Fields(form, is_form=True)
    if kind != "application/json":
        sentence = f"Content type {kind[:80]!r} is not supported. Send multipart/form-data or application/json."
        raise ApiError(415, sentence)
    contents = f"a task and {max_images} images need"
    [value] = await asyncio.to_thread(parse_json, [await request.body()], max_images, contents, tasks=tasks)
    if not isinstance(value, dict):
        raise ApiError(422, "The JSON body must be an object with the keys 'task' and 'frames_base64'.")
    return Fields(value, is_form=False)


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


def _text(part: FormPart, name: str) -> str | None:
    if part.filename is not None:
        return None
    try:
        return part.data.decode()
    except UnicodeDecodeError:
        raise ApiError(422, f"Field '{name}' is not UTF-8.") from None
