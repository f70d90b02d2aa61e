"""Decode an upload: a video, images, or an npy array.

A child process with few rights decodes it within a deadline (`pipelines.serving.decoder`). An upload that crashes the
child, never ends or takes too much memory fails alone. An npy array needs no decoder.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pipelines.serving.backend import Limits
from pipelines.serving.child import NO_START, Answer, Call, Child, DeathError
from pipelines.serving.decoder import DecodeJob
from pipelines.serving.errors import ApiError, unavailable
from pipelines.serving.fetching import Fetcher
from pipelines.serving.npy import HEAD_BYTES, MAGIC, read_npy, read_npy_header
from pipelines.serving.options import Cut
from pipelines.serving.records import current, stage
from robometer.configs.allow_list import AllowList
from robometer.frames.video import VideoLimits, thin_positions

logger = logging.getLogger(__name__)

DECODERS = 4
"""Uploads that one ingress replica decodes at a time; more wait."""


_WHOLE = Cut()


@dataclass(frozen=True)
class Decoded:
    """A decoded upload.

    Attributes:
        frames: uint8 [T, H, W, 3] RGB.
        frame_index: [T], position of each frame in the source.
        fps: frames per second of the source, where it is known.
    """

    frames: np.ndarray
    frame_index: list[int]
    fps: float | None = None


class Decoders:
    """Child processes that decode, one for each of a few threads. They start with the first upload."""

    def __init__(
        self,
        limits: Limits,
        observe_death: Callable[[str], None] = lambda cause: None,
        max_held_bytes: int = 2**29,
        fetcher: Fetcher | None = None,
    ) -> None:
        """Start no process yet.

        Args:
            observe_death: called when an upload ends its process, with the cause: a signal's name, or `timeout`.
            max_held_bytes: limit of the decoded frames of all requests together, while they wait for the model.
            fetcher: of clips that are named by URL; None: it fetches nothing.
        """
        self._fetcher = fetcher or Fetcher(AllowList(), limits.max_upload_bytes, limits.decode_timeout_s)
        self.limits, self._observe_death = limits, observe_death
        self._max_held_bytes, self._held_bytes = max_held_bytes, 0
        self.max_bytes_of_many = max_held_bytes // 2  # requests of many clips leave the rest to others
        self._entries, self._freed = asyncio.Semaphore(DECODERS), asyncio.Event()
        self._threads = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        self._of_thread = threading.local()

    async def video(self, data: bytes, field: str, cut: Cut = _WHOLE) -> Decoded:
        """Frames of a part of an uploaded video, as a model sees them.

        Raises:
            ApiError: 415 where it cannot be decoded, 413 where it exceeds the limits or takes too long, 422 where it
                is empty or lacks the part, 503 where the machine killed the decoder.
        """
        if not data:
            raise ApiError(422, f"Field '{field}' is empty.")
        job = self._job([len(data)], images=False)
        settings = job.settings | ({"max_frames": cut.max_frames} if cut.max_frames else {})
        job = replace(job, settings=settings, start=cut.start, end=cut.end, in_seconds=cut.in_seconds, rate=cut.fps)
        return await self._run(field, job, [data])

    async def images(self, items: Any, field: str) -> Decoded:
        """Frames of a list of base64 JPEG or PNG images, all of one size.

        Raises:
            ApiError: 422 for anything else, 413 for too many frames or pixels, or too much time.
        """
        self.check_images(items, field)
        job = self._job([len(item) for item in items], images=True)
        return await self._run(field, job, (item.encode("ascii") for item in items))

    def check_images(self, items: Any, field: str) -> None:
        """Refuse what is not a list of base64 images, before any of them is decoded.

        Raises:
            ApiError: 422, or 413 for too many.
        """
        if not isinstance(items, list) or not items or not all(isinstance(item, str) for item in items):
            raise ApiError(422, f"Field '{field}' must be a list of at least one base64 JPEG or PNG image.")
        check_source(len(items), 1, field, self.limits)
        for i, item in enumerate(items):
            if not item.isascii():
                raise ApiError(422, f"Field '{field}': image {i} is not a base64 JPEG or PNG image.")

    async def npy(self, data: bytes, field: str) -> Decoded:
        """Frames of a `.npy` file. The header is checked first: it could announce more than memory holds.

        Raises:
            ApiError: 422 for another format, dtype or shape, 413 for too many frames or pixels.
        """
        with stage("decode"):
            return await asyncio.to_thread(decode_npy, data, field, self.limits)

    def check_url(self, url: Any, field: str) -> None:
        """Refuse what is not on the allow-list, before it is fetched.

        Raises:
            ApiError: 422.
        """
        self._fetcher.check(url, field)

    async def url(self, url: Any, field: str, cut: Cut) -> Decoded:
        """Frames of a part of the video, or of the `.npy` file, that is at a URL.

        Raises:
            ApiError: as an upload of it would; 408 where it does not come in time, 422 where it may not be fetched.
        """
        async with self._fetcher.fetched(url, field) as content:
            if content.startswith(MAGIC):
                return cut_frames(await self.npy(content, field), cut, field)
            return await self.video(content, field, cut)

    @contextmanager
    def counted(self, *arrays: np.ndarray) -> Iterator[None]:
        """Count these frames as held in memory during the block: a small upload may have many.

        Raises:
            ApiError: 503, too many are held already.
        """
        size_bytes = sum(frames.nbytes for frames in arrays)
        current().frames += sum(map(len, arrays))
        if self._held_bytes and self._held_bytes + size_bytes > self._max_held_bytes:
            raise unavailable("The frames of too many requests wait for the model. Try again later.")
        self._held_bytes += size_bytes
        try:
            yield
        finally:
            self._held_bytes -= size_bytes
            self._freed.set()

    @asynccontextmanager
    async def when_there_is_room(self, decode: Callable[[], Awaitable[Decoded]]) -> AsyncIterator[Decoded]:
        """Decode one clip of a request of many, which waits, not fails, while half of the memory for frames is taken.

        Frames that wait are those of a few clips at most. No block may need another one to end.
        """
        async with AsyncExitStack() as held:
            async with self._entries:
                decoded = await decode()
                while self._held_bytes and self._held_bytes + decoded.frames.nbytes > self.max_bytes_of_many:
                    self._freed.clear()
                    await self._freed.wait()
                held.enter_context(self.counted(decoded.frames))
            yield decoded

    def close(self) -> None:
        """End all processes and their work."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _job(self, sizes: list[int], images: bool) -> DecodeJob:
        limits = self.limits
        return DecodeJob(
            sizes=sizes,
            images=images,
            settings=limits.frames_now().as_dict(),
            limits=asdict(VideoLimits(limits.max_source_frames, limits.max_source_pixels, limits.max_total_pixels)),
            max_bytes=limits.max_upload_bytes,
            cpu_s=math.ceil(limits.decode_timeout_s),
        )

    async def _run(self, field: str, job: DecodeJob, parts: Iterable[bytes]) -> Decoded:
        call = Call()
        done = asyncio.get_running_loop().run_in_executor(self._threads, self._in_thread, call, field, job, parts)
        try:
            with stage("decode"):
                return await done
        except asyncio.CancelledError:  # the client has gone, or the request timed out
            call.end("cancelled")
            raise

    def _in_thread(self, call: Call, field: str, job: DecodeJob, parts: Iterable[bytes]) -> Decoded:
        child = getattr(self._of_thread, "child", None)
        try:
            if child is None or not child.alive():
                child = self._of_thread.child = Child(_memory_bytes(self.limits))
            with call.running_in(child, self.limits.decode_timeout_s):
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
        raise ApiError(422, f"Field '{field}' is empty.")
    header = read_npy_header(data[:HEAD_BYTES], field)
    if header.dtype != np.uint8 or len(header.shape) != 4 or header.shape[-1] != 3:
        raise ApiError(422, f"Field '{field}' must hold uint8 [T, H, W, 3] RGB frames, not {header}.")
    check_source(header.shape[0], header.shape[1] * header.shape[2], field, limits)
    frames = read_npy(data, header, field)
    return Decoded(frames, list(range(len(frames))))


def check_source(num_frames: int, pixels: int, field: str, limits: Limits) -> None:
    """Check the number of frames and the pixels of each against the limits of an upload.

    Raises:
        ApiError: 422 where there are none, 413 where there are too many.
    """
    if num_frames < 1 or pixels < 1:
        raise ApiError(422, f"Field '{field}' holds no frames.")
    if num_frames > limits.max_source_frames:
        raise ApiError(413, f"Field '{field}' has {num_frames} frames; the limit is {limits.max_source_frames}.")
    if pixels > limits.max_source_pixels:
        raise ApiError(413, f"Field '{field}' has frames of {pixels} pixels; the limit is {limits.max_source_pixels}.")


def cut_frames(decoded: Decoded, cut: Cut, field: str) -> Decoded:
    """A part of frames that were sent as frames.

    Raises:
        ApiError: 422, there is no such part, or it is named in seconds.
    """
    if cut == _WHOLE:
        return decoded
    if cut.in_seconds:
        raise ApiError(422, f"Field '{field}' has no times. Give the part to score as start_frame and end_frame.")
    if cut.fps:
        raise ApiError(422, f"Field '{field}' has no times. Say how many frames to take with max_frames, not fps.")
    total, first = len(decoded.frames), int(cut.start)
    end = total if cut.end is None else int(cut.end)
    if first >= total or end > total:
        part = f"{first} to {'the end' if cut.end is None else end}"
        raise ApiError(422, f"Field '{field}' has {total} frames, so it does not hold frames {part}.")
    thin = thin_positions.__wrapped__  # a client chooses the numbers: they are not worth remembering
    positions = first + thin(end - first, cut.max_frames or end - first)
    return Decoded(decoded.frames[positions], [int(i) for i in positions], decoded.fps)


def _refusal(field: str, answer: Answer) -> Exception:
    """The error for an upload that the child process refused."""
    if answer.log:
        logger.warning("An upload could not be decoded: %s", answer.log)
    if answer.status not in (413, 415, 422):
        return RuntimeError(f"the decoder of uploads is broken: {answer.error}")
    return ApiError(answer.status, f"Field '{field}' cannot be decoded: {answer.error.rstrip('.')}.")


def _end(field: str, cause: str, limits: Limits) -> ApiError:
    """The error for an upload over which the child process ended."""
    if cause in ("timeout", "SIGXCPU"):
        limit = f"{limits.decode_timeout_s:g} s (serve.decode_timeout_s)"
        return ApiError(413, f"Field '{field}' takes longer to decode than {limit}. Send fewer or smaller frames.")
    if cause in ("SIGKILL", "cancelled", "ended", NO_START):  # from outside, e.g. because the machine is out of memory
        return unavailable(f"The decoder of field '{field}' was killed from outside. Try again.")
    return ApiError(415, f"Field '{field}' is damaged: it crashes its decoder.")


def _memory_bytes(limits: Limits) -> int:
    # A stream may refer to 16 frames of up to 3 bytes a pixel at 8 bits; an upload is in memory four times.
    return 2**29 + 4 * limits.max_upload_bytes + 48 * limits.max_source_pixels
