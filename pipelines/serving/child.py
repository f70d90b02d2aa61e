"""The parent's side of a child process that decodes uploads; the child runs `pipelines.serving.decoder`."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipelines.serving import decoder
from pipelines.serving.decoder import LENGTH, STATUS, DecodeJob

logger = logging.getLogger(__name__)

NO_START = "does not start"
"""The cause of death of a process that has not begun to decode."""

_START_TIMEOUT_S = 60.0
_MAX_ANSWER_BYTES = 2**20
_MAX_ERROR_CHARS = 300
_INHERITED_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "PYTHONHOME")  # others may hold secrets
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class DeathError(Exception):
    """A process ended over an upload.

    Its `cause` is a signal's name, the cause given to `Child.end`, `ended`, or `NO_START`.
    """

    def __init__(self, cause: str) -> None:
        super().__init__(f"the decoder process ended over an upload: {cause}")
        self.cause = cause


@dataclass(frozen=True)
class Answer:
    """What the child answered.

    Attributes:
        frames: uint8 [T, H, W, 3] RGB; None where the upload is refused.
        frame_index: [T], position of each frame in the source.
        fps: frames per second of the source; 0 where it is not known.
        status: HTTP status of a refusal.
        error: why, for the client.
        log: why, for the endpoint's log.
    """

    frames: np.ndarray | None
    frame_index: list[int] = field(default_factory=list)
    fps: float = 0.0
    status: int = 0
    error: str = ""
    log: str = ""


class Child:
    """Decodes one upload at a time. It dies with the thread that starts it, and its fork dies with it."""

    def __init__(self, memory_bytes: int) -> None:
        """Start it.

        Args:
            memory_bytes: limit of the memory that an upload may take.

        Raises:
            DeathError: it does not start, or is killed before it has.
        """
        inherited = {name: os.environ[name] for name in _INHERITED_VARIABLES if name in os.environ}
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", decoder.__name__, str(os.getpid()), str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=inherited | _ONE_THREAD | {"PYTHONPATH": path},
            cwd="/",
            start_new_session=True,  # a group of its own, which Ctrl-C does not reach: the endpoint ends it
        )
        self._cause = ""
        timer = threading.Timer(_START_TIMEOUT_S, self.end, (NO_START,))
        timer.start()
        try:
            missing = self._stdout.readline()
        finally:
            timer.cancel()
        if not missing.endswith(b"\n"):
            self.end(NO_START)
            self._process.wait()
            logger.error("The decoder process does not start; its errors are above.")
            raise DeathError(NO_START)
        if json.loads(missing):
            logger.warning("Uploads are decoded with less protection: %s.", json.loads(missing))

    @property
    def pid(self) -> int:
        """The process id; a fork of this process decodes."""
        return self._process.pid

    @property
    def _stdout(self) -> Any:
        return self._process.stdout

    def alive(self) -> bool:
        """Whether it can decode another upload."""
        return not self._cause and self._process.poll() is None

    def end(self, cause: str) -> None:
        """Kill it, from any thread; `decode` then raises a `DeathError` with this cause."""
        self._cause = self._cause or cause
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # it and its fork, which may have outlived it

    def decode(self, job: DecodeJob, parts: Iterable[bytes]) -> Answer:
        """Send an upload and wait for its frames.

        Raises:
            DeathError: the process, or its fork, ended over it.
        """
        try:
            self._send(job, parts)
            length = self._length()
            answer = self._answer(length, job) if length else None
            if answer is not None and self._length():
                raise _GarbledError
            status = STATUS.unpack(self._read(STATUS.size))[0]
        except (OSError, EOFError) as error:
            self.end("ended")
            self._process.wait()
            raise DeathError(self._cause) from error
        except Exception as error:  # what was in the upload may have taken over the process, and write anything
            self.end("garbled")
            raise DeathError("garbled") from error
        if os.WIFSIGNALED(status):
            raise DeathError(signal.Signals(os.WTERMSIG(status)).name)
        if answer is None or status:
            raise RuntimeError(f"the decoder process failed with status {status}")
        return answer

    def _send(self, job: DecodeJob, parts: Iterable[bytes]) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        stdin.write(job.to_line())
        for part in parts:
            stdin.write(part)
        stdin.flush()

    def _read(self, size: int) -> bytes:
        data = self._stdout.read(size)
        if len(data) < size:
            raise EOFError
        return bytes(data)

    def _length(self) -> int:
        length = LENGTH.unpack(self._read(LENGTH.size))[0]
        if length > _MAX_ANSWER_BYTES:
            raise _GarbledError
        return int(length)

    def _answer(self, length: int, job: DecodeJob) -> Answer:
        """Check everything in an answer: an upload may have taken over the process that wrote it."""
        value = json.loads(self._read(length))
        if "error" in value:
            error, log = (str(value.get(key, ""))[:_MAX_ERROR_CHARS] for key in ("error", "log"))
            return Answer(None, status=int(value["status"]), error=error, log=log)
        shape = tuple(int(size) for size in value["shape"])
        index, fps = [int(i) for i in value["frame_index"]], float(value["fps"])
        if len(shape) != 4 or shape[3] != 3 or min(shape) < 1 or len(index) != shape[0] or not math.isfinite(fps):
            raise _GarbledError
        if math.prod(shape) > job.max_bytes:
            raise _GarbledError
        frames = np.empty(shape, np.uint8)
        if self._stdout.readinto(frames.reshape(-1)) < frames.size:
            raise EOFError
        return Answer(frames, index, fps)


class _GarbledError(Exception):
    """The process wrote something that the decoder never writes."""


class Call:
    """One upload, which can be given up from another thread while a process decodes it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._end_cause = ""

    @contextmanager
    def running_in(self, child: Child, timeout_s: float) -> Iterator[None]:
        """Let `child` decode this upload in the block, for at most `timeout_s`.

        Raises:
            DeathError: the upload was given up before.
        """
        with self._lock:
            if self._end_cause:
                raise DeathError(self._end_cause)
            self._child = child
        timer = threading.Timer(timeout_s, self.end, ("timeout",))
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            with self._lock:
                self._child = None

    def end(self, cause: str) -> None:
        """Give up the upload and kill its process."""
        with self._lock:
            self._end_cause = self._end_cause or cause
            if self._child is not None:
                self._child.end(cause)
