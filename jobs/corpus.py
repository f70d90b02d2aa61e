"""Job: what a corpus holds (`robometer corpus`, `python -m jobs.corpus`)."""

from __future__ import annotations

from collections.abc import Sequence

from jobs import common
from robometer.configs import Config
from robometer.corpus.corpus import Corpus
from robometer.corpus.page import write_page
from robometer.corpus.summary import render, summarise

HELP = """
robometer corpus: print what a corpus holds: trajectories by source, split, task and quality, bytes, quarantine.

Reads   the corpus at corpus.path
Writes  with --show, the corpus viewer as one HTML file (--show=PAGE; default corpus.html in the working folder): counts
        of the whole corpus, and clips to play and to filter, each with what is trained on it; it needs no network

Examples
  robometer corpus corpus.path=outputs/corpus
  robometer corpus --show corpus.path=outputs/corpus
  robometer corpus --show=/data/corpus.html corpus.path=/data/corpus
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    import sys

    arguments = list(sys.argv[1:] if argv is None else argv)
    shows = [argument for argument in arguments if argument == "--show" or argument.startswith("--show=")]
    page = (shows[-1].partition("=")[2] or "corpus.html") if shows else ""

    def look(config: Config) -> None:
        corpus = Corpus(config.corpus.path)
        print(render(summarise(corpus)))
        if page:
            print(f"page of {write_page(corpus, page, sampling=config.sampling)} trajectories: {page}")

    return common.main(HELP, ("corpus",), look, [argument for argument in arguments if argument not in shows])


if __name__ == "__main__":
    raise SystemExit(main())
