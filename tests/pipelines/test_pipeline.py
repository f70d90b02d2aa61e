"""A plan runs stage by stage: in order, once, again where it failed, and on from where it was killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.pipeline import _settings_of
from pipelines import pipeline
from pipelines.pipeline import GONE, PipelineError, Processes, run_pipeline, state_table
from pipelines.plan import Plan, Record, Records, read_plan

PLAN = """
output: {folder}/out
retries: 1
stages:
  left: train --output {{here}}
  right: sweep --output {{here}}
  after: evaluate {{left}}/best --output {{here}}
  last: report {{after}} --output {{here}}
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "POLL_S", 0.01)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / "plan.yaml").write_text(PLAN.format(folder=tmp_path))
    return read_plan(str(tmp_path / "plan.yaml"), _settings_of)


class Scripted:
    """Answers for each command the statuses that the test gives, and makes the output of those that end well."""

    def __init__(self, most: int = 99, **statuses: list[int | None]) -> None:
        self.most, self.statuses, self.lines = most, statuses, list[list[str]]()
        self.running = self.together = 0

    @property
    def commands(self) -> list[str]:
        return [line[0] for line in self.lines]

    def start(self, record: Record, started: Callable[[Record], None]) -> None:
        self.lines.append(record.line)
        self.running += 1
        self.together = max(self.together, self.running)
        started(replace(record, job=f"job-{len(self.lines)}"))

    def ended(self, record: Record) -> int | None:
        left = self.statuses.setdefault(record.line[0], [0])
        status = left.pop(0) if left else 0
        self.running -= status is not None
        if status == 0:
            output = Path(record.line[record.line.index("--output") + 1])
            output.mkdir(parents=True, exist_ok=True)
            (output / "made").write_text("x")
        return status

    def explain(self, record: Record) -> str:
        return f"{record.job} said no"


def test_stages_run_once_and_in_order(plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    first = Scripted(train=[None, None, 0])
    run_pipeline(plan, first)
    assert first.commands == ["train", "sweep", "evaluate", "report"]
    model = Records(plan).place(plan.stages["left"])
    assert first.lines[2][1] == f"{model}/best" and first.lines[0][-1] == model
    second = Scripted()
    run_pipeline(plan, second)
    assert second.commands == [] and "left: done before" in caplog.text
    again = Scripted()
    run_pipeline(plan, again, ["after"])
    assert again.commands == ["evaluate", "report"], "with all after it"


def test_one_at_a_time_where_there_is_room_for_one(plan: Plan) -> None:
    one, many = Scripted(most=1, train=[None, None, 0]), Scripted(train=[None, None, 0])
    run_pipeline(plan, one)
    assert one.together == 1 and sorted(one.commands) == ["evaluate", "report", "sweep", "train"]
    run_pipeline(plan, many, ["left", "right"])
    assert many.together == 2


def test_a_failure_stops_what_depends_on_it_and_nothing_else(plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    failing = Scripted(train=[1, 1], sweep=[None, None, None, None, 0])
    with pytest.raises(PipelineError, match=r"left \(status 1\) failed, so that after and last did not run"):
        run_pipeline(plan, failing)
    assert sorted(failing.commands) == ["sweep", "train", "train"], "retries: 1"
    assert "job-" in caplog.text and "said no" in caplog.text
    states = {line.split()[0]: line for line in state_table(plan).splitlines()}
    assert "failed" in states["left"] and "done" in states["right"] and "waits" in states["after"]
    mended = Scripted()
    run_pipeline(plan, mended)
    assert mended.commands == ["train", "evaluate", "report"]


@pytest.mark.parametrize("status", [2, 130])
def test_a_mistake_or_an_interruption_is_not_tried_again(status: int, plan: Plan) -> None:
    failing = Scripted(train=[status])
    with pytest.raises(PipelineError, match="left"):
        run_pipeline(plan, failing)
    assert failing.commands.count("train") == 1


def test_a_stage_that_wrote_nothing_has_failed(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Scripted()
    monkeypatch.setattr(nothing, "ended", lambda record: 0)
    with pytest.raises(PipelineError, match=r"left \(status 1\)"):
        run_pipeline(plan, nothing)


def test_a_stage_that_vanishes_again_and_again_has_failed(plan: Plan) -> None:
    vanishing = Scripted(train=[GONE] * 9)
    with pytest.raises(PipelineError, match="left"):
        run_pipeline(plan, vanishing)
    assert vanishing.commands.count("train") == 2, "retries: 1"


def running(plan: Plan, name: str) -> Record:
    """As if the run was killed while this stage ran."""
    records = Records(plan)
    stage = plan.stages[name]
    record = Record(records.key(stage) or "", "running", records.line(stage), "2026-01-01 00:00:00", job="job-0")
    records.write(name, record)
    return record


@pytest.mark.parametrize(
    ("statuses", "starts"),
    [
        ([None, None, 0], []),  # it still runs, and is awaited
        ([0], []),  # it ended meanwhile
        ([GONE, 0], ["train"]),  # it was cut off, and continues
        ([None, GONE, 0], ["train"]),
        ([1, 0], ["train"]),  # it failed meanwhile, and is tried again
    ],
)
def test_a_run_that_was_killed_goes_on(statuses: list[int | None], starts: list[str], plan: Plan) -> None:
    line = running(plan, "left").line
    launcher = Scripted(train=statuses)
    run_pipeline(plan, launcher)
    assert [command for command in launcher.commands if command == "train"] == starts
    assert (line in launcher.lines) == bool(starts)
    assert Records(plan).is_done(plan.stages["last"])


def test_processes_have_the_status_of_their_commands(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = dict[str, Record]()

    def run(line: list[str]) -> Record:
        Processes.start(processes, Record("k", "running", line, ""), lambda record: seen.update(last=record))
        return seen["last"]

    processes = Processes()
    wrong = run(["dance"])
    while (status := processes.ended(wrong)) is None:
        time.sleep(0.05)
    assert status == 2
    killed = run(["--version"])
    subprocess.Popen.send_signal(processes._children[killed.process[0]], signal.SIGKILL)
    while (status := processes.ended(killed)) is None:
        time.sleep(0.05)
    assert status == 1
    assert Processes().ended(killed) == GONE, "a later run is not its parent"
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as alive:
        orphan = replace(killed, process=[str(alive.pid), pipeline.started_at(alive.pid)])
        assert Processes().ended(orphan) is None
        assert Processes().ended(replace(orphan, process=[str(alive.pid), "another"])) == GONE
        alive.kill()
    assert Processes().ended(orphan) == GONE
