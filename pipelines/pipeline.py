"""Run a plan: each stage as soon as those that it names are done, as Ray jobs of a cluster or as processes here.

What is on disk decides. So a run that was killed goes on where it was: a stage that still runs is awaited, one that
ended meanwhile is done, and one that was cut off runs again, which continues where it stopped.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Protocol

from pipelines.plan import FAILED, RUNNING, SUCCEEDED, Plan, Record, Records, Stage
from pipelines.submission import INTERRUPTED, MISTAKE, Jobs, Submission, exit_status, new_id
from robometer.errors import RobometerError
from robometer.runs.outputs import exclusive_folder, started_at
from robometer.text import table

logger = logging.getLogger(__name__)

GONE = -1
"""In place of an exit status: it ended, and nobody knows how."""

POLL_S = 1.0
LOG_LINES = 20
"""Last lines of a failed job's log that are shown."""


class PipelineError(RobometerError):
    """A stage failed, so that the plan is not done. The message names it, and what did not run for that reason."""


class Launcher(Protocol):
    """Where stages run."""

    most: int
    """Stages at a time."""

    def start(self, record: Record, started: Callable[[Record], None]) -> None:
        """Start the stage of a record. `started` writes it down, before anything can be lost."""
        ...

    def ended(self, record: Record) -> int | None:
        """The exit status of a stage; None while it runs, `GONE` where nobody knows how it ended."""
        ...

    def explain(self, record: Record) -> str:
        """What a failed stage printed last, if it is not on the screen."""
        ...


class Processes:
    """Stages as processes of this machine, one at a time, which write to this terminal."""

    most: int = 1

    def __init__(self) -> None:
        self._children = dict[str, subprocess.Popen[bytes]]()

    def start(self, record: Record, started: Callable[[Record], None]) -> None:
        """See `Launcher`."""
        child = subprocess.Popen([sys.executable, "-m", "jobs.cli", *record.line])
        pid = str(child.pid)
        self._children[pid] = child
        started(replace(record, process=[pid, started_at(child.pid)]))

    def ended(self, record: Record) -> int | None:
        """See `Launcher`; a process of a killed run is nobody's child, so that its exit status is lost."""
        pid, since = record.process or ["0", ""]
        if pid in self._children:
            status = self._children[pid].poll()
            return status if status is None or status >= 0 else 1  # a signal ended it
        return None if since and started_at(int(pid)) == since else GONE

    def explain(self, record: Record) -> str:
        """See `Launcher`."""
        return ""

    def wait(self, seconds: float) -> None:
        """Wait for all children, which have been interrupted with this process."""
        deadline_s = time.monotonic() + seconds
        for child in self._children.values():
            try:
                child.wait(max(deadline_s - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                child.kill()


@dataclass
class Cluster:
    """Stages as Ray jobs."""

    jobs: Jobs
    runtime_env: Mapping[str, object] = field(default_factory=dict)
    most: int = sys.maxsize

    def start(self, record: Record, started: Callable[[Record], None]) -> None:
        """See `Launcher`."""
        record = replace(record, job=new_id(record.line[0]))
        started(record)
        self.jobs.submit(Submission(record.line, self.runtime_env), record.job)

    def ended(self, record: Record) -> int | None:
        """See `Launcher`; a head that was restarted knows nothing of its jobs."""
        job = self.jobs.find(record.job) if record.job else None
        if job is None:
            return GONE
        return exit_status(job) if job.status.is_terminal() else None

    def explain(self, record: Record) -> str:
        """See `Launcher`."""
        return "\n".join(self.jobs.log(record.job).splitlines()[-LOG_LINES:])


def run_pipeline(plan: Plan, launcher: Launcher, again: Sequence[str] = ()) -> None:
    """Run what is not done.

    Args:
        again: stages to run even if they are done.

    Raises:
        PipelineError: a stage failed. All that does not depend on it has run.
        InUseError: another run of this plan is alive.
        ClusterError: the cluster cannot be used.
    """
    with exclusive_folder("output", plan.output):
        run = _Run(plan, launcher, again)
        try:
            run.all()
        except KeyboardInterrupt:
            run.interrupted()
            raise
        run.check()


class _Run:
    def __init__(self, plan: Plan, launcher: Launcher, again: Sequence[str]) -> None:
        self.plan, self.launcher, self.records = plan, launcher, Records(plan)
        self.again = {*again, *(one for name in again for one in plan.dependents(name))}
        self.running = dict[str, Record]()
        self.started, self.ran = set[str](), set[str]()
        self.failed = dict[str, Record]()

    def all(self) -> None:
        """Start what can start and look after what runs, until neither is left."""
        for name in self.plan.stages:
            record = self.records.read(name)
            if record is not None and record.state == RUNNING:
                self._find_again(name, record)
        while True:
            for stage in self.plan.stages.values():
                if self._can_start(stage):
                    self._start(stage)
            if not self.running:
                return
            time.sleep(POLL_S)
            for name, record in list(self.running.items()):
                status = self.launcher.ended(record)
                if status is not None:
                    self._end(self.plan.stages[name], record, status)

    def _find_again(self, name: str, record: Record) -> None:
        status = self.launcher.ended(record)
        if status is None:
            where = f"job {record.job}" if record.job else f"process {record.process[0]}"
            logger.info("%s: still runs since %s, as %s", name, record.started, where)
            self.running[name] = record
        elif status == GONE:
            logger.info("%s: was cut off; it continues", name)
        else:
            self._end(self.plan.stages[name], record, status)

    def _can_start(self, stage: Stage) -> bool:
        if stage.name in self.running or stage.name in self.failed or stage.name in self.ran:
            return False
        if len(self.running) >= self.launcher.most:
            return False
        if any(need in self.again and need not in self.ran for need in stage.needs):
            return False
        if not all(self.records.is_done(self.plan.stages[need]) for need in stage.needs):
            return False
        if stage.name in self.again or not self.records.is_done(stage):
            return True
        self.ran.add(stage.name)
        logger.info("%s: done before, %s", stage.name, self.records.place(stage))
        return False

    def _start(self, stage: Stage, tries: int = 1) -> None:
        record = Record(self.records.key(stage) or "", RUNNING, self.records.line(stage), _now(), tries=tries)

        self.started.add(stage.name)

        def started(record: Record) -> None:
            self.running[stage.name] = record
            self.records.write(stage.name, record)

        logger.info("%s: robometer %s", stage.name, subprocess.list2cmdline(record.line))
        self.launcher.start(record, started)
        if record := self.running[stage.name]:
            logger.info("%s: runs%s", stage.name, f" as job {record.job}" if record.job else "")

    def _end(self, stage: Stage, record: Record, status: int) -> None:
        self.running.pop(stage.name, None)
        if status == GONE and stage.name not in self.started:  # of a run that was killed: to run it again does no harm
            self._start(stage, record.tries)
            return
        if status == 0 and not self.records.is_there(stage):
            logger.error("%s ended well, but wrote nothing to %s.", stage.name, self.records.place(stage))
            status = 1
        ended = replace(record, state=FAILED if status else SUCCEEDED, ended=_now(), status=status)
        self.records.write(stage.name, ended)
        if not status:
            self.ran.add(stage.name)
            logger.info("%s: done, %s", stage.name, self.records.place(stage))
        elif status not in (MISTAKE, INTERRUPTED) and record.tries <= self.plan.retries:
            logger.warning(
                "%s: failed with status %d; try %d of %d", stage.name, status, record.tries + 1, self.plan.retries + 1
            )
            self._start(stage, record.tries + 1)
        else:
            self.failed[stage.name] = ended
            said = self.launcher.explain(ended)
            logger.error("%s: failed with status %d%s", stage.name, status, f". It said:\n{said}" if said else "")

    def interrupted(self) -> None:
        """Say what goes on, after Ctrl-C."""
        if isinstance(self.launcher, Processes):
            self.launcher.wait(30)
        for name, record in self.running.items():
            if record.job:
                logger.info("%s goes on as job %s; stop it: robometer submit --stop %s", name, record.job, record.job)

    def check(self) -> None:
        """Raise where a stage failed."""
        if not self.failed:
            return
        after = dict.fromkeys(one for name in self.failed for one in self.plan.dependents(name))
        waiting = f", so that {' and '.join(after)} did not run" if after else ""
        what = " and ".join(f"{name} (status {record.status})" for name, record in self.failed.items())
        raise PipelineError(f"{what} failed{waiting}. Mend the cause, then rerun the same command.")


def state_table(plan: Plan) -> str:
    """What is done, what is not, and where, as text."""
    records, rows = Records(plan), []
    for name, stage in plan.stages.items():
        record = records.read(name)
        if records.is_done(stage):
            state, place = "done", records.place(stage)
        elif records.key(stage) is None:
            state, place = "waits", ""
        elif record is not None and record.key == records.key(stage) and record.state != SUCCEEDED:
            state, place = record.state, records.place(stage)
        else:  # it has never run, or something before it has changed
            state, place = "to do" if record is None else "to do: changed", ""
        seen = record if record is not None and state != "to do" else None
        rows.append([name, state, seen.started if seen else "", _took(seen), seen.job if seen else "", place])
    return table(["stage", "state", "started", "took", "job", "output"], rows)


def _took(record: Record | None) -> str:
    if record is None or not record.ended:
        return ""
    return str(datetime.fromisoformat(record.ended) - datetime.fromisoformat(record.started))


def _now() -> str:
    return datetime.now().isoformat(" ", "seconds")
