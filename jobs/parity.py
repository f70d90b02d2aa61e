"""Job: our numbers beside upstream's recorded ones (`robometer parity`, `python -m jobs.parity`)."""

from __future__ import annotations

import argparse
import logging
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from jobs import common
from robometer.parity.run import GROUPS, Comparison, compare
from robometer.parity.table import Row

HELP = """
robometer parity: recompute every case that was recorded from the public implementation, and compare.

Reads   a folder of recorded cases (sub-folders a_targets, b_losses, ...); for g_video and h_prompts also the example
        videos and the public tokenizer, in a folder `data` beside it or in `shared/data` near the working directory.
Writes  tables to the terminal: what was compared, over how many cases, the largest error (of the row that uses most of
        its tolerance) and that tolerance; then the cases in which upstream is wrong, with both values.
Status  0 all passed, 1 a row failed, 2 there is nothing to compare.

Where our default differs on purpose, the comparison runs our `compat: upstream` mode.

Examples
  robometer parity ../shared/golden
  robometer parity ../shared/golden --only a_targets,b_losses
  robometer parity ../shared/golden --show all > parity.txt
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see HELP."""
    parser = argparse.ArgumentParser(
        "robometer parity", description=HELP, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the folder of recorded cases")
    parser.add_argument("--only", default="", help=f"groups to compare, with commas between: {', '.join(GROUPS)}")
    parser.add_argument(
        "--show",
        choices=("summary", "all", "failed"),
        default="summary",
        help="summary: a line per group and what, and every failed row (default)\nall: every row\nfailed: failed rows",
    )
    arguments = parser.parse_args(argv)
    done: list[Comparison] = []

    def body() -> None:
        logging.getLogger("robometer.sampling").setLevel(logging.WARNING)  # it would tell of every small index
        done.append(compare(arguments.folder, [group for group in arguments.only.split(",") if group]))
        print(report(done[0], arguments.show))

    return common.guarded(body) or int(any(found.failed for found in done))


def report(found: Comparison, show: str) -> str:
    """All tables and the last line, as text."""
    compared = [row for row in found.rows if not row.reason]
    wrong = [row for row in found.rows if row.reason]
    parts = []
    if show == "summary":
        parts.append(_table(("group", "what", "cases", "max error", "tolerance", "", "worst"), _summary(compared)))
    shown = compared if show == "all" else found.failed
    if shown:
        title = "" if show == "all" else "failed rows\n"
        parts.append(title + _table(("case", "what", "max error", "tolerance", ""), map(_line, shown)))
    if wrong and show != "failed":
        parts.append("where upstream is wrong\n" + _table(("case", "what", "reason", "values"), _wrong(wrong, show)))
    parts += [f"{group}: not compared, {reason}" for group, reason in found.left_out.items()]
    parts.append(
        f"{len(compared)} comparisons, {len(compared) - len(found.failed)} passed, {len(found.failed)} failed; "
        f"{len(wrong)} where upstream is wrong"
    )
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


if __name__ == "__main__":
    sys.exit(main())
