"""The process that decodes uploads. It forks for each upload, so that no upload can affect another.

`pipelines.serving.child` starts it with almost no environment and no open file but its pipes. It reads a line of JSON,
which is a `DecodeJob`, and the bytes of the upload. The fork writes the length of an answer, the answer as JSON, and
the bytes of the frames. When the fork has ended, this process writes 0 and the exit status of the fork.
"""

from __future__ import annotations

import base64
import gc
import importlib
import io
import json
import os
import pkgutil
import resource
import struct
import sys
import traceback
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, BinaryIO

import av
import cv2
import numpy as np
from PIL import Image, MpoImagePlugin, TiffImagePlugin  # noqa: F401 - Pillow imports these late

from pipelines.serving.images import read_images
from pipelines.serving.sealing import end_with_parent, forbid_children, seal
from pipelines.serving.signatures import check_signature
from robometer.frames import FrameSettings, read_frames
from robometer.frames.recording import VideoFile
from robometer.frames.timeline import frames_at, positions_at_rate
from robometer.frames.video import (
    OutsideError,
    Pick,
    Video,
    VideoError,
    VideoInfo,
    VideoLimits,
    VideoTooLargeError,
    first_line,
    probe,
)

LENGTH = struct.Struct("<I")
STATUS = struct.Struct("<i")

_OUR_FAULT = (ImportError, PermissionError, AssertionError)
"""What a sealed process raises where it lacks something that every upload needs."""


@dataclass(frozen=True)
class DecodeJob:
    """What to decode and its limits; sent as JSON.

    Attributes:
        sizes: bytes of each part of the upload.
        images: whether the parts are base64 images; otherwise there is one part, a video.
        settings: `FrameSettings` of a video.
        limits: `VideoLimits`; those of frames and pixels hold for images too.
        max_bytes: limit of the decoded frames.
        cpu_s: limit of CPU time in seconds.
        start, end: the part of a video to decode; None is its end.
        in_seconds: whether these are seconds; otherwise they are numbers of frames.
        rate: frames per second to take of a video, instead of `settings.max_frames`; 0: none.
    """

    sizes: list[int]
    images: bool
    settings: dict[str, int]
    limits: dict[str, int]
    max_bytes: int
    cpu_s: int
    start: float = 0
    end: float | None = None
    in_seconds: bool = False
    rate: float = 0

    def to_line(self) -> bytes:
        """One line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"


def main(parent: int, memory_bytes: int) -> None:
    """Decode until the parent closes the pipe. The first line written says what could not be sealed."""
    end_with_parent(parent)
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    _warm_up()
    null = os.open(os.devnull, os.O_RDWR)
    missing = seal(memory_bytes)
    for standard in (0, 1, 2):  # libraries in C write to standard output and error
        os.dup2(null, standard)
    sink.write(json.dumps(missing).encode() + b"\n")
    sink.flush()
    while line := source.readline():
        job = DecodeJob(**json.loads(line))
        upload = source.read(sum(job.sizes))
        status = _in_fork(job, upload, sink)
        sink.write(LENGTH.pack(0) + STATUS.pack(status))
        sink.flush()


def _warm_up() -> None:
    """Import and use once all that decoding may need: a sealed process cannot import."""
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    cv2.setNumThreads(1)  # a fork has only the thread that forked
    video, images = io.BytesIO(), [io.BytesIO(), io.BytesIO()]
    with av.open(video, "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "yuv420p"
        stream.codec_context.thread_count = 1
        frame = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    np.unique([0, 1])  # of the timelines of codecs that every build can decode and not every one can write
    for image, kind in zip(images, ("PNG", "JPEG"), strict=True):
        Image.new("RGB", (16, 16)).save(image, kind)
    limits = asdict(VideoLimits())
    for parts in ([video.getvalue()], [base64.b64encode(image.getvalue()) for image in images]):
        job = DecodeJob([len(part) for part in parts], len(parts) > 1, asdict(FrameSettings()), limits, 2**30, 0)
        _frames(job, b"".join(parts))
    gc.collect()
    gc.freeze()  # else the collector would copy all of this into each fork


def _in_fork(job: DecodeJob, upload: bytes, sink: BinaryIO) -> int:
    """Decode in a fork of this process; returns the fork's status from `os.waitpid`."""
    this = os.getpid()
    fork = os.fork()
    if fork:
        return os.waitpid(fork, 0)[1]
    try:
        end_with_parent(this)
        forbid_children()  # code that takes over the fork must not outlive it
        resource.setrlimit(resource.RLIMIT_CPU, (job.cpu_s, job.cpu_s + 1))
        answer, pixels = _answer(job, upload)
        text = json.dumps(answer).encode()
        sink.write(LENGTH.pack(len(text)) + text)
        sink.write(pixels)
        sink.flush()
        os._exit(0)
    finally:  # a fork must never run the parent's loop
        os._exit(1)


def _answer(job: DecodeJob, upload: bytes) -> tuple[dict[str, Any], bytes | memoryview]:
    """The answer and the pixels; a refusal is {status, error} and no pixels."""
    try:
        video = _frames(job, upload)
    except VideoTooLargeError as error:
        return {"status": 413, "error": str(error)}, b""
    except OutsideError as error:
        return {"status": 422, "error": str(error)}, b""
    except VideoError as error:
        if _lacks_memory(error.__cause__):
            return _NO_MEMORY, b""
        return {"status": 422 if job.images else 415, "error": str(error)}, b""
    except _OUR_FAULT:
        return {"status": 500, "error": traceback.format_exc()}, b""
    except Exception as error:  # noqa: BLE001  libraries may raise anything on bytes that nobody foresaw
        if _lacks_memory(error):
            return _NO_MEMORY, b""
        return {"status": 415, "error": "it is damaged", "log": f"{type(error).__name__}: {first_line(error)}"}, b""
    index = [int(i) for i in video.frame_index]
    return {"shape": video.frames.shape, "frame_index": index, "fps": video.fps}, video.frames.data.cast("B")


_NO_MEMORY = {"status": 413, "error": "it needs more memory to decode than an upload may have"}


def _lacks_memory(error: BaseException | None) -> bool:
    return isinstance(error, MemoryError) or (isinstance(error, cv2.error) and error.code == -4)  # Error::StsNoMem


def _frames(job: DecodeJob, upload: bytes) -> Video:
    limits = VideoLimits(**job.limits)
    if job.images:
        parts = [upload[start:end] for start, end in pairwise(accumulate(job.sizes, initial=0))]
        frames = read_images(parts, limits.max_pixels, job.max_bytes)
        return Video(frames, np.arange(len(frames)), 0.0, len(frames))
    check_signature(upload)
    info = probe(upload, limits)
    first, end = _cut(job, upload, info)
    count = info.num_frames - first if end is None else end - first
    settings = _settings(job, info, count)
    _check(info, count, settings, limits, job.max_bytes)
    video = read_frames(VideoFile(upload, first, end and end - first), settings, limits, _pick(job, upload, first))
    video = replace(video, frame_index=video.frame_index + first)
    if video.frames.nbytes > job.max_bytes:
        raise VideoTooLargeError(f"it decodes to {video.frames.nbytes} bytes, more than {job.max_bytes}")
    return video


def _cut(job: DecodeJob, upload: bytes, info: VideoInfo) -> tuple[int, int | None]:
    """The first frame of the part to decode and the one after its last; None: to the end."""
    if not job.in_seconds:
        return int(job.start), None if job.end is None else int(job.end)
    if job.end is None:
        return frames_at(upload, [job.start], info.fps)[0], None
    first, end = frames_at(upload, [job.start, job.end], info.fps)
    return first, max(end, first + 1)


def _settings(job: DecodeJob, info: VideoInfo, count: int) -> FrameSettings:
    """How `count` frames become those that a model sees; their number is a guess where a rate is asked for."""
    settings = FrameSettings(**job.settings)
    if not job.rate:
        return settings
    length_s = max(0, count - 1) / info.fps if info.fps else 0.0
    return replace(settings, max_frames=max(2, 1 + round(length_s * job.rate)))


def _pick(job: DecodeJob, upload: bytes, first: int) -> Pick | None:
    if not job.rate:
        return None
    return lambda count, fps: positions_at_rate(upload, first, count, fps, job.rate)


def _check(info: VideoInfo, count: int, settings: FrameSettings, limits: VideoLimits, max_bytes: int) -> None:
    """Refuse by what the header says of `count` frames; what it hides shows while frames are decoded."""
    total = info.num_frames * info.height * info.width
    if total > limits.max_total_pixels:
        raise VideoTooLargeError(f"its frames have {total} pixels together, more than {limits.max_total_pixels}")
    # Two rows of a million pixels become a thousand times as many when their short edge is scaled up.
    scale = settings.short_edge / min(info.height, info.width) if settings.short_edge else 1.0
    num_frames = min(count, settings.max_frames or count)
    size_bytes = 3 * num_frames * int(info.height * info.width * scale**2)
    if size_bytes > max_bytes:
        raise VideoTooLargeError(f"it decodes to {size_bytes} bytes, more than {max_bytes}")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
