"""Your own data: a folder of videos, and one table that says what each of them shows.

    data/
      annotations.csv     or .json, .jsonl, .yaml; ingest.input is the folder, or the table itself
      columns.yaml        optional: where the table's names and values differ from ours
      clips/0001.mp4      mp4, webm, mkv, avi, gif ...

A row has the fields of `mp4_jsonl`: `video` (a path relative to the table) and `task` are required. A JSON or YAML
table is a list of objects, or one object {video: fields}. Cells of a CSV are converted: true/false, yes/no and 1/0 are
truth values, lists are JSON arrays or numbers separated by blanks or `;`, and an empty cell means no value.

`columns.yaml` says where each of our fields comes from:

    video: {column: clip_id, format: "clips/{}.mp4"}     a pattern around the column's value
    task: narration                                      the column `narration`
    quality_label: {column: reward, values: {"1": successful, "0": failure}}
    is_robot: {value: false}                             the same for all rows

With it, other columns of the table are ignored unless they are fields. Without it they are an error, because a misspelt
`quality_label` would turn failures into successes. A row that cannot be read, or that repeats an episode, is refused
with its number; the others are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from robometer.corpus.formats import FormatError, Refused, Unit
from robometer.corpus.formats.common import absolute, read_yaml
from robometer.corpus.readers.annotations import FIELDS, from_row, video_episodes
from robometer.corpus.readers.tables import KINDS, header, read_table

COLUMNS = "columns.yaml"
TABLES = tuple(f"annotations{kind}" for kind in KINDS)
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

_Columns = Mapping[str, Mapping[str, Any]]
"""By our field: {column, and perhaps format or values} or {value}."""

episodes = video_episodes


def units(input: str, source: str) -> Iterator[Unit | Refused]:
    """The rows of the table.

    Raises:
        FormatError: there is no table or more than one, it is malformed as a whole, or `columns.yaml` does not fit it.
    """
    path = _table(input)
    columns = _columns(path.parent)
    _check_header(path, columns)
    read = partial(_row, columns=columns, convert=path.suffix == ".csv")
    for place, number, raw in read_table(path):
        yield from_row(read, raw, path.parent, source, place=f"{place} of {path.name}", uri=f"{path}:{number}")


def _table(input: str) -> Path:
    path = absolute(input)
    if not path.is_dir():
        return path
    tables = [name for name in TABLES if (path / name).is_file()]
    if not tables:
        raise FormatError(f"no {', '.join(TABLES)} in {input}: give ingest.input a folder that holds one, or a table")
    if len(tables) > 1:
        raise FormatError(f"{input} holds {' and '.join(tables)}: give ingest.input the one to read")
    return path / tables[0]


def _columns(root: Path) -> _Columns:
    path = root / COLUMNS
    if not path.exists():
        return {}
    content = read_yaml(path)
    if not isinstance(content, dict) or not content:
        raise FormatError(f"{path} must map fields to columns, such as `task: narration`")
    columns = {field: {"column": spec} if isinstance(spec, str) else spec for field, spec in content.items()}
    for field, spec in columns.items():
        if field not in FIELDS:
            raise FormatError(f"{path} names {field!r}; the fields are {', '.join(FIELDS)}")
        if not isinstance(spec, dict) or spec.keys() not in (
            {"column"},
            {"column", "format"},
            {"column", "values"},
            {"value"},
        ):
            raise FormatError(
                f"{path}: {field!r} must be a column's name, {{column, format}}, {{column, values}} or {{value}}"
            )
    return columns


def _check_header(path: Path, columns: _Columns) -> None:
    """Report a wrong column once, not as a refusal of every row, if the table has a header."""
    if (names := header(path)) is None:
        return
    mapped = {spec["column"] for spec in columns.values() if "column" in spec}
    if missing := sorted(mapped - set(names)):
        raise FormatError(f"{path} has no column {missing[0]!r}, which {COLUMNS} names; it has {names}")
    if not columns and (unknown := sorted(set(names) - FIELDS.keys())):
        raise FormatError(
            f"{path} has the column {unknown[0]!r}, which is not a field ({', '.join(FIELDS)}): "
            f"say in a {COLUMNS} beside it which columns to read"
        )


def _row(raw: Any, columns: _Columns, convert: bool) -> dict[str, Any]:
    """Our fields of one entry; raises `ValueError` if they cannot be read."""
    if isinstance(raw, ValueError):
        raise raw
    mapped = {spec["column"] for spec in columns.values() if "column" in spec}
    row = {key: value for key, value in raw.items() if not columns or (key in FIELDS and key not in mapped)}
    for field, spec in columns.items():
        row[field] = spec["value"] if "value" in spec else _mapped(field, raw.get(spec["column"]), spec)
    return {key: _converted(key, value) for key, value in row.items()} if convert else row


def _mapped(field: str, value: Any, spec: Mapping[str, Any]) -> Any:
    if value is None or value == "":
        return None
    if "values" in spec:
        values = {str(key): mapped for key, mapped in spec["values"].items()}
        if str(value) not in values:
            raise ValueError(f"{field!r} is {value!r}, which {COLUMNS} does not map")
        return values[str(value)]
    return str(spec["format"]).replace("{}", str(value)) if "format" in spec else value


def _converted(key: str, cell: Any) -> Any:
    """The text of a CSV cell as the field's type. Text that cannot be a truth value stays text, to be refused later."""
    if not isinstance(cell, str) or key not in FIELDS:
        return cell
    cell, types = cell.strip(), FIELDS[key]
    if not cell:
        return None
    try:
        if bool in types:
            return _TRUTH.get(cell.lower(), cell)
        if list in types:
            return json.loads(cell) if cell.startswith("[") else [float(v) for v in cell.replace(";", " ").split()]
        return cell if str in types else (float if float in types else int)(cell)
    except ValueError as error:
        raise ValueError(f"{key!r} is {cell!r}, not {' or '.join(t.__name__ for t in types)}") from error
