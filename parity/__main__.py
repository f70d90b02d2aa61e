"""`python -m parity`: our numbers beside upstream's recorded ones."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.common import guarded
from parity.recorded_set import RecordedSet
from parity.report import report
from parity.run import GROUPS, Comparison, compare

HELP = """
Recompute every case that was recorded from the public implementation ("upstream"), and compare.

Reads   a folder of recorded cases with sub-folders a_targets, b_losses, ...; g_video also reads the example videos and
        h_prompts the public tokenizer: the folders example_videos and qwen3_vl_4b_instruct of --data.
Writes  tables to the terminal: what was compared, over how many cases, the largest error (of the row that uses most of
        its tolerance) and that tolerance; then the cases in which upstream is wrong, with both values.
Status  0 all passed, 1 a row failed, 2 the comparison could not begin.

Where upstream is wrong, what is compared is its number as parity/upstream computes it from our functions.

Examples
  python -m parity ../shared/golden
  python -m parity ../shared/golden --only a_targets,b_losses
  python -m parity ../other_seeds --data ../shared/data --show all > parity.txt
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see HELP."""
    parser = argparse.ArgumentParser(
        "python -m parity", description=HELP, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the folder of recorded cases")
    parser.add_argument("--only", default="", help=f"groups to compare, with commas between: {', '.join(GROUPS)}")
    parser.add_argument(
        "--data",
        type=Path,
        help="folder of the example videos and the tokenizer (default: the nearest folder `data` beside\n"
        "FOLDER or above it that holds them)",
    )
    parser.add_argument(
        "--show",
        choices=("summary", "all", "failed"),
        default="summary",
        help="summary: a line per group and what, and every failed row (default)\nall: every row\nfailed: failed rows",
    )
    arguments = parser.parse_args(argv)
    comparison = Comparison()

    def body() -> None:
        nonlocal comparison
        logging.getLogger("robometer.sampling").setLevel(logging.WARNING)  # it would tell of every small index
        only = [group for group in arguments.only.split(",") if group]
        comparison = compare(RecordedSet(arguments.folder, arguments.data), only)
        print(report(comparison, arguments.show))

    return guarded(body) or int(bool(comparison.failed))


if __name__ == "__main__":
    sys.exit(main())
