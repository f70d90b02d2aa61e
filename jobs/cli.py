"""The console command `robometer`: its commands are the jobs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

import click

from jobs.common import EXIT_STATUSES
from jobs.grammar import WIDTH, run_click
from robometer import __version__
from robometer.settings import did_you_mean

SECTIONS = {
    "Start here": {"quickstart": "the whole system on the bundled corpus, in minutes"},
    "Data": {
        "ingest": "raw videos to an Arrow corpus",
        "corpus": "show, verify, compact or export a corpus",
        "embed": "frozen image and text embeddings of a corpus",
        "simulate": "roll out Meta-World into raw videos",
    },
    "Training": {
        "train": "train a reward model",
        "sweep": "search the loss weights",
    },
    "Evaluation": {
        "evaluate": "metrics with intervals, and a report",
        "report": "one page of one evaluated model, or of several",
    },
    "Clusters": {
        "submit": "run a command on a cluster",
        "pipeline": "run stages that depend on one another",
    },
    "Use": {
        "score": "score one video",
        "compare": "which of two videos did better",
        "serve": "the HTTP endpoint",
        "serve-token": "make a token for the endpoint",
        "checkpoint": "what a checkpoint holds, and whether it loads",
        "publish": "a checkpoint with its model card to a folder, MLflow or the hub",
    },
}
COMMANDS = {name: text for section in SECTIONS.values() for name, text in section.items()}

HELP = """
Robometer: a reward model for robots, as a pipeline on Ray.

INPUTS are what a command works on, such as a video or a checkpoint. key=value sets any setting of the configuration;
`robometer COMMAND --help` lists those that matter there. What follows -- is an input, whatever it looks like.
"""

EXAMPLES = """
robometer quickstart
robometer ingest /data/my_robot --corpus outputs/corpus
robometer train --corpus outputs/corpus --output outputs/train train.steps=500
robometer evaluate outputs/train/best --corpus outputs/corpus
robometer score drawer.mp4 --task "open the drawer" --scorer outputs/train/best
"""

COMPLETION = """
eval "$(_ROBOMETER_COMPLETE=bash_source robometer)"     # bash; zsh_source and fish_source for the other shells
"""


class Robometer(click.Group):
    """All commands, each imported only when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """See `click.Group`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """See `click.Group`."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"jobs.{cmd_name.replace('-', '_')}").COMMAND
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """See `click.Group`."""
        if args[0] not in COMMANDS:
            raise click.UsageError(f"There is no command {args[0]!r}.{did_you_mean(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """See `click.Group`; names and texts come from the table, since to import all commands takes seconds."""
        from click.shell_completion import CompletionItem

        names = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return names if not incomplete.startswith("-") else click.Command.shell_complete(self, ctx, incomplete)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Commands in sections, then the options and what holds for all commands."""
        formatter.write_usage("robometer", "COMMAND INPUTS [--options] [key=value ...]")
        for paragraph in HELP.strip().split("\n\n"):
            formatter.write_paragraph()
            formatter.write_text(paragraph)
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))
        with formatter.section("Options"):
            formatter.write_dl([record for param in self.get_params(ctx) if (record := param.get_help_record(ctx))])
        for title, text in (("Examples", EXAMPLES), ("Shell completion", COMPLETION)):
            with formatter.section(title):
                formatter.write("".join(f"  {line}\n" for line in text.strip().splitlines()))
        with formatter.section("Exit status"):
            formatter.write_text(EXIT_STATUSES)


COMMAND = click.version_option(__version__, prog_name="robometer", message="%(prog)s %(version)s")(
    Robometer("robometer", context_settings={"max_content_width": WIDTH, "help_option_names": ["-h", "--help"]})
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `robometer`; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    return run_click(COMMAND, arguments, "robometer")


if __name__ == "__main__":
    raise SystemExit(main())
