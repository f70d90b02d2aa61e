"""Requests of clients that were written for the public Robometer server (public code: robometer/evals/eval_server.py).

A request holds samples: the progress of a trajectory, or the preference between two. Each sample is JSON that refers to
`.npy` parts of the same form. Keys that do not say what to score are ignored, as the public server ignores them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.serving.backend import Limits
from pipelines.serving.decoding import check_source
from pipelines.serving.errors import ApiError
from pipelines.serving.multipart import FormPart, parse_form
from pipelines.serving.npy import HEAD_BYTES, read_npy, read_npy_header
from pipelines.serving.text import checked_task, parse_json
from robometer.scoring import Clip

MAX_TEXT_ITEMS = 500_000
"""Items in the JSON of all samples of a form: 384 numbers of an embedding as text in each of 1,000 samples."""

MAX_JSON_ITEMS = 4_000_000
"""Items in the body of the JSON route, which writes each colour of a pixel as a number."""

Sample = Clip | tuple[Clip, Clip]
"""A clip whose progress is asked for, or a pair of which the first may be the better one."""

_REFERENCE = "__numpy_file__"
_TRAJECTORIES = {"progress": ("trajectory",), "preference": ("chosen_trajectory", "rejected_trajectory")}
_SAMPLE = re.compile(r"sample_([0-9]{1,6})")


def clips_of(sample: Sample) -> tuple[Clip, ...]:
    """The clips of a sample, one or two."""
    return (sample,) if isinstance(sample, Clip) else sample


@dataclass(frozen=True)
class SampleRequest:
    """The samples of one request; with `use_frame_steps` each frame is scored from the frames up to it."""

    samples: Sequence[Sample]
    use_frame_steps: bool = False


@dataclass(frozen=True)
class SampleReader:
    """Reads requests for one model.

    Attributes:
        image_encoder: name of the embeddings that the model reads in place of frames; None if it reads frames alone.
    """

    limits: Limits
    image_encoder: str | None

    def form(self, body: bytes, boundary: str) -> SampleRequest:
        """The request of `/evaluate_batch_npy`: fields `sample_0`, `sample_1`, ..., `use_frame_steps`, and arrays.

        Raises:
            ApiError: 400, 413 or 422.
        """
        parts = parse_form(body, boundary)
        texts = {name: part.data for name, part in parts.items() if part.filename is None}
        numbers = sorted((int(match[1]), name) for name in texts if (match := _SAMPLE.fullmatch(name)))
        for position, (number, name) in enumerate(numbers):
            if position != number:
                raise ApiError(422, f"Field {name!r} has no field 'sample_{position}' before it: count from 0.")
        values = parse_json(
            [texts[name] for _, name in numbers], MAX_TEXT_ITEMS, "samples need whose arrays are parts", nan=True
        )
        flag = texts.get("use_frame_steps", b"false").decode("latin-1").strip().lower()
        return self._request(values, {"true": True, "false": False}.get(flag), parts)

    def json(self, body: bytes) -> SampleRequest:
        """The request of `/evaluate_batch`: an object with `samples` and `use_frame_steps`, frames as nested lists.

        Raises:
            ApiError: 400, 413 or 422.
        """
        [value] = parse_json([body], MAX_JSON_ITEMS, "this route takes: /evaluate_batch_npy takes arrays", nan=True)
        if not isinstance(value, dict) or not isinstance(value.get("samples"), list):
            raise ApiError(422, "The JSON body must be an object with the key 'samples', a list.")
        flag = value.get("use_frame_steps", False)
        return self._request(value["samples"], flag if isinstance(flag, bool) else None, {})

    def _request(self, values: Sequence[Any], flag: bool | None, parts: Mapping[str, FormPart]) -> SampleRequest:
        if not values:
            raise ApiError(422, "The request has no samples. Send at least one: sample_0, or an item of 'samples'.")
        if flag is None:
            raise ApiError(422, "Field 'use_frame_steps' must be true or false.")
        samples, size_bytes = list[Sample](), 0
        for i, value in enumerate(values):
            sample = self._sample(value, f"sample_{i}", parts)
            samples.append(sample)
            # Any number of samples may refer to one part.
            size_bytes += sum(
                array.nbytes for clip in clips_of(sample) for array in (clip.frames, *clip.features.values())
            )
            if size_bytes > self.limits.max_upload_bytes:
                limit = self.limits.max_upload_bytes
                raise ApiError(413, f"The frames of the samples are more than {limit} bytes. Send fewer samples.")
        return SampleRequest(samples, flag)

    def _sample(self, value: Any, field: str, parts: Mapping[str, FormPart]) -> Sample:
        kind = value.get("sample_type") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in _TRAJECTORIES:
            raise ApiError(422, f"Field '{field}.sample_type' must be 'progress' or 'preference'.")
        clips = [self._clip(value.get(name), f"{field}.{name}", parts) for name in _TRAJECTORIES[kind]]
        return clips[0] if kind == "progress" else (clips[0], clips[1])

    def _clip(self, value: Any, field: str, parts: Mapping[str, FormPart]) -> Clip:
        if not isinstance(value, dict):
            raise ApiError(422, f"Field '{field}' must be an object.")
        task = checked_task(value.get("task"), f"{field}.task", may_be_empty=True)
        if value.get("frames") is not None:
            frames = self._frames(value["frames"], f"{field}.frames", parts)
            _check_shape(value.get("frames_shape"), frames, f"{field}.frames_shape")
            return Clip(frames, task)
        if value.get("video_embeddings") is not None:
            return self._embedded(value["video_embeddings"], task, f"{field}.video_embeddings", parts)
        raise ApiError(422, f"Field '{field}' has neither 'frames' nor 'video_embeddings'.")

    def _frames(self, value: Any, field: str, parts: Mapping[str, FormPart]) -> np.ndarray:
        if isinstance(value, list):
            values = _nested(value, field)
            self._check_frames(values.shape, field)
        else:
            values = _array(value, field, parts, self._check_frames)
        return as_frames(values, field)

    def _check_frames(self, shape: tuple[int, ...], field: str) -> None:
        if len(shape) not in (3, 4) or shape[-1] not in (1, 3):
            found = str(list(shape))[:80]
            raise ApiError(422, f"Field '{field}' must be [T, H, W, 3] or one picture [H, W, 3], not {found}.")
        steps, height, width, _ = shape if len(shape) == 4 else (1, *shape)
        check_source(steps, height * width, field, self.limits)

    def _embedded(self, value: Any, task: str, field: str, parts: Mapping[str, FormPart]) -> Clip:
        """A clip without frames, for a model that reads embeddings of frames."""
        if self.image_encoder is None:
            raise ApiError(422, f"Field '{field}' is of no use to this model. Send 'frames'.")
        features = _array(value, field, parts, self._check_embeddings).astype(np.float32)
        if not np.isfinite(features).all():
            raise ApiError(422, f"Field '{field}' holds numbers that are not finite.")
        # No scorer looks at the frames of a clip whose embeddings it has.
        return Clip(np.zeros((len(features), 1, 1, 3), np.uint8), task, {self.image_encoder: features})

    def _check_embeddings(self, shape: tuple[int, ...], field: str) -> None:
        if len(shape) != 2:
            raise ApiError(422, f"Field '{field}' must be [T, D], not {str(list(shape))[:80]}.")
        check_source(shape[0], shape[1], field, self.limits)


def as_frames(values: np.ndarray, field: str) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] of numbers of another type, of one picture [H, W, C], or of one channel.

    Numbers with fractions are colours from 0 to 1 if all are in that range, else colours from 0 to 255, and rounded.
    The public server cuts fractions off, so that colours from 0 to 1 become black.

    Raises:
        ApiError: 422, the range is neither, or cannot be told.
    """
    values = values[None] if values.ndim == 3 else values
    if values.dtype != np.uint8:
        values = _as_bytes(values, field)
    return np.ascontiguousarray(np.broadcast_to(values, (*values.shape[:-1], 3)))


def _as_bytes(values: np.ndarray, field: str) -> np.ndarray:
    low, high = values.min(), values.max()
    if values.dtype.kind == "b" or not (low >= 0 and high <= 255):  # also where one is NaN
        raise ApiError(422, f"Field '{field}' must hold colours from 0 to 255, or from 0.0 to 1.0.")
    is_share = values.dtype.kind == "f" and 0 < high <= 1
    if is_share and (values == np.rint(values)).all():
        raise ApiError(422, f"Field '{field}' holds only 0.0 and 1.0, which may be of 1 or of 255. Send uint8.")
    colours: np.ndarray = np.rint(values * 255.0 if is_share else values).astype(np.uint8)
    return colours


def _array(
    value: Any, field: str, parts: Mapping[str, FormPart], check: Callable[[tuple[int, ...], str], None]
) -> np.ndarray:
    """The array that a sample refers to; `check` gets its shape, and the field, before it is read."""
    name = value.get(_REFERENCE) if isinstance(value, dict) else None
    if not isinstance(name, str):
        raise ApiError(422, f"Field '{field}' must be {{{_REFERENCE!r}: name of a .npy part}}.")
    part = parts.get(name)
    if part is None or part.filename is None or not part.filename.endswith(".npy"):
        raise ApiError(422, f"Field '{field}' refers to {name[:80]!r}, which is no .npy part of the request.")
    header = read_npy_header(part.data[:HEAD_BYTES], name[:80])
    check(header.shape, field)
    return read_npy(part.data, header, name[:80])


def _nested(value: list[Any], field: str) -> np.ndarray:
    if any(isinstance(item, str) for item in value):
        raise ApiError(422, f"Field '{field}' holds paths. The endpoint opens no files: send the frames themselves.")
    try:
        values = np.array(value)
    except ValueError:  # lists of different lengths
        values = np.array(None)
    if values.dtype.kind != "i":
        raise ApiError(422, f"Field '{field}' must be lists of whole numbers from 0 to 255, [T, H, W, 3].")
    return values


def _check_shape(stated: Any, frames: np.ndarray, field: str) -> None:
    """`frames_shape` need not be there, but must not contradict the frames."""
    if isinstance(stated, list) and len(stated) == 4 and stated[:3] != list(frames.shape[:3]):
        raise ApiError(422, f"Field '{field}' is {str(stated)[:80]}, and the frames are {list(frames.shape)}.")
