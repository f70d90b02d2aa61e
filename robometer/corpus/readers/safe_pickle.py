"""Read pickles of plain data and numpy arrays without running their code.

A pickle is a program: it names functions and calls them. Here it may name only the few that plain data needs, and each
of these is replaced by one of ours. So numpy never sees anything from the pickle, except through `numpy.frombuffer` on
its bytes with a dtype from a short list. (numpy's own unpickling is not safe with hostile data: dtype flags turn bytes
into pointers.) The pickle cannot change the objects that it gets, because each has its own `__setstate__`.

Arrays become `Array`, which `numpy.asarray` accepts. Objects of the packages that the caller allows become
`PickledObject`, which holds their attributes; the packages are neither imported nor needed.
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


def load(path: Path, packages: Collection[str] = (), max_bytes: int = MAX_BYTES) -> Any:
    """The object in a pickle file.

    Args:
        path: the file.
        packages: names of packages whose classes may occur; their objects become `PickledObject`.
        max_bytes: a larger file is refused before it is read.

    Raises:
        FormatError: the file is missing, too large or broken, or asks for anything but plain data.
    """
    try:
        if (size := path.stat().st_size) > max_bytes:
            raise FormatError(f"{path.name} has {size} bytes, more than the limit of {max_bytes} for a pickle")
        return loads(path.read_bytes(), packages, path.name)
    except OSError as error:
        raise FormatError(f"{path.name} cannot be read ({error.strerror})") from error


def loads(data: bytes, packages: Collection[str] = (), name: str = "the pickle") -> Any:
    """The object in a pickle; see `load`."""
    try:
        _check(data)
        return _Unpickler(data, packages).load()
    except FormatError as error:
        raise FormatError(f"{name} is refused: {error}") from error
    except Exception as error:  # a broken pickle can raise anything
        reason = str(error).splitlines()[0][:120] if str(error) else ""
        raise FormatError(f"{name} cannot be read as a pickle ({type(error).__name__}: {reason})") from error


def _check(data: bytes) -> None:
    """Refuse, from the opcodes alone, pickles that would fill the memory or refer to objects outside them."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name.startswith("EXT") or "PERSID" in opcode.name or "BUFFER" in opcode.name:
            raise FormatError(f"it has the opcode {opcode.name}, which plain data does not need")
        # The unpickler allocates a table up to the largest index of its memo: 16 GB for a pickle of 10 bytes.
        if "PUT" in opcode.name and int(argument or 0) > len(data):
            raise FormatError(f"its memo index {argument} is beyond a file of {len(data)} bytes")


class Array:
    """An array of a pickle; `numpy.asarray` turns it into a numpy array without a copy."""

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
            for i, item in enumerate(content):  # one by one: numpy would unpack a list of lists
                flat[i] = item
        else:
            flat = _values(content, kind)
        self._value = flat.reshape(shape, order="F" if fortran else "C")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._value, dtype=dtype, copy=copy)


class PickledObject:
    """The attributes of an object whose class was not imported."""

    __slots__ = ("fields",)

    fields: dict[str, Any]

    def __new__(cls, *_: Any) -> PickledObject:
        record = object.__new__(cls)
        record.fields = {}
        return record

    def __setstate__(self, state: Any) -> None:
        parts = state if type(state) is tuple else (state,)
        for part in parts:
            if type(part) is dict:  # not copied: one large dict may be the state of many objects
                self.fields = self.fields | part if self.fields else part


class _DType:
    """A dtype as numpy pickles it: a code, then a state whose only allowed effect is the byte order."""

    __slots__ = ("dtype",)

    def __init__(self, code: Any, *_: Any) -> None:
        if type(code) is not str or not _DTYPE.fullmatch(code):
            raise FormatError(f"it has an array of type {str(code)[:40]!r}, not of numbers, texts or objects")
        self.dtype = np.dtype(code.replace("O8", "O"))

    def __setstate__(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "=") or state[2:5] != (None, None, None):
            raise FormatError("it has an array of a structured type")
        if order in "<>":
            self.dtype = self.dtype.newbyteorder(order)


class _Function:
    """What a pickle gets for the name of a function. It can only be called."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setstate__(self, state: Any) -> None:
        raise FormatError("it changes a function")


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, packages: Collection[str]) -> None:
        super().__init__(io.BytesIO(data), encoding="latin-1")  # for the bytes of Python 2
        self._packages = packages
        self._left = len(data)
        self._allowed = self._table()

    def find_class(self, module: str, name: str) -> Any:
        package, _, rest = module.partition(".")
        package = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(package, package)
        path = f"{package}.{rest}.{name}" if rest else f"{package}.{name}"
        if (ours := self._allowed.get(path.replace("numpy._core.", "numpy.core."))) is not None:
            return ours
        if package in self._packages:
            return PickledObject
        raise FormatError(f"it asks for {module}.{name}, which is not plain data")

    def persistent_load(self, pid: Any) -> Any:
        raise FormatError("it refers to objects outside the pickle")

    def _table(self) -> dict[str, Any]:
        names: dict[str, Callable[..., Any]] = {
            "_codecs.encode": self._encode,
            "builtins.bytearray": lambda *args: bytearray(self._encode(*args)),
            "builtins.bytes": lambda: b"",
            "builtins.complex": complex,
            "builtins.frozenset": partial(self._collect, frozenset),
            "builtins.set": partial(self._collect, set),
            "collections.OrderedDict": partial(self._collect, OrderedDict),
            "copyreg._reconstructor": self._object,
            "numpy.core.multiarray._reconstruct": self._empty,
            "numpy.core.multiarray.scalar": self._scalar,
            "numpy.core.numeric._frombuffer": self._from_buffer,
        }
        table: dict[str, Any] = {name: _Function(call) for name, call in names.items()}
        return table | {"numpy.dtype": _DType, "numpy.ndarray": _NDARRAY, "builtins.object": _OBJECT}

    def _spend(self, count: int) -> None:
        # Every element takes at least a byte of the pickle. If more elements than that are copied, the same ones are
        # copied again and again, and a small file fills the memory.
        self._left -= count
        if self._left < 0:
            raise FormatError("it copies its content again and again")

    def _collect(self, kind: Callable[..., Any], items: Any = ()) -> Any:
        if type(items) not in (list, tuple):
            raise FormatError("it makes a container of something that is not a list")
        self._spend(len(items))
        return kind(items)

    def _encode(self, value: Any = b"", encoding: Any = "latin1") -> bytes:
        """Old protocols write bytes this way."""
        if type(value) not in (str, bytes) or encoding not in ("latin1", "latin-1"):
            raise FormatError("it encodes something other than bytes")
        self._spend(len(value))
        return value if type(value) is bytes else value.encode("latin-1")

    def _object(self, kind: Any, base: Any, state: Any) -> PickledObject:
        if kind is not PickledObject:
            raise FormatError("it makes an object of something that is not a class")
        return PickledObject()

    def _empty(self, kind: Any, shape: Any, code: Any) -> Array:
        if kind is not _NDARRAY or shape != (0,):
            raise FormatError("it makes an array that is not numpy's")
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
    """An array [N] that shares the bytes of the pickle."""
    content = content.encode("latin-1") if type(content) is str else content
    if type(content) not in (bytes, bytearray) or not isinstance(kind, _DType) or kind.dtype.hasobject:
        raise FormatError("it has an array whose state is not numpy's")
    return np.frombuffer(content, kind.dtype)
