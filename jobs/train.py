"""Job: train a reward model (`robometer train`, `python -m jobs.train`)."""

from __future__ import annotations

from jobs.grammar import Call, Command, SettingOption, corpus_option, option


def train(call: Call) -> None:
    """Train and say where the result is, or only estimate the memory that this takes."""
    if call.options["estimate"]:
        from pipelines.training import estimate

        print(estimate.report(call.config))
        return
    from pipelines.train import run_train

    report = run_train(call.config)
    print(f"best checkpoint: {report.best}")
    for name, value in sorted(report.metrics.items()):
        print(f"  {name:32} {value:.4g}")


COMMAND = Command(
    "train",
    train,
    "Train a reward model on a corpus, with Ray Train and DeepSpeed.",
    options=[
        corpus_option(),
        SettingOption("--output", "train.output", "Folder of the run."),
        option("--estimate", "Print the memory that the run would need, and end.", is_flag=True),
    ],
    details={
        "Reads": "The corpus. model.kind=rewind needs its embeddings: run `robometer embed` first.",
        "Writes": "In the output folder: best/ (the checkpoint to serve), run/ (all checkpoints), history.jsonl and "
        "training.png. Tracks the run in MLflow.",
        "Rerun": "The same command resumes the run, with as many workers as there are.",
    },
    examples="""
robometer train --corpus outputs/corpus --output outputs/train
robometer train model=rewind train.num_workers=2 train.zero_stage=3 loss.preference_weight=0.5
robometer train train.num_workers=8 train.min_workers=2 train.micro_batch_size=4   # shrinks and grows with a cluster
robometer train --estimate recipe=robometer_4b train.zero_stage=3   # memory per GPU, by stage, GPUs and micro-batch
ray job submit --working-dir . -- python -m jobs.train --corpus /data/corpus --output /data/run \\
    tracking.uri=http://mlflow:5000
""",
    sections=("corpus", "sampling", "model", "loss", "train", "tracking"),
)

main = COMMAND

if __name__ == "__main__":
    raise SystemExit(main())
