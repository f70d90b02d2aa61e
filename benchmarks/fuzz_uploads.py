"""Randomly damaged uploads against a real endpoint: `python -m benchmarks.fuzz_uploads --minutes 20`.

Several clients mutate small valid files of every container and codec and post them, while another client polls /health.
Every answer must be 200 or a 4xx with one sentence; uploads with any other answer are kept in `--output`.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import random
import re
import socket
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import cv2
import httpx
import numpy as np
import psutil
import ray

from pipelines.serve import start, stop
from pipelines.serving.front import ENVIRONMENT
from robometer.configs import load
from robometer.scorers import resolve

FORMATS = {
    "mp4": ("libx264", "libx265", "mpeg4", "libsvtav1", "libvpx-vp9"),
    "mov": ("libx264", "prores_ks", "png", "mjpeg"),
    "matroska": ("libx264", "libx265", "mpeg4", "libvpx", "ffv1", "mjpeg", "rawvideo"),
    "webm": ("libvpx", "libvpx-vp9", "libsvtav1"),
    "avi": ("mpeg4", "mjpeg", "msmpeg4v2", "msmpeg4", "libx264", "huffyuv", "rawvideo"),
    "mpegts": ("libx264", "libx265", "mpeg2video"),
    "flv": ("flv", "libx264"),
    "ogg": ("libvpx",),
    "gif": ("gif",),
    "mpeg": ("mpeg1video", "mpeg2video"),
    "3gp": ("h263", "mpeg4"),
}
"""Containers and encoders, as ffmpeg names them."""

_PIXELS = {"mjpeg": "yuvj420p", "gif": "rgb8", "png": "rgb24", "prores_ks": "yuv422p10le", "huffyuv": "yuv422p"}
_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def small_video(container: str, encoder: str, num_frames: int = 10) -> bytes:
    """A bright square that moves, 64 x 64 pixels (H.263: 176 x 144), 10 frames per second."""
    height, width = (144, 176) if encoder == "h263" else (64, 64)
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream: Any = output.add_stream(encoder, rate=25 if container == "mpeg" else 10)
        stream.height, stream.width, stream.pix_fmt = height, width, _PIXELS.get(encoder, "yuv420p")
        stream.codec_context.thread_count = 1
        for i in range(num_frames):
            pixels = np.full((height, width, 3), 30, np.uint8)
            pixels[20:40, 3 * i : 3 * i + 20] = (220, 180, 40)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))  # SVT-AV1 takes real-time priority where root runs it
    return file.getvalue()


def small_videos() -> dict[str, bytes]:
    """A video for each container and encoder that this machine's PyAV can write."""
    videos = {}
    for container, encoders in FORMATS.items():
        for encoder in encoders:
            try:
                videos[f"{container}/{encoder}"] = small_video(container, encoder)
            except (av.error.FFmpegError, ValueError) as error:
                print(f"no {encoder} in {container} here: {error}")
    return videos


def mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """`data` with one to four mutations; `other` provides parts to splice in."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        rng.choice(_MUTATIONS)(changed, other, rng)
        if not changed:
            return data[: rng.randint(1, len(data))]
    return bytes(changed)


def _flip_bits(data: bytearray, other: bytes, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set_numbers(data: bytearray, other: bytes, rng: random.Random) -> None:
    width, order = rng.choice((1, 2, 4, 8)), rng.choice(("big", "little"))
    at = min(rng.randrange(len(data)), rng.choice((len(data), 256)))  # half of the time in the header
    number = rng.choice(_NUMBERS) & (256**width - 1)
    data[at : at + width] = number.to_bytes(width, order)


def _randomise(data: bytearray, other: bytes, rng: random.Random) -> None:
    at, length = rng.randrange(len(data)), rng.choice((4, 16, 64, 256))
    data[at : at + length] = rng.randbytes(len(data[at : at + length]))


def _cut(data: bytearray, other: bytes, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _delete(data: bytearray, other: bytes, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 2, 8, 100))]


def _repeat(data: bytearray, other: bytes, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at:at] = data[at : at + rng.choice((1, 8, 100, 1000))] * rng.choice((1, 1, 10))


def _splice(data: bytearray, other: bytes, rng: random.Random) -> None:
    at, start = rng.randrange(len(data)), rng.randrange(len(other))
    length = rng.choice((8, 100, 1000))
    data[at : at + length] = other[start : start + length]


def _zero(data: bytearray, other: bytes, rng: random.Random) -> None:
    at, length = rng.randrange(len(data)), rng.choice((4, 32, 256))
    data[at : at + length] = bytes(len(data[at : at + length]))


_MUTATIONS: tuple[Callable[[bytearray, bytes, random.Random], None], ...] = (
    _flip_bits, _flip_bits, _set_numbers, _set_numbers, _randomise, _cut, _delete, _repeat, _splice, _zero,
)  # fmt: skip


class Fuzzer:
    """What the clients share: the cases, and the answers."""

    def __init__(self, url: str, output: Path, seed: int) -> None:
        self.url, self.output, self.seed = url, output, seed
        self.videos = small_videos()
        self.images = [cv2.imencode(kind, np.zeros((8, 8, 3), np.uint8))[1].tobytes() for kind in (".png", ".jpg")]
        array = io.BytesIO()
        np.save(array, np.zeros((2, 8, 8, 3), np.uint8))
        self.array = array.getvalue()
        self.statuses: Counter[str] = Counter()
        self.health_s: list[float] = []
        self.odd: list[str] = []
        self._count, self._lock = 0, threading.Lock()

    def run(self, minutes: float, clients: int) -> None:
        """Post until the time is up."""
        end = time.monotonic() + 60 * minutes
        threads = [threading.Thread(target=self._post_until, args=(end,)) for _ in range(clients)]
        threads.append(threading.Thread(target=self._ask_health_until, args=(end,)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def case(self, number: int) -> tuple[str, bytes]:
        """(name, content) of a case, which the seed determines."""
        rng = random.Random(f"{self.seed} {number}")
        kind = rng.random()
        if kind < 0.05:
            return "npy", mutated(self.array, self.array, rng)
        if kind < 0.1:
            return "image", mutated(rng.choice(self.images), self.images[0], rng)
        name = rng.choice(list(self.videos))
        return name, mutated(self.videos[name], self.videos[rng.choice(list(self.videos))], rng)

    def _post_until(self, end: float) -> None:
        with httpx.Client(base_url=self.url, timeout=120) as http:
            while time.monotonic() < end:
                with self._lock:
                    number = self._count
                    self._count += 1
                self._post(http, number)

    def _post(self, http: httpx.Client, number: int) -> None:
        name, content = self.case(number)
        try:
            response = _send(http, name, content)
            status, text = str(response.status_code), response.text
        except httpx.HTTPError as error:
            status, text = type(error).__name__, str(error)
        with self._lock:
            self.statuses[status] += 1
            if status not in ("200", "413", "415", "422"):
                self.odd.append(f"case {number} ({name}): {status} {text[:200]}")
                (self.output / f"{number}_{name.replace('/', '_')}").write_bytes(content)

    def _ask_health_until(self, end: float) -> None:
        with httpx.Client(base_url=self.url, timeout=60) as http:
            while time.monotonic() < end:
                began = time.monotonic()
                http.get("/health").raise_for_status()
                self.health_s.append(time.monotonic() - began)
                time.sleep(0.05)


def _send(http: httpx.Client, name: str, content: bytes) -> httpx.Response:
    if name == "image":
        return http.post("/v1/score", json={"task": "t", "frames_base64": [base64.b64encode(content).decode()] * 2})
    field = "frames" if name == "npy" else "video"
    return http.post("/v1/score", data={"task": "t"}, files={field: ("upload", content)})


@contextmanager
def _endpoint() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(ENVIRONMENT)
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        yield start(load([f"serve.port={port}"]), resolve("baseline:frame_difference"))
    finally:
        stop()
        ray.shutdown()


def _memory() -> tuple[int, int]:
    """(MB of all processes of the endpoint, MB of those that decode), each page counted once."""
    everything = decoders = 0
    for process in psutil.Process().children(recursive=True):
        try:
            size, command = process.memory_full_info().pss, " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        everything += size
        decoders += size if "serving.decoder" in command else 0
    return everything // 2**20, decoders // 2**20


def _deaths(url: str) -> dict[str, int]:
    text = httpx.get(f"{url}/metrics").text
    pattern = r'robometer_decoder_deaths_total\{.*cause="(\w+)".*\} ([\d.]+)'
    return {cause: int(float(count)) for cause, count in re.findall(pattern, text)}


def main() -> None:
    """Parse the arguments, fuzz, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output",
        type=Path,
        default=None,
        help="folder for uploads with unexpected answers",
    )
    arguments = parser.parse_args()
    output = arguments.output or Path(tempfile.mkdtemp(prefix="fuzz_uploads_"))
    output.mkdir(parents=True, exist_ok=True)
    with _endpoint() as url:
        fuzzer = Fuzzer(url, output, arguments.seed)
        print(f"{len(fuzzer.videos)} kinds of videos: {', '.join(fuzzer.videos)}", flush=True)
        for name, content in fuzzer.videos.items():
            with httpx.Client(base_url=url, timeout=120) as http:
                answer = _send(http, name, content)
                if answer.status_code != 200:
                    print(f"valid {name}: {answer.status_code} {answer.text[:200]}", flush=True)
        fuzzer.run(min(1.0, arguments.minutes / 10), arguments.clients)  # warm-up
        before, began = _memory(), time.monotonic()
        fuzzer.run(arguments.minutes, arguments.clients)
        seconds, after = time.monotonic() - began, _memory()
        health = np.array(fuzzer.health_s)
        total = sum(fuzzer.statuses.values())
        print(f"{total} cases, {seconds:.0f} s timed, {arguments.clients} clients, seed {arguments.seed}")
        print("statuses: " + ", ".join(f"{status}: {count}" for status, count in sorted(fuzzer.statuses.items())))
        print(f"ends of decoding processes: {_deaths(url) or 'none'}")
        print(f"5xx and broken connections: {len(fuzzer.odd)}" + "".join(f"\n  {line}" for line in fuzzer.odd[:20]))
        print(f"/health: {len(health)} polls, median {1e3 * np.median(health):.0f} ms, max {1e3 * health.max():.0f} ms")
        print(f"memory (PSS) before and after: endpoint with Ray {before[0]} and {after[0]} MB, ", end="")
        print(f"decoders {before[1]} and {after[1]} MB; odd cases in {output}")


if __name__ == "__main__":
    main()
