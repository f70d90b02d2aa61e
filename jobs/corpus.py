"""Job: look at a corpus and look after it (`robometer corpus`, `python -m jobs.corpus`)."""

from __future__ import annotations

import dataclasses
from typing import Any

from jobs.common import check_files, write_json
from jobs.grammar import Call, Command, Group, Inputs, json_option, option, stands_for
from robometer.runs import paths
from robometer.settings import ConfigError
from robometer.text import table

CORPUS = Inputs("[CORPUS]", "A folder, or a URI that pyarrow opens.  [corpus.path]", values=stands_for("corpus.path"))


def show(call: Call) -> None:
    """Print what a corpus holds, and write the page where one is asked for."""
    from robometer.corpus.corpus import Corpus
    from robometer.corpus.page import write_page
    from robometer.corpus.summary import render, summarise

    page = call.options["page"]
    check_files(json=call.options["json"], page=page)
    corpus = Corpus(call.config.corpus.path)
    summary = summarise(corpus)
    if call.options["json"] != "-":
        print(render(summary))
    if call.options["refused"]:
        rows = [[r["stage"], r["uri"] or r["episode_key"], r["error"]] for r in corpus.quarantine().to_pylist()]
        print(f"\n{table(('refused at', 'clip', 'reason'), rows)}" if rows else "\nNo clip was refused or left out.")
    record = dataclasses.asdict(summary)
    for name in ("refused", "left_out"):
        record[name] = [{"stage": stage, "reason": text, "count": n} for (stage, text), n in record[name].items()]
    write_json(call.options["json"], record)
    if page:
        print(f"page of {write_page(corpus, page, sampling=call.config.sampling)} trajectories: {page}")


def verify(call: Call) -> None:
    """Say what is wrong in a corpus, and what was done about it."""
    from pipelines.maintain import MaintenanceError, run_verify

    repair = call.options["repair"]
    report = run_verify(call.config, repair)
    for shard in report.wrong:
        print(f"shard {shard.shard}: {'; '.join(shard.problems[:3])}{f' -> {shard.repair}' if shard.repair else ''}")
    faults = f"{len(report.wrong)} damaged shards, {report.duplicates} duplicate rows"
    print(f"{report.trajectories} trajectories in {report.shards} shards read again: {faults}")
    if report.wrong and not repair:
        raise MaintenanceError("The corpus is damaged. `robometer corpus verify --repair` repairs what it can.")
    if any(shard.repair == "dropped" for shard in report.wrong):
        print("Run `robometer ingest` of the same data again: it makes the dropped shards anew.")


def compact(call: Call) -> None:
    """Join small shards and say how many there are now."""
    from pipelines.maintain import run_compact

    before, after = run_compact(call.config, call.options["shard_mb"])
    print(f"{before} shards before, {after} now")


def export(call: Call) -> None:
    """Write a LeRobot dataset, and say of how many episodes."""
    from robometer.corpus.corpus import Corpus
    from robometer.corpus.export import export_lerobot

    output = call.options["output"]
    paths.absolute_path("--output", paths.check_local("--output", output))
    corpus = Corpus(call.config.corpus.path)
    rows = corpus.rows(call.options["split"])
    count = export_lerobot(corpus, output, rows, scores=_scores(call.options["scores"]))
    print(f"{count} episodes: {output}")


def _scores(folder: str | None) -> dict[str, Any] | None:
    """Progress and success per frame by clip, from the output folder of an evaluation; None without one."""
    from robometer.corpus.storage import Storage
    from robometer.evaluation.predictions import Predictions
    from robometer.evaluation.views import FORWARD

    if not folder:
        return None
    paths.check_storage("--scores", folder)
    if not Storage(folder).exists("predictions.parquet"):
        raise ConfigError(f"There are no predictions in {folder}. Run `robometer evaluate` first.")
    clips = Predictions.load(Storage(folder)).clips
    return {c.id: (c.progress, c.success) for c in clips if c.view == FORWARD and not c.error}


SHOW = Command(
    "corpus show",
    show,
    "Print what a corpus holds: trajectories by source, split, task and quality, bytes, and what is in quarantine.",
    inputs=CORPUS,
    options=[
        option("--page", "Write the corpus viewer into this file.", metavar="FILE"),
        option("--refused", "List each clip that was refused or left out, with its reason.", is_flag=True),
        json_option(),
    ],
    details={
        "Writes": "With --page, one HTML file that needs no network: counts of the whole corpus, and clips to play and "
        "to filter, each with what is trained on it."
    },
    examples="""
robometer corpus show outputs/corpus
robometer corpus show outputs/corpus --refused
robometer corpus show /data/corpus --page /data/corpus.html
""",
    sections=("corpus",),
)

VERIFY = Command(
    "corpus verify",
    verify,
    "Read every shard again, on the cluster: counts, hashes, and whether the manifest says the same.",
    inputs=CORPUS,
    options=[option("--repair", "Repair what can be repaired.", is_flag=True)],
    details={
        "Writes": "With --repair: lost or false manifest files again, from the shards. Corrupt shards are dropped; the "
        "next `robometer ingest` of the same data makes them anew."
    },
    examples="""
robometer corpus verify outputs/corpus
robometer corpus verify /data/corpus --repair
""",
    sections=("corpus", "ray"),
)

COMPACT = Command(
    "corpus compact",
    compact,
    "Join small shards, with their embeddings, and drop rows that updates have replaced. No job may use the corpus "
    "meanwhile.",
    inputs=CORPUS,
    options=[option("--shard-mb", "Megabytes of a joined shard (default: 512).", type=int, default=512, metavar="N")],
    details={"Writes": "The corpus."},
    examples="robometer corpus compact /data/corpus --shard-mb 1024",
    sections=("corpus", "ray"),
)

EXPORT = Command(
    "corpus export",
    export,
    "Write a corpus as a LeRobot v3.0 dataset, an episode per trajectory.",
    inputs=CORPUS,
    options=[
        option("--output", "Folder of the dataset; it must not exist.", required=True, metavar="FOLDER"),
        option("--split", "Export this split only.", metavar="NAME"),
        option("--scores", "Add progress and success per frame from this evaluation.", metavar="FOLDER"),
    ],
    details={"Writes": "The dataset."},
    examples="robometer corpus export /data/corpus --output /data/lerobot --split seen --scores outputs/evaluation",
    sections=("corpus",),
    instead={"--to": "Write --output FOLDER."},
)

COMMAND = Group(
    "corpus",
    [SHOW, VERIFY, COMPACT, EXPORT],
    "Look at a corpus, and look after it.",
    instead={"--show": "There is no option --show. Write robometer corpus show CORPUS --page FILE."},
)

main = COMMAND

if __name__ == "__main__":
    raise SystemExit(main())
