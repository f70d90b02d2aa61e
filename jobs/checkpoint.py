"""Job: what a checkpoint holds, and whether it loads (`robometer checkpoint`, `python -m jobs.checkpoint`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs.grammar import Call, Command, Inputs, option

if TYPE_CHECKING:
    from robometer.models.inventory import Group


def show(call: Call) -> None:
    """Print the inventory; raise where something does not fit."""
    from robometer.models.checkpoint import checkpoint_hash
    from robometer.models.inventory import dry_checkpoints, inventory, summary
    from robometer.models.layouts import open_checkpoint
    from robometer.models.sources import locate

    (source,) = call.inputs
    if call.options["meta"]:
        for checkpoint in dry_checkpoints(locate(source)):
            print(f"{summary(checkpoint)}\n\n{_fitting(inventory(checkpoint))}\n")
        return
    checkpoint = open_checkpoint(locate(source, call.config.tracking.uri))
    print(f"{summary(checkpoint, checkpoint_hash(checkpoint.folder))}\n")
    print(_fitting(inventory(checkpoint)))


def _fitting(groups: list[Group]) -> str:
    from robometer.models.inventory import table
    from robometer.models.weights import CheckpointError

    everything = groups[-1]
    if everything.missing or everything.unexpected or everything.misshaped:
        print(table(groups))
        raise CheckpointError("It does not load: the tensors in the last three columns do not fit the model.")
    return table(groups)


CHECKPOINTS = "a checkpoint folder, org/name[@revision] of the hub, models:/NAME/VERSION or runs:/ID/PATH of MLflow"

COMMAND = Command(
    "checkpoint",
    show,
    "Print what a checkpoint holds: layout, base model, bins, vocabulary, what it was trained on (split, "
    "sources), metrics, and its tensors by group, "
    "against the model that its configuration describes.",
    inputs=Inputs("CHECKPOINT", f"{CHECKPOINTS[0].upper()}{CHECKPOINTS[1:]}.", least=1),
    options=[
        option(
            "--meta",
            "The input is a folder with the config.json and the tokenizer of a base model, without weights: would the "
            "two public layouts (robometer/Robometer-4B, lerobot/Robometer-4B) load at its size?",
            is_flag=True,
        )
    ],
    details={
        "Reads": "Headers only: the 4B model takes seconds and no memory. Tensors that do not fit end in exit status 2."
    },
    examples="""
robometer checkpoint outputs/train/best
robometer checkpoint robometer/Robometer-4B
robometer checkpoint models:/robometer/1 tracking.uri=sqlite:///outputs/mlflow.db
robometer checkpoint my_copies/Qwen3-VL-4B-Instruct --meta
""",
    sections=("tracking",),
)

main = COMMAND

if __name__ == "__main__":
    raise SystemExit(main())
