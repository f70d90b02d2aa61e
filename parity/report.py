"""The tables of a comparison, as text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from parity.row import Row
from parity.run import Comparison


def report(comparison: Comparison, show: str) -> str:
    """All tables and the last line, as text."""
    compared = [row for row in comparison.rows if not row.reason]
    wrong = [row for row in comparison.rows if row.reason]
    parts = []
    if show == "summary":
        parts.append(_table(("group", "what", "cases", "max error", "tolerance", "", "worst"), _summary(compared)))
    rows = compared if show == "all" else comparison.failed
    if rows:
        title = "" if show == "all" else "failed rows\n"
        parts.append(title + _table(("case", "what", "max error", "tolerance", ""), map(_line, rows)))
    if wrong and show != "failed":
        parts.append("where upstream is wrong\n" + _table(("case", "what", "reason", "values"), _wrong(wrong, show)))
    parts += [f"{group}: not compared, {reason}" for group, reason in comparison.left_out.items()]
    failed = len(comparison.failed)
    passed = len(compared) - failed
    parts.append(f"{len(compared)} comparisons, {passed} passed, {failed} failed; {len(wrong)} where upstream is wrong")
    return "\n\n".join(parts)


def _summary(rows: Sequence[Row]) -> Iterable[Sequence[str]]:
    cells: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        cells[row.case.split("/")[0], row.what].append(row)
    for (group, what), members in cells.items():
        worst = max(members, key=_share)
        passed = "pass" if all(row.passed for row in members) else "FAIL"
        yield group, what, str(len(members)), f"{worst.error:.2g}", f"{worst.tolerance:.2g}", passed, worst.case


def _share(row: Row) -> float:
    """Share of its tolerance that a row uses; a row that fails uses more than all."""
    if not row.passed:
        return float("inf")
    return row.error / row.tolerance if row.tolerance else 0.0


def _line(row: Row) -> Sequence[str]:
    return row.case, row.what, f"{row.error:.3g}", f"{row.tolerance:.2g}", "pass" if row.passed else "FAIL"


def _wrong(rows: Sequence[Row], show: str) -> Iterable[Sequence[str]]:
    """Each row, or of those that share group, what and reason the first, with how many more there are."""
    cells: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        key = (row.case.split("/")[0], row.what, row.reason)
        cells[key if show != "all" else (*key, row.case)].append(row)
    for (_, what, reason, *_), members in cells.items():
        more = f" and {len(members) - 1} more" if len(members) > 1 else ""
        yield members[0].case + more, what, reason, members[0].ours


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
