"""TFRecord files without TensorFlow: checksums, framing and damage."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from robometer.corpus.readers.tfrecord import Example, RecordError, crc32c, read_records
from tests.conftest import SHARED
from tests.corpus.formats.tfrecords import example, framed

BRIDGE = SHARED / "data/octo_bridge_rlds/1.0.0/bridge_dataset-train.tfrecord-00000-of-00001"


def _bit_by_bit(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_crc32c_is_that_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720
    assert crc32c(bytes(32)) == 0x8A9136AA
    data = np.random.default_rng(0).bytes(3001)
    for length in (0, 1, 3, 4, 7, 8, 63, 1024, 3001):
        assert crc32c(data[:length]) == _bit_by_bit(data[:length])
    blocks = np.random.default_rng(1).bytes(4 * 65536 + 12)  # more than one block
    assert crc32c(blocks) == _bit_by_bit(blocks)


def _damaged(tmp_path: Path, content: bytes) -> tuple[list[bytes | RecordError], str]:
    path = tmp_path / "x.tfrecord"
    path.write_bytes(content)
    contents: list[bytes | RecordError] = []
    try:
        for record in read_records(path):
            contents.append(record)
    except RecordError as error:
        return contents, str(error)
    return contents, ""


def test_a_flipped_byte_costs_its_record_and_a_break_what_follows(tmp_path: Path) -> None:
    records = [b"first" * 9, b"second" * 9, b""]
    whole = b"".join(map(framed, records))
    assert _damaged(tmp_path, whole) == (records, "")
    start = len(framed(records[0]))

    flipped = bytearray(whole)
    flipped[start + 20] ^= 1
    contents, error = _damaged(tmp_path, bytes(flipped))
    assert (contents[0], contents[2], error) == (records[0], records[2], "")
    assert str(contents[1]) == "record 1 has a wrong checksum: it is damaged"

    length = bytearray(whole)
    length[start] ^= 1
    contents, error = _damaged(tmp_path, bytes(length))
    assert contents == records[:1] and "length of record 1 has a wrong checksum" in error

    assert _damaged(tmp_path, whole[: start + 30]) == (records[:1], "the file breaks off in record 1")
    assert _damaged(tmp_path, whole[: start + 5]) == (records[:1], "the file breaks off in the header of record 1")
    assert _damaged(tmp_path, b"") == ([], "the file is empty")


def test_an_example_gives_its_values_by_name() -> None:
    octets = np.random.default_rng(0).integers(0, 256, 500)
    parsed = Example(example({"text": [b"one", b"two"], "numbers": octets, "reals": [0.5, 1.5]}))
    assert set(parsed.names) == {"text", "numbers", "reals"}
    assert [bytes(blob) for blob in parsed.blobs("text")] == [b"one", b"two"]
    assert np.array_equal(parsed.octets("numbers"), octets)
    assert parsed.blobs("numbers") == [] and parsed.blobs("absent") == [] and len(parsed.octets("text")) == 0


@pytest.mark.parametrize(
    "content", [b"", b"no example at all", b"\x0a\x05abc", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"]
)
def test_what_is_no_example_is_refused(content: bytes) -> None:
    with pytest.raises(RecordError, match=r"not a tf.train.Example"):
        Example(content)


def test_integers_that_are_no_bytes_are_refused() -> None:
    for values in ([1, 256], [3, 70_000]):
        with pytest.raises(RecordError, match="not in 0 to 255"):
            Example(example({"numbers": values})).octets("numbers")


@pytest.mark.skipif(not BRIDGE.is_file(), reason="../shared/data is absent: real data is not part of the project")
def test_real_records_are_read_with_good_checksums() -> None:
    records = list(read_records(BRIDGE))
    assert len(records) == 25 and not any(isinstance(record, RecordError) for record in records)
    assert all(len(Example(record).blobs("steps/observation/image_0")) == 10 for record in records)  # type: ignore[arg-type]
