"""MCAP recordings of ROS 1, ROS 2 or Foxglove: each file is an episode, and each topic of compressed images a view.

    <input>/**/*.mcap
    <input>/**/<same name>.json         optional: the fields of `image_folders` (task, quality_label, ...)

Image topics have the schema sensor_msgs/CompressedImage (ros1), sensor_msgs/msg/CompressedImage (cdr) or
foxglove.CompressedImage (protobuf or json). The view is the topic's name without the leading slash. `task` and
`quality_label` come from the JSON file beside the recording, or from a metadata record of the recording. Frames per
second follow from the first and the last time of a topic. One pass over the file collects the times; only frames that
are kept are read, with their chunks. Raw images (sensor_msgs/Image) and video (foxglove.CompressedVideo) are not read.
Needs the extra `robometer[mcap]`.
"""

from __future__ import annotations

import base64
import json
import struct
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from mcap.reader import McapReader, make_reader

from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.formats.common import files, folder, name_of, read_json
from robometer.corpus.formats.image_folders import fields_of, unit_of
from robometer.frames.recording import ImageSequence
from robometer.trajectory import Episode

FROM_METADATA = ("task", "quality_label")


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The files.

    Raises:
        FormatError: there are none.
    """
    root = folder(input, "with .mcap files")
    if not (paths := files(root, "**/*.mcap")):
        raise FormatError(f"{input} has no .mcap files")
    for path in paths:
        unit = unit_of(path, root, source or name_of(root))
        beside = [str(path), str(path.with_suffix(".json"))]
        yield replace(unit, files=beside) if isinstance(unit, Unit) else unit


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The image topics of a file."""
    path = Path(unit.uri)
    with path.open("rb") as stream:
        reader = make_reader(stream, validate_crcs=True)
        fields = _fields(reader, path)
        times: dict[str, list[int]] = defaultdict(list)
        decoders: dict[str, Callable[[bytes], bytes]] = {}
        for schema, channel, message in reader.iter_messages(
            log_time_order=False
        ):  # in the file's order, which needs memory for one chunk only
            decode = DECODERS.get((schema.name if schema else "", channel.message_encoding))
            if decode is not None:
                decoders[channel.topic] = decode
                times[channel.topic].append(message.log_time)
        if not times:
            raise FormatError("it has no topic of compressed images")
        for topic in sorted(times):
            at = sorted(times[topic])
            seconds = (at[-1] - at[0]) / 1e9
            yield Episode(
                source=unit.source,
                episode_key=unit.key,
                view=topic.lstrip("/"),
                task=fields.get("task", ""),
                recording=ImageSequence(
                    len(at),
                    _frame_of(reader, topic, at, decoders[topic]),
                    fields.get("fps", (len(at) - 1) / seconds if seconds > 0 else 0.0),
                ),
                uri=unit.uri,
                raw_quality_label=fields.get("quality_label", "successful"),
                is_robot=fields.get("is_robot", True),
                partial_success=fields.get("partial_success"),
                split=fields.get("split", ""),
            )


def _fields(reader: McapReader, path: Path) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for record in reader.iter_metadata():
        fields |= {key: value for key, value in record.metadata.items() if key in FROM_METADATA}
    sidecar = path.with_suffix(".json")
    return fields | (fields_of(read_json(sidecar), sidecar.name) if sidecar.exists() else {})


def _frame_of(reader: McapReader, topic: str, times: list[int], decode: Callable[[bytes], bytes]) -> Any:
    def frame(i: int) -> bytes:
        before = i - times.index(times[i])  # messages of the same time keep their order
        messages = reader.iter_messages(
            topics=[topic], start_time=times[i], end_time=times[i] + 1, log_time_order=False
        )
        return decode(next(islice(messages, before, None))[2].data)

    return frame


def _ros1(data: bytes) -> bytes:
    """Header (sequence number, time, frame), format, content; texts and content begin with their lengths."""
    at = 12
    for _ in ("frame_id", "format"):
        at += 4 + struct.unpack_from("<I", data, at)[0]
    return _sized(data, at, "<")


def _cdr(data: bytes) -> bytes:
    """As ROS 1 without the sequence number; each length is aligned to 4 bytes after the 4 bytes of the encoding."""
    order = "<" if data[1] & 1 else ">"
    at = 12
    for _ in ("frame_id", "format"):
        at += 4 + struct.unpack_from(f"{order}I", data, at)[0]
        at += -at % 4
    return _sized(data, at, order)


def _sized(data: bytes, at: int, order: str) -> bytes:
    content = data[at + 4 :][: struct.unpack_from(f"{order}I", data, at)[0]]
    if len(content) != struct.unpack_from(f"{order}I", data, at)[0]:
        raise FormatError("a message of compressed images is cut off")
    return content


def _json(data: bytes) -> bytes:
    return base64.b64decode(json.loads(data)["data"], validate=True)


def _protobuf(data: bytes) -> bytes:
    """Field 2 of the message, the content; the other fields are skipped."""
    at, content = 0, b""
    while at < len(data):
        tag, at = _varint(data, at)
        size, at = {0: (0, _varint(data, at)[1]), 1: (8, at), 5: (4, at)}.get(tag & 7) or _varint(data, at)
        if tag == 2 << 3 | 2:
            content = data[at : at + size]
        at += size
    return content


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] & 0x80:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1


DECODERS: dict[tuple[str, str], Callable[[bytes], bytes]] = {
    ("sensor_msgs/CompressedImage", "ros1"): _ros1,
    ("sensor_msgs/msg/CompressedImage", "cdr"): _cdr,
    ("foxglove.CompressedImage", "protobuf"): _protobuf,
    ("foxglove.CompressedImage", "json"): _json,
}
"""By schema name and message encoding."""
