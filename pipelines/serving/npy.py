"""Arrays of `.npy` files, read strictly: numpy's own reader hands the header to Python's parser."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from pipelines.serving.errors import ApiError

MAGIC = b"\x93NUMPY"
_MAX_HEADER_BYTES = 4096  # one of frames is 118 bytes long; numpy refuses more than 10,000
_SHAPE = r"\(\s*(?:-?[0-9]{1,18}L?\s*,\s*)*(?:-?[0-9]{1,18}L?\s*)?\)"
_VALUE = rf"""['"][^'"\\]{{0,32}}['"]|True|False|{_SHAPE}|\[[^\[\]]{{0,3000}}\]"""
_ITEM = rf"""\s*['"](descr|fortran_order|shape)['"]\s*:\s*({_VALUE})\s*"""
_HEADER = re.compile(r"\{" + ",".join([_ITEM] * 3) + r",?\s*\}\s*", re.ASCII)
_DTYPE = re.compile(r"[<>|=]?[?a-zA-Z]+[0-9]{0,4}")


@dataclass(frozen=True)
class NpyHeader:
    """What a `.npy` file says of its array; `offset` is that of the values in bytes."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    fortran_order: bool
    offset: int

    def __str__(self) -> str:
        return f"{self.dtype.name} {str(list(self.shape))[:80]}"


def read_npy_header(head: bytes, field: str) -> NpyHeader:
    """Read the header of a file of numbers from its first bytes.

    Raises:
        ApiError: 422 for anything else.
    """
    text, offset = _header(head, field)
    match = _HEADER.fullmatch(text)
    items = dict(zip(match.groups()[::2], match.groups()[1::2], strict=True)) if match else {}
    kinds = {"descr": "'\"[", "fortran_order": "TF", "shape": "("}
    if len(items) != 3 or any(items[key][0] not in starts for key, starts in kinds.items()):
        raise ApiError(422, f"Field '{field}' has a damaged .npy header. Write the file with numpy.save.")
    shape = tuple(int(size) for size in re.findall(r"-?[0-9]+", items["shape"]))
    dtype = _dtype(items["descr"], field)
    if any(size < 0 for size in shape):
        raise ApiError(422, f"Field '{field}' has a negative size in its .npy header. Write the file with numpy.save.")
    return NpyHeader(dtype, shape, items["fortran_order"] == "True", offset)


def read_npy(data: bytes | memoryview, header: NpyHeader, field: str) -> np.ndarray:
    """The array of a file, in C order, whose header has been read and checked.

    Raises:
        ApiError: 422, it is not as long as its header says.
    """
    if len(data) - header.offset != math.prod(header.shape) * header.dtype.itemsize:
        raise ApiError(422, f"Field '{field}' is cut short or has bytes after its array. Send it again.")
    values = np.frombuffer(data, header.dtype, offset=header.offset)
    return np.ascontiguousarray(values.reshape(header.shape, order="F" if header.fortran_order else "C"))


HEAD_BYTES = 12 + _MAX_HEADER_BYTES
"""First bytes of a file that `read_npy_header` needs, if the file has so many."""


def _header(head: bytes, field: str) -> tuple[str, int]:
    version = head[6:8]
    width = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}.get(version)
    if head[:6] != MAGIC or width is None:
        raise ApiError(422, f"Field '{field}' is not a .npy file. Write it with numpy.save.")
    start, length = 8 + width, int.from_bytes(head[8 : 8 + width], "little")
    text = head[start : start + length]
    if length > _MAX_HEADER_BYTES or len(text) < length:
        raise ApiError(422, f"Field '{field}' has a .npy header that is cut short or too long.")
    return text.decode("latin-1"), start + length


def _dtype(descr: str, field: str) -> np.dtype[np.generic]:
    name = descr.strip("'\"")
    try:
        dtype = np.dtype(name) if descr[0] != "[" and _DTYPE.fullmatch(name) else None
    except (TypeError, ValueError):
        dtype = None
    if dtype is None or dtype.kind not in "buif":
        kind = "records" if descr[0] == "[" else dtype.name if dtype else "values of an unknown type"
        raise ApiError(422, f"Field '{field}' must hold an array of numbers, not {kind}.")
    return dtype
