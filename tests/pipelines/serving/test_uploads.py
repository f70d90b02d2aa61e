"""Broken, odd and hostile uploads: each gets the right answer and affects no other."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import av
import cv2
import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from benchmarks.fuzz_uploads import FORMATS, mutated, small_video
from pipelines.serving import child as child_module
from pipelines.serving import decoder
from pipelines.serving.backend import Limits
from pipelines.serving.child import Child, DeathError
from pipelines.serving.decoder import DecodeJob
from pipelines.serving.decoding import Decoders, decode_npy
from pipelines.serving.errors import ApiError
from robometer.baselines.trivial import FrameDifference
from robometer.configs import load
from robometer.frames import FrameSettings
from robometer.frames.video import decode_jpeg, encode_jpeg
from tests.conftest import SHARED
from tests.local_endpoint import endpoint

TASK = "open the drawer"
LIMITS = (
    "serve.max_upload_bytes=12_000_000",
    "serve.max_source_pixels=4_194_304",
    "serve.max_total_pixels=500_000_000",
)


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with (
        endpoint(FrameDifference(), overrides=LIMITS) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield client


@cache
def limits_with(*overrides: str) -> Limits:
    return Limits.from_config(load(list(overrides)), FrameSettings())


def post_video(http: httpx.Client, content: bytes) -> httpx.Response:
    return http.post("/v1/score", data={"task": TASK}, files={"video": ("v", content)})


def post_npy(http: httpx.Client, content: bytes) -> httpx.Response:
    return http.post("/v1/score", data={"task": TASK}, files={"frames": ("f.npy", content)})


def post_images(http: httpx.Client, *images: bytes) -> httpx.Response:
    items = [base64.b64encode(image).decode() for image in images]
    return http.post("/v1/score", json={"task": TASK, "frames_base64": items})


def sentence(response: httpx.Response, *statuses: int) -> str:
    """The sentence of a refusal, after checking that it is one line and shows no internals."""
    assert response.status_code in statuses, response.text[:500]
    text = response.json()["error"]
    assert "\n" not in text and len(text) < 400
    assert not re.search(r"/[a-z]+/|\.(py|cc?|cpp|h)\b|Traceback|0x[0-9a-f]{5}", text), text
    return str(text)


def jpeg(height: int, width: int) -> bytes:
    """A black picture; even a large one has few bytes."""
    return cv2.imencode(".jpg", np.zeros((height, width, 3), np.uint8))[1].tobytes()


def motion_jpeg(pictures: list[bytes], height: int, width: int, container: str = "avi") -> bytes:
    """A video of JPEG pictures whose header has this size, true or not; cheap to make."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream: Any = output.add_stream("mjpeg", rate=10)
        stream.pix_fmt, stream.height, stream.width = "yuvj420p", height, width
        output.start_encoding()
        for position, picture in enumerate(pictures):
            packet = av.Packet(picture)
            packet.pts = packet.dts = position * round(1 / (10 * stream.time_base))
            packet.time_base, packet.stream, packet.is_keyframe = stream.time_base, stream, True
            output.mux(packet)
    return file.getvalue()


def long_video() -> bytes:
    """A job within the limits of this module and with seconds to decode."""
    return motion_jpeg([jpeg(2048, 2048)] * 110, 2048, 2048)


def npy(header: bytes, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    return b"\x93NUMPY" + version + len(header).to_bytes(2 if version[0] == 1 else 4, "little") + header + data


PIXELS = bytes(range(96)) * 2  # [1, 8, 8, 3]
HEADER = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1, 8, 8, 3), }"


@pytest.mark.parametrize(
    "content",
    [
        npy(b"1+" * 3000),
        npy(b"(" * 3000),
        npy(b"((((((((((" * 20 + b"{'descr"),
        npy(HEADER.replace(b", }", b", 1: 2}"), PIXELS),
        npy(HEADER.replace(b"8, 8", b"-8, -8"), PIXELS),
        npy(HEADER.replace(b"(1, 8, 8, 3)", b"(True, 8, 8, 3)"), PIXELS),
        npy(HEADER.replace(b"(1, 8, 8, 3)", b"(1, 8.0, 8, 3)"), PIXELS),
        npy(HEADER.replace(b"(1, 8, 8, 3)", b"(1 8, 8, 3)"), PIXELS),
        npy(HEADER.replace(b"(1, 8, 8, 3)", b"[1, 8, 8, 3]"), PIXELS),
        npy(HEADER.replace(b"1, 8", b"99999999999999999999, 8"), PIXELS),
        npy(HEADER.replace(b"1, 8", b"9" * 5000 + b", 8"), PIXELS),
        npy(HEADER.replace(b"False", b"None"), PIXELS),
        npy(HEADER.replace(b"False", b"exit()"), PIXELS),
        npy(HEADER.replace(b"'fortran_order'", b"'descr'"), PIXELS),
        npy(HEADER.replace(b"|u1", b"|V8192"), PIXELS),
        npy(HEADER.replace(b"|u1", b"|O"), PIXELS),
        npy(HEADER.replace(b"|u1", b"u1,u1"), PIXELS),
        npy(HEADER.replace(b"|u1", b"\xff\xfe"), PIXELS),
        npy(HEADER.replace(b"'|u1'", b"[('a', '|u1'), ('b', [('c', '<f4')])]"), PIXELS),
        npy(HEADER.replace(b"'|u1'", b"('|u1', (2, 2))"), PIXELS),
        npy(b"\0" * 60, PIXELS),
        npy(HEADER + b"\0", PIXELS),
        npy(HEADER[:20], PIXELS),
        npy(b"", PIXELS),
        npy(HEADER, PIXELS, b"\x09\x00"),
        npy(HEADER, PIXELS, b"\x02\x00")[:30],
        npy(HEADER, PIXELS[:-1]),
        npy(HEADER, PIXELS + b"x"),
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff",
        b"PK\x03\x04" + bytes(100),
    ],
)
def test_an_npy_that_is_not_plainly_frames_is_refused(http: httpx.Client, content: bytes) -> None:
    sentence(post_npy(http, content), 422)


@pytest.mark.parametrize(
    "content",
    [
        npy(HEADER, PIXELS),
        npy(HEADER + b" " * 50 + b"\n", PIXELS, b"\x02\x00"),
        npy(HEADER, PIXELS, b"\x03\x00"),
        npy(HEADER.replace(b"|u1", b"<u1").replace(b"'", b'"'), PIXELS),
        npy(b"{'shape':(1L,8L,8L,3L),'fortran_order':False,'descr':'u1'}", PIXELS),
    ],
)
def test_an_npy_of_any_writer_is_taken(content: bytes) -> None:
    decoded = decode_npy(content, "frames", limits_with())
    assert decoded.frames.shape == (1, 8, 8, 3) and decoded.frames.tobytes() == PIXELS


def test_an_npy_in_fortran_order_has_its_pixels_where_they_belong() -> None:
    frames = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    file = io.BytesIO()
    np.save(file, np.asfortranarray(frames))
    decoded = decode_npy(file.getvalue(), "frames", limits_with())
    np.testing.assert_array_equal(decoded.frames, frames)


def picture(mode: str, size: tuple[int, int] = (8, 6), kind: str = "PNG", color: Any = 0, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, color).save(file, kind, **options)
    return file.getvalue()


def red_palette() -> bytes:
    image, file = Image.new("P", (8, 6), 1), io.BytesIO()
    image.putpalette([0, 0, 0, 200, 10, 20])
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "rgb"),
    [
        (picture("RGB", color=(200, 10, 20)), (200, 10, 20)),
        (picture("RGBA", color=(200, 10, 20, 255)), (200, 10, 20)),
        (picture("L", color=77), (77, 77, 77)),
        (picture("LA", color=(77, 255)), (77, 77, 77)),
        (picture("1", color=1), (255, 255, 255)),
        (picture("L", color=77, kind="JPEG"), (77, 77, 77)),
        (red_palette(), (200, 10, 20)),
    ],
    ids=["rgb", "opaque alpha", "gray", "gray and alpha", "bits", "gray jpeg", "palette"],
)
def test_images_of_every_plain_kind_are_rgb(content: bytes, rgb: tuple[int, ...], decoders: Decoders) -> None:
    frames = decode_images(decoders, content, content)
    assert frames.shape == (2, 6, 8, 3)
    assert (frames == np.array(rgb)).all()


def test_a_jpeg_has_the_pixels_that_ingest_sees_and_stands_upright(decoders: Decoders) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    content = encode_jpeg(pixels, 90)
    np.testing.assert_array_equal(decode_images(decoders, content)[0], decode_jpeg(content))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    file = io.BytesIO()
    Image.open(io.BytesIO(content)).save(file, "JPEG", quality=95, exif=exif)
    turned = decode_images(decoders, file.getvalue())[0]
    assert turned.shape == (30, 20, 3)
    np.testing.assert_array_equal(turned, decode_jpeg(file.getvalue()))


def test_images_that_are_not_plainly_rgb_are_refused(http: httpx.Client) -> None:
    good, file = picture("RGB"), io.BytesIO()
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "blue")]
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    noise = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    noisy = cv2.imencode(".png", noise)[1].tobytes()  # a bit of which changes one pixel, and no structure
    clear_palette = picture("P", transparency=0)
    for content, part in (
        (file.getvalue(), "animated"),
        (picture("I;16", color=500), "8 bits"),
        (picture("CMYK", kind="JPEG"), "CMYK"),
        (picture("RGBA", color=(1, 2, 3, 0)), "transparent"),
        (clear_palette, "transparent"),
        (picture("RGB", kind="GIF"), "not a base64 JPEG or PNG"),
        (picture("RGB", kind="BMP"), "not a base64 JPEG or PNG"),
        (b"", "not a base64 JPEG or PNG"),
        (good[:60], "damaged"),
        (good.replace(b"IDAT", b"ID\0T"), "image 1 is"),
        (noisy[:-30] + bytes([noisy[-30] ^ 1]) + noisy[-29:], "damaged"),
        (picture("RGB", (8, 7)), "different sizes"),
    ):
        assert part in sentence(post_images(http, good, content), 422), part
    body = {"task": TASK, "frames_base64": [base64.b64encode(good).decode(), "\u00e9" * 8]}
    assert "not a base64" in sentence(http.post("/v1/score", json=body), 422)
    assert "pixels" in sentence(post_images(http, picture("1", (2049, 2049))), 413)
    assert "decode to" in sentence(post_images(http, *[picture("1", (2048, 2048))] * 2), 413)
    text = PngInfo()
    text.add_text("a", "a" * 50_000_000, zip=True)
    bomb = picture("RGB", pnginfo=text)
    assert len(bomb) < 100_000
    assert sentence(post_images(http, bomb), 413, 422)


@pytest.mark.parametrize("size", [2, 4, 8, 16, 24, 48, 72])
def test_a_valid_video_of_any_size_is_scored(http: httpx.Client, size: int) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream: Any = output.add_stream("libx264", rate=10)
        stream.pix_fmt, stream.height, stream.width = "yuv420p", size, size
        for level in range(0, 250, 50):
            pixels = np.full((size, size, 3), level, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    answer = post_video(http, file.getvalue())
    assert answer.status_code == 200, answer.text
    assert answer.json()["num_frames"] == 5


@pytest.mark.parametrize(
    "kind", [f"{container}/{encoder}" for container, names in FORMATS.items() for encoder in names]
)
def test_every_container_and_codec_is_decoded(kind: str, decoders: Decoders) -> None:
    try:
        content = small_video(*kind.split("/"))
    except (av.error.FFmpegError, ValueError) as error:
        pytest.skip(f"this machine's PyAV does not write {kind}: {error}")
    decoded = asyncio.run(decoders.video(content, "video"))
    frames = decoded.frames.astype(int)
    assert len(frames) == 10 and decoded.frame_index == list(range(10))
    yellow = (frames[..., 0] > 150) & (frames[..., 2] < 120)
    middle = [columns.nonzero()[0].mean() for columns in yellow.any(axis=1)]
    assert middle[-1] - middle[0] == pytest.approx(27 * frames.shape[1] / (144 if "h263" in kind else 64), rel=0.1)


def test_metadata_in_any_encoding_is_no_error(http: httpx.Client) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        output.metadata["title"] = "caf_ au lait"
        stream: Any = output.add_stream("libx264", rate=10)
        stream.pix_fmt, stream.height, stream.width = "yuv420p", 64, 64
        stream.metadata["comment"] = "fen_tre"
        output.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")))
        output.mux(stream.encode(None))
    latin = file.getvalue().replace(b"caf_", b"caf\xe9").replace(b"fen_tre", b"fen\xeatre")
    assert latin.count(b"\xe9 au") == 1 and post_video(http, latin).status_code == 200


@pytest.mark.parametrize("container", ["avi", "matroska", "mov"])
def test_what_is_decoded_counts_and_not_what_the_header_says(http: httpx.Client, container: str) -> None:
    small = motion_jpeg([jpeg(64, 64)] * 5, 64, 64, container)
    assert post_video(http, small).status_code == 200
    changing = motion_jpeg([jpeg(64, 64)] * 3 + [jpeg(64, 320)] * 3, 64, 64, container)
    assert "frame size changes" in sentence(post_video(http, changing), 415)
    hidden = motion_jpeg([jpeg(64, 64)] * 3 + [jpeg(2048, 2056)] * 3, 64, 64, container)
    assert "pixels" in sentence(post_video(http, hidden), 413)
    wide = motion_jpeg([jpeg(16, 2048)] * 3, 64, 64, container)  # which would be 240 x 30720 pixels for the model
    assert "decodes to" in sentence(post_video(http, wide), 413)
    many = motion_jpeg([jpeg(1024, 1024)] * 480, 8, 8, container)  # 503 million pixels; the header says 30,720
    assert "pixels" in sentence(post_video(http, many), 413)


@contextmanager
def listener() -> Iterator[tuple[int, list[bytes]]]:
    """A port of this machine, and the connections that arrive there."""
    arrived: list[bytes] = []
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                arrived.append(b"")
                connection.close()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1], arrived
        time.sleep(0.1)
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def with_data_reference(mp4: bytes, url: str) -> bytes:
    """An mp4 whose samples are in another file: the boxes around `dref` grow by the URL that it holds."""
    text = url.encode() + b"\0"
    at = mp4.index(b"url \0\0\0\1")
    changed = bytearray(mp4[: at + 4] + bytes(4) + text + mp4[at + 8 :])  # without the flag "in this file"
    for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref", b"url "):
        start = changed.rindex(name, 0, at + 4) - 4
        struct.pack_into(">I", changed, start, struct.unpack_from(">I", changed, start)[0] + len(text))
    return bytes(changed)


def references(target: str) -> dict[str, bytes]:
    """Files of every kind that can name another file."""
    mp4, stream = small_video("mp4", "libx264"), small_video("mpegts", "libx264")
    program = small_video("mpeg", "mpeg1video")
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n".encode()
    concat = f"ffconcat version 1.0\nfile '{target}'\n".encode()
    xml = '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    dash = f'{xml}<Representation id="1"><BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>'
    sdp = f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\na=control:{target}\nm=video 5004 RTP/AVP 96\n"
    playlists = {"hls": playlist, "concat": concat, "dash": dash.encode(), "sdp": sdp.encode()}
    return {
        **playlists,
        **{f"{name} before mpegts": text + stream for name, text in playlists.items()},
        **{f"{name} before mpeg": text + program for name, text in playlists.items()},
        **{f"{name} before mp4": text + mp4 for name, text in playlists.items()},
        "hls padded to a packet": playlist.ljust(188, b"\n") + stream,
        "subtitles": f"[Script Info]\nScriptType: v4.00+\n[Events]\nDialogue: 0,{target}\n".encode(),
        "webvtt": f"WEBVTT\n\n00:00.000 --> 00:01.000\n{target}\n".encode(),
        "asx": f'<asx version="3.0"><entry><ref href="{target}"/></entry></asx>'.encode(),
        "url": target.encode(),
        "subfile": f"subfile,,start,0,end,100,,:{target}".encode(),
    }


@pytest.mark.parametrize("scheme", ["http://127.0.0.1:{port}/x.ts", "tcp://127.0.0.1:{port}", "{path}", "file:{path}"])
def test_a_file_that_names_another_fetches_and_reads_nothing(http: httpx.Client, scheme: str, tmp_path: Path) -> None:
    (tmp_path / "local.ts").write_bytes(small_video("mpegts", "libx264"))
    with listener() as (port, arrived):
        target = scheme.format(port=port, path=tmp_path / "local.ts")
        for name, content in references(target).items():
            assert post_video(http, content).status_code == 415, name
        # Its own samples lie in the file too, where the reference to another is not followed.
        linked = post_video(http, with_data_reference(small_video("mov", "libx264"), target))
        assert linked.status_code in (200, 415)
    assert not arrived


def test_a_listener_would_notice() -> None:
    with listener() as (port, arrived):
        socket.create_connection(("127.0.0.1", port)).close()
    assert arrived


SEAL = """
import ctypes, os, resource, signal, socket, sys, threading
from pipelines.serving.sealing import forbid_children, seal
before = open("/dev/null", "wb")
print("missing:", seal(2**28))
def tried(name, action):
    try:
        action()
        print(name, "done")
    except BaseException as error:
        print(name, type(error).__name__)
tried("read", lambda: open("/etc/hostname"))
tried("write", lambda: open("/tmp/sealed", "w"))
tried("remove", lambda: os.unlink("/tmp/sealed"))
tried("rename", lambda: os.rename("/tmp/sealed", "/tmp/unsealed"))
tried("shorten", lambda: os.truncate("/tmp/sealed", 0))
tried("folder", lambda: os.mkdir("/tmp/sealed"))
tried("rights", lambda: os.chmod("/tmp/sealed", 0))
tried("link", lambda: os.symlink("/tmp/sealed", "/tmp/unsealed"))
tried("socket", lambda: socket.socket())
tried("pair", lambda: socket.socketpair())
tried("program", lambda: os.execv("/bin/true", ["true"]))
tried("kill", lambda: os.kill(os.getppid(), 0))
tried("kill of a thread", lambda: os.strerror(signal.pthread_kill(threading.get_ident(), 0) or 0))
tried("memory", lambda: bytearray(2**29))
tried("little memory", lambda: bytearray(2**20))
fork = os.fork()
if not fork:
    tried("fork reads", lambda: open("/etc/hostname"))
    forbid_children()
    tried("fork forks", os.fork)
    tried("thread", threading.Thread(target=print).start)
    sys.stdout.flush()
    os._exit(0)
os.waitpid(fork, 0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="system calls are filtered on Linux only")
def test_a_sealed_process_has_no_files_sockets_programs_or_endless_memory() -> None:
    done = subprocess.run([sys.executable, "-c", SEAL], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "missing: ",
        "read PermissionError",
        "write PermissionError",
        "remove PermissionError",
        "rename PermissionError",
        "shorten PermissionError",
        "folder PermissionError",
        "rights PermissionError",
        "link PermissionError",
        "socket PermissionError",
        "pair PermissionError",
        "program PermissionError",
        "kill PermissionError",
        "kill of a thread PermissionError",
        "memory MemoryError",
        "little memory done",
        "fork reads PermissionError",
        "fork forks PermissionError",
        "thread RuntimeError",
    ], done.stderr


WARM = """
import importlib, pkgutil, av
from pipelines.serving import child as child_module
from pipelines.serving import decoder
from pipelines.serving.sealing import seal
names = [module.name for module in pkgutil.walk_packages(av.__path__, "av.") if "__main__" not in module.name]
decoder._warm_up()
seal(2**30)
print(len([importlib.import_module(name) for name in names]) == len(names))
"""


def test_all_that_a_stream_may_need_is_there_before_files_are_out_of_reach() -> None:
    """The module for a subtitle stream beside the video was missing once."""
    done = subprocess.run([sys.executable, "-c", WARM], capture_output=True, text=True, timeout=120)
    assert done.stdout == "True\n", done.stderr


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    """The decoders of an endpoint, without the endpoint."""
    decoders = Decoders(limits_with())
    yield decoders
    decoders.close()


def decode_images(decoders: Decoders, *images: bytes) -> np.ndarray:
    return asyncio.run(decoders.images([base64.b64encode(image).decode() for image in images], "f")).frames


def decoding_processes() -> list[psutil.Process]:
    """Processes of all decoders of this process."""
    alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in alive if decoder.__name__ in child.cmdline()]


async def the_fork() -> psutil.Process:
    """The process that decodes an upload now."""
    for _ in range(500):
        with suppress(psutil.NoSuchProcess):  # one that ends as it is asked
            forks = [fork for process in decoding_processes() for fork in process.children()]
            if forks:
                return forks[0]
        await asyncio.sleep(0.02)
    raise AssertionError("nothing is being decoded")


async def gone(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        for _ in range(100):
            if process.status() == psutil.STATUS_ZOMBIE:
                return True
            await asyncio.sleep(0.02)
        return False
    return True


SMALL = small_video("mp4", "mpeg4")


@pytest.mark.parametrize(
    ("end", "status", "cause"),
    [(signal.SIGSEGV, 415, "SIGSEGV"), (signal.SIGABRT, 415, "SIGABRT"), (signal.SIGKILL, 503, "SIGKILL")],
)
def test_a_crash_is_the_end_of_one_upload_and_of_nothing_else(end: signal.Signals, status: int, cause: str) -> None:
    deaths: list[str] = []
    decoders = Decoders(limits_with(), deaths.append)

    async def scene() -> None:
        upload = asyncio.create_task(decoders.video(long_video(), "video"))
        fork = await the_fork()
        other = asyncio.create_task(decoders.video(SMALL, "video"))
        fork.send_signal(end)
        with pytest.raises(ApiError) as caught:
            await upload
        assert caught.value.status == status and deaths == [cause]
        assert len((await other).frames) == 10
        assert len((await decoders.video(SMALL, "video")).frames) == 10

    asyncio.run(scene())
    decoders.close()


@pytest.mark.parametrize("code", ["", "print('[', end='', flush=True)"])
def test_a_decoder_that_is_killed_before_it_has_started_is_not_the_uploads_fault(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray kills the child processes of a replica a moment before the replica: a job must not fail in that moment."""
    deaths: list[str] = []
    decoders = Decoders(limits_with(), deaths.append)
    (tmp_path / "killed.py").write_text(f"import os\n{code}\nos.kill(os.getpid(), 9)\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        patch.setattr(child_module, "decoder", SimpleNamespace(__name__="killed"))
        with pytest.raises(ApiError) as caught:
            asyncio.run(decoders.video(SMALL, "video"))
    assert caught.value.status == 503 and "retry-after" in {name.lower() for name in caught.value.headers}
    assert deaths == ["does not start"]
    assert len(asyncio.run(decoders.video(SMALL, "video")).frames) == 10
    decoders.close()


def test_a_fork_that_outlives_its_decoder_ends_at_the_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os, sys, time\nprint('[]', flush=True)\nsys.stdin.buffer.readline()\n"
    (tmp_path / "left_behind.py").write_text(f"{code}if os.fork():\n    os._exit(1)\ntime.sleep(600)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(child_module, "decoder", SimpleNamespace(__name__="left_behind"))
    process = Child(2**30)
    threading.Timer(1.0, process.end, ("timeout",)).start()
    with pytest.raises(DeathError) as caught:
        process.decode(DecodeJob([0], False, {}, {}, 1, 1), [])
    assert caught.value.cause == "timeout"


def test_a_decoder_that_is_killed_is_replaced() -> None:
    decoders = Decoders(limits_with())

    async def scene() -> None:
        upload = asyncio.create_task(decoders.video(long_video(), "video"))
        fork = await the_fork()
        parent = fork.parent()
        assert parent is not None
        while sum(fork.cpu_times()[:2]) < 0.02:  # until it decodes: it has tied its life to its parent's before
            await asyncio.sleep(0.01)
        fork.suspend()  # so that nothing but a signal ends it
        parent.kill()
        with pytest.raises(ApiError, match=r"was killed from outside. Try again") as caught:
            await upload
        assert caught.value.status == 503
        assert await gone(fork)
        assert len((await decoders.video(SMALL, "video")).frames) == 10

    asyncio.run(scene())
    decoders.close()


def test_an_upload_has_a_deadline_and_one_that_is_given_up_is_not_decoded_on() -> None:
    hurried = Decoders(limits_with("serve.decode_timeout_s=0.5"))
    patient = Decoders(limits_with())

    async def scene() -> None:
        upload = asyncio.create_task(hurried.video(long_video(), "video"))
        fork = await the_fork()
        with pytest.raises(ApiError, match=r"takes longer to decode than 0.5 s") as caught:
            await upload
        assert caught.value.status == 413 and await gone(fork)
        assert len((await hurried.video(SMALL, "video")).frames) == 10
        upload = asyncio.create_task(patient.video(long_video(), "video"))
        fork = await the_fork()
        fork.suspend()
        upload.cancel()
        assert await gone(fork)
        assert len((await patient.video(SMALL, "video")).frames) == 10

    asyncio.run(scene())
    hurried.close()
    patient.close()


def test_health_answers_at_once_while_all_decoders_are_busy(http: httpx.Client) -> None:
    slow = motion_jpeg([jpeg(2048, 2048)] * 40, 2048, 2048)
    threads = [threading.Thread(target=post_video, args=(http, slow)) for _ in range(4)]
    for thread in threads:
        thread.start()
    asyncio.run(the_fork())
    waits = []
    while any(thread.is_alive() for thread in threads) and len(waits) < 20:
        began = time.monotonic()
        assert http.get("/health").status_code == 200
        waits.append(time.monotonic() - began)
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    assert len(waits) > 3 and median(waits) < 0.5  # some may meet the other tests' processes


def job_of(content: bytes, **changes: Any) -> DecodeJob:
    limits = {"max_frames": 1000, "max_pixels": 2**24, "max_total_pixels": 10**10}
    settings = {"max_frames": 32, "short_edge": 240, "jpeg_quality": 90}
    values = {"sizes": [len(content)], "images": False, "settings": settings, "limits": limits, "max_bytes": 2**26}
    return DecodeJob(**values | {"cpu_s": 60} | changes)


def test_memory_and_computing_time_of_an_upload_are_bounded() -> None:
    child = Child(memory_bytes=24 * 2**20)
    try:
        assert child.decode(job_of(SMALL), [SMALL]).frames is not None
        big = motion_jpeg([jpeg(4096, 4096)] * 2, 4096, 4096)
        answer = child.decode(job_of(big), [big])
        assert answer.frames is None and answer.status == 413 and "memory" in answer.error
        assert child.decode(job_of(SMALL), [SMALL]).frames is not None
    finally:
        child.end("over")
    child, slow = Child(memory_bytes=2**30), motion_jpeg([jpeg(4096, 4096)] * 80, 4096, 4096)
    try:
        with pytest.raises(DeathError) as caught:
            child.decode(job_of(slow, cpu_s=1), [slow])
        assert caught.value.cause == "SIGXCPU"
        assert child.decode(job_of(SMALL), [SMALL]).frames is not None
    finally:
        child.end("over")


def test_memory_stays_flat_over_many_uploads() -> None:
    child = Child(memory_bytes=2**30)
    try:
        sizes = []
        for count in range(120):
            content = SMALL if count % 3 else SMALL[: 100 + 7 * count]
            child.decode(job_of(content), [content])
            if count in (19, 119):
                sizes.append(psutil.Process(child.pid).memory_info().rss)
        assert sizes[1] - sizes[0] < 2**20
    finally:
        child.end("over")


def test_a_decoder_knows_no_secrets_and_holds_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBOMETER_TOKEN", "a secret")
    with socket.socket() as server:
        server.set_inheritable(True)
        child = Child(memory_bytes=2**30)
        try:
            process = psutil.Process(child.pid)
            assert "ROBOMETER_TOKEN" not in process.environ() and "a secret" not in str(process.environ())
            assert process.nice() >= 5 and not process.net_connections()
            links = [os.readlink(link) for link in Path(f"/proc/{child.pid}/fd").iterdir()]
            assert all(link == "/dev/null" or link.startswith("pipe:") for link in links)
        finally:
            child.end("over")


WRITTEN = [b"[" * 100_000, b"[]", b"3", b"{", b'{"error": "", "status": 1e999}', b'{"shape": [1e999]}', b"\xff",
           b'{"shape": [1, 1, 1, 3], "frame_index": [Infinity], "fps": 1}',
           b'{"shape": [1, 1, 1, 3], "frame_index": [0], "fps": NaN}',
           b'{"shape": [-1, -1, 1, 3], "frame_index": [], "fps": 1}',
           b'{"shape": [1, 1, 1, 3], "frame_index": [0, 1], "fps": 1}',
           b'{"shape": [9999999, 99, 99, 3], "frame_index": [0], "fps": 1}']  # fmt: skip


@pytest.mark.parametrize("answer", WRITTEN, ids=range(len(WRITTEN)))
def test_what_an_upload_makes_its_process_write_is_the_end_of_it(
    answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken_over.py").write_text(
        f"import struct, sys\nprint('\"\"', flush=True)\nsys.stdin.buffer.read({len(SMALL)})\nanswer = {answer!r}\n"
        "sys.stdout.buffer.write(struct.pack('<I', len(answer)) + answer)\nsys.stdout.flush()\nsys.stdin.read()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("pipelines.serving.child.decoder.__name__", "taken_over")
    child = Child(memory_bytes=2**30)
    try:
        with pytest.raises(DeathError) as caught:
            child.decode(job_of(SMALL), [SMALL])
        assert caught.value.cause == "garbled" and not child.alive()
    finally:
        child.end("over")


DYING = """
import os, signal, sys
from pipelines.serving.child import Child, DeathError
child = Child(2**30)
print(child.pid, flush=True)
sys.stdin.read(1)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_decoder_dies_with_its_replica() -> None:
    replica = subprocess.Popen([sys.executable, "-c", DYING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert replica.stdout is not None
    child = psutil.Process(int(replica.stdout.readline()))
    child.suspend()  # it cannot see that its pipe has ended
    replica.communicate("x", timeout=60)
    assert asyncio.run(gone(child))


@pytest.mark.parametrize("kind", ["mp4/libx264", "matroska/libx265", "avi/mpeg4", "webm/libvpx-vp9"])
def test_a_damaged_video_is_scored_or_refused(http: httpx.Client, kind: str) -> None:
    video = small_video(*kind.split("/"))
    rng = random.Random(kind)
    for _ in range(12):
        answer = post_video(http, mutated(video, SMALL, rng))
        assert answer.status_code == 200 or sentence(answer, 413, 415)


SEEN = {
    "hls_polyglot_ssrf.ts": (415,),
    "latin1_metadata.mp4": (200,),
    "slow4k.mp4": (413,),
    "switch_h264_huge.mkv": (413,),
    "switch_mjpeg.avi": (415,),
    "tiny2x2.mp4": (200,),
    "npy_3000_plus.http": (422,),
    "npy_mixed_keys.http": (422,),
    "npy_negative_shape.http": (422,),
    "npy_nul_header.http": (422,),
    "fuzz_1047_h264.mkv": (200,),
    "fuzz_1158_vp9.webm": (200,),
}
"""What uploads of serve_faults get; all other `fuzz_` are refused."""


def test_the_uploads_that_were_answered_wrongly() -> None:
    folder = SHARED / "data/serve_faults"
    if not folder.is_dir():
        pytest.skip("../shared/data/serve_faults is absent: it is not part of the project")
    files = [file for file in folder.iterdir() if file.name in SEEN or file.name.startswith("fuzz_")]
    assert len(files) == len(SEEN) + 8
    with endpoint(FrameDifference()) as url, httpx.Client(base_url=url, timeout=60) as client:
        for file in files:
            status = raw(url, file) if file.suffix == ".http" else post_video(client, file.read_bytes()).status_code
            assert status in SEEN.get(file.name, (415,)), file.name


def raw(url: str, request: Path) -> int:
    """The status that the bytes of a whole request get."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request.read_bytes())
        return int(connection.makefile("rb").readline().split()[1])
