"""Stages as Ray jobs: submit one, follow it, submit it again where it failed, stop it.

What Ray has is used as it is (`ray.job_submission`); here it gets sentences for errors, and the exit status of the job.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from pipelines.cluster import ADDRESS, API_SERVER, ClusterError
from robometer.settings import ConfigError

logger = logging.getLogger(__name__)

EXCLUDES = (".git", ".venv", "outputs", "build", "dist", "*.egg-info", "mlflow.db", "mlruns")
"""What is never uploaded with a working directory, beside what its .gitignore names."""

MISTAKE, INTERRUPTED = 2, 130
"""Exit statuses of a command that ended with a sentence, and of one that was stopped."""

POLL_S = 1.0
PATIENCE_S = 60.0
"""How long to wait for a head that has just started, or restarts."""

_STARTING = "No available agent"


@dataclass(frozen=True)
class Submission:
    """A command of ours as a Ray job.

    Attributes:
        command: such as `["train", "--corpus", "/data/corpus"]`.
        runtime_env: Ray's.
        cpus, gpus: that the command itself reserves; its workers reserve their own.
        labels: that the node of the command must have, see Ray's label selectors.
    """

    command: Sequence[str]
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    cpus: float = 0.0
    gpus: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def entrypoint(self) -> str:
        """The shell command that the job runs."""
        return shlex.join(["python", "-m", "jobs.cli", *self.command])


class Jobs:
    """The jobs of a cluster."""

    def __init__(self, address: str = "") -> None:
        """Connect.

        Args:
            address: URL of Ray's dashboard; empty for the environment's, or the cluster of this machine.

        Raises:
            ClusterError: nothing answers there, or it wants another token.
        """
        if address:
            os.environ[API_SERVER] = address  # which Ray prefers to an argument
        self._where = os.environ.get(API_SERVER) or os.environ.get(ADDRESS) or "this machine"
        self._client = self._asked(JobSubmissionClient, address or None)

    def submit(self, what: Submission, job_id: str = "") -> str:
        """Submit, and return the job's id.

        Raises:
            ClusterError: the cluster refused it.
            ConfigError: the working directory is too large or does not exist.
        """
        job_id = job_id or new_id(what.command[0])
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            try:
                return str(
                    self._client.submit_job(
                        entrypoint=what.entrypoint,
                        submission_id=job_id,
                        runtime_env=dict(what.runtime_env),
                        entrypoint_num_cpus=what.cpus or None,
                        entrypoint_num_gpus=what.gpus or None,
                        entrypoint_label_selector=dict(what.labels) or None,
                    )
                )
            except ValueError as error:  # of the runtime environment
                raise ConfigError(f"the job cannot be submitted: {_first_line(error)}") from error
            except (RuntimeError, OSError, RayError) as error:
                if _STARTING in str(error) and time.monotonic() < deadline_s:
                    time.sleep(POLL_S)
                    continue
                raise self._refusal(error) from error

    def find(self, job_id: str) -> JobDetails | None:
        """What Ray knows of a job; None where it knows none of this id, also after the head has lost its memory.

        Raises:
            ClusterError: the head does not answer.
        """
        try:
            job: JobDetails = self._client.get_job_info(job_id)
            return job
        except RuntimeError as error:
            if "status code 404" in str(error) and "does not exist" in str(error):
                return None
            raise self._refusal(error) from error
        except (OSError, RayError) as error:
            raise self._refusal(error) from error

    def stop(self, job_id: str) -> bool:
        """Stop a job; false where it had ended.

        Raises:
            ClusterError: there is no such job, or the head does not answer.
        """
        if self.find(job_id) is None:
            raise ClusterError(f"there is no job {job_id} at {self._where}: see `ray job list`")
        return bool(self._asked(self._client.stop_job, job_id))

    def log(self, job_id: str) -> str:
        """All that a job has printed."""
        return str(self._asked(self._client.get_job_logs, job_id))

    def follow(self, job_id: str, show: Callable[[str], None]) -> int:
        """Show what a job prints until it ends; returns its exit status.

        Raises:
            ClusterError: the head has gone, or no longer knows the job.
        """
        shown, silent_since = 0, 0.0

        def show_new(text: str, start: int) -> int:
            """Show what is new of a part of the log that begins at `start`; returns where it ends."""
            nonlocal shown
            end = start + len(text)
            if end > shown:
                new, shown = text[max(shown - start, 0) :], end
                try:
                    show(new)
                except (OSError, ValueError) as error:
                    raise _ScreenError from error
            return end

        while True:
            try:
                asyncio.run(self._tail(job_id, show_new))
            except _ScreenError as error:
                raise (error.__cause__ or error) from None
            except Exception as error:  # noqa: BLE001  a broken connection raises many kinds
                logger.debug("the log of %s ended: %s", job_id, error)
            try:
                job = self.find(job_id)
            except ClusterError:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > PATIENCE_S:
                    raise
                time.sleep(POLL_S)
                continue
            silent_since = 0.0
            if job is None:
                raise ClusterError(f"{self._where} does not know the job {job_id} any more: was its head restarted?")
            if job.status.is_terminal():
                try:
                    show_new(self.log(job_id), 0)
                except ClusterError as error:  # it may have gone with its node
                    logger.warning("The rest of the log of %s is gone: %s", job_id, error)
                except _ScreenError as error:
                    raise (error.__cause__ or error) from None
                return exit_status(job)
            time.sleep(POLL_S)

    async def _tail(self, job_id: str, show_new: Callable[[str, int], int]) -> None:
        end = 0  # the log comes from its beginning each time
        async for text in self._client.tail_job_logs(job_id):
            end = show_new(text, end)

    def _asked(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except (RuntimeError, OSError, ValueError, RayError) as error:
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> ClusterError:
        reason = _first_line(error)
        if isinstance(error, AuthenticationError):
            remedy = "export RAY_AUTH_MODE=token and the cluster's RAY_AUTH_TOKEN"
        else:
            remedy = f"give --address or export {API_SERVER}=http://HEAD:8265 of a running cluster"
        return ClusterError(f"the cluster at {self._where} refused the request ({reason}): {remedy}")


class _ScreenError(Exception):
    """What a job printed cannot be shown; the cause says why."""


def exit_status(job: JobDetails) -> int:
    """The exit status of a command from that of its job: 0, 2 and 130 as everywhere, else 1."""
    if job.status == JobStatus.SUCCEEDED:
        return 0
    if job.status == JobStatus.STOPPED:
        return INTERRUPTED
    return job.driver_exit_code if job.driver_exit_code in (MISTAKE, INTERRUPTED) else 1


def new_id(stage: str) -> str:
    """An id of a job that names its stage."""
    return f"{stage}-{uuid.uuid4().hex[:10]}"


def working_dir_env(folder: str, names: Sequence[str] = ()) -> dict[str, Any]:
    """The runtime environment of a job that runs in a copy of a folder.

    Args:
        folder: local folder, or a URI that Ray takes; empty for none.
        names: environment variables of this process that the job gets.

    Raises:
        ConfigError: there is no such folder, or a variable is not set.
    """
    if missing := [name for name in names if name not in os.environ]:
        raise ConfigError(f"--env={missing[0]} names a variable that is not set here.")
    environment: dict[str, Any] = {"env_vars": {name: os.environ[name] for name in names}} if names else {}
    if not folder:
        return environment
    if "://" not in folder:
        if not Path(folder).is_dir():
            raise ConfigError(f"--working-dir={folder} is not a folder. Give a checkout of Robometer.")
        environment["excludes"] = list(EXCLUDES)
    return environment | {"working_dir": folder}


def inherited_env() -> dict[str, Any]:
    """The runtime environment of the job that this process drives, for jobs that it submits; empty outside of one."""
    config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return dict(config.get("runtime_env") or {})


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300].rstrip(".:")
