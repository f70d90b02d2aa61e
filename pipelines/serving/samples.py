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
from pipelines.serving.number_lists import PLACE, cut_out, read_numbers
from pipelines.serving.options import check_prefixes
from pipelines.serving.text import checked_task, parse_json
from robometer.scoring import Clip

MAX_SAMPLES, MAX_FRAMES = 1000, 100_000
"""Limits of one request, and with it of the answer, which has two numbers for each frame."""

MAX_TEXT_ITEMS = 500_000
"""Items in the JSON of all samples, without their frames: 384 numbers of an embedding in each of 1,000 samples."""

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
        if [number for number, _ in numbers] != list(range(len(numbers))):
            raise ApiError(422, "The samples must be numbered sample_0, sample_1 and so on, without a gap.")
        if "use_frame_steps" in parts and "use_frame_steps" not in texts:
            raise ApiError(422, "Field 'use_frame_steps' must be text, not a file.")
        values, lists = _parsed([texts[name] for _, name in numbers], [name for _, name in numbers])
        flag = texts.get("use_frame_steps", b"false").decode("latin-1").strip().lower()
        return self._request(values, {"true": True, "false": False}.get(flag), parts, lists)

    def json(self, body: bytes) -> SampleRequest:
        """The request of `/evaluate_batch`: an object with `samples` and `use_frame_steps`, frames as nested lists.

        Raises:
            ApiError: 400, 413 or 422.
        """
        [value], lists = _parsed([body], ["The body"])
        if not isinstance(value, dict) or not isinstance(value.get("samples"), list):
            raise ApiError(422, "The JSON body must be an object with the key 'samples', a list.")
        flag = value.get("use_frame_steps", False)
        return self._request(value["samples"], flag if isinstance(flag, bool) else None, {}, lists)

    def _request(
        self, values: Sequence[Any], flag: bool | None, parts: Mapping[str, FormPart], lists: Sequence[bytes]
    ) -> SampleRequest:
        if not values:
            raise ApiError(422, "The request has no samples. Send at least one: sample_0, or an item of 'samples'.")
        if flag is None:
            raise ApiError(422, "Field 'use_frame_steps' must be true or false.")
        if len(values) > MAX_SAMPLES:
            raise ApiError(413, f"The request has {len(values)} samples; the limit is {MAX_SAMPLES}.")
        samples, num_frames, size_bytes = list[Sample](), 0, 0
        for i, value in enumerate(values):
            sample = self._sample(value, f"sample_{i}", parts, lists)
            samples.append(sample)
            for clip in clips_of(sample):  # any number of samples may refer to one part
                if flag and isinstance(sample, Clip):
                    check_prefixes(len(clip), f"sample_{i}.trajectory.frames")
                num_frames += len(clip)
                size_bytes += sum(array.nbytes for array in (clip.frames, *clip.features.values()))
            if num_frames > MAX_FRAMES:
                raise ApiError(413, f"The samples have more than {MAX_FRAMES} frames together. Send fewer samples.")
            if size_bytes > self.limits.max_upload_bytes:
                limit = self.limits.max_upload_bytes
                raise ApiError(413, f"The frames of the samples take more than {limit} bytes. Send fewer samples.")
        return SampleRequest(samples, flag)

    def _sample(self, value: Any, field: str, parts: Mapping[str, FormPart], lists: Sequence[bytes]) -> Sample:
        kind = value.get("sample_type") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in _TRAJECTORIES:
            raise ApiError(422, f"Field '{field}.sample_type' must be 'progress' or 'preference'.")
        clips = [self._clip(value.get(name), f"{field}.{name}", parts, lists) for name in _TRAJECTORIES[kind]]
        return clips[0] if kind == "progress" else (clips[0], clips[1])

    def _clip(self, value: Any, field: str, parts: Mapping[str, FormPart], lists: Sequence[bytes]) -> Clip:
        if not isinstance(value, dict):
            raise ApiError(422, f"Field '{field}' must be an object.")
        task = checked_task(value.get("task"), f"{field}.task", may_be_empty=True)
        if value.get("frames") is not None:
            frames = self._frames(value["frames"], f"{field}.frames", parts, lists)
            _check_shape(value.get("frames_shape"), frames, f"{field}.frames_shape")
            return Clip(frames, task)
        if value.get("video_embeddings") is not None:
            return self._embedded(value["video_embeddings"], task, f"{field}.video_embeddings", parts)
        raise ApiError(422, f"Field '{field}' has neither 'frames' nor 'video_embeddings'.")

    def _frames(self, value: Any, field: str, parts: Mapping[str, FormPart], lists: Sequence[bytes]) -> np.ndarray:
        if isinstance(value, list):
            if any(isinstance(item, str) for item in value):
                raise ApiError(422, f"Field '{field}' holds paths. The endpoint opens no files: send the frames.")
            raise ApiError(422, f"Field '{field}' must be lists of whole numbers from 0 to 255, [T, H, W, 3].")
        if isinstance(value, dict) and PLACE in value:
            values = read_numbers(lists[value[PLACE]], field, self.limits.max_upload_bytes)
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
        with np.errstate(over="ignore"):
            features = _array(value, field, parts, self._check_embeddings).astype(np.float16)  # as a corpus stores them
        if not np.isfinite(features).all():
            raise ApiError(422, f"Field '{field}' holds numbers that float16 cannot hold.")
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
    is_whole = values.dtype.kind != "f" or bool((values == np.rint(values)).all())
    is_share = not is_whole and high <= 1
    if values.dtype.kind == "f" and ((is_whole and high == 1) or (not is_whole and 1 < high <= 2)):
        raise ApiError(422, f"Field '{field}' has colours up to {high:g}, which may be of 1 or of 255. Send uint8.")
    colours: np.ndarray = np.rint(values * 255.0 if is_share else values).astype(np.uint8)
    return colours


def _parsed(texts: Sequence[bytes], names: Sequence[str]) -> tuple[list[Any], list[bytes]]:
    """The values of JSON texts, each list of frames replaced by its place, and these lists."""
    bare, lists = [], list[bytes]()
    for text in texts:
        rest, found = cut_out(text, len(lists))
        bare.append(rest)
        lists += found
    contents = "samples need when their arrays are sent as parts"
    return parse_json(bare, MAX_TEXT_ITEMS, contents, nan=True, tasks=MAX_SAMPLES, names=names), lists


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


def _check_shape(stated: Any, frames: np.ndarray, field: str) -> None:
    """`frames_shape` need not be there, but must not contradict the frames."""
    if isinstance(stated, list) and len(stated) == 4 and stated[:3] != list(frames.shape[:3]):
        raise ApiError(422, f"Field '{field}' is {str(stated)[:80]}, and the frames are {list(frames.shape)}.")
