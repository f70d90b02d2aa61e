"""TFRecord files and data sets of TensorFlow Datasets, written without TensorFlow."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robometer.corpus.readers.tfrecord import crc32c, masked
from robometer.frames.video import encode_jpeg

Values = Sequence[bytes] | Sequence[int] | np.ndarray


def example(features: Mapping[str, Values]) -> bytes:
    """A tf.train.Example; integers become an int64 list, floats a float list."""
    return _field(1, b"".join(_field(1, _field(1, k.encode()) + _field(2, _list(v))) for k, v in features.items()))


def framed(content: bytes) -> bytes:
    """A record with its length and checksums."""
    length = struct.pack("<Q", len(content))
    return length + struct.pack("<I", masked(crc32c(length))) + content + struct.pack("<I", masked(crc32c(content)))


def jpegs(frames: np.ndarray) -> list[bytes]:
    """Frames uint8 [T, H, W, 3], encoded one by one."""
    return [encode_jpeg(frame, 95) for frame in frames]


IMAGE = {"image": {"shape": {"dimensions": ["-1", "-1", "3"]}, "dtype": "uint8", "encodingFormat": "jpeg"}}
TEXT: dict[str, Any] = {"text": {}}


def tensor(dtype: str, *shape: int) -> dict[str, Any]:
    """Description of a plain tensor."""
    return {"tensor": {"shape": {"dimensions": [str(n) for n in shape]}, "dtype": dtype, "encoding": "none"}}


def data_set(
    folder: Path,
    name: str,
    steps: Mapping[str, Any],
    splits: Mapping[str, Sequence[Sequence[bytes]]],
) -> None:
    """Write a version: `steps` describes the features of a step, `splits` holds the records of each file."""
    folder.mkdir(parents=True, exist_ok=True)
    sequence = {"sequence": {"feature": _tree(steps)}}
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": {"steps": sequence}}}))
    lengths = [{"name": k, "shardLengths": [str(len(file)) for file in files]} for k, files in splits.items()]
    info = {"name": name, "version": folder.name, "splits": lengths}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for split, files in splits.items():
        for i, records in enumerate(files):
            path = folder / f"{name}-{split}.tfrecord-{i:05d}-of-{len(files):05d}"
            path.write_bytes(b"".join(map(framed, records)))


def _tree(leaves: Mapping[str, Any]) -> dict[str, Any]:
    nodes: dict[str, Any] = {}
    for path, leaf in leaves.items():
        head, _, rest = path.partition("/")
        nodes.setdefault(head, {})[rest] = leaf
    children = {head: branch[""] if "" in branch else _tree(branch) for head, branch in nodes.items()}
    return {"featuresDict": {"features": children}}


def _list(values: Values) -> bytes:
    if len(values) and isinstance(values[0], bytes):
        return _field(1, b"".join(_field(1, bytes(value)) for value in values))
    array = np.asarray(values).ravel()
    if array.dtype.kind == "f":
        return _field(2, _field(1, array.astype("<f4").tobytes()))
    return _field(3, _field(1, b"".join(_varint(int(value)) for value in array)))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
