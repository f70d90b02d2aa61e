"""Lines of Ray and its libraries that are kept off the screen, since no user can do anything about them.

Ray prints the lines of workers on the driver's screen. It leaves out those that match `RAY_DEDUP_LOGS_SKIP_REGEX`, and
always prints those that match `RAY_DEDUP_LOGS_ALLOW_REGEX`, even if they look alike. It reads both when it is imported.
The log files keep all lines.
"""

from __future__ import annotations

import logging
import os
import re
import warnings

LINES = (
    # Ray Data and Ray Train pass references to their actors, and restart these themselves.
    r"core_worker\.cc:\d+: Actor with class name: .* has constructor arguments in the object store",
    # `pipelines.cluster.watched` says what work waits for, and for how long; Ray also says it of work that goes on.
    r"Cluster resources are not enough to run any task from ",
    # Ray Serve's controller kills itself in the middle of the call that asks it to end.
    r"Task ServeController\.graceful_shutdown failed\. There are infinite retries remaining",
    # Ray's own actors use no CPU, so that more processes than cores are normal.
    r"WARNING: \d+ PYTHON worker processes have been started on node",
    # We disabled them; ours take their place.
    r"Progress bars disabled\. To enable, set `ray\.data\.DataContext",
    # When Ray Tune stops a trial, its placement group is cleaned up afterwards.
    r"Detected that the Ray Train controller actor .* is dead\. Cleaning up placement group",
    # We report checkpoints ourselves.
    r"Reporting training result \d+: TrainingReport\(",
    r"Model weights successfully saved to ",
    # A Ray that was started here gives its clients the token itself.
    r"Token authentication is enabled for this Ray cluster\. Set RAY_AUTH_MODE=disabled to opt out",
    # `robometer serve` has its own lines for these.
    r"Started Serve in namespace ",
    r"Connecting to existing Serve app in namespace ",
    r"Application '\w+' is ready at ",
    # An idle worker's native part prints this when it ends.
    r"^\[mutex\.cc : \d+\] RAW: (Lock blocking|Lock returning|Unlock) ",
    # The new API has no `max_restarts` and `max_task_retries` yet.
    r"`ray_remote_args` is deprecated and will be removed in Ray",
)

PROGRESS = r"^(\d\d:\d\d:\d\d INFO )?\w+ \d+/\d+(,|$)"
"""Our lines of progress (`pipelines.cluster.progress_bar`)."""

_LOGGERS = (
    "ray._private.authentication.authentication_token_setup",
    "ray.data._internal.execution.resource_manager",
    "ray.data._internal.progress",
    "ray.serve",
)
"""Loggers of the driver that print some of `LINES`."""

_SETTINGS = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # and the lines that replace them without a terminal
    "RAY_DATA_LOG_LEVEL": "WARNING",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    # A call to Ray after its end must fail, and not join or start another cluster.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # a table of Ray Tune's settings, which no `verbose` switches off
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # else it logs every table that it makes
}

_FOREIGN = re.compile("|".join(LINES))


def silence() -> None:
    """Keep `LINES` off the screen. Call it before Ray is imported, and after it for the warnings."""
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", _FOREIGN.pattern)
    os.environ.setdefault("RAY_DEDUP_LOGS_ALLOW_REGEX", PROGRESS)
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", message=LINES[-1])
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(is_ours)


def is_ours(record: logging.LogRecord) -> bool:
    """Whether a log record matches none of `LINES`."""
    return not _FOREIGN.search(record.getMessage())
