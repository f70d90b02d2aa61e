"""Job: train a reward model (`robometer train`, `python -m jobs.train`)."""

from __future__ import annotations

from collections.abc import Sequence

from jobs import common
from robometer.configs import Config

HELP = """
robometer train: train a reward model on a corpus with Ray Train and DeepSpeed.

Reads   the corpus at corpus.path (embedded with embed.image_encoder and embed.text_encoder for model.kind=rewind)
Writes  train.output: run/ (checkpoints), best/ (the checkpoint to serve), history.jsonl, training.png; MLflow
Resumes when the same command is run again, on as many workers as there are.

Examples
  robometer train corpus.path=outputs/corpus train.output=outputs/train
  robometer train model=rewind train.num_workers=2 train.zero_stage=3 loss.preference_weight=0.5
  robometer train train.num_workers=8 train.min_workers=2 train.micro_batch_size=4   (shrinks and grows with a cluster)
  ray job submit --working-dir . -- python -m jobs.train corpus.path=/data/corpus train.output=/data/run \\
      tracking.uri=http://mlflow:5000
"""


def train(config: Config) -> None:
    """Train and say where the result lies."""
    from pipelines.train import run_train

    report = run_train(config)
    print(f"best checkpoint: {report.best}")
    for name, value in sorted(report.metrics.items()):
        print(f"  {name:32} {value:.4g}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return common.main(HELP, ("corpus", "sampling", "model", "loss", "train", "tracking"), train, argv)


if __name__ == "__main__":
    raise SystemExit(main())
