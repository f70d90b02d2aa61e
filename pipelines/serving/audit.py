"""The audit log: one JSON line for each request, written by the HTTP proxy, which sees each exactly once."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from typing import Any

from robometer.settings import ConfigError

logger = logging.getLogger(__name__)

MAX_BYTES, KEPT = 64 * 2**20, 9
"""A file of this size is renamed (.1, .2, ...), and this many old ones are kept."""


class AuditLog:
    """Appends lines to a file. The replicas say which one; it holds no token and no task.

    Attributes:
        path: of the file; empty: none.
    """

    def __init__(self) -> None:
        self.path, self._handler = "", RotatingFileHandler("/dev/null", delay=True)

    def name_file(self, path: str) -> None:
        """Write to this file from now on; empty: nowhere."""
        if path == self.path:
            return
        self._handler.close()
        self.path = path
        if path:
            self._handler = RotatingFileHandler(
                path, maxBytes=MAX_BYTES, backupCount=KEPT, encoding="utf-8", delay=True
            )

    def write(self, **entry: Any) -> None:
        """Append one line; where the disk refuses it, the log of the proxy says so, and requests go on."""
        if not self.path:
            return
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": time, **entry})
        try:
            record = logging.makeLogRecord({"msg": line})
            if self._handler.shouldRollover(record):
                self._handler.doRollover()
            logging.FileHandler.emit(self._handler, record)
        except OSError as error:
            logger.error("The audit log cannot be written (%s): %s", error.strerror, line)


def check_audit_log(path: str) -> None:
    """Check that lines can be appended to a file.

    Raises:
        ConfigError: they cannot.
    """
    try:
        if path:
            open(path, "ab").close()
    except OSError as error:
        raise ConfigError(f"serve.audit_log={path} cannot be written ({error.strerror})") from error
