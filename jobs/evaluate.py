"""Job: evaluate a reward model (`robometer evaluate`, `python -m jobs.evaluate`)."""

from __future__ import annotations

from collections.abc import Sequence

from jobs import common
from pipelines.evaluate import recompute, run_evaluate
from robometer.configs import Config

HELP = """
robometer evaluate: reward alignment, policy ranking, confusion matrix, preference and success detection, with
bootstrap intervals, on splits of a corpus.

Reads   evaluate.checkpoint (a checkpoint folder, or the URL of an endpoint) and the corpus at corpus.path
Writes  evaluate.output: report.html, metrics.json, metrics.parquet, predictions.parquet, pairs.parquet,
        confusion.parquet; MLflow. With --recompute, metrics and report anew from the predictions, without the model.

Examples
  robometer evaluate evaluate.checkpoint=outputs/train/best corpus.path=outputs/corpus
  robometer evaluate evaluate.checkpoint=http://127.0.0.1:8000 'evaluate.splits=[held_out]'
  ray job submit --working-dir . -- python -m jobs.evaluate evaluate.checkpoint=/data/run/best corpus.path=/data/corpus
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    import sys

    arguments = list(sys.argv[1:] if argv is None else argv)
    anew = "--recompute" in arguments

    def evaluate(config: Config) -> None:
        found = recompute(config) if anew else run_evaluate(config)
        print(common.metrics_table(found))
        print(f"report: {config.evaluate.output}/report.html")

    rest = [argument for argument in arguments if argument != "--recompute"]
    return common.main(HELP, ("evaluate", "corpus", "tracking"), evaluate, rest)


if __name__ == "__main__":
    raise SystemExit(main())
