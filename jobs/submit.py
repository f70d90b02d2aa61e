"""Job: run another command on a cluster (`robometer submit`)."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import yaml

from jobs.grammar import Call, Command, Group, Inputs, option
from robometer.configs import load
from robometer.runs.redaction import redacted
from robometer.settings import ConfigError, did_you_mean

if TYPE_CHECKING:
    from pipelines.submission import Jobs, Submission

logger = logging.getLogger(__name__)

STAGES = ("ingest", "corpus", "embed", "simulate", "train", "sweep", "evaluate", "report", "publish", "pipeline")


class Submit(Command):
    """A command whose inputs are another command's line: what follows the stage's name is not read here."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> click.Context:
        """See `click.Command`."""
        return super().make_context(info_name, args, parent, allow_interspersed_args=False, **extra)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """See `click.Command`."""
        return ["[--options]", self.inputs.usage]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See `click.Command`."""
        try:
            return click.Command.parse_args(self, ctx, args)
        except click.NoSuchOption as error:
            raise self._no_such_option(error, ctx) from error

    def _call(self, ctx: click.Context) -> Call:
        line = list(ctx.params.pop("arguments"))
        if not ctx.params["stop"]:
            self._check_count(line, ctx)
            if read_line(line) is None:
                raise click.UsageError(f"`robometer {' '.join(line)}` prints its help here, without `submit`.", ctx)
        return Call(load([]), line, ctx.params, frozenset())


def read_line(line: Sequence[str]) -> Call | None:
    """What the line of a stage asks for, read here, where a mistake costs nothing; None if it asks for help.

    Raises:
        click.ClickException, RobometerError: the stage would refuse it.
    """
    name, arguments = line[0], list(line[1:])
    if name not in STAGES:
        raise click.UsageError(f"{name!r} is none of the stages {', '.join(STAGES)}.{did_you_mean(name, STAGES)}")
    command: Any = importlib.import_module(f"jobs.{name}").COMMAND
    if isinstance(command, Group):
        action = arguments.pop(0) if arguments else ""
        if action not in command.commands:
            raise click.UsageError(f"`robometer {name}` needs one of {', '.join(command.commands)}.")
        command = command.commands[action]
    return None if {"-h", "--help"} & set(arguments) else command.read(arguments)


def local_checkout() -> str:
    """The working folder, if it is a checkout of Robometer; else empty."""
    return "." if Path("pyproject.toml").is_file() and Path("jobs/cli.py").is_file() else ""


def submit(call: Call) -> None:
    """Submit, follow, and end with the status of the job."""
    from pipelines.submission import Jobs

    options = call.options
    if options["stop"]:
        ended = not Jobs(options["address"] or "").stop(options["stop"])
        print(f"{options['stop']} {'had ended' if ended else 'is being stopped'}")
        return
    if options["retries"] and options["detach"]:
        raise ConfigError("--retries follows the job, and --detach does not. Give one of them.")
    status = _run(Jobs(options["address"] or ""), _submission(call), options["retries"], options["detach"])
    if status:
        raise click.exceptions.Exit(status)


def _submission(call: Call) -> Submission:
    from pipelines.submission import Submission, working_dir_env

    options = call.options
    folder = local_checkout() if options["working_dir"] is None else options["working_dir"]
    environment = working_dir_env(folder, options["env"])
    if options["runtime_env"]:
        try:
            own = yaml.safe_load(Path(options["runtime_env"]).read_text())
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(f"--runtime-env={options['runtime_env']} cannot be read: {error}") from error
        if not isinstance(own, dict):
            raise ConfigError(
                f"--runtime-env={options['runtime_env']} must hold the keys of a Ray runtime environment."
            )
        environment = _joined(environment, own)
    logger.info("%s", f"The job runs in a copy of {folder}" if folder else "The job uses the Robometer of the cluster")
    labels = dict(_label(text) for text in options["label"])
    return Submission(call.inputs, environment, options["cpus"], options["gpus"], labels)


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Both environments; variables and exclusions add up, else the second counts."""
    joined = first | second
    if variables := (first.get("env_vars") or {}) | (second.get("env_vars") or {}):
        joined["env_vars"] = variables
    if excludes := [*first.get("excludes", ()), *(second.get("excludes") or ())]:
        joined["excludes"] = excludes
    return joined


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ConfigError(f"--label={text} is not NAME=VALUE.")
    return name, value


def _run(jobs: Jobs, what: Submission, retries: int, detach: bool) -> int:
    from pipelines.submission import INTERRUPTED, new_id

    status = 0
    if redacted(what.entrypoint) != what.entrypoint:
        logger.warning(
            "The line holds a secret, which whoever may see the cluster's jobs can read. Write ${oc.env:NAME} in its "
            "place, and give the variable to the cluster."
        )
    for number in range(1, retries + 2):
        job_id = new_id(what.command[0])
        logger.info("Submitting %s: %s", job_id, redacted(what.entrypoint))
        state = "may have been submitted"
        try:
            jobs.submit(what, job_id)
            state = "goes on"
            if detach:
                print(job_id)
                return 0
            status = jobs.follow(job_id, _show)
        except KeyboardInterrupt:
            print(f"\nThe job {state}. Stop it: robometer submit --stop {job_id}", file=sys.stderr)
            return INTERRUPTED
        logger.info("%s ended with status %d", job_id, status)
        if status in (0, INTERRUPTED) or number > retries:
            break
        logger.warning("The job failed. Try %d of %d continues where it stopped.", number + 1, retries + 1)
    return status


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


COMMAND = Submit(
    "submit",
    submit,
    "Run a command on a cluster: submit it as a Ray job, show what it prints, and end with its exit status.",
    inputs=Inputs("STAGE ...", f"The line of one of {', '.join(STAGES)}, as after `robometer`.", least=1, most=None),
    options=[
        option("--address", "URL of the cluster's dashboard (default: RAY_API_SERVER_ADDRESS).", metavar="URL"),
        option("--detach", "Do not follow the job; print its id.", is_flag=True),
        option(
            "--retries",
            "Submit a job that failed again, so often; it continues where it stopped.",
            type=click.IntRange(min=0),
            default=0,
        ),
        option(
            "--working-dir",
            'Folder or URI that the job runs in a copy of (default: this folder if it is a checkout; "": none, the '
            "cluster has Robometer installed).",
            metavar="FOLDER",
        ),
        option("--runtime-env", "Ray runtime environment in YAML, such as pip or env_vars.", metavar="FILE"),
        option(
            "--env",
            "Give the job this variable of here; may be repeated. Whoever may see the cluster's jobs can read it.",
            multiple=True,
            metavar="NAME",
        ),
        option("--cpus", "CPUs that the command itself reserves; its workers reserve their own.", default=0.0),
        option("--gpus", "GPUs that the command itself reserves.", default=0.0),
        option(
            "--label", "Label that the command's node must have; may be repeated.", multiple=True, metavar="NAME=VALUE"
        ),
        option("--stop", "Stop this job instead.", metavar="ID"),
    ],
    details={
        "Reads": "RAY_API_SERVER_ADDRESS, RAY_AUTH_MODE and RAY_AUTH_TOKEN. The line is checked before it is sent.",
        "Exit": "With the status of the job. Ctrl-C leaves the job running, and says how to stop it.",
    },
    examples="""
robometer submit train --corpus /data/corpus --output /data/run train.steps=500
robometer submit --retries 3 --detach sweep --corpus /data/corpus --output /data/sweep
robometer submit --stop train-1f0c9a7b2e
""",
    sections=(),
    instead={
        "--follow": "A job is followed unless you give --detach.",
        "--wait": "A job is followed unless you give --detach.",
        "--no-wait": "Write --detach.",
        "--token": "Export RAY_AUTH_MODE=token and RAY_AUTH_TOKEN.",
        "--submission-id": "Ray makes the id, and it is printed.",
        "--priority": "Ray has no priorities of jobs.",
        "--entrypoint-num-cpus": "Write --cpus.",
        "--entrypoint-num-gpus": "Write --gpus.",
    },
)

main = COMMAND

if __name__ == "__main__":
    raise SystemExit(main())
