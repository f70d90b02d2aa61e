"""A plan runs stage by stage: in order, once, again where it failed, and on from where it was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.pipeline import _settings_of
from pipelines import pipeline
from pipelines.cluster import ClusterError
from pipelines.pipeline import GONE, Cluster, PipelineError, Processes, run_pipeline, state_table
from pipelines.plan import Plan, Record, Records, read_plan
from robometer.corpus.storage import Storage

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

    def start(self, record: Record, line: Sequence[str], started: Callable[[Record], None]) -> None:
        self.lines.append(list(line))
        self.running += 1
        self.together = max(self.together, self.running)
        started(replace(record, job=f"job-{len(self.lines)}"))

    def ended(self, record: Record) -> int | None:
        left = self.statuses.setdefault(record.line[0], [0])
        status = left.pop(0) if left else 0
        self.running -= status is not None
        if status == 0:
            Storage(record.line[record.line.index("--output") + 1]).write_bytes("made", b"x")
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


@pytest.mark.parametrize(("status", "starts"), [(2, 2), (1, 2), (130, 1)])
def test_any_failure_but_an_interruption_is_tried_again(status: int, starts: int, plan: Plan) -> None:
    failing = Scripted(train=[status] * 9)
    with pytest.raises(PipelineError, match=rf"left \(status {status}\)"):
        run_pipeline(plan, failing)
    assert failing.commands.count("train") == starts, "retries: 1"


@pytest.fixture
def unheard() -> Iterator[Any]:
    """What SIGTERM does outside of a pipeline for the time of a test: by itself it would end all tests."""

    def fail(*_: object) -> None:
        raise AssertionError("nobody waits for SIGTERM")

    before = signal.signal(signal.SIGTERM, fail)
    yield fail
    signal.signal(signal.SIGTERM, before)


def test_a_run_that_is_told_to_stop_says_what_goes_on(
    plan: Plan, caplog: pytest.LogCaptureFixture, unheard: Any
) -> None:
    class Stopped(Scripted):
        def ended(self, record: Record) -> int | None:
            os.kill(os.getpid(), signal.SIGTERM)  # as `ray job stop` does
            return None

    with pytest.raises(KeyboardInterrupt):
        run_pipeline(plan, Stopped())
    assert "left goes on as job job-1; stop it: robometer submit --stop job-1" in caplog.text
    assert signal.getsignal(signal.SIGTERM) == unheard
    after = Scripted()
    run_pipeline(plan, after)
    assert after.commands == ["evaluate", "report"], "the other two were awaited"


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


def test_what_began_with_other_inputs_counts_for_those(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run was killed, and before the next one the line of a stage was changed, while its job still ran."""
    before = running(plan, "left")
    (tmp_path / "plan.yaml").write_text(PLAN.format(folder=tmp_path).replace("train -", "train train.steps=7 -"))
    edited = read_plan(str(tmp_path / "plan.yaml"), _settings_of)
    launcher = Scripted(train=[None, 0, None, 0])
    run_pipeline(edited, launcher)
    assert sorted(launcher.commands) == ["evaluate", "report", "sweep", "train"]
    assert next(line for line in launcher.lines if line[0] == "train")[1] == "train.steps=7"
    assert Records(plan).is_done(plan.stages["left"]), "the job of the earlier line ended well"
    assert Records(plan).place(plan.stages["left"]) == before.line[-1]
    run_pipeline(plan, back := Scripted())
    assert "train" not in back.commands, "the line was changed back"


def test_a_run_says_so_where_a_stage_did_not_run(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline._Run, "_can_start", lambda run, stage: False)
    with pytest.raises(PipelineError, match="left and right and after and last did not run: inputs changed"):
        run_pipeline(plan, Scripted())


def test_again_keeps_what_was_there(plan: Plan) -> None:
    run_pipeline(plan, Scripted())
    place = Path(Records(plan).place(plan.stages["last"]))
    (place / "made").write_text("first")
    run_pipeline(plan, again := Scripted(), ["last"])
    assert again.commands == ["report"] and (place / "made").read_text() == "x"
    [kept] = place.parent.glob(f"{place.name}.before-*")
    assert (kept / "made").read_text() == "first"


def test_again_asks_to_make_room_in_a_bucket(tmp_path: Path, bucket: str) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN.format(folder=bucket))
    plan = read_plan(str(tmp_path / "plan.yaml"), _settings_of)
    run_pipeline(plan, first := Scripted())
    assert len(first.commands) == len(plan.stages)
    with pytest.raises(PipelineError, match=f"where no folder can be renamed. Delete or copy {bucket}/out/last-"):
        run_pipeline(plan, again := Scripted(), ["last"])
    assert again.commands == []
    Storage(Records(plan).place(plan.stages["last"])).remove("made")
    run_pipeline(plan, again)
    assert again.commands == ["report"]


def test_a_stage_that_another_kind_of_run_started_is_not_started_twice(plan: Plan) -> None:
    running(plan, "left")  # as a job
    with pytest.raises(PipelineError, match="job-0 was started as a Ray job: give the cluster's --address"):
        run_pipeline(plan, Processes())


def test_a_cluster_that_is_silent_for_a_moment_is_waited_for(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [ClusterError("reset"), ClusterError("reset"), None]

    class Silent:
        def find(self, job_id: str) -> Any:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        def log(self, job_id: str) -> str:
            raise ClusterError("its node has gone")

    record, cluster = Record("k", "running", [], "", job="job-1"), Cluster(Silent())  # type: ignore[arg-type]
    assert [cluster.ended(record) for _ in range(3)] == [None, None, GONE]
    assert "its log is gone" in cluster.explain(record)
    answers.append(ClusterError("reset"))
    monkeypatch.setattr(pipeline, "PATIENCE_S", -1.0)
    with pytest.raises(ClusterError):
        cluster.ended(record)


def test_a_secret_is_in_no_record(tmp_path: Path) -> None:
    text = f"output: {tmp_path}/out\nstages:\n  a: train --output {{here}} tracking.uri=http://me:word@host:5000\n"
    (tmp_path / "plan.yaml").write_text(text)
    run_pipeline(read_plan(str(tmp_path / "plan.yaml"), _settings_of), secret := Scripted())
    assert "tracking.uri=http://me:word@host:5000" in secret.lines[0]
    assert not [path for path in (tmp_path / "out/stages").iterdir() if "word" in path.read_text()]


def test_processes_have_the_status_of_their_commands(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = dict[str, Record]()

    def run(line: list[str]) -> Record:
        processes.start(Record("k", "running", line, ""), line, lambda record: seen.update(last=record))
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
