"""What must not be on the screen of a run that went well: what Ray, and what runs in it, say about themselves."""

from __future__ import annotations

FOREIGN = (
    "core_worker.cc",
    "infinite retries remaining",
    "The job may hang forever",
    "deprecated",
    "DeprecationWarning",
    "Token authentication is",
    "PYTHON worker processes have been started",
    "Progress bars disabled",
    "Reporting training result",
    "weights successfully saved",
    "Cleaning up placement group",
    "database tables",
    "streaming_executor.py",
    "Running Dataset",
    "in namespace",
    "TensorBoard",
    "View detailed results",
    "Traceback",
)


def foreign(*texts: str) -> list[str]:
    """The lines of a screen that are not ours."""
    return [line for text in texts for line in text.splitlines() if any(words in line for words in FOREIGN)]
