"""TFRecord files of tf.train.Example messages, without TensorFlow: framing, checksums, and the few fields needed.

A file is a row of records, each one framed as

    uint64 length, uint32 masked CRC32C of the length, the content, uint32 masked CRC32C of the content

all little-endian. An Example is a map from names to lists of bytes, of floats or of integers. Only what is asked for is
taken out of a record: names first, then the values of one name, as views into the record that copy nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from robometer.errors import RobometerError

_POLYNOMIAL = 0x82F63B78
_BLOCK = 1 << 16  # words
_VARINT, _DELIMITED, _FIXED = 0, 2, {1: 8, 5: 4}  # wire types of protocol buffers; the fixed ones by their size
_LENGTH, _CRC = struct.Struct("<Q"), struct.Struct("<I")


class RecordError(RobometerError):
    """A record, or what follows it, that is damaged; the message says how."""


def read_records(path: Path) -> Iterator[bytes | RecordError]:
    """The contents of a file's records, one at a time; in place of one whose checksum is wrong, the error.

    Raises:
        RecordError: the file is empty, breaks off, or has a wrong length, so that nothing can be read from there on.
    """
    size = path.stat().st_size
    if size == 0:
        raise RecordError("the file is empty")
    with path.open("rb") as file:
        number = 0
        while head := file.read(12):
            if len(head) < 12:
                raise RecordError(f"the file breaks off in the header of record {number}")
            (length,) = _LENGTH.unpack_from(head)
            if _CRC.unpack_from(head, 8)[0] != masked(crc32c(head[:8])):
                raise RecordError(f"the length of record {number} has a wrong checksum: it is no TFRecord, or damaged")
            if length + 4 > size - file.tell():
                raise RecordError(f"the file breaks off in record {number}")
            content, (crc,) = file.read(length), _CRC.unpack(file.read(4))
            intact = crc == masked(crc32c(content))
            yield content if intact else RecordError(f"record {number} has a wrong checksum: it is damaged")
            number += 1


def masked(crc: int) -> int:
    """A checksum as it is stored: rotated and shifted, so that a record may hold other records."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli).

    Halves of a block are added after the first has been moved past the second, until one word is left: so NumPy works
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
    """Each word times the power of x that the tables stand for, byte by byte."""
    parts = words.view(np.uint8).reshape(-1, 4)
    result = tables[0][parts[:, 0]]
    for i in (1, 2, 3):
        result ^= tables[i][parts[:, i]]
    return result


@lru_cache(maxsize=32)
def _tables(level: int) -> np.ndarray:
    """uint32 [4, 256]: what a byte at each place of a word becomes when 2**level zero words follow."""
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
    """A tf.train.Example: lists of values by name; `names` are those that have one."""

    def __init__(self, record: bytes) -> None:
        """Find the names.

        Raises:
            RecordError: the record is no Example.
        """
        self._features: dict[str, memoryview] = {}
        for features in _messages(memoryview(record), 1):
            for entry in _messages(features, 1):
                names, values = list(_messages(entry, 1)), list(_messages(entry, 2))
                if len(names) != 1 or len(values) != 1:
                    raise RecordError("the record is no tf.train.Example")
                self._features[bytes(names[0]).decode("utf-8", "replace")] = values[0]
        if not self._features:
            raise RecordError("the record is no tf.train.Example")
        self.names = self._features.keys()

    def blobs(self, name: str) -> list[memoryview]:
        """The byte strings of a name; empty if it has none."""
        return [blob for values in _messages(self._features.get(name, _NOTHING), 1) for blob in _messages(values, 1)]

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
            raise RecordError("the record is no tf.train.Example")
        if tag >> 3 == number:
            if kind != _DELIMITED:
                raise RecordError("the record is no tf.train.Example, or its integers are not packed")
            yield message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """(value, position after it) of the variable-length integer at a position."""
    value = 0
    for shift, byte in enumerate(message[at : at + 10]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, at + shift + 1
    raise RecordError("the record is no tf.train.Example")


def _unpacked(packed: memoryview, name: str) -> np.ndarray:
    """Integers of one or two bytes: seven bits in each, the low ones first; the top bit says that a second follows."""
    raw = np.frombuffer(packed, np.uint8)
    second = np.flatnonzero(raw[:-1] > 127) + 1
    if (raw[-1:] > 127).any() or (raw[second] > 1).any():
        raise RecordError(f"{name} holds integers that are not in 0 to 255")
    values = raw & 127
    values[second - 1] |= raw[second] << 7
    return np.delete(values, second)
