"""What several formats need: finding files, reading text and annotation files with errors that name the place."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from robometer.corpus.formats import FormatError
from robometer.trajectory import TrajectoryError


def folder(input: str, what: str) -> Path:
    """`input` as an absolute folder.

    Raises:
        FormatError: there is none; `what` says what it should hold.
    """
    path = absolute(input)
    if not path.is_dir():
        raise FormatError(f"no folder {input}: give ingest.input {what}")
    return path


def absolute(input: str) -> Path:
    """`input` as an absolute path under the names by which it was given.

    Links are not followed: hub caches keep files under links, beside which the others of a data set lie, while what
    they point to has neither name nor neighbours. A `~` is the user's home where nothing is really called so.
    """
    path = Path(input if os.path.exists(input) else os.path.expanduser(input)).absolute()
    if ".." not in path.parts:
        return path
    up = len(path.parts) - path.parts[::-1].index("..")  # what is above a folder that is a link, only the link knows
    return Path(os.path.realpath(Path(*path.parts[:up])), *path.parts[up:])


def name_of(folder: Path) -> str:
    """The name of the data set in a folder: the folder's own, or in a hub cache the one that it is published under.

    There it lies in datasets--ORGANISATION--NAME/snapshots/REVISION, and has one name in all revisions.
    """
    cached = re.fullmatch(r"(?:datasets|models|spaces)--(?:.+?--)?(.+)", folder.parent.parent.name)
    return cached[1] if cached and folder.parent.name == "snapshots" else folder.name


def is_depth(view: str) -> bool:
    """Whether a camera's name says that it sees distances, which are no colours."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", view).lower()  # wristDepth
    return re.search(r"(?<![a-z])depth(?:map|image)?(?![a-z])", words) is not None


def files(root: Path, *patterns: str) -> list[Path]:
    """Files below `root` that match one of the patterns (`**/*.mp4`), sorted by path, hidden ones left out."""
    found = set()
    for pattern in patterns:
        above, deep, name = pattern.rpartition("**/")
        places = (place for place, _, _ in walk(root / above)) if deep else [root]
        found |= {path for place in places for path in place.glob(name) if path.is_file()}
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))


def walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """`os.walk`, through links to folders too. Each folder comes once: by its own name, if it has one below `root`."""
    seen, starts = set[str](), [str(root)]
    while starts:
        for path, folders, names in os.walk(starts.pop(0)):
            if (real := os.path.realpath(path)) in seen:
                folders.clear()
                continue
            seen.add(real)
            yield Path(path), folders, names
            places = [os.path.join(path, name) for name in sorted(folders)]
            starts += [place for place in places if os.path.islink(place)]


def subfolders(root: Path) -> list[Path]:
    """Folders directly in `root`, sorted by name, hidden ones left out."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def text(value: object) -> str:
    """Text of a string, of UTF-8 bytes, or of a scalar array of either.

    Raises:
        TrajectoryError: bytes that are not UTF-8.
    """
    value = value.item() if hasattr(value, "item") and getattr(value, "size", 1) == 1 else value
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TrajectoryError(f"a text is not UTF-8 (byte {error.start})") from error
    return str(value)


def read_json(path: Path) -> Any:
    """Content of a JSON file.

    Raises:
        FormatError: it is missing or malformed.
    """
    return _parsed(path, json.loads)


def read_yaml(path: Path) -> Any:
    """Content of a YAML file; same errors as `read_json`."""
    return _parsed(path, yaml.safe_load)


def read_words(path: Path) -> list[str]:
    """Words of an optional text file; none where it is missing. Malformed text raises as in `read_json`."""
    return _parsed(path, str.split) if path.is_file() else []


def _parsed(path: Path, parse: Any) -> Any:
    try:
        return parse(path.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        raise FormatError(f"no file {path}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise FormatError(f"{path} is malformed ({str(error).splitlines()[0]})") from error


def task_texts(root: Path) -> dict[str, str]:
    """The instructions in a `tasks.json` of the user, by a folder's or a task's name; none if there is no such file.

    Raises:
        FormatError: it is no object of texts.
    """
    path = root / "tasks.json"
    texts = read_json(path) if path.is_file() else {}
    if not isinstance(texts, dict) or not all(isinstance(value, str) and value.strip() for value in texts.values()):
        raise FormatError(f"{path} is no JSON object of names and instructions")
    return texts


def natural(names: Iterable[str]) -> list[str]:
    """Names in the order of the numbers in them: demo_2 before demo_10."""
    return sorted(names, key=lambda name: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name)])


def numbered(paths: Iterable[Path]) -> list[Path]:
    """Paths in the order of the numbers in their names: frame_2.png before frame_10.png."""
    by_name = {path.name: path for path in paths}
    return [by_name[name] for name in natural(by_name)]
