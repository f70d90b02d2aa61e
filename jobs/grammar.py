"""The grammar of all commands: `robometer COMMAND INPUTS [--options] [key=value ...]`.

A job module describes its command as a `Command`: its inputs, its options, its help, and the function to run. Parsing,
help, completion and errors are Click's, but for three things that are done here: arguments of the form `key=value` are
settings, options and inputs may stand for settings, and every mistake ends in one line on stderr and exit status 2.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, cast

import click
from click.shell_completion import CompletionItem

from jobs.common import EXIT_STATUSES, guarded
from robometer.configs import Config, load
from robometer.configs.loading import is_setting, setting_keys
from robometer.runs.redaction import redacted
from robometer.settings import did_you_mean, settings

WIDTH = 100
"""Columns of a help page, at most."""


@dataclass(frozen=True)
class Inputs:
    """The arguments of a command that have no name.

    Attributes:
        usage: how the usage line shows them, such as `VIDEO`.
        help: what they may be.
        least: how many there must be.
        most: how many there may be; None: any number.
        values: the settings that they stand for, by dotted key.
    """

    usage: str
    help: str
    least: int = 0
    most: int | None = 1
    values: Callable[[list[str]], dict[str, Any]] = field(default=lambda inputs: {})


NO_INPUTS = Inputs("", "", most=0)


def stands_for(key: str) -> Callable[[list[str]], dict[str, Any]]:
    """`Inputs.values` of a single input that stands for a setting."""
    return lambda inputs: {key: inputs[0]}


class SettingOption(click.Option):
    """An option that stands for a setting: `--corpus X` for `corpus.path=X`, with X taken letter by letter."""

    def __init__(self, flag: str, setting: str, meaning: str, **more: Any) -> None:
        text = f"{meaning}  [{setting}={_value(Config(), setting)}]"
        super().__init__([flag], help=text, metavar=more.pop("metavar", "FOLDER"), **more)
        self.flag, self.setting = flag, setting


def corpus_option() -> SettingOption:
    """`--corpus`, which is the same wherever a corpus is read or written."""
    return SettingOption("--corpus", "corpus.path", "The corpus: a folder, or a URI that pyarrow opens.")


def scorer_option() -> SettingOption:
    """`--scorer`, which is the same wherever something scores."""
    return SettingOption("--scorer", "evaluate.scorer", f"What scores: {SCORERS}.", metavar="SCORER")


SCORERS = (
    "a checkpoint folder, org/name[@revision] of the hub, models:/NAME/VERSION or runs:/ID/PATH of MLflow, the URL of "
    "an endpoint (its token: ROBOMETER_TOKEN), or baseline:NAME"
)


def option(flag: str, meaning: str, **more: Any) -> click.Option:
    """A plain option."""
    return click.Option([flag], help=meaning, **more)


def json_option() -> click.Option:
    """`--json`, which is the same wherever a command has numbers to give."""
    return option("--json", "Write the result as JSON into this file; - writes it to the terminal.", metavar="FILE")


@dataclass(frozen=True)
class Call:
    """What the user asks for.

    Attributes:
        config: all settings.
        inputs: the arguments without a name.
        options: the values of the options by their names, such as `max_frames` for `--max-frames`.
        keys: the settings that the command line itself gives, by dotted key.
    """

    config: Config
    inputs: list[str]
    options: Mapping[str, Any]
    keys: frozenset[str]


class Command(click.Command):
    """One command.

    Args:
        name: what follows `robometer`, such as `train` or `corpus verify`.
        run: what it does; raises `RobometerError` for mistakes of the user.
        summary: one or two sentences.
        details: paragraphs of the help by their titles, such as `Writes`.
        examples: command lines.
        sections: the sections of the configuration that the help lists.
        instead: options that it does not have, and the sentence that says what to write instead.
        recipe: settings on top of which the command line's are.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Call], None],
        summary: str,
        *,
        details: Mapping[str, str],
        examples: str,
        sections: Sequence[str],
        inputs: Inputs = NO_INPUTS,
        options: Sequence[click.Option] = (),
        instead: Mapping[str, str] | None = None,
        recipe: str = "",
    ) -> None:
        arguments = click.Argument(["arguments"], nargs=-1, type=_Arguments())
        super().__init__(name.split()[-1], params=[*options, arguments], help=summary)
        self.title, self.run, self.summary, self.details, self.examples = name, run, summary, details, examples
        self.sections, self.inputs, self.instead = sections, inputs, instead or {}
        self.base = [f"recipe={recipe}"] if recipe else []

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run the command line `argv` (default: that of this process); returns the exit status."""
        return run_click(self, sys.argv[1:] if argv is None else argv, f"robometer {self.title}")

    def read(self, argv: Sequence[str]) -> Call:
        """What a command line asks for, without doing it.

        Raises:
            click.ClickException: it does not fit the grammar.
            ConfigError, PathError: its settings cannot be used.
        """
        with self.make_context(f"robometer {self.title}", list(argv)) as ctx:
            return self._call(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Let Click parse; what follows `--` is an input, whatever it looks like."""
        end = args.index("--") if "--" in args else len(args)
        ctx.meta["literal"] = args[end + 1 :]
        try:
            return super().parse_args(ctx, args[:end])
        except click.NoSuchOption as error:
            raise self._no_such_option(error, ctx) from error

    def _no_such_option(self, error: click.NoSuchOption, ctx: click.Context) -> click.UsageError:
        name = error.option_name.partition("=")[0]
        if name in self.instead:
            return click.UsageError(f"There is no option {name}. {self.instead[name]}", ctx)
        flags = [flag for param in self.params for flag in param.opts if flag.startswith("-")]
        ending = f".{name.lstrip('-').replace('-', '_')}"
        keys = [key for section in self.sections for key in setting_keys() if key.startswith(f"{section}.")]
        near = next((f" Settings have no dashes: {key}=..." for key in keys if key.endswith(ending)), "")
        return click.UsageError(f"There is no option {name}.{near or did_you_mean(name, flags)}", ctx)

    def invoke(self, ctx: click.Context) -> Any:
        """Compose the settings and run; returns the exit status."""
        return guarded(lambda: self.run(self._call(ctx)))

    def _call(self, ctx: click.Context) -> Call:
        inputs: list[str] = []
        overrides: list[str] = []
        for argument in ctx.params.pop("arguments"):
            (overrides if self._is_override(argument) else inputs).append(argument)
        inputs += ctx.meta["literal"]
        self._check_count(inputs, ctx)
        values = self.inputs.values(inputs) if inputs else {}
        keys = {override.partition("=")[0].lstrip("+~") for override in overrides}
        for param in self.params:
            if isinstance(param, SettingOption) and (value := ctx.params.pop(param.name or "")) is not None:
                if param.setting in keys | values.keys():
                    raise click.UsageError(f"{param.flag} and {param.setting} are the same. Give one of them.", ctx)
                values[param.setting] = value
        if both := keys & values.keys():
            name = self.inputs.usage.strip("[.] ")
            raise click.UsageError(f"{name} and {min(both)} are the same. Give one of them.", ctx)
        config = load([*self.base, *overrides], values)
        return Call(config, inputs, ctx.params, frozenset(keys | values.keys()))

    def _is_override(self, argument: str) -> bool:
        """Whether an argument is a setting: its key is one, or looks like one and there is no file of this name."""
        left, equals, _ = argument.partition("=")
        key = left.lstrip("+~")
        if not equals or is_setting(key):
            return bool(equals)
        without_section = any(name.endswith(f".{key}") for name in setting_keys())
        looks_like_one = self.inputs.most == 0 or without_section or re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", key)
        return bool(looks_like_one) and not os.path.lexists(argument)

    def _check_count(self, inputs: list[str], ctx: click.Context) -> None:
        least, most, usage = self.inputs.least, self.inputs.most, self.inputs.usage
        if len(inputs) < least:
            raise click.UsageError(f"`robometer {self.title}` needs {usage}: {self.inputs.help}", ctx)
        if most is not None and len(inputs) > most:
            takes = f"only {usage}" if most else "no inputs"
            surplus = inputs[most]
            raise click.UsageError(
                f"{surplus!r} is neither an option nor a setting such as train.steps=500, and `robometer {self.title}` "
                f"takes {takes}.",
                ctx,
            )

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """See `click.Command`."""
        return [*filter(None, [self.inputs.usage]), "[--options]", "[key=value ...]"]

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> click.Context:
        """See `click.Command`."""
        names = ["-h", "--help"]
        return super().make_context(info_name, args, parent, max_content_width=WIDTH, help_option_names=names, **extra)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The help page: usage, purpose, inputs, options, what is read and written, examples, settings, exit status."""
        self.format_usage(ctx, formatter)
        formatter.write_paragraph()
        formatter.write_text(self.summary)
        if self.inputs.usage:
            with formatter.section("Inputs"):
                formatter.write_dl([(self.inputs.usage, self.inputs.help)])
        records = [param.get_help_record(ctx) for param in self.params if isinstance(param, click.Option)]
        with formatter.section("Options"):
            help_record = cast(click.Option, self.get_help_option(ctx)).get_help_record(ctx)
            formatter.write_dl([record for record in [*records, help_record] if record])
        for title, text in self.details.items():
            with formatter.section(title):
                formatter.write_text(text)
        with formatter.section("Examples"):
            for line in self.examples.strip().splitlines():
                formatter.write(f"  {line}\n")
        self._format_settings(formatter)
        with formatter.section("Exit status"):
            formatter.write_text(EXIT_STATUSES)

    def _format_settings(self, formatter: click.HelpFormatter) -> None:
        if not self.sections:
            return
        config = load(self.base) if self.base else Config()
        with formatter.section("Settings (key=value) with their defaults"):
            for section in self.sections:
                node = getattr(config, section)
                formatter.write_paragraph()
                formatter.write_text(f"{section}: {(type(node).__doc__ or '').strip().splitlines()[0]}")
                formatter.indent()
                for setting in settings(section, type(node)):
                    formatter.write_text(f"{setting.key}={_value(config, setting.key)}")
                    formatter.indent()
                    formatter.write_text(setting.meaning)
                    formatter.dedent()
                formatter.dedent()


class Group(click.Group):
    """Commands below a common name.

    Args:
        instead: options that it does not have, and the sentence that says what to write instead.
    """

    def __init__(self, name: str, commands: Sequence[Command], summary: str, instead: Mapping[str, str]) -> None:
        settings = {"help_option_names": ["-h", "--help"], "max_content_width": WIDTH}
        super().__init__(name, list(commands), help=summary, context_settings=settings)
        self.instead = instead

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run the command line `argv` (default: that of this process); returns the exit status."""
        return run_click(self, sys.argv[1:] if argv is None else argv, f"robometer {self.name}")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See `click.Command`."""
        if not args and not ctx.resilient_parsing:  # which completion does
            raise click.UsageError(f"Say what to do: {', '.join(self.commands)}.", ctx)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            name = error.option_name.partition("=")[0]
            raise click.UsageError(
                self.instead.get(name, f"There is no option {name} before the action."), ctx
            ) from error

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The actions, what they do, and an example of each."""
        commands = [command for command in self.commands.values() if isinstance(command, Command)]
        formatter.write_usage(f"robometer {self.name}", "ACTION INPUTS [--options] [key=value ...]")
        formatter.write_paragraph()
        formatter.write_text(f"{self.help} `robometer {self.name} ACTION --help` tells more.")
        with formatter.section("Actions"):
            formatter.write_dl([(command.name or "", command.summary) for command in commands])
        with formatter.section("Examples"):
            formatter.write("".join(f"  {command.examples.strip().splitlines()[0]}\n" for command in commands))
        with formatter.section("Exit status"):
            formatter.write_text(EXIT_STATUSES)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """See `click.Group`."""
        if args[0] in self.commands:
            return super().resolve_command(ctx, args)
        actions = ", ".join(self.commands)
        near = did_you_mean(args[0], self.commands)
        raise click.UsageError(f"{args[0]!r} is none of the actions {actions}.{near}", ctx)


def _value(config: Config, key: str) -> str:
    value: Any = attrgetter(key)(config)
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


class _Arguments(click.ParamType[str]):
    """Inputs and settings, mixed; completes keys of settings and names of files."""

    name = "argument"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """See `click.ParamType`."""
        keys = [f"{key}=" for key in setting_keys() if key.startswith(incomplete)] if incomplete else []
        return [CompletionItem(key) for key in keys] or [CompletionItem(incomplete, type="file")]


def run_click(command: click.Command, argv: Sequence[str], program: str) -> int:
    """Run a command line; returns the exit status, and prints a mistake as one line."""
    try:
        status = command.main(list(argv), prog_name=program, standalone_mode=False)
    except click.ClickException as error:
        ctx = getattr(error, "ctx", None)
        where = f" See `{ctx.command_path} --help`." if ctx else ""
        sentence = redacted(" ".join(error.format_message().split()))
        print(f"error: {sentence}{'' if sentence.endswith(('.', '?')) else '.'}{where}", file=sys.stderr)
        return 2
    except click.Abort:
        return 130
    return status if isinstance(status, int) else 0
