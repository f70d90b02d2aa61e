"""Run a plan: each stage as soon as those that it names are done, as Ray jobs of a cluster or as processes here.

What is on disk decides. So a run that was killed goes on where it was: a stage that still runs is awaited, one that
ended meanwhile is done, and one that was cut off runs again, which continues where it stopped.
"""

from __future__ import annotations

import logging
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Protocol

from pipelines.cluster import ClusterError
from pipelines.plan import FAILED, INGEST, RUNNING, SUCCEEDED, Plan, Record, Records, Stage
from pipelines.submission import INTERRUPTED, PATIENCE_S, Jobs, Submission, exit_status, new_id
from robometer.errors import RobometerError
from robometer.runs.outputs import exclusive_folder, started_at
from robometer.runs.provenance import commit
from robometer.runs.redaction import redacted
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

    def start(self, record: Record, line: Sequence[str], started: Callable[[Record], None]) -> None:
        """Start the line of a stage. `started` writes its record down, before anything can be lost."""
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

    def start(self, record: Record, line: Sequence[str], started: Callable[[Record], None]) -> None:
        """See `Launcher`."""
        child = subprocess.Popen([sys.executable, "-m", "jobs.cli", *line])
        pid = str(child.pid)
        self._children[pid] = child
        started(replace(record, process=[pid, started_at(child.pid)]))

    def ended(self, record: Record) -> int | None:
        """See `Launcher`; a process of a killed run is nobody's child, so that its exit status is lost."""
        if not record.process:
            raise _other_kind(record, "as a Ray job: give the cluster's --address")
        pid, since = record.process
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
    _silent_since: dict[str, float] = field(default_factory=dict)

    def start(self, record: Record, line: Sequence[str], started: Callable[[Record], None]) -> None:
        """See `Launcher`."""
        record = replace(record, job=new_id(line[0]))
        started(record)
        self.jobs.submit(Submission(line, self.runtime_env), record.job)

    def ended(self, record: Record) -> int | None:
        """See `Launcher`; a head that was restarted knows nothing of its jobs."""
        if not record.job:
            raise _other_kind(record, "as a process: add --here")
        try:
            job = self.jobs.find(record.job)
        except ClusterError:
            since = self._silent_since.setdefault(record.job, time.monotonic())
            if time.monotonic() - since > PATIENCE_S:
                raise
            return None
        self._silent_since.pop(record.job, None)
        if job is None:
            return GONE
        return exit_status(job) if job.status.is_terminal() else None

    def explain(self, record: Record) -> str:
        """See `Launcher`."""
        try:
            return "\n".join(self.jobs.log(record.job).splitlines()[-LOG_LINES:])
        except ClusterError as error:  # it may have gone with its node
            return f"(its log is gone: {error})"


def _other_kind(record: Record, how: str) -> PipelineError:
    what = record.job or f"process {record.process[0]}"
    return PipelineError(f"{what} was started {how} to await it, or wait until it has ended")


def run_pipeline(plan: Plan, launcher: Launcher, again: Sequence[str] = ()) -> None:
    """Run what is not done.

    Args:
        again: stages to run even if they are done.

    Raises:
        PipelineError: a stage failed. All that does not depend on it has run.
        InUseError: another run of this plan is alive.
        ClusterError: the cluster cannot be used.
    """
    with exclusive_folder("output", plan.output.path), _stopped_as_by_ctrl_c(launcher):
        run = _Run(plan, launcher, again)
        try:
            run.all()
        except BaseException:
            run.stopped()
            raise
        run.check()


@contextmanager
def _stopped_as_by_ctrl_c(launcher: Launcher) -> Iterator[None]:
    """Let `ray job stop` end a run with words; a process goes on by itself when its parent is ended by a signal."""
    if isinstance(launcher, Processes):
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
            for record in self.records.left_running(name):
                self._find_again(name, record)
        while True:
            for stage in self.plan.stages.values():
                if self._can_start(stage):
                    self._start(stage)
            if not self.running:
                return
            time.sleep(POLL_S if self.plan.output.is_local else 5 * POLL_S)  # each look costs requests there
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
            self.records.write(name, replace(record, state=FAILED, ended=_now()))
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
        if not self.records.is_done(stage):
            return True
        if stage.name in self.again:
            self._move_away(stage)
            return True
        self.ran.add(stage.name)
        logger.info("%s: done before%s", stage.name, _in(self.records.place(stage)))
        record = self.records.read(stage)
        if record is not None and record.commit != commit():
            logger.warning(
                "%s was made by the code of %s, and this is %s; --again %s makes it anew",
                *(stage.name, record.commit or "another version", commit(), stage.name),
            )
        return False

    def _move_away(self, stage: Stage) -> None:
        """Make room for another output of the same inputs; a corpus stays, since an ingest adds to it.

        Raises:
            PipelineError: the output lies in a bucket, where nothing can be moved.
        """
        if not stage.has_output or stage.command == INGEST:
            return
        if not self.plan.output.is_local:
            raise PipelineError(
                f"--again {stage.name}: its output is in a bucket, where no folder can be renamed. Delete or copy "
                f"{self.records.place(stage)}, then rerun without --again"
            )
        place = Path(self.records.place(stage))
        if place.exists():
            before = place.with_name(f"{place.name}.before-{datetime.now():%Y%m%dT%H%M%S}")
            place.rename(before)
            logger.info("%s: its output is kept as %s", stage.name, before)

    def _start(self, stage: Stage, tries: int = 1) -> None:
        line = self.records.line(stage)
        shown = [redacted(word) for word in line]
        record = Record(self.records.key(stage) or "", RUNNING, shown, _now(), commit(), tries=tries)
        self.started.add(stage.name)

        def started(record: Record) -> None:
            self.running[stage.name] = record
            self.records.write(stage.name, record)
            logger.info("%s: runs%s", stage.name, f" as job {record.job}" if record.job else "")

        logger.info("%s: robometer %s", stage.name, shlex.join(shown))
        self.launcher.start(record, line, started)

    def _end(self, stage: Stage, record: Record, status: int) -> None:
        self.running.pop(stage.name, None)
        if record.key != self.records.key(stage):  # it began with other inputs; what it made counts for those
            logger.info("%s: ended with status %d, but its inputs have changed since it began", stage.name, status)
            self._write_end(stage, record, status)
            return
        if status == GONE and stage.name not in self.started:  # of a run that was killed: to run it again does no harm
            self._start(stage, record.tries)
            return
        if status == 0 and not self.records.is_there(stage):
            logger.error("%s ended well, but wrote nothing%s.", stage.name, _in(self.records.place(stage)))
            status = 1
        ended = self._write_end(stage, record, status)
        if not status:
            self.ran.add(stage.name)
            logger.info("%s: done%s", stage.name, _in(self.records.place(stage)))
        elif status != INTERRUPTED and record.tries <= self.plan.retries:
            tries = record.tries + 1
            logger.warning("%s: failed with status %d; try %d of %d", stage.name, status, tries, self.plan.retries + 1)
            self._start(stage, tries)
        else:
            self.failed[stage.name] = ended
            said = self.launcher.explain(ended)
            logger.error("%s: failed with status %d%s", stage.name, status, f". It said:\n{said}" if said else "")

    def _write_end(self, stage: Stage, record: Record, status: int) -> Record:
        ended = replace(record, state=FAILED if status else SUCCEEDED, ended=_now(), status=status)
        self.records.write(stage.name, ended)
        return ended

    def stopped(self) -> None:
        """Say what goes on, after Ctrl-C or an error."""
        if isinstance(self.launcher, Processes):
            self.launcher.wait(30)
        for name, record in self.running.items():
            if record.job:
                logger.info("%s goes on as job %s; stop it: robometer submit --stop %s", name, record.job, record.job)

    def check(self) -> None:
        """Raise where a stage failed, or did not run for another reason."""
        left = [name for name in self.plan.stages if name not in self.ran and name not in self.failed]
        if not (self.failed or left):
            return
        what = " and ".join(f"{name} (status {record.status})" for name, record in self.failed.items())
        waiting = f"{' and '.join(left)} did not run" if left else ""
        if what:
            raise PipelineError(
                f"{what} failed{f', so that {waiting}' if left else ''}. Mend the cause, then rerun the same command."
            )
        raise PipelineError(f"{waiting}: inputs changed in the middle. Rerun the same command.")


def state_table(plan: Plan) -> str:
    """What is done, what is not, and where, as text."""
    records, rows = Records(plan), []
    for name, stage in plan.stages.items():
        record = records.read(stage)
        place = records.place(stage) if records.key(stage) is not None else ""
        if records.is_done(stage):
            state = "done"
        elif records.key(stage) is None:
            state = "waits"
        elif record is None:
            state, place = "to do", ""
        else:
            state = {RUNNING: "ran when last seen", FAILED: "failed", SUCCEEDED: "its output is gone"}[record.state]
        rows.append([name, state, record.started if record else "", _took(record), record.job if record else "", place])
    return table(["stage", "state", "started", "took", "job", "output"], rows)


def _took(record: Record | None) -> str:
    if record is None or not record.ended:
        return ""
    return str(datetime.fromisoformat(record.ended) - datetime.fromisoformat(record.started))


def _in(place: str) -> str:
    return f", {place}" if place else ""


def _now() -> str:
    return datetime.now().isoformat(" ", "seconds")
