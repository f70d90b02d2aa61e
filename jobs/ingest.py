"""Job: raw videos to an Arrow corpus (`robometer ingest`, `python -m jobs.ingest`)."""

from __future__ import annotations

from jobs.grammar import Call, Command, Inputs, SettingOption, corpus_option, stands_for
from robometer.corpus.formats import names
from robometer.runs.redaction import redacted


def ingest(call: Call) -> None:
    """Ingest and say what was done."""
    from pipelines.ingest import run_ingest

    report = run_ingest(call.config)
    print(
        f"corpus {redacted(call.config.corpus.path)}: {report.new} new, {report.updated} updated, "
        f"{report.present} there before, "
        f"{report.differing} that differ from what is there, {report.quarantined} in quarantine, of {report.listed}; "
        f"{report.skipped} left out by design; {report.seconds:.1f} s"
    )


COMMAND = Command(
    "ingest",
    ingest,
    "Decode, thin, resize and store raw robot videos as an Arrow corpus, with Ray Data.",
    inputs=Inputs(
        "[RAW]",
        "Folder or file of raw data, or its URI. Without it: the Meta-World corpus that comes with the package.  "
        "[ingest.input]",
        values=stands_for("ingest.input"),
    ),
    options=[
        corpus_option(),
        SettingOption("--format", "ingest.format", "How the raw data lies on disk.", metavar="FORMAT"),
    ],
    details={
        "Formats": "mp4_jsonl (the default) is a folder with trajectories.jsonl, a line per video: "
        '{"video": "clips/1.mp4", "task": "open the drawer", "quality_label": "successful"}. quality_label is '
        "successful, suboptimal or failure; docs/bring_your_own_data.md lists the other keys. The other formats, which "
        f"docs/formats.md describes: {', '.join(names())}; or the dotted path of a module of your own.",
        "Writes": "The corpus: shards/*.arrow, manifest/*.parquet, corpus.json, and quarantine/*.parquet (what was "
        "refused, and why).",
        "Rerun": "The same command continues where it stopped and adds what is new. Trajectories that differ from what "
        "is stored (a corrected label, another video) are counted; ingest.update=true stores them.",
    },
    examples="""
robometer ingest --corpus outputs/corpus
robometer ingest /data/my_dataset --format lerobot --corpus /data/corpus
robometer ingest s3://bucket/my_dataset --format lerobot --corpus s3://bucket/corpus
ray job submit --working-dir . -- python -m jobs.ingest /data/my_robot --corpus /data/corpus
""",
    sections=("ingest", "corpus"),
    instead={"--source": "Write --format FORMAT.", "--input": "Give the folder without it: robometer ingest RAW."},
)

main = COMMAND

if __name__ == "__main__":
    raise SystemExit(main())
