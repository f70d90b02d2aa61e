"""Job: publish a checkpoint with its model card (`robometer publish`, `python -m jobs.publish`)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jobs import common
from robometer.configs import Config
from robometer.runs import paths
from robometer.runs.publishing import PublishingError, prepare, to_folder, to_hub, to_mlflow
from robometer.runs.tracking import REGISTERED_MODEL

HELP = """
robometer publish SOURCE: a checkpoint with its model card (metrics, training, data, limits; only what was recorded).

Reads   SOURCE: a checkpoint folder, a hub id org/name[@revision], models:/NAME/VERSION or runs:/ID/PATH of MLflow
        --evaluation=FOLDER   what `robometer evaluate` wrote about this checkpoint; without it, the card has the
                              metrics of the training run, or says "not evaluated"
Writes  --to=FOLDER           a new folder, or one with an earlier publication of the same model
        --to=mlflow           a new version of the registered model --name=NAME (default robometer) at tracking.uri
        --to=hub --repo=org/name [--private]   one commit to the Hugging Face hub; needs HF_TOKEN
        --license=ID          of the weights; known for the usual base models
        --merge               adapters (model.lora) are added to the weights of their base: a model of its own

Examples
  robometer publish outputs/train/best --to=outputs/published --evaluation=outputs/evaluation
  robometer publish outputs/train/best --to=mlflow --name=drawer-reward
  robometer publish outputs/train/best --to=hub --repo=my-lab/drawer-reward --private
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("source", nargs="?", default="")
    for name in ("--to", "--repo", "--evaluation", "--license"):
        parser.add_argument(name, default="")
    parser.add_argument("--name", default=REGISTERED_MODEL)
    for name in ("--private", "--merge"):
        parser.add_argument(name, action="store_true")
    options, rest = parser.parse_known_args(arguments)
    if "=" in options.source:  # an override, where the source was left out
        options.source, rest = "", [options.source, *rest]
    return common.main(HELP, ("tracking",), lambda config: publish(options, config), rest)


def publish(options: argparse.Namespace, config: Config) -> None:
    """Publish, and say where it is."""
    if not options.source or not options.to:
        raise PublishingError("give what to publish and where to: robometer publish SOURCE --to=FOLDER, mlflow or hub")
    if options.evaluation:
        paths.check_local("--evaluation", options.evaluation)
    if options.to not in ("mlflow", "hub"):
        paths.absolute_path("--to", paths.check_local("--to", options.to))
    what = prepare(options.source, options.evaluation, options.license, config.tracking.uri, options.merge)
    if options.to == "mlflow":
        place = to_mlflow(what, config, options.name)
    elif options.to == "hub":
        place = to_hub(what, options.repo, options.private)
    else:
        place = str(to_folder(what, options.to))
    count = len(what.rows)
    kind = what.checkpoint.config.model.kind
    print(f"{kind}@{what.revision}, {f'{count} metrics' if count else 'not evaluated'}: {place}")


if __name__ == "__main__":
    raise SystemExit(main())
