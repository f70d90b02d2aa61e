"""Tables for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_NUMBER = re.compile(r"[-+−]?\d[\d,]*(\.\d+)?( s)?|[-–]|")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns of text under a ruled header; columns of numbers are set flush right.

    A number may have a sign, separators and the unit s; a cell may also be empty, or a dash.
    """
    lines = [list(row) for row in rows]
    widths = [max(len(line[i]) for line in [list(header), *lines]) for i in range(len(header))]
    is_number = [bool(lines) and all(_NUMBER.fullmatch(line[i]) for line in lines) for i in range(len(header))]

    def aligned(line: Sequence[str]) -> str:
        cells = [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(line, widths, is_number, strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join([aligned(header), "  ".join("-" * width for width in widths), *map(aligned, lines)])
