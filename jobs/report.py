"""Job: one page of evaluated models beside one another (`robometer report`, `python -m jobs.report`)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from jobs.grammar import Call, Command, Inputs, option
from robometer.runs import paths

if TYPE_CHECKING:
    from robometer.corpus.corpus import Corpus
    from robometer.report.runs import EvaluationRun

logger = logging.getLogger(__name__)


def report(call: Call) -> None:
    """Write the report, and say of which models."""
    from robometer.corpus.storage import Storage
    from robometer.report.page import write_report
    from robometer.report.runs import load_runs

    output, corpus = call.options["output"], call.options["corpus"]
    paths.absolute_path("--output", paths.check_storage("--output", output))
    for name, value in [("--corpus", corpus), *(("EVALUATION", folder) for folder in call.inputs)]:
        paths.check_storage(name, value or ".")
    runs = load_runs(call.inputs, call.options["reference"] or "")
    write_report(Storage(output), runs, _corpus(runs[0], corpus))
    print(f"report of {', '.join(run.name for run in runs)}: {output}/report.html")


def _corpus(run: EvaluationRun, path: str | None) -> Corpus | None:
    """The corpus of a run. Where it is gone: None, with a warning; an error if `path` says that it is there."""
    from robometer.corpus.corpus import Corpus, CorpusError
    from robometer.corpus.storage import StorageError

    try:
        corpus = Corpus(path or str(run.provenance.get("corpus")))
        if corpus.content_hash != run.provenance.get("corpus_hash"):
            raise CorpusError(f"{corpus.storage.path} is not the corpus that was evaluated")
    except (CorpusError, StorageError) as error:
        if path:
            raise
        logger.warning("The report has no clips (--corpus says where the corpus is now): %s", error)
        return None
    return corpus


COMMAND = Command(
    "report",
    report,
    "Write one page of one evaluated model, or of several beside one another.",
    inputs=Inputs("EVALUATION ...", "Output folders of `robometer evaluate`.", least=1, most=None),
    options=[
        option("--output", "Folder to write to (default: outputs/report).", default="outputs/report", metavar="FOLDER"),
        option("--reference", "Model that the others are compared with (default: the first).", metavar="NAME"),
        option("--corpus", "Where the corpus is now, if not where it was evaluated.", metavar="FOLDER"),
    ],
    details={
        "Reads": "The evaluations, and for the pictures their corpus. Metrics are computed from the predictions, "
        "without the models.",
        "Writes": "report.html, one self-contained file with the leaderboard, the spread over training seeds, paired "
        "differences to the reference, clips with every model's curve, heat maps, reliability and published results; "
        "report.md, report.tex and report.csv.",
    },
    examples="""
robometer report outputs/evaluation
robometer report outputs/evaluation outputs/gvl outputs/clock --output outputs/report
robometer report outputs/a outputs/b --reference clock --corpus /data/corpus
""",
    sections=(),
    instead={"--baseline": "Write --reference NAME."},
)

main = COMMAND

if __name__ == "__main__":
    raise SystemExit(main())
