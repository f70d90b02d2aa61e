"""Job: run stages that depend on one another (`robometer pipeline`, `python -m jobs.pipeline`)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import click

from jobs.grammar import Call, Command, Inputs, option
from jobs.submit import local_checkout, read_line
from robometer.configs import Config
from robometer.settings import ConfigError, not_a_choice

if TYPE_CHECKING:
    from pipelines.pipeline import Launcher


def pipeline(call: Call) -> None:
    """Run the plan, or show its state."""
    from pipelines.pipeline import run_pipeline, state_table
    from pipelines.plan import read_plan

    (path,), options = call.inputs, call.options
    plan = read_plan(path, _settings_of)
    if wrong := next((name for name in options["again"] if name not in plan.stages), None):
        raise ConfigError(not_a_choice("--again", wrong, list(plan.stages)))
    if not options["status"]:
        run_pipeline(plan, _launcher(options["address"] or "", options["here"]), options["again"])
    print(state_table(plan))


def _settings_of(line: Sequence[str]) -> Config:
    return _read(tuple(line))


@cache  # to compose settings takes a tenth of a second
def _read(line: tuple[str, ...]) -> Config:
    if line[0] == "pipeline":
        raise ConfigError("A stage cannot be a pipeline.")
    try:
        call = read_line(line)
    except click.ClickException as error:
        raise ConfigError(error.format_message()) from error
    if call is None:
        raise ConfigError(f"`robometer {' '.join(line)}` would only print its help.")
    return call.config


def _launcher(address: str, here: bool) -> Launcher:
    from pipelines.cluster import ADDRESS, API_SERVER
    from pipelines.pipeline import Cluster, Processes
    from pipelines.submission import Jobs, inherited_env, working_dir_env

    if here or not (address or os.environ.get(API_SERVER) or os.environ.get(ADDRESS)):
        return Processes()
    jobs = Jobs(address)
    return Cluster(jobs, inherited_env() or working_dir_env(local_checkout()))


COMMAND = Command(
    "pipeline",
    pipeline,
    "Run stages that depend on one another, from raw videos to a published model; what is done is not done again.",
    inputs=Inputs("PLAN", "A YAML file with the stages; docs/pipeline.md describes it.", least=1),
    options=[
        option("--status", "Show what is done, and what is not; run nothing.", is_flag=True),
        option("--again", "Run this stage, and all after it, also if it is done; may be repeated.", multiple=True),
        option("--address", "URL of a cluster's dashboard (default: RAY_API_SERVER_ADDRESS).", metavar="URL"),
        option("--here", "Run the stages as processes of this machine, whatever the environment says.", is_flag=True),
    ],
    details={
        "Reads": "The plan, and what its stages read.",
        "Writes": "Below the plan's output: a folder for each stage, named by the hash of all that it follows from, "
        "and stages/ (what became of each).",
        "Where": "On a cluster, if there is an address, each stage is a Ray job. Otherwise each is a process here.",
        "Rerun": "The same command continues: it awaits the stages that still run, and runs what is missing.",
    },
    examples="""
robometer pipeline drawer.yaml
robometer pipeline drawer.yaml --status
robometer submit pipeline /data/drawer.yaml     # the plan runs on the cluster too
""",
    sections=(),
    instead={"--dry-run": "Write --status.", "--force": "Write --again STAGE."},
)

main = COMMAND

if __name__ == "__main__":
    raise SystemExit(main())
