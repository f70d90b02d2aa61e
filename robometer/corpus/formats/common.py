"""Helpers of several formats: they find files, and read text and annotation files with errors that name the place."""

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
        FormatError: there is no such folder. `what` says what it should hold.
    """
    path = absolute(input)
    if not path.is_dir():
        raise FormatError(f"no folder {input}: give ingest.input {what}")
    return path


def absolute(input: str) -> Path:
    """`input` as an absolute path, with the names that the user gave.

    Links are not followed. In a hub's cache the files of a data set are links that lie beside one another, and their
    targets have neither names nor neighbours. A `~` is the user's home, unless a file is really called that.
    """
    path = Path(input if os.path.exists(input) else os.path.expanduser(input)).absolute()
    if ".." not in path.parts:
        return path
    up = len(path.parts) - path.parts[::-1].index("..")  # `..` of a link is the parent of its target
    return Path(os.path.realpath(Path(*path.parts[:up])), *path.parts[up:])


def name_of(folder: Path) -> str:
    """The name of the data set in a folder: the folder's name, or in a hub's cache its published name.

    A cache has the folders datasets--ORGANISATION--NAME/snapshots/REVISION; the name is the same in all revisions.
    """
    cached = re.fullmatch(r"(?:datasets|models|spaces)--(?:.+?--)?(.+)", folder.parent.parent.name)
    return cached[1] if cached and folder.parent.name == "snapshots" else folder.name


def is_depth(view: str) -> bool:
    """Whether a camera's name says that it measures depth."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", view).lower()  # wristDepth
    return re.search(r"(?<![a-z])depth(?:map|image)?(?![a-z])", words) is not None


def files(root: Path, *patterns: str) -> list[Path]:
    """Files below `root` that match one of the patterns (`**/*.mp4`), sorted by path, without hidden ones."""
    paths = set()
    for pattern in patterns:
        above, deep, name = pattern.rpartition("**/")
        folders = (path for path, _, _ in walk(root / above)) if deep else [root]
        paths |= {path for folder in folders for path in folder.glob(name) if path.is_file()}
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(root).parts))


def walk(root: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """`os.walk` that follows links to folders. Each folder comes once, by its own name if that lies below `root`."""
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
    """Folders directly in `root`, sorted by name, without hidden ones."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def text(value: object) -> str:
    """Text of a string, of UTF-8 bytes, or of a scalar array of either.

    Raises:
        TrajectoryError: the bytes are not UTF-8.
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
    """The words of an optional text file; none if it is missing. Malformed text raises as in `read_json`."""
    return _parsed(path, str.split) if path.is_file() else []


def _parsed(path: Path, parse: Any) -> Any:
    try:
        return parse(path.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        raise FormatError(f"no file {path}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise FormatError(f"{path} is malformed ({str(error).splitlines()[0]})") from error


def task_texts(root: Path) -> dict[str, str]:
    """The instructions in the user's `tasks.json`, by the name of a folder or a task; none if there is no such file.

    Raises:
        FormatError: the file is not a JSON object of texts.
    """
    path = root / "tasks.json"
    texts = read_json(path) if path.is_file() else {}
    if not isinstance(texts, dict) or not all(isinstance(value, str) and value.strip() for value in texts.values()):
        raise FormatError(f"{path} must be a JSON object of names and their instructions")
    return texts


def natural(names: Iterable[str]) -> list[str]:
    """Names in the order of the numbers in them: demo_2 before demo_10."""
    return sorted(names, key=lambda name: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", name)])


def numbered(paths: Iterable[Path]) -> list[Path]:
    """Paths in the order of the numbers in their names: frame_2.png before frame_10.png."""
    by_name = {path.name: path for path in paths}
    return [by_name[name] for name in natural(by_name)]
