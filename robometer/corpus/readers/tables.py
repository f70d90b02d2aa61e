"""Tables of annotations (CSV, JSON, JSON Lines, YAML), read row by row, so that a broken row affects no other."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from robometer.corpus.formats import FormatError


class Entry(NamedTuple):
    """A row of a table.

    Attributes:
        place: "line 3" of a CSV or JSON Lines file; "entry 2" or "entry 'a.mp4'" of another kind.
        number: of the line or the entry.
        fields: its object, or an error that says why it has none.
    """

    place: str
    number: int
    fields: dict[str, Any] | ValueError


def read_table(path: Path) -> Iterator[Entry]:
    """The rows of a table. Bytes that are not UTF-8 become lone surrogates, so that only their own row is refused.

    A JSON or YAML table is a list of objects, or an object of objects, whose keys become their `video`.

    Raises:
        FormatError: the table is missing, of an unknown kind, or malformed as a whole.
    """
    if not path.is_file() or path.suffix not in KINDS:
        raise FormatError(f"{path} must be a table of one of the kinds {', '.join(KINDS)}")
    content = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    try:
        yield from KINDS[path.suffix](content)
    except (ValueError, RecursionError, csv.Error, yaml.YAMLError) as error:
        raise FormatError(f"{path} is malformed ({' '.join(str(error).split())})") from error


def header(path: Path) -> list[str] | None:
    """Names of the columns of a CSV; None for the other kinds, whose rows may have different ones."""
    if path.suffix != ".csv":
        return None
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as content:
        return _header(csv.reader(content))


def _header(reader: Iterator[list[str]]) -> list[str]:
    return [name.strip() for name in next(reader, [])]


def _csv(content: str) -> Iterator[Entry]:
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    names = _header(reader)
    if len(set(names)) < len(names):
        raise ValueError("two columns have the same name")
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Entry(f"line {line}", line, ValueError(str(error)))
            continue
        if cells:
            fits = len(cells) == len(names)
            problem = ValueError(f"it has {len(cells)} cells, but the header has {len(names)}")
            yield Entry(f"line {line}", line, dict(zip(names, cells, strict=True)) if fits else problem)


def _jsonl(content: str) -> Iterator[Entry]:
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                fields = _object(json.loads(line, object_pairs_hook=_Pairs))
            except (ValueError, RecursionError) as error:
                fields = ValueError(str(error))
            yield Entry(f"line {number}", number, fields)


def _json(content: str) -> Iterator[Entry]:
    yield from _entries(json.loads(content, object_pairs_hook=_Pairs))


def _yaml(content: str) -> Iterator[Entry]:
    yield from _entries(yaml.load(content, _UniqueLoader))  # noqa: S506  a safe loader


def _entries(table: Any) -> Iterator[Entry]:
    if isinstance(table, list):
        for number, value in enumerate(table, start=1):
            yield Entry(f"entry {number}", number, _object(value))
    elif isinstance(table, dict):
        pairs = table.pairs if isinstance(table, _Pairs) else list(table.items())
        for number, (video, value) in enumerate(pairs, start=1):
            fields = _object(value)
            fields = {"video": video, **fields} if isinstance(fields, dict) else fields
            yield Entry(f"entry {video!r}", number, fields)
    else:
        raise ValueError("it is neither a list of objects nor an object of objects")


def _object(value: Any) -> dict[str, Any] | ValueError:
    if not isinstance(value, dict):
        return ValueError("it is not an object")
    if isinstance(value, _Pairs) and len(value.pairs) > len(value):
        return ValueError("it has a key twice")
    return dict(value)


class _Pairs(dict[str, Any]):
    """A JSON object that keeps duplicate keys, so that they can be refused instead of lost."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


class _UniqueLoader(yaml.SafeLoader):
    """YAML in which a duplicate key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        if len({str(name) for name in names}) < len(names):
            raise yaml.constructor.ConstructorError(None, None, "a key occurs twice in one mapping", node.start_mark)
        return super().construct_mapping(node, deep)


KINDS = {".csv": _csv, ".json": _json, ".jsonl": _jsonl, ".yaml": _yaml, ".yml": _yaml}
"""Readers of a table's content, by the file's extension."""
