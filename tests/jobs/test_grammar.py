"""One grammar for all commands: inputs, options, settings, help, completion, and mistakes in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from jobs import cli, evaluate, ingest, train
from jobs.grammar import Call, Command, Inputs, SettingOption, option, stands_for
from robometer import __version__
from robometer.errors import RobometerError

PATHS = ("data ü", "robot (copy)", "a,b", "lr=0.1/best", "a=b", "it's", 'say "hi"', "'quoted'", "[1]", "{a: b}", "a${b",
         "a${oc.env:HOME}", "back\\slash", "#1", "日本語", "null", "1e5", "x y ")  # fmt: skip


def calls() -> tuple[Command, list[Call]]:
    """A command that records how it was called."""
    recorded: list[Call] = []
    command = Command(
        "ingest",
        recorded.append,
        "Summary.",
        inputs=Inputs("[RAW]", "Raw data.", values=stands_for("ingest.input")),
        options=[
            SettingOption("--corpus", "corpus.path", "The corpus."),
            SettingOption("--port", "serve.port", "A port.", metavar="PORT"),
            option("--repair", "A flag.", is_flag=True),
        ],
        details={},
        examples="robometer ingest",
        sections=("ingest",),
        instead={"--old": "Write --corpus FOLDER."},
    )
    return command, recorded


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call_of(*arguments: str) -> Call:
    command, recorded = calls()
    assert command(arguments) == 0
    (call,) = recorded
    return call


def test_inputs_options_and_settings_stand_in_any_order() -> None:
    call = call_of("train.steps=7", "raw", "--repair", "--corpus", "c", "ingest.split=seen", "--port=9000")
    config = call.config
    assert (call.inputs, config.ingest.input, config.corpus.path, config.serve.port) == (["raw"], "raw", "c", 9000)
    assert (config.train.steps, config.ingest.split, call.options) == (7, "seen", {"repair": True})
    assert call.keys == {"train.steps", "ingest.split", "ingest.input", "corpus.path", "serve.port"}


@pytest.mark.parametrize("path", PATHS)
def test_any_path_of_a_shell_means_itself(path: str) -> None:
    call = call_of(path, "--corpus", path)
    assert (call.config.ingest.input, call.config.corpus.path) == (path, path)


@pytest.mark.parametrize("path", ["-x", "--corpus", "train.steps=5", "recipe=quickstart"])
def test_what_follows_two_dashes_is_an_input(path: str) -> None:
    call = call_of("train.steps=7", "--", path)
    assert (call.inputs, call.config.train.steps) == ([path], 7)


def test_a_file_whose_name_looks_like_a_mistyped_setting_is_a_file() -> None:
    Path("v1.2=final").touch()
    assert call_of("v1.2=final").inputs == ["v1.2=final"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--corpsu", "x"], "There is no option --corpsu. Did you mean --corpus?"),
        (["--max-frames", "4"], "There is no option --max-frames. Settings have no dashes: ingest.max_frames=..."),
        (["--old=x"], "There is no option --old. Write --corpus FOLDER."),
        (["ingest.spilt=x"], "There is no setting ingest.spilt. Did you mean ingest.split?"),
        (["v1.2=final"], "There is no setting v1.2."),
        (["split=seen"], "There is no setting split. Did you mean ingest.split?"),
        (["ingest.source=lerobot"], "ingest.source is now called ingest.format. Write ingest.format=..."),
        (["recipe=quikstart"], "Did you mean quickstart?"),
        (["raw", "more"], "'more' is neither an option nor a setting such as train.steps=500"),
        (["raw", "ingest.input=x"], "RAW and ingest.input are the same. Give one of them."),
        (["--corpus", "c", "corpus.path=x"], "--corpus and corpus.path are the same. Give one of them."),
        (["--port", "many"], "serve.port='many' must be a whole number."),
        (["--corpus"], "--corpus"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, recorded = calls()
    assert command(arguments) == 2 and not recorded
    output = capsys.readouterr()
    assert output.err.startswith("error: ") and output.err.count("\n") == 1 and not output.out
    assert sentence in output.err


def test_the_exit_status_says_whose_fault_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    def command(error: BaseException) -> Command:
        def run(call: Call) -> None:
            raise error

        return Command("train", run, "Summary.", details={}, examples="robometer train", sections=())

    assert command(RobometerError("Mistake."))([]) == 2
    assert command(PermissionError(13, "Permission denied", "x"))([]) == 2
    assert command(KeyboardInterrupt())([]) == 130
    assert capsys.readouterr().err.splitlines() == [
        "error: Mistake.",
        "error: [Errno 13] Permission denied: 'x'. Fix the cause, then rerun the same command.",
        "Interrupted. Rerun the same command to continue.",
    ]
    with pytest.raises(ZeroDivisionError):  # Python ends with status 1 and a traceback
        command(ZeroDivisionError())([])


def test_several_scorers_are_compared_with_the_first() -> None:
    values = evaluate.COMMAND.inputs.values(["a", "baseline:clock", "http://host"])
    assert values == {"evaluate.scorer": "a", "evaluate.against": ["baseline:clock", "http://host"]}
    assert evaluate.COMMAND.inputs.values(["a"]) == {"evaluate.scorer": "a"}


def every_command() -> Iterator[tuple[str, Any]]:
    for name in cli.COMMANDS:
        command = cli.COMMAND.get_command(click.Context(cli.COMMAND), name)  # type: ignore[attr-defined]
        if isinstance(command, click.Group):
            yield from ((f"{name} {action}", command.commands[action]) for action in command.commands)
        else:
            yield name, command


@pytest.mark.parametrize(
    ("name", "command"), every_command(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_has_help_with_sections_and_examples(
    name: str, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert cli.main([*name.split(), "-h"]) == 0 and capsys.readouterr().out == text
    usage = "[--options] STAGE ..." if name == "submit" else "[--options] [key=value ...]"
    assert text.startswith(f"Usage: robometer {name} ") and usage in text
    sections = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert sections[0] in ("Inputs:", "Options:") and {"Options:", "Examples:", "Exit status:"} <= set(sections)
    assert f"robometer {name}" in text[text.index("Examples:") :]
    for param in command.params:
        assert not isinstance(param, click.Option) or param.help
    for section in command.sections:
        assert f"  {section}: " in text


def test_options_that_name_one_thing_have_one_name() -> None:
    names: dict[str, set[str]] = {}
    for _, command in every_command():
        for param in command.params:
            if isinstance(param, SettingOption):
                names.setdefault(param.setting, set()).add(param.flag)
    assert all(len(flags) == 1 for flags in names.values())
    assert {flag for key, (flag,) in names.items() if key.endswith(".output")} == {"--output"}


def test_a_mistyped_command_gets_the_nearest_one(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, sentence in (
        (["trian"], "There is no command 'trian'. Did you mean train?"),
        (["corpus", "shwo"], "'shwo' is none of the actions show, verify, compact, export. Did you mean show?"),
        (["corpus", "corpus.path=x"], "is none of the actions"),
        (["corpus"], "Say what to do: show, verify, compact, export."),
        (["corpus", "--show=page"], "robometer corpus show CORPUS --page FILE"),
        (["--verison"], "--verison"),
        (["score", "v.mp4", "--task", "t", "--url", "http://host"], "Write --scorer URL."),
        (["publish", "best", "--to=mlflow"], "Write --output FOLDER, --mlflow NAME or --hub ORG/NAME."),
    ):
        assert cli.main(arguments) == 2
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1, error


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"robometer {__version__}\n"
    assert cli.main([]) == cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("robometer tr", {"train"}),
        ("robometer train --out", {"--output"}),
        ("robometer train train.st", {"train.steps="}),
        ("robometer corpus ver", {"verify"}),
    ],
)
def test_the_shell_completes_commands_options_and_settings(words: str, expected: set[str]) -> None:
    environment = {**os.environ, "_ROBOMETER_COMPLETE": "bash_complete", "COMP_WORDS": words}
    environment |= {"COMP_CWORD": str(len(words.split()) - 1), "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    code = "import sys; sys.argv[0] = 'robometer'; from jobs.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == expected, done.stderr


@pytest.mark.parametrize("rows", [9, 9999])
def test_a_reader_that_stops_early_is_no_mistake(rows: int) -> None:
    code = f"""if True:
        from jobs.grammar import Command
        run = lambda call: print("row\\n" * {rows})
        many = Command("many", run, "Rows.", details={{}}, examples="many", sections=())
        raise SystemExit(many([]))"""
    command, root = [sys.executable, "-c", code], Path(cli.__file__).parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root) as process:
        assert process.stdout and process.stderr
        process.stdout.close()  # before it writes, as `| head -0` does
        assert process.stderr.read() == b""


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from jobs.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
    for name in (
        "train",
        "sweep",
        "ingest",
        "embed",
        "evaluate",
        "serve",
        "score",
        "publish",
        "simulate",
        "checkpoint",
    ):
        command = [sys.executable, "-c", code, name, "--help"]
        environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
        assert not {"ray", "torch", "transformers", "hydra", "mlflow"} & set(done.stderr.split()), name


def test_a_job_module_and_the_command_are_one() -> None:
    assert cli.COMMAND.get_command(click.Context(cli.COMMAND), "train") is train.main  # type: ignore[attr-defined]
    assert ingest.main.inputs.values(["raw"]) == {"ingest.input": "raw"}
