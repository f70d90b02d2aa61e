"""Job: evaluate a reward model (`robometer evaluate`, `python -m jobs.evaluate`)."""

from __future__ import annotations

from typing import Any

from jobs import common
from jobs.grammar import SCORERS, Call, Command, Inputs, SettingOption, corpus_option, option
from robometer.baselines import BASELINES
from robometer.runs.redaction import redacted


def evaluate(call: Call) -> None:
    """Evaluate and print the metrics."""
    from pipelines.evaluate import run_evaluations

    for record in run_evaluations(call.config, call.options["recompute"]):
        print(common.metrics_table(record) + "\n")
    print(f"report: {redacted(call.config.evaluate.output)}/report.html")


def _scorers(inputs: list[str]) -> dict[str, Any]:
    more = {"evaluate.against": inputs[1:]} if inputs[1:] else {}
    return {"evaluate.scorer": inputs[0], **more}


COMMAND = Command(
    "evaluate",
    evaluate,
    "Measure reward alignment, policy ranking, confusion matrix, preference, success detection, partial success, "
    "robustness and instruction grounding on splits of a corpus, with bootstrap intervals.",
    inputs=Inputs(
        "[SCORER ...]",
        f"{SCORERS[0].upper()}{SCORERS[1:]}, NAME one of {', '.join(BASELINES)}. Several are compared with the first.  "
        "[evaluate.scorer, evaluate.against]",
        most=None,
        values=_scorers,
    ),
    options=[
        corpus_option(),
        SettingOption("--output", "evaluate.output", "Folder of the results, or a URI that pyarrow opens."),
        option("--recompute", "Compute metrics and report from the predictions, without the model.", is_flag=True),
    ],
    details={
        "Reads": "The scorers and the corpus.",
        "Writes": "In the output folder: report.html, metrics.json, metrics.parquet, predictions.parquet, "
        "pairs.parquet, instructions.parquet and parts/ (predictions as they come in). Of several scorers also "
        "those of the others, in against/, and report.md, report.tex and report.csv. Tracks the metrics in MLflow.",
        "Rerun": "The same command continues where it stopped, and repeats what failed. `robometer report` compares "
        "several output folders.",
    },
    examples="""
robometer evaluate outputs/train/best --corpus outputs/corpus
robometer evaluate baseline:clock --output outputs/clock
robometer evaluate http://127.0.0.1:8000 'evaluate.splits=[held_out]'
robometer evaluate outputs/train/best outputs/other/best baseline:clock baseline:random
robometer evaluate --corpus /data/rbm_1m 'evaluate.sources=[rbm-1m-ood]' 'evaluate.splits=[train]'
ray job submit --working-dir . -- python -m jobs.evaluate /data/run/best --corpus /data/corpus \\
    --output /data/evaluation tracking.uri=http://mlflow:5000
""",
    sections=("evaluate", "baseline", "corpus", "tracking"),
    instead=dict.fromkeys(("--checkpoint", "--scorer", "--url"), "Give it without one: robometer evaluate SCORER."),
)

main = COMMAND

if __name__ == "__main__":
    raise SystemExit(main())
