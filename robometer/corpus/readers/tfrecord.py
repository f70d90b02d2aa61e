"""TFRecord files of tf.train.Example messages, without TensorFlow: framing, checksums, and the few fields needed.

A file is a sequence of records, each of which is framed as

    uint64 length, uint32 masked CRC32C of the length, the content, uint32 masked CRC32C of the content

all little-endian. An Example maps names to lists of bytes, floats or integers. Only what is needed is parsed: first the
names, then the values of one name, as views of the record without a copy.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from robometer.errors import RobometerError

MAX_RECORD_BYTES = 2**31
"""Limit of a protocol buffer message, 2 GiB. A record that claims more is refused before memory is allocated."""

_POLYNOMIAL = 0x82F63B78
_BLOCK = 1 << 16  # words
_VARINT, _DELIMITED, _FIXED = 0, 2, {1: 8, 5: 4}  # wire types of protocol buffers; fixed ones with their sizes
_LENGTH, _CRC = struct.Struct("<Q"), struct.Struct("<I")


class RecordError(RobometerError):
    """A damaged record, or a damaged rest of a file. The message says what is wrong."""


def read_records(path: Path) -> Iterator[bytes | RecordError]:
    """The contents of a file's records, one at a time. For a record with a wrong checksum, the error instead.

    Files that are compressed as a whole (gzip, zlib), as TensorFlow may write them, are read too.

    Raises:
        RecordError: the file is empty or breaks off, or a length is wrong, so that the rest cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(12)
        file.seek(0)
        if not start:
            raise RecordError("the file is empty")
        try:
            yield from _records(file if _is_head(start) else _unpacking(file, start))
        except (zlib.error, EOFError, OSError) as error:
            raise RecordError(f"the compressed file breaks off or is damaged ({error})") from error


def _records(file: IO[bytes]) -> Iterator[bytes | RecordError]:
    number = 0
    while head := file.read(12):
        if len(head) < 12:
            raise RecordError(f"the file breaks off in the header of record {number}")
        if not _is_head(head):
            raise RecordError(f"the length of record {number} has a wrong checksum: it is not a TFRecord, or damaged")
        (length,) = _LENGTH.unpack_from(head)
        if length > MAX_RECORD_BYTES:
            raise RecordError(f"record {number} has {length} bytes, more than {MAX_RECORD_BYTES}")
        content, crc = file.read(length), file.read(4)
        if len(content) < length or len(crc) < 4:
            raise RecordError(f"the file breaks off in record {number}")
        intact = _CRC.unpack(crc)[0] == masked(crc32c(content))
        yield content if intact else RecordError(f"record {number} has a wrong checksum: it is damaged")
        number += 1


def _is_head(head: bytes) -> bool:
    """Whether these are 12 bytes of a length and its checksum."""
    return len(head) == 12 and _CRC.unpack_from(head, 8)[0] == masked(crc32c(head[:8]))


def _unpacking(file: IO[bytes], start: bytes) -> IO[bytes]:
    """The content of a file that was compressed as a whole; the file itself if it was not."""
    if start[:2] == b"\x1f\x8b":
        return cast(IO[bytes], gzip.GzipFile(fileobj=file))
    if start[0] & 15 == 8 and int.from_bytes(start[:2], "big") % 31 == 0:
        return io.BufferedReader(_Inflated(file))
    return file


class _Inflated(io.RawIOBase):
    """The content of a file that was compressed with zlib."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._inflate, self._left = file, zlib.decompressobj(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = b""
        while not content and not self._inflate.eof:
            packed = self._left or self._file.read(1 << 16)
            if not packed:
                raise EOFError("its end is missing")
            content = self._inflate.decompress(packed, len(buffer))
            self._left = self._inflate.unconsumed_tail
        buffer[: len(content)] = content
        return len(content)


def masked(crc: int) -> int:
    """A checksum as it is stored: rotated and offset, so that a record may contain other records."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli).

    A block is halved until one word is left: the first half is shifted past the second, and added to it. So NumPy works
    on long rows, and one table per power of two is enough.
    """
    crc, odd = 0xFFFFFFFF, len(data) % 4
    for byte in data[:odd]:
        crc = crc >> 8 ^ int(_byte_table()[(crc ^ byte) & 0xFF])
    words = np.frombuffer(data, "<u4", offset=odd)
    for start in range(0, len(words), _BLOCK):
        block = words[start : start + _BLOCK].copy()
        block[0] ^= crc
        while len(block) > 1:
            level = (len(block) - 1).bit_length() - 1
            moved = len(block) - (1 << level)
            block[1 << level :] ^= _moved(block[:moved], _tables(level))
            block = block[moved:]
        crc = int(_moved(block, _tables(0))[0])
    return crc ^ 0xFFFFFFFF


def _moved(words: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Each word times the power of x that the tables encode, byte by byte."""
    parts = words.view(np.uint8).reshape(-1, 4)
    result: np.ndarray = tables[0][parts[:, 0]]
    for i in (1, 2, 3):
        result ^= tables[i][parts[:, i]]
    return result


@lru_cache(maxsize=32)
def _tables(level: int) -> np.ndarray:
    """uint32 [4, 256]: what a byte at each position of a word becomes when 2**level zero words follow."""
    if level:
        half = _tables(level - 1)
        return _moved(half.ravel(), half).reshape(4, 256)
    return _shifted(np.arange(256, dtype=np.uint32) << np.arange(0, 32, 8, dtype=np.uint32)[:, None], 32)


@lru_cache(maxsize=1)
def _byte_table() -> np.ndarray:
    return _shifted(np.arange(256, dtype=np.uint32), 8)


def _shifted(words: np.ndarray, bits: int) -> np.ndarray:
    for _ in range(bits):
        words = words >> np.uint32(1) ^ np.uint32(_POLYNOMIAL) * (words & np.uint32(1))
    return words


class Example:
    """A tf.train.Example: lists of values by name. `names` holds the names."""

    def __init__(self, record: bytes) -> None:
        """Parse the names.

        Raises:
            RecordError: the record is not an Example.
        """
        self._features: dict[str, memoryview] = {}
        for features in _messages(memoryview(record), 1):
            for entry in _messages(features, 1):
                names, values = list(_messages(entry, 1)), list(_messages(entry, 2))
                if len(names) != 1 or len(values) != 1:
                    raise RecordError("the record is not a tf.train.Example")
                self._features[bytes(names[0]).decode("utf-8", "replace")] = values[0]
        if not self._features:
            raise RecordError("the record is not a tf.train.Example")
        self.names = self._features.keys()

    def blobs(self, name: str) -> list[memoryview]:
        """The byte strings of a name; empty if it has none."""
        return [blob for values in _messages(self._features.get(name, _NOTHING), 1) for blob in _messages(values, 1)]

    def integers(self, name: str) -> list[int]:
        """The integers of a name; empty if it has none."""
        lists = _messages(self._features.get(name, _NOTHING), 3)
        numbers: list[int] = []
        for packed in (part for values in lists for part in _messages(values, 1)):
            at = 0
            while at < len(packed):
                value, at = _varint(packed, at)
                numbers.append(value)
        return numbers

    def numbers(self, name: str) -> list[float]:
        """The integers or the floats of a name; empty if it has none."""
        lists = _messages(self._features.get(name, _NOTHING), 2)
        floats = [np.frombuffer(part, "<f4") for values in lists for part in _messages(values, 1)]
        return [float(value) for part in floats for value in part] or [float(n) for n in self.integers(name)]

    def octets(self, name: str) -> np.ndarray:
        """The integers of a name, uint8 [n]; empty if it has none.

        Raises:
            RecordError: one of them is not in 0 to 255.
        """
        lists = _messages(self._features.get(name, _NOTHING), 3)
        packed = [_unpacked(part, name) for values in lists for part in _messages(values, 1)]
        return np.concatenate(packed) if packed else np.zeros(0, np.uint8)


_NOTHING = memoryview(b"")


def _messages(message: memoryview, number: int) -> Iterator[memoryview]:
    """The length-delimited fields of a number in a protocol buffer message, in order."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        kind, size = tag & 7, 0
        if kind == _DELIMITED:
            size, at = _varint(message, at)
        elif kind == _VARINT:
            _, at = _varint(message, at)
        elif kind in _FIXED:
            size = _FIXED[kind]
        if kind not in (_DELIMITED, _VARINT, *_FIXED) or at + size > end:
            raise RecordError("the record is not a tf.train.Example")
        if tag >> 3 == number:
            if kind != _DELIMITED:
                raise RecordError("the record is not a tf.train.Example, or its integers are not packed")
            yield message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """(value, position after it) of the variable-length integer at a position."""
    value = 0
    for shift, byte in enumerate(message[at : at + 10]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, at + shift + 1
    raise RecordError("the record is not a tf.train.Example")


def _unpacked(packed: memoryview, name: str) -> np.ndarray:
    """Integers of one or two bytes: seven bits in each, the low ones first; the top bit says that a second follows."""
    raw = np.frombuffer(packed, np.uint8)
    second = np.flatnonzero(raw[:-1] > 127) + 1
    if (raw[-1:] > 127).any() or (raw[second] > 1).any():
        raise RecordError(f"{name} holds integers that are not in 0 to 255")
    values = raw & 127
    values[second - 1] |= raw[second] << 7
    return np.delete(values, second)
