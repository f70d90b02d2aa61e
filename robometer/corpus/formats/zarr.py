"""Zarr stores as diffusion policy writes them (replay buffers): many episodes one after the other in one array.

    <input>                       a store, or a folder with stores *.zarr and *.zarr.zip in it; zarr format 2 or 3
      data/<camera>               [N, H, W, 3] uint8, or float from 0 to 255; each such array is a view
      meta/episode_ends           [E], the end of each episode in N

The task is in `tasks.json` in <input> or beside the store ({store's name: ...}), or else in the store's attribute
`task`. Either is a text, an object with the fields of `image_folders` (quality_label, partial_success, ...), or a list
of these, one per episode. Only frames that are kept are read, with their chunks. Only the codecs of a short list are
allowed, as others may run pickles. Needs the extra `robometer[zarr]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.formats.common import absolute, folder, numbered, read_json
from robometer.corpus.formats.image_folders import fields_of, refused, utf8
from robometer.frames.recording import ImageSequence
from robometer.trajectory import Episode

MAX_CHUNK_BYTES = 2**30
LISTING_READS = ("*meta/episode_ends/*",)
LISTING_NEEDS_A_DISK = ("*.zarr.zip",)
CODECS = frozenset(
    "blosc zstd gzip zlib lz4 bz2 lzma shuffle delta bytes transpose crc32c sharding_indexed default".split()
)


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The episodes of all stores.

    Raises:
        FormatError: there is no store.
    """
    path = absolute(input)
    single = (path.suffix == ".zip" and path.is_file()) or _is_store(path)
    root = path.parent if single else folder(input, "a zarr store, or stores in it")
    stores = [path] if single else numbered(p for p in root.iterdir() if p.name.endswith(".zarr.zip") or _is_store(p))
    if not stores:
        raise FormatError(f"{input} has no zarr store: no zarr.json, .zgroup or *.zarr.zip")
    places = [place / "tasks.json" for place in (path, root)]
    tasks: Any = next((read_json(place) for place in places if place.is_file()), {})
    if not isinstance(tasks, dict):
        raise FormatError("tasks.json must be an object of the stores' names and their tasks")
    for store in stores:
        try:
            yield from _store(store, tasks.get(store.name), source)
        except FormatError as error:
            yield refused(store, str(error))
        except Exception as error:  # noqa: BLE001  whatever zarr raises on what it cannot read
            yield refused(store, f"the store cannot be read ({type(error).__name__}: {error})")


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The views of one episode."""
    data, first, end = unit.data, unit.data["first"], unit.data["end"]
    with _opened(Path(unit.uri)) as group:
        for view in data["views"]:
            array = group[f"data/{view}"]
            if error := _unusable(array, end):
                yield Refused(f"{unit.uri}/data/{view}", error, unit.source, unit.key, view)
                continue
            yield Episode(
                source=unit.source,
                episode_key=unit.key,
                view=view,
                task=data.get("task", ""),
                recording=ImageSequence(end - first, partial(_frame, array, first), data.get("fps", 0.0)),
                uri=f"{unit.uri}/data/{view}",
                raw_quality_label=data.get("quality_label", "successful"),
                is_robot=data.get("is_robot", True),
                partial_success=data.get("partial_success"),
                split=data.get("split", ""),
            )


class _opened:
    """The root group of a store, which is closed at the end (a zip file must be)."""

    def __init__(self, path: Path) -> None:
        zipped = path.suffix == ".zip"
        self._store: Any = zarr.storage.ZipStore(path, mode="r") if zipped else zarr.storage.LocalStore(path)

    def __enter__(self) -> Any:
        return zarr.open_group(store=self._store, mode="r")

    def __exit__(self, *_: Any) -> None:
        self._store.close()


def _is_store(path: Path) -> bool:
    return path.is_dir() and any((path / name).is_file() for name in ("zarr.json", ".zgroup"))


def _store(path: Path, tasks: Any, source: str) -> Iterator[Unit | Refused]:
    name = utf8(Path(path.name))
    with _opened(path) as group:
        if "meta/episode_ends" not in group:
            raise FormatError("it has no meta/episode_ends")
        if error := _forbidden(group["meta/episode_ends"]):
            raise FormatError(error)
        ends = np.asarray(group["meta/episode_ends"][:])
        views = sorted(view for view, array in group["data"].arrays() if array.ndim == 4 and array.shape[3] == 3)
        tasks = group.attrs.asdict().get("task") if tasks is None else tasks
    if ends.ndim != 1 or ends.dtype.kind not in "iu" or (np.diff(ends.astype(np.int64), prepend=0) <= 0).any():
        raise FormatError("meta/episode_ends must be ascending whole numbers")
    if not views:
        raise FormatError("it has no array data/<camera> of shape [N, H, W, 3]")
    for number, (first, end) in enumerate(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)):
        entry = tasks if not isinstance(tasks, list) else tasks[number] if number < len(tasks) else None
        try:
            if entry is None:
                raise FormatError("no task text: give the store an attribute `task`, or list it in a tasks.json")
            fields = fields_of(entry, f"the task of episode {number}")
        except FormatError as error:
            yield Refused(f"{path}#{number}", str(error), source, f"{name}/{number}")
            continue
        data = {**fields, "first": first, "end": end, "views": views}
        yield Unit(f"{name}/{number}", source or fields.get("source", name.split(".")[0]), str(path), len(views), data)


def _unusable(array: Any, end: int) -> str:
    if error := _forbidden(array):
        return error
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        return f"its frames are {array.dtype}, not uint8"
    if end > array.shape[0]:
        return f"the episode ends at {end}, but the array has {array.shape[0]} frames"
    return ""


def _forbidden(array: Any) -> str:
    """Why an array must not be read: its codec is not known to be safe, or its chunks would fill the memory."""
    used = set(_codecs({k: v for k, v in array.metadata.to_dict().items() if k in ("codecs", "compressor", "filters")}))
    if unknown := sorted(used - CODECS):
        return f"it is written with the codec {unknown[0]}; the allowed ones are {', '.join(sorted(CODECS))}"
    if int(np.prod(array.chunks, dtype=np.float64)) * array.dtype.itemsize > MAX_CHUNK_BYTES:
        return f"its chunks of {array.chunks} are larger than {MAX_CHUNK_BYTES} bytes"
    return ""


def _codecs(value: Any) -> Iterator[str]:
    if hasattr(value, "get_config"):
        value = value.get_config()
    if isinstance(value, dict):
        for key, item in value.items():
            if key in ("id", "name"):
                yield str(item).removeprefix("numcodecs.")
            else:
                yield from _codecs(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _codecs(item)


def _frame(array: Any, first: int, i: int) -> np.ndarray:
    pixels = np.asarray(array[first + i])
    if pixels.dtype == np.uint8:
        return pixels
    if 0 < pixels.max() <= 1:
        raise FormatError("its frames have values from 0 to 1 instead of 0 to 255")
    whole: np.ndarray = np.clip(np.rint(pixels), 0, 255)
    return whole.astype(np.uint8)
