"""Job: evaluate a reward model (`robometer evaluate`, `python -m jobs.evaluate`)."""

from __future__ import annotations

from collections.abc import Sequence

from jobs import common
from robometer.baselines import BASELINES
from robometer.configs import Config
from robometer.runs.redaction import redacted

HELP = """
robometer evaluate: reward alignment, policy ranking, confusion matrix, preference, success detection, partial success,
robustness and instruction grounding, with bootstrap intervals, on splits of a corpus.

Reads   evaluate.scorer and the corpus at corpus.path. A checkpoint is a folder, org/name of the hub, an MLflow URI,
        the URL of an endpoint, or a baseline: baseline:@BASELINES@
Writes  evaluate.output: report.html, metrics.json, metrics.parquet, predictions.parquet, pairs.parquet,
        instructions.parquet, parts/ (predictions as they come in); MLflow. With evaluate.against also these models'
        own, in against/, and all of them in report.html, report.md, report.tex, report.csv.
Re-run  goes on where it was killed, and asks again for what failed. With --recompute: metrics and report anew from the
        predictions, without the model. `robometer report` sets several outputs beside one another.

Examples
  robometer evaluate evaluate.scorer=outputs/train/best corpus.path=outputs/corpus
  robometer evaluate evaluate.scorer=baseline:clock evaluate.output=outputs/clock
  robometer evaluate evaluate.scorer=http://127.0.0.1:8000 'evaluate.splits=[held_out]'
  robometer evaluate 'evaluate.against=[outputs/other/best,baseline:clock,baseline:random]'
  robometer evaluate 'evaluate.sources=[rbm-1m-ood]' 'evaluate.splits=[train]' corpus.path=/data/rbm_1m
  ray job submit --working-dir . -- python -m jobs.evaluate evaluate.scorer=/data/run/best \\
      corpus.path=/data/corpus evaluate.output=/data/evaluation tracking.uri=http://mlflow:5000
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    import sys

    arguments = list(sys.argv[1:] if argv is None else argv)
    anew = "--recompute" in arguments

    def evaluate(config: Config) -> None:
        from pipelines.evaluate import run_evaluations

        for found in run_evaluations(config, anew):
            print(common.metrics_table(found) + "\n")
        print(f"report: {redacted(config.evaluate.output)}/report.html")

    rest = [argument for argument in arguments if argument != "--recompute"]
    return common.main(
        HELP.replace("@BASELINES@", " ".join(BASELINES)), ("evaluate", "baseline", "corpus", "tracking"), evaluate, rest
    )


if __name__ == "__main__":
    raise SystemExit(main())
