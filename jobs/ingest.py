"""Job: raw videos to an Arrow corpus (`robometer ingest`, `python -m jobs.ingest`)."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from jobs import common
from robometer.configs import Config
from robometer.corpus.formats import names
from robometer.runs.redaction import redacted

HELP = """
robometer ingest: decode, thin, resize and store raw robot videos as an Arrow corpus, with Ray Data.

Reads   ingest.input in the format ingest.format. mp4_jsonl is a folder with trajectories.jsonl, one line per video:
          {"video": "clips/1.mp4", "task": "open the drawer", "quality_label": "successful"}
        quality_label is successful, suboptimal or failure; docs/bring_your_own_data.md lists the other keys.
        `bundled` is the Meta-World corpus that comes with the package. The other formats:
        @FORMATS@,
        or the dotted path of a module of your own. docs/formats.md says what each reads.
Writes  corpus.path: shards/*.arrow, manifest/*.parquet, quarantine/*.parquet (what was refused, and why), corpus.json
Re-run  goes on where it was killed, adds what is new, and leaves the rest as it is; what differs from what is stored
        (a label corrected, a clip replaced) is counted, and taken with ingest.update=true.

Examples
  robometer ingest corpus.path=outputs/corpus
  robometer ingest ingest.format=lerobot ingest.input=/data/my_dataset corpus.path=/data/corpus
  ray job submit --working-dir . -- python -m jobs.ingest ingest.input=/data/my_robot corpus.path=/data/corpus
"""


def _formats() -> str:
    return textwrap.fill(", ".join(names()), 110, subsequent_indent=" " * 8)


def ingest(config: Config) -> None:
    """Ingest and say what was done."""
    from pipelines.ingest import run_ingest

    report = run_ingest(config)
    print(
        f"corpus {redacted(config.corpus.path)}: {report.new} new, {report.updated} updated, "
        f"{report.present} there before, "
        f"{report.differing} that differ from what is there, {report.quarantined} in quarantine, of {report.listed}; "
        f"{report.skipped} left out by design; {report.seconds:.1f} s"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return common.main(HELP.replace("@FORMATS@", _formats()), ("ingest", "corpus"), ingest, argv)


if __name__ == "__main__":
    raise SystemExit(main())
