"""Lines that Ray, and what runs in it, print about themselves, and that no user can do anything about. Exactly these.

What workers print comes to the driver's screen through Ray, which leaves out what `RAY_DEDUP_LOGS_SKIP_REGEX`
matches, and prints every line that `RAY_DEDUP_LOGS_ALLOW_REGEX` matches, however alike it is to another. It reads both
when it is imported. Their log files keep all of it.
"""

from __future__ import annotations

import logging
import os
import re
import warnings

LINES = (
    # Ray Data hands every actor its work by a reference, and Ray Train its own watcher; both restart them.
    r"core_worker\.cc:\d+: Actor with class name: .* has constructor arguments in the object store",
    # Ray Serve's controller ends by killing itself in the middle of the call that asks it to.
    r"Task ServeController\.graceful_shutdown failed\. There are infinite retries remaining",
    # Ray's own actors take no CPU, so that more processes than cores is how it works.
    r"WARNING: \d+ PYTHON worker processes have been started on node",
    # It was we who disabled them, for our own.
    r"Progress bars disabled\. To enable, set `ray\.data\.DataContext",
    # A trial that Ray Tune stops leaves its placement group to be cleaned up.
    r"Detected that the Ray Train controller actor .* is dead\. Cleaning up placement group",
    # We report checkpoints ourselves.
    r"Reporting training result \d+: TrainingReport\(",
    r"Model weights successfully saved to ",
    # A Ray that was started here wants its own token of every client; nobody has to do anything.
    r"Token authentication is enabled for this Ray cluster\. Set RAY_AUTH_MODE=disabled to opt out",
    # `robometer serve` says in its own words what it does.
    r"Started Serve in namespace ",
    r"Connecting to existing Serve app in namespace ",
    r"Application '\w+' is ready at ",
    # What the native part of an idle worker says while it ends itself.
    r"^\[mutex\.cc : \d+\] RAW: (Lock blocking|Lock returning|Unlock) ",
    # The new API has no name for `max_restarts` and `max_task_retries`.
    r"`ray_remote_args` is deprecated and will be removed in Ray",
)

PROGRESS = r"^(\d\d:\d\d:\d\d INFO )?\w+ \d+/\d+(,|$)"
"""Our own lines of progress (`pipelines.cluster.progress_bar`)."""

_LOGGERS = (
    "ray._private.authentication.authentication_token_setup",
    "ray.data._internal.progress",
    "ray.serve",
)
"""Where the driver logs some of `LINES`."""

_SETTINGS = {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # and what stands in their place where there is no terminal
    "RAY_DATA_LOG_LEVEL": "WARNING",
    "RAY_TRAIN_ENABLE_V2_MIGRATION_WARNINGS": "0",
    # What calls Ray when it is shut down fails, and does not join any cluster of this machine, or start one.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "MLFLOW_LOGGING_LEVEL": "WARNING",  # it tells of every table that it makes
}

_FOREIGN = re.compile("|".join(LINES))


def silence() -> None:
    """Keep `LINES` off the screen; before Ray is imported, and for its warnings after it too."""
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", _FOREIGN.pattern)
    os.environ.setdefault("RAY_DEDUP_LOGS_ALLOW_REGEX", PROGRESS)
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", message=LINES[-1])
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(is_ours)


def is_ours(record: logging.LogRecord) -> bool:
    """Whether a line of the log is none of `LINES`."""
    return not _FOREIGN.search(record.getMessage())
