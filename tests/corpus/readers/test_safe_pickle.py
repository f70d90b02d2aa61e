"""Pickles: what numpy wrote comes back unchanged; hostile pickles run no code and do not exhaust the memory."""

from __future__ import annotations

import io
import os
import pickle
import resource
import struct
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from robometer.corpus.formats import FormatError
from robometer.corpus.readers.safe_pickle import PickledObject, load, loads

PLAIN: list[Any] = [
    {"a": [1, 2.5, None, True], "b": ("x", b"\x00\xff"), "c": {1, 2}, "d": frozenset("q"), "e": 1 + 2j, "f": b""},
    OrderedDict(a=1, b=[2]),
    bytearray(b"abc"),
]
ARRAYS = [
    np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3)),
    np.array([[True, False]]),
    np.array(["drawer", "ö"]),
    np.array([b"ab", b"c"]),
    np.zeros((0, 3), np.int64),
    np.float64(0.5),
    np.bool_(True),
    np.arange(24, dtype=np.int16).reshape(2, 3, 4).transpose(2, 0, 1),
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_comes_back_as_it_was(protocol: int) -> None:
    for value in PLAIN:
        assert loads(pickle.dumps(value, protocol)) == value
    for array in ARRAYS:
        read = np.asarray(loads(pickle.dumps(array, protocol)))
        assert read.dtype == array.dtype and read.shape == array.shape and (read == array).all()
    nested = np.array([[1, 2], {"image": ARRAYS[0]}, None], dtype=object)
    first, second, third = np.asarray(loads(pickle.dumps(nested, protocol)))
    assert first == [1, 2] and third is None and (np.asarray(second["image"]) == ARRAYS[0]).all()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_numpy_1_names_its_functions_elsewhere(protocol: int) -> None:
    data = pickle.dumps(ARRAYS[0], protocol).replace(b"numpy._core.", b"numpy.core.")
    if protocol >= 4:  # the name's length and the frame's are written before them
        data = pickle.dumps(ARRAYS[0], 3).replace(b"numpy._core.", b"numpy.core.")
    assert (np.asarray(loads(data)) == ARRAYS[0]).all()


def test_an_array_of_python_2() -> None:
    array = glob("numpy.core.multiarray", "_reconstruct") + glob("numpy", "ndarray") + b"K\x00\x85U\x01b\x87R"
    dtype = glob("numpy", "dtype") + b"(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    read = np.asarray(loads(b"\x80\x02" + array + b"(K\x01K\x03\x85" + dtype + b"\x89U\x03\xff\x00\x07tb."))
    assert read.tolist() == [255, 0, 7]


@pytest.fixture
def eval_log() -> Iterator[types.ModuleType]:
    """A package with a class that no longer exists when its pickles are read."""
    module = types.ModuleType("eval_log")
    module.TrajData = type("TrajData", (), {"__module__": "eval_log"})  # type: ignore[attr-defined]
    sys.modules["eval_log"] = module
    yield module
    sys.modules.pop("eval_log", None)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_objects_become_records_without_their_package(eval_log: types.ModuleType, protocol: int) -> None:
    value = eval_log.TrajData()
    value.success, value.obs = np.bool_(True), {"image": ARRAYS[0]}
    data = pickle.dumps(value, protocol)
    del sys.modules["eval_log"]
    record = loads(data, packages=("eval_log",))
    assert isinstance(record, PickledObject) and record.fields["success"]
    assert (np.asarray(record.fields["obs"]["image"]) == ARRAYS[0]).all()
    with pytest.raises(FormatError, match=r"eval_log\.TrajData"):
        loads(data)


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.parts = (function, args) if state is None else (function, args, state)

    def __reduce__(self) -> Any:
        return self.parts


def glob(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


RECONSTRUCT = np.zeros(1).__reduce__()[0]


def hostile(mark: Path) -> dict[str, tuple[bytes, str]]:
    """The bytes of a pickle, and the name that the error mentions."""
    touch = f"open({str(mark)!r}, 'w')"
    nested = np.array([Call(eval, touch)], dtype=object)
    flags = Call(np.dtype, "V8", False, True, state=(3, "|", None, None, None, 8, 1, 4))
    pointers = Call(RECONSTRUCT, np.ndarray, (0,), b"b", state=(1, (1,), flags, False, b"A" * 8))
    array = glob("numpy.core.multiarray", "_reconstruct") + glob("numpy", "ndarray") + b"K\x00\x85C\x01b\x87R"
    byte = glob("numpy", "dtype") + b"(X\x02\x00\x00\x00u1\x89\x88tR"
    doubled = b"\x80\x04(" + b"K\x00" * 1000 + b"l\x94" + b"0"
    return {
        "system": (pickle.dumps(Call(os.system, f"touch {mark}")), "system"),
        "eval": (pickle.dumps(Call(eval, touch)), "builtins.eval"),
        "nested": (pickle.dumps(nested), "builtins.eval"),
        "getattr": (pickle.dumps(Call(getattr, np.ndarray, "tofile")), "builtins.getattr"),
        "dotted": (b"\x80\x04\x8c\x05numpy\x8c\x0ef2py.os.system\x93.", "f2py.os.system"),
        "dotted allowed": (b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__base__\x93.", "__base__"),
        "import": (pickle.dumps(Call(__import__, "os")), "__import__"),
        "old import": (b"c__builtin__\neval\n(S'" + b"1" + b"'\ntR.", "__builtin__.eval"),
        "instance": (b"(S'true'\nios\nsystem\n.", "os.system"),
        "wrong class": (pickle.dumps(Call(RECONSTRUCT, dict, (0,), b"b")), "dict"),
        "wrong class of ours": (
            glob("numpy.core.multiarray", "_reconstruct") + glob("numpy", "dtype") + b"K\x00\x85C\x01b\x87R.",
            "an array that is not numpy's",
        ),
        "uninitialised memory": (pickle.dumps(Call(RECONSTRUCT, np.ndarray, (10**10,), b"b")), "that is not numpy's"),
        "ndarray called": (glob("numpy", "ndarray") + b"J\xff\xff\xff\x7f\x85\x85R.", "does not need"),
        "pointers": (pickle.dumps(pointers), "V8"),
        "object scalar": (pickle.dumps(Call(np.float64(1).__reduce__()[0], np.dtype("O"), b"A" * 8)), "not numpy's"),
        "huge array of objects": (array + b"(K\x01J\xff\xff\xff\x7f\x85" + glob("numpy", "dtype")
                                  + b"(X\x01\x00\x00\x00O\x89\x88tR\x89(ltb.", "not numpy's"),
        "wrong size": (array + b"(K\x01K\x09\x85" + byte + b"\x89C\x04abcdtb.", "cannot reshape"),
        "function changed": (glob("_codecs", "encode") + b"N}X\x01\x00\x00\x00aNs\x86b.", "changes a function"),
        "extension": (b"\x80\x02\x82\x01.", "EXT1"),
        "extension 4": (b"\x80\x02\x84\x01\x00\x00\x00.", "EXT4"),
        "persistent": (b"Pid\n.", "PERSID"),
        "out of band": (b"\x80\x05\x97.", "NEXT_BUFFER"),
        "huge bytes": (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.", "as a pickle"),
        "huge memo": (b"\x80\x02Nr\xff\xff\xff\x7f.", "memo"),
        "huge text": (b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"abc.", "as a pickle"),
        "copies": (doubled + (glob("builtins", "frozenset") + b"h\x00\x85R") * 100 + b".", "again and again"),
        "encoding": (pickle.dumps(Call(__import__("_codecs").encode, b"a", "hex")), "encodes"),
        "big bytes": (pickle.dumps(Call(bytearray, 10**11), 4), "encodes"),
        "empty": (b"", "as a pickle"),
        "truncated": (pickle.dumps(ARRAYS[0])[:-9], "as a pickle"),
        "lz4": (b"\x04\x22\x4d\x18 something", "as a pickle"),
        "protocol": (b"\x80\x63N.", "as a pickle"),
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(hostile(Path("x"))))
def test_hostile_pickles_are_refused_and_nothing_runs(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "ran"
    data, reason = hostile(mark)[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(FormatError) as refused:
        loads(data, packages=("eval_log",), name=name)
    assert reason in str(refused.value) and not mark.exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_the_hostile_pickles_are_hostile(tmp_path: Path) -> None:
    for name in ("system", "eval", "nested"):
        mark = tmp_path / name
        pickle.Unpickler(io.BytesIO(hostile(mark)[name][0])).load()
        assert mark.exists()


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(FormatError, match="more than the limit"):
        load(path)
    with pytest.raises(FormatError, match="cannot be read"):
        load(tmp_path / "b.pkl")
