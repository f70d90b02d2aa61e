"""The console command `robometer`: its sub-commands are the jobs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "quickstart": "the whole system on the bundled corpus, in minutes",
    "simulate": "roll out Meta-World into mp4 + trajectories.jsonl",
    "ingest": "raw videos to an Arrow corpus",
    "corpus": "what a corpus holds; --show writes a page to look at",
    "embed": "frozen image and text embeddings of a corpus",
    "train": "train a reward model",
    "sweep": "search the loss weights",
    "evaluate": "metrics with intervals, and a report",
    "report": "one page of one evaluated model, or of several beside one another",
    "serve": "the HTTP endpoint",
    "score": "score one video with a checkpoint or an endpoint",
    "compare": "which of two videos did better",
    "checkpoint": "what a checkpoint holds, and whether it loads",
    "publish": "a checkpoint to a folder, MLflow or the hub, with its model card",
}


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        ["usage: robometer COMMAND [KEY=VALUE ...]", "", *lines, "", "robometer COMMAND --help tells more"]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `robometer`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        print(f"error: no command {command!r}\n\n{usage()}", file=sys.stderr)
        return 2
    return int(importlib.import_module(f"jobs.{command}").main(rest))


if __name__ == "__main__":
    raise SystemExit(main())
