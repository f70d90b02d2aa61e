"""Job: one page of evaluated models beside one another (`robometer report`, `python -m jobs.report`)."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from jobs import common
from robometer.corpus.corpus import Corpus, CorpusError
from robometer.corpus.storage import Storage, StorageError
from robometer.report.page import write_report
from robometer.report.runs import EvaluationRun, load_runs
from robometer.runs import paths

HELP = """
robometer report: one page of one evaluated model, or of several beside one another.

Reads   the output folders of `robometer evaluate` (evaluate.output), and for the pictures the corpus that they were
        evaluated on. Metrics are computed from the predictions, without the models.
Writes  report.html (one self-contained file: leaderboard, spread over training seeds, paired differences to the first
        model, clips with every model's curve, heat maps, reliability, published results beside ours),
        report.md, report.tex, report.csv

Examples
  robometer report outputs/evaluation
  robometer report outputs/evaluation outputs/gvl outputs/clock --output outputs/report
  robometer report outputs/a outputs/b --baseline clock --corpus /data/corpus
"""

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see HELP."""
    parser = argparse.ArgumentParser(
        "robometer report", description=HELP, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folder of an evaluation")
    parser.add_argument("--output", default="outputs/report", help="folder to write to (default: outputs/report)")
    parser.add_argument("--baseline", default="", help="model that the others are compared with (default: the first)")
    parser.add_argument("--corpus", default="", help="where the corpus lies now, if not where it was evaluated")
    arguments = parser.parse_args(argv)
    return common.guarded(lambda: _report(arguments))


def _report(arguments: argparse.Namespace) -> None:
    paths.absolute_path("--output", paths.check_storage("--output", arguments.output))
    for name, value in [("--corpus", arguments.corpus), *(("RUN", run) for run in arguments.runs)]:
        paths.check_storage(name, value or ".")
    runs = load_runs(arguments.runs, arguments.baseline)
    write_report(Storage(arguments.output), runs, _corpus(runs[0], arguments.corpus))
    print(f"report of {', '.join(run.name for run in runs)}: {arguments.output}/report.html")


def _corpus(run: EvaluationRun, path: str) -> Corpus | None:
    """The corpus of a run; None, with a warning, where it no longer lies, unless `path` says that it lies there."""
    try:
        corpus = Corpus(path or str(run.provenance.get("corpus")))
        if corpus.content_hash != run.provenance.get("corpus_hash"):
            raise CorpusError(f"{corpus.storage.path} is not the corpus that was evaluated")
    except (CorpusError, StorageError) as error:
        if path:
            raise
        logger.warning("clips are not shown (--corpus says where the corpus lies now): %s", error)
        return None
    return corpus


if __name__ == "__main__":
    sys.exit(main())
