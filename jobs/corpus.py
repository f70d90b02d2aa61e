"""Job: what a corpus holds, and looking after it (`robometer corpus`, `python -m jobs.corpus`)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from jobs import common
from pipelines.maintain import MaintenanceError, run_compact, run_verify
from robometer.configs import Config, ConfigError
from robometer.corpus.corpus import Corpus
from robometer.corpus.export import export_lerobot
from robometer.corpus.page import write_page
from robometer.corpus.storage import Storage
from robometer.corpus.summary import render, summarise
from robometer.evaluation.predictions import Predictions
from robometer.evaluation.views import FORWARD
from robometer.runs import paths

HELP = """
robometer corpus: print what a corpus holds: trajectories by source, split, task and quality, bytes, quarantine.

Reads   the corpus at corpus.path
Writes  with --show, the corpus viewer as one HTML file (--show=PAGE; default corpus.html in the working folder): counts
        of the whole corpus, and clips to play and to filter, each with what is trained on it; it needs no network

robometer corpus verify     re-read every shard, on the cluster: counts, hashes, and whether the manifest says the same.
        --repair            make lost or false manifest files again from the shards; take corrupt shards out, which the
                            next `robometer ingest` of the same data makes again
robometer corpus compact    join small shards, with their embeddings, and drop what updates replaced, while no job uses
        the corpus
        --shard-mb=512      size of the shards that come out
robometer corpus export     write it as a LeRobot v3.0 dataset, an episode per trajectory
        --to=FOLDER         where to; it must not exist
        --split=NAME        of one split only
        --scores=FOLDER     with the progress and success per frame that `robometer evaluate` wrote into that folder

Examples
  robometer corpus corpus.path=outputs/corpus
  robometer corpus --show=/data/corpus.html corpus.path=/data/corpus
  robometer corpus verify --repair corpus.path=/data/corpus
  robometer corpus export --to=/data/lerobot --split=seen --scores=outputs/evaluation corpus.path=/data/corpus
"""


def look(options: argparse.Namespace, config: Config) -> None:
    """Print the summary, and write the page where one is asked for."""
    if options.show:
        paths.absolute_path("--show", paths.check_local("--show", options.show))
    corpus = Corpus(config.corpus.path)
    print(render(summarise(corpus)))
    if options.show:
        print(f"page of {write_page(corpus, options.show, sampling=config.sampling)} trajectories: {options.show}")


def verify(options: argparse.Namespace, config: Config) -> None:
    """Say what is not in order, and what was done about it."""
    report = run_verify(config, options.repair)
    for shard in report.wrong:
        print(f"shard {shard.shard}: {'; '.join(shard.problems[:3])}{f' -> {shard.repair}' if shard.repair else ''}")
    found = f"{len(report.wrong)} shards not in order, {report.duplicates} rows twice"
    print(f"{report.trajectories} trajectories in {report.shards} shards re-read: {found}")
    if report.wrong and not options.repair:
        raise MaintenanceError(
            "the corpus is not in order: `robometer corpus verify --repair` mends what can be mended"
        )
    if any(shard.repair == "dropped" for shard in report.wrong):
        print("run `robometer ingest` of the same data again to make the dropped shards anew")


def compact(options: argparse.Namespace, config: Config) -> None:
    """Join small shards and say how many there are now."""
    before, after = run_compact(config, options.shard_mb)
    print(f"{before} shards before, {after} now")


def export(options: argparse.Namespace, config: Config) -> None:
    """Write a LeRobot dataset, and say of how many episodes."""
    if not options.to:
        raise ConfigError("give the folder to write to, --to=FOLDER")
    paths.absolute_path("--to", paths.check_local("--to", options.to))
    corpus = Corpus(config.corpus.path)
    scores = None
    if options.scores:
        paths.check_storage("--scores", options.scores)
        predicted = Storage(options.scores)
        if not predicted.exists("predictions.parquet"):
            raise ConfigError(f"no predictions in {options.scores}: run `robometer evaluate` first")
        clips = Predictions.load(predicted).clips
        scores = {c.id: (c.progress, c.success) for c in clips if c.view == FORWARD and not c.error}
    count = export_lerobot(corpus, options.to, corpus.rows(options.split), scores=scores)
    print(f"{count} episodes: {options.to}")


ACTIONS: dict[str, Callable[[argparse.Namespace, Config], None]] = {
    "verify": verify,
    "compact": compact,
    "export": export,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    action = ACTIONS.get(arguments[0], look) if arguments else look
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    if action is look:
        parser.add_argument("--show", nargs="?", const="corpus.html", default="")
    elif action is verify:
        parser.add_argument("--repair", action="store_true")
    elif action is export:
        for name in ("--to", "--split", "--scores"):
            parser.add_argument(name)
    else:
        parser.add_argument("--shard-mb", type=int, default=512)
    options, rest = parser.parse_known_args(arguments if action is look else arguments[1:])
    return common.main(HELP, ("corpus", "ray"), lambda config: action(options, config), rest)


if __name__ == "__main__":
    raise SystemExit(main())
