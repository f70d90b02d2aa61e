"""Decode what was uploaded: a video, images, or an npy array.

What a client sends is decoded in a child process of few rights (`pipelines.serving.decoder`), within a deadline: what
crashes it, or never ends, or asks for all memory, is the end of that upload and of nothing else. An npy array needs
no decoder.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipelines.serving.child import Answer, Call, Child, DeathError
from pipelines.serving.decoder import Job
from pipelines.serving.errors import ApiError, unavailable
from pipelines.serving.jobs import Limits
from pipelines.serving.npy import HEAD_BYTES, read_npy_header
from robometer.frames.video import VideoLimits

logger = logging.getLogger(__name__)

DECODERS = 4
"""Uploads that are decoded at a time in one ingress replica; more wait."""


@dataclass(frozen=True)
class Decoded:
    """frames uint8 [T, H, W, 3], the source frame that each one is, and the source's frames per second if known."""

    frames: np.ndarray
    frame_index: list[int]
    fps: float | None = None


class Decoders:
    """Child processes that decode, one for each of a few threads; they start with the first upload."""

    def __init__(
        self, limits: Limits, observe_death: Callable[[str], None] = lambda cause: None, max_held_bytes: int = 2**29
    ) -> None:
        """`observe_death` is told each time that an upload ends its process: the signal's name, or `timeout`.

        `max_held_bytes` bounds the decoded frames of all requests together, which wait for the model.
        """
        self.limits, self._observe_death = limits, observe_death
        self._max_held_bytes, self._held_bytes = max_held_bytes, 0
        self._threads = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        self._of_thread = threading.local()

    async def video(self, data: bytes, field: str) -> Decoded:
        """Frames of an uploaded video, as a model sees them.

        Raises:
            ApiError: 415 for what is no video that can be decoded, 413 for what is beyond the limits or takes too
                long, 422 for an empty part, 503 where the machine ended the decoder.
        """
        if not data:
            raise ApiError(422, f"field '{field}' is empty")
        return await self._run(field, self._job([len(data)], images=False), [data])

    async def images(self, items: Any, field: str) -> Decoded:
        """Frames of a list of base64 JPEG or PNG images, all of one size.

        Raises:
            ApiError: 422 for anything else, 413 for too many frames or pixels, or too much time.
        """
        if not isinstance(items, list) or not items or not all(isinstance(item, str) for item in items):
            raise ApiError(422, f"field '{field}' must be a list of at least one base64 JPEG or PNG image")
        _check_source(len(items), 1, field, self.limits)
        for i, item in enumerate(items):
            if not item.isascii():
                raise ApiError(422, f"field '{field}': image {i} is not a base64 JPEG or PNG image")
        job = self._job([len(item) for item in items], images=True)
        return await self._run(field, job, (item.encode("ascii") for item in items))

    async def npy(self, data: bytes, field: str) -> Decoded:
        """Frames of a `.npy` file. The header is checked first: it could announce more than memory holds.

        Raises:
            ApiError: 422 for another format, dtype or shape, 413 for too many frames or pixels.
        """
        return await asyncio.to_thread(decode_npy, data, field, self.limits)

    @contextmanager
    def holding(self, frames: np.ndarray) -> Iterator[None]:
        """In the block a request holds these frames: those of a small upload may be many.

        Raises:
            ApiError: 503, others hold too many.
        """
        if self._held_bytes and self._held_bytes + frames.nbytes > self._max_held_bytes:
            raise unavailable("the frames of too many requests wait for the model; try again later")
        self._held_bytes += frames.nbytes
        try:
            yield
        finally:
            self._held_bytes -= frames.nbytes

    def close(self) -> None:
        """End all processes, and what they are doing."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _job(self, sizes: list[int], images: bool) -> Job:
        limits = self.limits
        return Job(
            sizes=sizes,
            images=images,
            settings=limits.frames.as_dict(),
            limits=asdict(VideoLimits(limits.max_source_frames, limits.max_source_pixels, limits.max_total_pixels)),
            max_bytes=limits.max_upload_bytes,
            cpu_s=math.ceil(limits.decode_timeout_s),
        )

    async def _run(self, field: str, job: Job, parts: Iterable[bytes]) -> Decoded:
        call = Call()
        done = asyncio.get_running_loop().run_in_executor(self._threads, self._in_thread, call, field, job, parts)
        try:
            return await done
        except asyncio.CancelledError:  # the client is gone, or its time is up
            call.end("cancelled")
            raise

    def _in_thread(self, call: Call, field: str, job: Job, parts: Iterable[bytes]) -> Decoded:
        child = getattr(self._of_thread, "child", None)
        if child is None or not child.alive():
            child = self._of_thread.child = Child(_memory_bytes(self.limits))
        try:
            with call.held_by(child, self.limits.decode_timeout_s):
                answer = child.decode(job, parts)
        except DeathError as death:
            self._observe_death(death.cause)
            raise _end(field, death.cause, self.limits) from death
        if answer.frames is None:
            raise _refusal(field, answer)
        return Decoded(answer.frames, answer.frame_index, answer.fps or None)


def decode_npy(data: bytes, field: str, limits: Limits) -> Decoded:
    """See `Decoders.npy`."""
    if not data:
        raise ApiError(422, f"field '{field}' is empty")
    shape, fortran_order, offset = read_npy_header(data[:HEAD_BYTES], field)
    _check_source(shape[0], shape[1] * shape[2], field, limits)
    if len(data) - offset != math.prod(shape):
        raise ApiError(422, f"field '{field}' is cut short or has bytes after its array: send it again")
    pixels = np.frombuffer(data, np.uint8, offset=offset)
    frames = np.ascontiguousarray(pixels.reshape(shape, order="F" if fortran_order else "C"))
    return Decoded(frames, list(range(len(frames))))


def _check_source(num_frames: int, pixels: int, field: str, limits: Limits) -> None:
    if num_frames < 1 or pixels < 1:
        raise ApiError(422, f"field '{field}' holds no frames")
    if num_frames > limits.max_source_frames:
        raise ApiError(413, f"field '{field}' has {num_frames} frames, more than {limits.max_source_frames}")
    if pixels > limits.max_source_pixels:
        raise ApiError(413, f"field '{field}' has frames of {pixels} pixels, more than {limits.max_source_pixels}")


def _refusal(field: str, answer: Answer) -> Exception:
    """What a child process says of an upload that it refuses."""
    if answer.log:
        logger.warning("an upload could not be decoded for a reason that has no sentence: %s", answer.log)
    if answer.status not in (413, 415, 422):
        return RuntimeError(f"the decoder of uploads is broken: {answer.error}")
    return ApiError(answer.status, f"field '{field}' cannot be decoded: {answer.error}")


def _end(field: str, cause: str, limits: Limits) -> ApiError:
    """What the end of a child process says of the upload that it held."""
    if cause in ("timeout", "SIGXCPU"):
        limit = f"{limits.decode_timeout_s:g} s (serve.decode_timeout_s)"
        return ApiError(413, f"field '{field}' takes longer to decode than {limit}: send fewer or smaller frames")
    if cause in ("SIGKILL", "cancelled", "ended"):  # from outside, e.g. because the machine is out of memory
        return unavailable(f"the decoder of field '{field}' was ended from outside; try again")
    return ApiError(415, f"field '{field}' is damaged: it crashes its decoder")


def _memory_bytes(limits: Limits) -> int:
    # A stream may refer to 16 frames, of up to 3 bytes a pixel where it has 8 bits; an upload is there four times.
    return 2**29 + 4 * limits.max_upload_bytes + 48 * limits.max_source_pixels
