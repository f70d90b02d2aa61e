"""Job: sweep the loss weights (`robometer sweep`, `python -m jobs.sweep`)."""

from __future__ import annotations

from collections.abc import Sequence

from jobs import common
from robometer.configs import Config

HELP = """
robometer sweep: search the loss weights, or any other settings, with Ray Tune; every trial is a `robometer train`.

Reads   the corpus at corpus.path
Writes  sweep.output: trials/ (one training folder each), trials.csv, sweep.png, best/ (the winner's checkpoint); MLflow
Resumes when the same command is run again.

Examples
  robometer sweep train.steps=500 sweep.num_trials=8
  robometer sweep sweep.search=optuna sweep.scheduler=fifo 'sweep.space=["loss.preference_weight=uniform(0,2)"]'
  ray job submit --working-dir . -- python -m jobs.sweep corpus.path=/data/corpus sweep.output=/data/sweep \\
      tracking.uri=http://mlflow:5000
"""


def sweep(config: Config) -> None:
    """Sweep and print the table of trials."""
    from pipelines.sweep import run_sweep

    report = run_sweep(config)
    print(report.table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    print(f"best checkpoint: {report.best}\nplot: {report.plot}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return common.main(HELP, ("sweep", "loss", "train", "corpus", "tracking"), sweep, argv)


if __name__ == "__main__":
    raise SystemExit(main())
