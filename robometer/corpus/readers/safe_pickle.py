"""Read pickles of plain data and numpy arrays without running what they ask for.

A pickle is a program: it names functions and calls them. Here it may name only the few that plain data needs, and each
is replaced by one of ours, so that numpy itself never sees what the pickle says but for `numpy.frombuffer` on bytes of
the pickle with a dtype of a short list. (numpy's own way back from a pickle is not safe with hostile data: dtype flags
turn bytes into pointers.) Nothing we hand out can be changed by the pickle: each has a `__setstate__` of its own.

Arrays come back as `Array`, which `numpy.asarray` takes; objects of classes that the caller allows by their package
come back as `Record`, which holds their attributes; their package is neither imported nor needed.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from robometer.corpus.formats import FormatError

MAX_BYTES = 2**30

_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,6}|O8?)")


def load(path: Path, records: Collection[str] = (), max_bytes: int = MAX_BYTES) -> Any:
    """The object in a pickle file.

    Args:
        path: the file.
        records: packages whose classes may occur; their objects become `Record`.
        max_bytes: a larger file is refused before it is read.

    Raises:
        FormatError: the file is missing, too large, broken, or wants anything that is not plain data.
    """
    try:
        if (size := path.stat().st_size) > max_bytes:
            raise FormatError(f"{path.name} has {size} bytes, more than the limit of {max_bytes} for a pickle")
        return loads(path.read_bytes(), records, path.name)
    except OSError as error:
        raise FormatError(f"{path.name} cannot be read ({error.strerror})") from error


def loads(data: bytes, records: Collection[str] = (), name: str = "the pickle") -> Any:
    """The object in a pickle; see `load`."""
    try:
        _check(data)
        return _Unpickler(data, records).load()
    except FormatError as error:
        raise FormatError(f"{name} is refused: {error}") from error
    except Exception as error:  # a broken pickle can raise anything at all
        reason = str(error).splitlines()[0][:120] if str(error) else ""
        raise FormatError(f"{name} is no pickle that can be read ({type(error).__name__}: {reason})") from error


def _check(data: bytes) -> None:
    """Refuse, from the opcodes alone, what would take memory or leave the pickle before any global is asked for."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name.startswith("EXT") or "PERSID" in opcode.name or "BUFFER" in opcode.name:
            raise FormatError(f"it has the opcode {opcode.name}, which plain data does not need")
        # The unpickler makes a table as long as the largest number of its memo: 16 GB for a pickle of 10 bytes.
        if "PUT" in opcode.name and int(argument or 0) > len(data):
            raise FormatError(f"its memo goes to {argument} in a file of {len(data)} bytes")


class Array:
    """An array of a pickle; `numpy.asarray` makes it one of numpy's, without a copy."""

    __slots__ = ("_spend", "_value")

    def __init__(self, spend: Callable[[int], None], value: np.ndarray | None = None) -> None:
        self._spend = spend
        self._value = np.empty(0, np.uint8) if value is None else value

    def __setstate__(self, state: Any) -> None:
        shape, kind, fortran, content = state[-4:]
        if not isinstance(kind, _DType) or type(shape) is not tuple or len(shape) > 32:
            raise FormatError("it has an array whose state is not numpy's")
        if kind.dtype.hasobject:
            if type(content) is not list or len(content) != math.prod(shape):
                raise FormatError("it has an array of objects whose state is not numpy's")
            self._spend(len(content))
            flat = np.empty(len(content), object)
            for i, item in enumerate(content):  # one by one: numpy would take a list of lists apart
                flat[i] = item
        else:
            flat = _values(content, kind)
        self._value = flat.reshape(shape, order="F" if fortran else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._value, dtype=dtype, copy=copy)


class PickledObject:
    """An object of a class that was not imported: what its attributes were."""

    __slots__ = ("fields",)

    fields: dict[str, Any]

    def __new__(cls, *_: Any) -> PickledObject:
        record = object.__new__(cls)
        record.fields = {}
        return record

    def __setstate__(self, state: Any) -> None:
        parts = state if type(state) is tuple else (state,)
        for part in parts:
            if type(part) is dict:  # not copied: one large dict may be the state of many records
                self.fields = self.fields | part if self.fields else part


class _DType:
    """A dtype as numpy pickles it: a code, then a state of which the byte order and a string's length count."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any, *_: Any) -> None:
        if type(code) is not str or not _DTYPE.fullmatch(code):
            raise FormatError(f"it has an array of the type {str(code)[:40]!r}, not of numbers, texts or objects")
        self.dtype = np.dtype(code.replace("O8", "O"))

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "=") or state[2:5] != (None, None, None):
            raise FormatError("it has an array of a structured type")
        if order in "<>":
            self.dtype = self.dtype.newbyteorder(order)


class _Function:
    """What a pickle gets for the name of a function: it can be called, and that is all."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setstate__(self, state: Any) -> None:
        raise FormatError("it changes a function")


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, records: Collection[str]) -> None:
        super().__init__(io.BytesIO(data), encoding="latin-1")  # the bytes of Python 2
        self._records = records
        self._left = len(data)
        self._known = self._table()

    def find_class(self, module: str, name: str) -> Any:
        package, _, rest = module.partition(".")
        package = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(package, package)
        path = f"{package}.{rest}.{name}" if rest else f"{package}.{name}"
        if (known := self._known.get(path.replace("numpy._core.", "numpy.core."))) is not None:
            return known
        if package in self._records:
            return PickledObject
        raise FormatError(f"it asks for {module}.{name}, which is no plain data")

    def persistent_load(self, pid: Any) -> Any:
        raise FormatError("it refers to objects outside of it")

    def _table(self) -> dict[str, Any]:
        names: dict[str, Callable[..., Any]] = {
            "_codecs.encode": self._encode,
            "builtins.bytearray": lambda *args: bytearray(self._encode(*args)),
            "builtins.bytes": lambda: b"",
            "builtins.complex": complex,
            "builtins.frozenset": partial(self._collect, frozenset),
            "builtins.set": partial(self._collect, set),
            "collections.OrderedDict": partial(self._collect, OrderedDict),
            "copyreg._reconstructor": self._record,
            "numpy.core.multiarray._reconstruct": self._empty,
            "numpy.core.multiarray.scalar": self._scalar,
            "numpy.core.numeric._frombuffer": self._from_buffer,
        }
        table: dict[str, Any] = {name: _Function(call) for name, call in names.items()}
        return table | {"numpy.dtype": _DType, "numpy.ndarray": _NDARRAY, "builtins.object": _OBJECT}

    def _spend(self, count: int) -> None:
        # Every element that a pickle holds takes a byte of it. Whoever copies more elements than that copies the same
        # ones again and again: a small file that fills the memory.
        self._left -= count
        if self._left < 0:
            raise FormatError("it copies its content again and again")

    def _collect(self, kind: Callable[..., Any], items: Any = ()) -> Any:
        if type(items) not in (list, tuple):
            raise FormatError("it makes a container of something that is no list")
        self._spend(len(items))
        return kind(items)

    def _encode(self, value: Any = b"", encoding: Any = "latin1") -> bytes:
        """How old protocols write bytes."""
        if type(value) not in (str, bytes) or encoding not in ("latin1", "latin-1"):
            raise FormatError("it encodes something else than bytes")
        self._spend(len(value))
        return value if type(value) is bytes else value.encode("latin-1")

    def _record(self, kind: Any, base: Any, state: Any) -> PickledObject:
        if kind is not PickledObject:
            raise FormatError("it makes an object of something that is no class")
        return PickledObject()

    def _empty(self, kind: Any, shape: Any, code: Any) -> Array:
        if kind is not _NDARRAY or shape != (0,):
            raise FormatError("it makes an array of something else than numpy's own")
        return Array(self._spend)

    def _from_buffer(self, content: Any, kind: Any, shape: Any, order: Any, axes: Any = None) -> Array:
        value = _values(content, kind).reshape(shape, order="F" if order == "F" else "C")
        return Array(self._spend, value if axes is None else value.transpose(axes))

    def _scalar(self, kind: Any, content: Any) -> Any:
        return _values(content, kind)[0]


def _refuse(*_: Any) -> Any:
    raise FormatError("it makes an object in a way that plain data does not need")


_NDARRAY, _OBJECT = _Function(_refuse), _Function(_refuse)


def _values(content: Any, kind: Any) -> np.ndarray:
    """An array [N] on the bytes of the pickle."""
    content = content.encode("latin-1") if type(content) is str else content
    if type(content) not in (bytes, bytearray) or not isinstance(kind, _DType) or kind.dtype.hasobject:
        raise FormatError("it has an array whose state is not numpy's")
    return np.frombuffer(content, kind.dtype)
