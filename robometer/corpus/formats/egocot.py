"""EgoCOT: clips of eight frames from Ego4D, each with a plan in words of what the person does.

    egocot/                                  (annotations and arrays may lie in folders of their own)
      results.json                           [{"image": "EGO_0001.npy", "planing": "pick up the cup\\n1. ..."}, ...]
      EGO_0001.npy, or EGO_0001.npy in EgoCOT_clear    uint8 [T, 3, H, W] (or [T, H, W, 3])

Each entry is an episode of the data set `egocot`: a human filmed from the head (view `ego`), successful. The task is
the first line of the plan (`planing` or `planning`). The list may also be the value of `data`, `results`, `annotations`
or `samples`. Arrays are memory-mapped, and never unpickled.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.formats.common import files, folder, read_json
from robometer.corpus.readers.annotations import check_row
from robometer.frames.recording import ImageSequence
from robometer.trajectory import Episode, TrajectoryError

FILE = "results.json"
LISTS = ("data", "results", "annotations", "samples")
ARRAYS = ("EgoCOT_clear", ".")


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The entries of every results.json.

    Raises:
        FormatError: there is no results.json, or one is malformed.
    """
    root = folder(input, f"the folder of EgoCOT, which holds {FILE}")
    tables = files(root, f"**/{FILE}")
    if not tables:
        raise FormatError(f"no {FILE} in {root}: give ingest.input a copy of EgoCOT")
    for path in tables:
        for number, entry in enumerate(_entries(path), start=1):
            try:
                yield _unit(entry, path.parent, root, source or "egocot")
            except ValueError as error:
                yield Refused(f"{path}:{number}", f"entry {number} of {FILE} is malformed: {error}", source or "egocot")


def episodes(unit: Unit) -> Iterator[Episode | Refused]:
    """The one array of an entry."""
    try:
        array = np.load(unit.uri, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise TrajectoryError(f"the array cannot be read ({str(error).splitlines()[0]})") from error
    if not isinstance(array, np.ndarray) or array.ndim != 4 or array.dtype != np.uint8 or 3 not in array.shape[1::2]:
        kind = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "an archive"
        raise TrajectoryError(f"the array is {kind}, not uint8 [T, 3, H, W]")
    frames = array.transpose(0, 2, 3, 1) if array.shape[1] == 3 else array
    yield Episode(
        source=unit.source,
        episode_key=unit.key,
        view="ego",
        task=unit.data["task"],
        recording=ImageSequence(len(frames), lambda i: np.ascontiguousarray(frames[i])),
        uri=unit.uri,
        is_robot=False,
    )


def _entries(path: Path) -> list[Any]:
    content = read_json(path)
    if isinstance(content, dict):
        content = next((content[name] for name in LISTS if name in content), None)
    if not isinstance(content, list):
        raise FormatError(f"{path} is not a list of annotations, and has none named {', '.join(LISTS)}")
    return content


def _unit(entry: Any, beside: Path, root: Path, source: str) -> Unit:
    if not isinstance(entry, dict):
        raise ValueError("it is not an object")
    name: Any = entry.get("image")
    plan = entry.get("planing") or entry.get("planning")
    lines = [line.strip() for line in str(plan or "").splitlines() if line.strip()]
    check_row({"video": name, "task": lines[0] if lines else ""})
    if not name.endswith(".npy") or ".." in PurePosixPath(name).parts or name.startswith("/"):
        raise ValueError(f"image {name!r} must be the path of an npy file in its folder")
    places = [base / part / name for base in (beside, root) for part in ARRAYS]
    if (path := next((place for place in places if place.is_file()), None)) is None:
        raise ValueError(f"there is no file {name}")
    return Unit(path.relative_to(root).as_posix(), source, str(path), data={"task": lines[0]})
