"""Job: what a corpus holds (`robometer corpus`, `python -m jobs.corpus`)."""

from __future__ import annotations

from collections.abc import Sequence

from jobs import common
from robometer.configs import Config
from robometer.corpus.corpus import Corpus
from robometer.corpus.show import write_contact_sheet
from robometer.corpus.summary import render, summarise

HELP = """
robometer corpus: print what a corpus holds: trajectories by source, split, task and quality, bytes, quarantine.

Reads   the corpus at corpus.path
Writes  with --show, a contact sheet as one HTML page (--show=PAGE; default contact_sheet.html in the working folder)

Examples
  robometer corpus corpus.path=outputs/corpus
  robometer corpus --show corpus.path=outputs/corpus
  robometer corpus --show=/data/sheet.html corpus.path=/data/corpus
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    import sys

    arguments = list(sys.argv[1:] if argv is None else argv)
    shows = [argument for argument in arguments if argument == "--show" or argument.startswith("--show=")]
    page = (shows[-1].partition("=")[2] or "contact_sheet.html") if shows else ""

    def look(config: Config) -> None:
        corpus = Corpus(config.corpus.path)
        print(render(summarise(corpus)))
        if page:
            print(f"contact sheet of {write_contact_sheet(corpus, page)} trajectories: {page}")

    return common.main(HELP, ("corpus",), look, [argument for argument in arguments if argument not in shows])


if __name__ == "__main__":
    raise SystemExit(main())
