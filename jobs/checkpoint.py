"""Job: what a checkpoint holds, and whether it loads (`robometer checkpoint`, `python -m jobs.checkpoint`)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jobs import common
from robometer.configs import Config
from robometer.models.checkpoint import checkpoint_hash
from robometer.models.inventory import Group, dry_checkpoints, inventory, summary, table
from robometer.models.layouts import open_checkpoint
from robometer.models.sources import locate
from robometer.models.weights import CheckpointError

HELP = """
robometer checkpoint SOURCE: print what a checkpoint holds: layout, base model, bins, vocabulary, training, metrics, and
its tensors by group against the model that its configuration describes. Reads headers only, so the 4B model takes
seconds and no memory; tensors that do not fit end in status 2.

Reads   SOURCE: a checkpoint folder, a hub id org/name[@revision], models:/NAME/VERSION or runs:/ID/PATH of MLflow.
        With --meta, a folder with the config.json and the tokenizer of a base model and no weights: whether the two
        public layouts (robometer/Robometer-4B, lerobot/Robometer-4B) at its size would load.

Examples
  robometer checkpoint outputs/train/best
  robometer checkpoint robometer/Robometer-4B
  robometer checkpoint models:/robometer/1 tracking.uri=sqlite:///outputs/mlflow.db
  robometer checkpoint --meta my_copies/Qwen3-VL-4B-Instruct
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("source", nargs="?", default="")
    parser.add_argument("--meta", action="store_true")
    options, rest = parser.parse_known_args(arguments)
    if "=" in options.source:  # an override, where the source was left out
        options.source, rest = "", [options.source, *rest]
    return common.main(HELP, ("tracking",), lambda config: show(options, config), rest)


def show(options: argparse.Namespace, config: Config) -> None:
    """Print the inventory; raise where something does not fit."""
    if not options.source:
        raise CheckpointError(
            "give the checkpoint: a folder, org/name[@revision], models:/NAME/VERSION or runs:/ID/PATH"
        )
    if options.meta:
        for found in dry_checkpoints(locate(options.source)):
            print(f"{summary(found)}\n\n{_fitting(inventory(found))}\n")
        return
    found = open_checkpoint(locate(options.source, config.tracking.uri))
    print(f"{summary(found, checkpoint_hash(found.folder))}\n")
    print(_fitting(inventory(found)))


def _fitting(groups: list[Group]) -> str:
    everything = groups[-1]
    if everything.missing or everything.unexpected or everything.misshaped:
        print(table(groups))
        raise CheckpointError("it does not load: the tensors in the last three columns do not fit the model")
    return table(groups)


if __name__ == "__main__":
    raise SystemExit(main())
