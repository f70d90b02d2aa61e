"""Frames of a `.npy` file, read strictly: numpy's own reader hands the header to Python's parser."""

from __future__ import annotations

import re

import numpy as np

from pipelines.serving.errors import ApiError

_MAGIC = b"\x93NUMPY"
_MAX_HEADER_BYTES = 4096  # one of frames is 118 bytes long; numpy refuses more than 10,000
_SHAPE = r"\(\s*(?:-?[0-9]{1,18}L?\s*,\s*)*(?:-?[0-9]{1,18}L?\s*)?\)"
_VALUE = rf"""['"][^'"\\]{{0,32}}['"]|True|False|{_SHAPE}|\[[^\[\]]{{0,3000}}\]"""
_ITEM = rf"""\s*['"](descr|fortran_order|shape)['"]\s*:\s*({_VALUE})\s*"""
_HEADER = re.compile(r"\{" + ",".join([_ITEM] * 3) + r",?\s*\}\s*", re.ASCII)
_DTYPE = re.compile(r"[<>|=]?[?a-zA-Z]+[0-9]{0,4}")


def read_npy_header(head: bytes, field: str) -> tuple[tuple[int, ...], bool, int]:
    """Read the header of a file of uint8 frames from its first bytes.

    Returns:
        The shape, whether the array is in Fortran order, and the offset of the pixels in bytes.

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
    dtype = _dtype(items["descr"])
    if dtype != "uint8" or len(shape) != 4 or shape[-1] != 3 or min(shape) < 0:
        raise ApiError(
            422, f"Field '{field}' must hold uint8 [T, H, W, 3] RGB frames, not {dtype} {str(list(shape))[:80]}."
        )
    return shape, items["fortran_order"] == "True", offset


HEAD_BYTES = 12 + _MAX_HEADER_BYTES
"""First bytes of a file that `read_npy_header` needs, if the file has so many."""


def _header(head: bytes, field: str) -> tuple[str, int]:
    version = head[6:8]
    width = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}.get(version)
    if head[:6] != _MAGIC or width is None:
        raise ApiError(422, f"Field '{field}' is not a .npy file. Write it with numpy.save.")
    start, length = 8 + width, int.from_bytes(head[8 : 8 + width], "little")
    text = head[start : start + length]
    if length > _MAX_HEADER_BYTES or len(text) < length:
        raise ApiError(422, f"Field '{field}' has a .npy header that is cut short or too long.")
    return text.decode("latin-1"), start + length


def _dtype(descr: str) -> str:
    name = descr.strip("'\"")
    if descr[0] == "[":
        return "records"
    try:
        return np.dtype(name).name if _DTYPE.fullmatch(name) else "an unknown type"
    except (TypeError, ValueError):
        return "an unknown type"
