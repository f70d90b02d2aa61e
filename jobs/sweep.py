"""Job: sweep the loss weights (`robometer sweep`, `python -m jobs.sweep`)."""

from __future__ import annotations

from jobs.grammar import Call, Command, SettingOption, corpus_option


def sweep(call: Call) -> None:
    """Sweep and print the table of trials."""
    from pipelines.sweep import run_sweep

    report = run_sweep(call.config)
    print(f"{report}\nbest checkpoint: {report.best}\npage: {report.page}")


COMMAND = Command(
    "sweep",
    sweep,
    "Search the loss weights, or any other settings, with Ray Tune. Every trial is a `robometer train`.",
    options=[corpus_option(), SettingOption("--output", "sweep.output", "Folder of the sweep.")],
    details={
        "Reads": "The corpus.",
        "Writes": "In the output folder: best/ (the checkpoint of the best trial), trials/ (a training folder each), "
        "trials.csv, sweep.html and journal.jsonl, from which it goes on. Tracks the trials in MLflow.",
        "Rerun": "The same command resumes the sweep; with a larger sweep.num_trials it goes on with more trials.",
    },
    examples="""
robometer sweep --corpus outputs/corpus train.steps=500 sweep.num_trials=8
robometer sweep sweep.search=optuna 'sweep.space=["loss.preference_weight=uniform(0,2)"]' sweep.confirm_seeds=3
ray job submit --working-dir . -- python -m jobs.sweep --corpus /data/corpus --output /data/sweep \\
    tracking.uri=http://mlflow:5000
""",
    sections=("sweep", "loss", "train", "corpus", "tracking"),
)

main = COMMAND

if __name__ == "__main__":
    raise SystemExit(main())
