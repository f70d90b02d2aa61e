"""MCAP files: the four encodings of compressed images, tasks of metadata and sidecars, and what is refused."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mcap", reason="the extra robometer[mcap] is not installed")

from mcap.writer import CompressionType, Writer

from robometer.corpus.formats import FormatError, list_units
from robometer.frames.video import encode_jpeg
from tests.corpus.formats.raw import ingest, refusals, roll_out, row_of, rows, shows

CLIPS = [roll_out(n).frames[:8] for n in range(4)]


def ros1(image: bytes) -> bytes:
    texts = b"".join(struct.pack("<I", len(text)) + text for text in (b"optical", b"jpeg"))
    return struct.pack("<III", 7, 1, 2) + texts + struct.pack("<I", len(image)) + image


def cdr(image: bytes, order: str = "<") -> bytes:
    body = struct.pack(f"{order}iI", 1, 2)
    for text in (b"optical\0", b"jpeg\0"):
        body += b"\0" * (-len(body) % 4) + struct.pack(f"{order}I", len(text)) + text
    body += b"\0" * (-len(body) % 4) + struct.pack(f"{order}I", len(image)) + image
    return bytes([0, order == "<", 0, 0]) + body


def cdr_big(image: bytes) -> bytes:
    return cdr(image, ">")


def varint(value: int) -> bytes:
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])


def protobuf(image: bytes) -> bytes:
    stamp = b"\x08\x01\x10\x80\x94\xeb\xdc\x03"
    extra = b"\x28\x96\x01" + b"\x31" + b"\0" * 8 + b"\x3d" + b"\0" * 4  # fields of each other kind
    return b"\x0a" + varint(len(stamp)) + stamp + extra + b"\x12" + varint(len(image)) + image + b"\x1a\x04jpeg"


def as_json(image: bytes) -> bytes:
    return json.dumps(
        {"timestamp": {}, "frame_id": "x", "format": "jpeg", "data": base64.b64encode(image).decode()}
    ).encode()


KINDS = {
    "/camera/ros1": ("sensor_msgs/CompressedImage", "ros1", ros1),
    "/camera/cdr": ("sensor_msgs/msg/CompressedImage", "cdr", cdr),
    "/camera/cdr_big": ("sensor_msgs/msg/CompressedImage", "cdr", cdr_big),
    "/camera/protobuf": ("foxglove.CompressedImage", "protobuf", protobuf),
    "/camera/json": ("foxglove.CompressedImage", "json", as_json),
}


def write(
    path: Path,
    topics: dict[str, np.ndarray],
    metadata: dict[str, str] | None = None,
    order: Sequence[int] = range(8),
    chunks: bool = True,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        writer = Writer(stream, chunk_size=20_000, compression=CompressionType.ZSTD, use_chunking=chunks)
        writer.start()
        joints = writer.register_schema("sensor_msgs/msg/JointState", "ros2msg", b"")
        other = writer.register_channel("/joints", "cdr", joints)
        for topic, clip in topics.items():
            name, encoding, message = KINDS[topic]
            channel = writer.register_channel(topic, encoding, writer.register_schema(name, "", b""))
            for i in order:
                at = 10**9 + i * 200_000_000
                writer.add_message(channel, at, message(encode_jpeg(clip[i], 95)), at)
                writer.add_message(other, at, b"joints", at)
        if metadata is not None:
            writer.add_metadata("episode", metadata)
        writer.finish()


def test_mcap_files(ray_local: None, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write(raw / "day/a.mcap", dict(zip(KINDS, [*CLIPS, CLIPS[0]], strict=True)), {"task": "Open it", "note": "x"})
    write(raw / "day/b.mcap", {"/camera/cdr": CLIPS[2]}, {"task": "x"}, order=[1, 0, 3, 2, 5, 4, 7, 6])
    (raw / "day/b.json").write_text(
        json.dumps({"task": "Close it", "quality_label": "failure", "partial_success": 0.5})
    )
    write(raw / "day/c.mcap", {"/camera/cdr": CLIPS[3]}, {"task": "Flat", "quality_label": "suboptimal"}, chunks=False)
    corpus = ingest(tmp_path, "mcap", "ingest.source_name=lab")
    columns = ("source", "episode_key", "view", "task", "quality_label", "partial_success", "source_num_frames")
    assert rows(corpus, *columns) == [
        *(("lab", "day/a.mcap", topic[1:], "Open it", "successful", None, 8) for topic in sorted(KINDS)),
        ("lab", "day/b.mcap", "camera/cdr", "Close it", "failure", 0.5, 8),
        ("lab", "day/c.mcap", "camera/cdr", "Flat", "suboptimal", None, 8),
    ]
    assert corpus.manifest["source_fps"].to_pylist() == pytest.approx([5.0] * 7)
    for topic, clip in zip(KINDS, [*CLIPS, CLIPS[0]], strict=True):
        assert shows(corpus, row_of(corpus, episode_key="day/a.mcap", view=topic[1:]), clip)
    assert shows(corpus, row_of(corpus, episode_key="day/b.mcap"), CLIPS[2])
    assert shows(corpus, row_of(corpus, episode_key="day/c.mcap"), CLIPS[3])

    write(raw / "day/d.mcap", {"/camera/cdr": CLIPS[1]}, {"task": "Again"})
    assert len(ingest(tmp_path, "mcap", "ingest.source_name=lab").manifest) == 8


def test_bad_mcap_files_are_refused(ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tmp_path / "raw"
    write(raw / "good.mcap", {"/camera/cdr": CLIPS[0]}, {"task": "It"})
    write(raw / "no_task.mcap", {"/camera/cdr": CLIPS[0]})
    write(raw / "no_images.mcap", {}, {"task": "It"})
    write(raw / "odd_sidecar.mcap", {"/camera/cdr": CLIPS[0]}, {"task": "It"})
    (raw / "odd_sidecar.json").write_text("[]")
    content = (raw / "good.mcap").read_bytes()
    (raw / "truncated.mcap").write_bytes(content[: len(content) // 2])
    middle = len(content) // 4
    (raw / "flipped.mcap").write_bytes(content[:middle] + bytes(64) + content[middle + 64 :])
    (raw / "empty.mcap").write_bytes(b"")
    for name, message in (("cut", lambda image: cdr(image)[:-100]), ("not_json", lambda image: b"{}")):
        topic = "/camera/cdr" if name == "cut" else "/camera/json"
        monkeypatch.setitem(KINDS, topic, (*KINDS[topic][:2], message))
        write(raw / f"{name}.mcap", {topic: CLIPS[0]}, {"task": "It"})
    corpus = ingest(tmp_path, "mcap")
    assert rows(corpus, "source", "episode_key") == [("raw", "good.mcap")]
    why = {key.split()[0]: error for key, error in refusals(corpus).items()}
    assert set(why) == {path.name for path in raw.glob("*.mcap")} - {"good.mcap"}
    assert "no task text" in why["no_task.mcap"] and "no topic of compressed images" in why["no_images.mcap"]
    assert "odd_sidecar.json" in why["odd_sidecar.mcap"]
    assert "cut off" in why["cut.mcap"] and "KeyError" in why["not_json.mcap"]


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    for place in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FormatError):
            list(list_units("mcap", str(place)))
