"""Job: publish a checkpoint with its model card (`robometer publish`, `python -m jobs.publish`)."""

from __future__ import annotations

from jobs.grammar import Call, Command, Inputs, option
from robometer.runs import paths
from robometer.settings import ConfigError


def publish(call: Call) -> None:
    """Publish, and say where it is."""
    (source,), options = call.inputs, call.options
    targets = [name for name in ("output", "mlflow", "hub") if options[name]]
    if len(targets) != 1:
        raise ConfigError("Say where to publish: one of --output FOLDER, --mlflow NAME and --hub ORG/NAME.")
    promotes = [options[name] for name in ("alias", "metric")]
    if any(promotes) and not (all(promotes) and options["mlflow"] and options["evaluation"]):
        raise ConfigError(
            "An alias needs all of --alias, --metric, --evaluation and --mlflow: it moves if it is better."
        )
    if options["evaluation"]:
        paths.check_storage("--evaluation", options["evaluation"])
    if options["output"]:
        paths.absolute_path("--output", paths.check_storage("--output", options["output"]))

    from robometer.runs.publishing import prepare, to_folder, to_hub, to_mlflow  # these take seconds

    what = prepare(
        source, options["evaluation"] or "", options["license"] or "", call.config.tracking.uri, options["merge"]
    )
    if options["alias"]:
        from pipelines.promotion import criterion, promote

        by = criterion(options["metric"])
        place = promote(what, call.config, options["mlflow"], options["alias"], options["evaluation"], by)
    elif options["mlflow"]:
        place = to_mlflow(what, call.config, options["mlflow"])
    elif options["hub"]:
        place = to_hub(what, options["hub"], options["private"])
    else:
        place = to_folder(what, options["output"])
    count = len(what.rows)
    kind = what.checkpoint.config.model.kind
    print(f"{kind}@{what.revision}, {f'{count} metrics' if count else 'not evaluated'}: {place}")


COMMAND = Command(
    "publish",
    publish,
    "Publish a checkpoint with its model card: metrics, training, data and limits, of what was recorded only.",
    inputs=Inputs(
        "CHECKPOINT",
        "A checkpoint folder, org/name[@revision] of the hub, models:/NAME/VERSION or runs:/ID/PATH of MLflow.",
        least=1,
    ),
    options=[
        option("--output", "Publish into a folder or its URI, which is new or holds this model.", metavar="FOLDER"),
        option("--mlflow", "Publish as a new version of this registered model at tracking.uri.", metavar="NAME"),
        option(
            "--alias",
            "With --mlflow, --evaluation and --metric: give the new version this alias, if no version has it, or if it "
            "is better than the one that has it. That one is evaluated on the same clips.",
            metavar="ALIAS",
        ),
        option(
            "--metric",
            "What decides about the alias: SPLIT/EVALUATION/METRIC of a split by which the training chose nothing. "
            "Better: the interval of the paired difference leaves out 0.",
            metavar="METRIC",
        ),
        option("--hub", "Publish to the Hugging Face hub, in one commit; needs HF_TOKEN.", metavar="ORG/NAME"),
        option("--private", "With --hub: make a new repository private.", is_flag=True),
        option(
            "--evaluation",
            "Folder, or its URI, of `robometer evaluate` of this checkpoint. Without it, the card has the metrics of "
            'the training run, or says "not evaluated".',
            metavar="FOLDER",
        ),
        option("--license", "License of the weights; known for the usual base models.", metavar="ID"),
        option("--merge", "Add adapters (model.lora) to the weights of their base: a model of its own.", is_flag=True),
    ],
    details={"Writes": "The weights, config.yaml, provenance.json and README.md, the model card."},
    examples="""
robometer publish outputs/train/best --output outputs/published --evaluation outputs/evaluation
robometer publish outputs/train/best --mlflow drawer-reward
robometer publish outputs/train/best --mlflow drawer-reward --evaluation outputs/evaluation --alias champion \\
    --metric held_out/policy_ranking/kendall_last
robometer publish outputs/train/best --hub my-lab/drawer-reward --private
""",
    sections=("tracking",),
    instead={
        "--to": "Write --output FOLDER, --mlflow NAME or --hub ORG/NAME.",
        "--name": "Write --mlflow NAME.",
        "--repo": "Write --hub ORG/NAME.",
    },
)

main = COMMAND

if __name__ == "__main__":
    raise SystemExit(main())
